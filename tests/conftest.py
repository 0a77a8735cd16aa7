"""What every test gets: one thread for arithmetic, so that tests are as fast beside others' work as alone."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch or numpy are imported anywhere

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# No deadline an example: a busy machine is no fault. In CI the same examples each time; elsewhere new ones.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")


# Files of whole runs begin first, so that no core waits for the last of them.
LONGEST = ("test_end_to_end", "test_engine", "test_attack", "test_histogram_metrics", "test_compare", "test_models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
