"""What every test gets: one thread for arithmetic, so that tests are as fast beside others' work as alone."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch or numpy are imported anywhere

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No deadline an example: a busy machine is no fault. In CI the same examples each time; elsewhere new ones.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
