"""What all pre-trainings share: arithmetic that repeats itself, and a file that says how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from wardround.networks.model_file import tensors_sha256, write_shipped


@contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Run the block with this many threads, and restore their number and torch's random state afterwards.

    With the same seed and number of threads the block gives the same tensors on one machine. A block that draws random
    numbers sets its own seed.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def write_pretrained(out_file: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """Write a file that ships, and return its metadata: `facts`, torch's version and the hash of the tensors.

    Raises a one-line `UsageError` if the file cannot be written.
    """
    metadata = {
        **facts,
        "torch": torch.__version__.split("+")[0],
        "tensors_sha256": tensors_sha256(tensors),
    }
    write_shipped(out_file, dict(tensors), metadata)
    return metadata
