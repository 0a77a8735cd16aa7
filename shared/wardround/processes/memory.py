"""The memory of this machine: the smaller of the kernel's total and the control group's limit."""

from __future__ import annotations

from pathlib import Path

UNKNOWN_BYTES = 1 << 30  # assumed where neither can be read


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
