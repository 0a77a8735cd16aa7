"""Measure how many sites can share a GPU.

Ray's fraction of a GPU is only a count and does not limit memory. So one real training step runs in a separate process,
and a site's need is measured as the memory that the step takes: the framework's context plus the most memory that its
allocator ever held.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from wardround.errors import WardroundError

SPARE = 0.1  # fraction of a GPU's memory that stays free, for fragmentation and for what the driver allocates later
SLACK = 1.15  # a step of the largest site may need a little more than the measured one
STEP_LIMIT_S = 300.0


def gpu_share(step: Callable[[], None] | None) -> tuple[int, float]:
    """Return the number of GPUs of this machine, and the fraction of one GPU that each site gets.

    Args:
        step: Does one real training step on "cuda"; must be picklable. With None a site gets a whole GPU.

    Returns:
        The count, and the fraction as Ray's `num_gpus`: 1/k for k sites per GPU.

    Raises:
        WardroundError: If there is no GPU, or the step does not fit.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise WardroundError("device = cuda, but torch finds no CUDA GPU; use --device cpu or fix the GPU driver")
    if step is None:
        return count, 1.0
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(step, sender))
    process.start()
    sender.close()
    try:
        measured = receiver.recv() if receiver.poll(STEP_LIMIT_S) else None
    except EOFError:
        measured = None
    finally:
        process.kill()
        process.join()
    if measured is None:
        raise WardroundError(
            "one training step did not finish on the GPU; use --device cpu, a smaller model or smaller images"
        )
    return count, share_of(*measured)


def share_of(needed_bytes: int, free_bytes: int) -> float:
    """Return 1/k for the largest number of sites k that fits into the free memory with slack and spare.

    The result is rounded down to a multiple of 1e-4, the unit in which Ray counts.

    Raises:
        WardroundError: If not even one site fits.
    """
    sites = int(free_bytes * (1 - SPARE) / (max(1, needed_bytes) * SLACK))
    if sites < 1:
        needed, free = needed_bytes / 2**30, free_bytes / 2**30
        raise WardroundError(
            f"one site needs {needed:.1f} GiB of GPU memory and a reserve, but {free:.1f} GiB are free; "
            "use --device cpu"
        )
    return int(10_000 / min(sites, 100)) / 10_000


def _measure(step: Callable[[], None], sender: multiprocessing.connection.Connection) -> None:
    """Run in a separate process: send (bytes of GPU memory that the step takes, bytes free before it)."""
    import torch

    free_before = _free_bytes()
    step()
    torch.cuda.synchronize()
    held = torch.cuda.max_memory_reserved()
    context = free_before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    sender.send((held + max(0, context), free_before))


def _free_bytes() -> int:
    """Return the free memory of GPU 0 in bytes from nvidia-smi, which needs no CUDA context in this process."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, encoding="ascii", timeout=30, check=True)
    return int(answer.stdout.split()[0]) * 2**20
