"""The memory of this machine, and what this process keeps of the memory that it has freed."""

from __future__ import annotations

import ctypes
from pathlib import Path

UNKNOWN_BYTES = 1 << 30  # assumed where neither can be read
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_BLOCK_BYTES, KEPT_BYTES = 32 << 20, 128 << 20


def keep_freed_memory(kept_bytes: int = KEPT_BYTES, largest_block_bytes: int = LARGEST_BLOCK_BYTES) -> None:
    """Let the C library keep freed memory for the next allocations of this process (glibc only).

    Every training step and every decoded image frees and allocates the same few megabytes. Otherwise the library
    returns them to the kernel each time, and pays for their pages anew. It keeps `kept_bytes` at the end of its heap;
    blocks larger than `largest_block_bytes` are returned at once. (Some versions allow 32 MB at most for these, and
    change nothing for a larger number.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, largest_block_bytes):
        mallopt(M_TRIM_THRESHOLD, kept_bytes)


def machine_memory_bytes() -> int:
    """Return the memory that this process may use at most, in bytes.

    What is free at the moment is not asked: it depends on what was read before.
    """
    found = [total_bytes(), control_group_bytes()]
    return min((value for value in found if value is not None), default=UNKNOWN_BYTES)


def total_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    """Return the machine's memory in bytes, or None if it cannot be read."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")), None)


def control_group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory limit of control group v2; None without a control group or without a limit."""
    try:
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        return None if most == "max" else int(most)
    except (OSError, ValueError):
        return None
