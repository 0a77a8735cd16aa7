"""What a process keeps of the memory that it has freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = 20
PROGRAM = f"""
import resource, sys
import numpy as np
from wardround.processes.memory import keep_freed_memory

def work():
    blocks = [np.ones(250_000) for _ in range(9)]  # 2 MB each

if sys.argv[1] == "keep":
    keep_freed_memory()
work()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_repeated_work_does_not_fetch_its_pages_again() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, check=True).stdout)
        for way in ("return", "keep")
    }
    assert faults["return"] > ROUNDS * 1000 and faults["keep"] < ROUNDS * 10
