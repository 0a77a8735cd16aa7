"""How many sites fit beside each other on a GPU, by measurement.

Ray's fraction of a GPU is only a count: it caps no memory. So one real training step is run in a process of its own,
and what the GPU is short of afterwards (the framework's context and the most memory its allocator ever held) is what a
site needs.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from wardround.errors import WardroundError

SPARE = 0.1  # of a GPU's memory that stays free: fragmentation, and what the driver takes as it goes
SLACK = 1.15  # a step of the largest site may need a little more than the measured one
STEP_LIMIT_S = 300.0


def gpu_share(step: Callable[[], None] | None) -> tuple[int, float]:
    """GPUs of this machine, and the fraction of one that a site gets, as Ray's `num_gpus` (1/k for k sites a GPU).

    `step` does one real training step on "cuda", and must be picklable; with None a site gets a whole GPU. Raises
    `WardroundError` when there is no GPU, or the step does not fit.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise WardroundError("device = cuda, but torch finds no CUDA GPU; use --device cpu, or mend the driver")
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
        raise WardroundError("one training step did not end on the GPU; use --device cpu, or a smaller model or images")
    return count, share_of(*measured)


def share_of(needed_bytes: int, free_bytes: int) -> float:
    """1/k, for the most sites k that fit into the free memory with slack and spare; Ray counts in steps of 1e-4.

    Raises `WardroundError` when not even one fits.
    """
    sites = int(free_bytes * (1 - SPARE) / (max(1, needed_bytes) * SLACK))
    if sites < 1:
        needed, free = needed_bytes / 2**30, free_bytes / 2**30
        raise WardroundError(f"one site needs {needed:.1f} GiB of GPU memory and {free:.1f} are free; use --device cpu")
    return int(10_000 / min(sites, 100)) / 10_000


def _measure(step: Callable[[], None], sender: multiprocessing.connection.Connection) -> None:
    """In a process of its own: send (bytes the GPU lacks after a step, bytes free before it)."""
    import torch

    free_before = _free_bytes()
    step()
    torch.cuda.synchronize()
    held = torch.cuda.max_memory_reserved()
    context = free_before - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
    sender.send((held + max(0, context), free_before))


def _free_bytes() -> int:
    """Free memory of GPU 0 as the driver tells it, before this process has a context of its own."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return int(answer.stdout.split()[0]) * 2**20
