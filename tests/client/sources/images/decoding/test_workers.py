"""Worker processes: results are in order, a death or a hang affects only its item, and no process is left running."""

import ctypes
import importlib
import operator
import os
import random
import signal
import sys
import time

import pytest

from wardround.errors import WardroundError
from wardround_client.sources.images.decoding.workers import Lost, WorkerPool


def processes(pool):
    return [worker.process for worker in pool._workers]


def test_results_come_in_the_order_of_the_items_whatever_the_timing():
    waits = [random.Random(3).random() / 50 for _ in range(40)]
    with WorkerPool(2) as pool:
        assert list(pool.map(time.sleep, waits)) == [None] * 40
        assert list(pool.map(operator.neg, range(200))) == [-n for n in range(200)]
        assert list(pool.map(operator.neg, [])) == []


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Functions that a fresh process can import."""
    (tmp_path / "of_this_test.py").write_text(
        "import os, sys\n"
        "def exit_at_zero(item):\n"
        "    if item == 0: os._exit(1)\n"
        "    return item\n"
        "def has_module(name):\n"
        "    import wardround_client.sources.images.decoding.prepare\n"
        "    return name in sys.modules\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("of_this_test", None)
    return importlib.import_module("of_this_test")


def test_a_decoder_that_crashes_costs_its_file_and_no_other(functions):
    with WorkerPool(2) as pool:
        items = [0 if index in (3, 17) else 1 for index in range(30)]
        results = list(pool.map(functions.exit_at_zero, items))
        assert results == [Lost("decoder_crashed") if item == 0 else 1 for item in items]
        assert all(process.is_alive() for process in processes(pool))


def test_a_segmentation_fault_is_a_lost_item():
    with WorkerPool(1) as pool:
        assert list(pool.map(ctypes.string_at, [0])) == [Lost("decoder_crashed")]
        assert list(pool.map(operator.neg, [5])) == [-5]


def test_a_decoder_that_hangs_is_stopped_at_its_time_limit():
    with WorkerPool(2, item_limit_s=1.0) as pool:
        start = time.monotonic()
        assert list(pool.map(time.sleep, [0, 600, 0, 0])) == [None, Lost("too_slow"), None, None]
        assert time.monotonic() - start < 60


def test_a_worker_killed_from_outside_loses_nothing():
    with WorkerPool(2) as pool:
        results = []
        for result in pool.map(operator.neg, range(300)):
            results.append(result)
            if len(results) in (5, 150):
                os.kill(processes(pool)[0].pid, signal.SIGKILL)
        assert results == [-n for n in range(300)]


def test_the_text_of_an_error_stays_in_the_worker():
    with WorkerPool(1) as pool, pytest.raises(WardroundError, match="ValueError") as raised:
        list(pool.map(int, ["CANARY"]))
    assert "CANARY" not in str(raised.value)


def test_no_process_is_left_and_no_worker_has_torch(functions):
    with WorkerPool(2) as pool:
        assert list(pool.map(functions.has_module, ["torch", "numpy"])) == [False, True]
        running = processes(pool)
    assert all(process.exitcode is not None for process in running)


def test_a_map_given_up_half_way_leaves_nothing_to_the_next():
    with WorkerPool(2) as pool:
        for result in pool.map(operator.neg, range(100)):
            if result == -3:
                break
        assert list(pool.map(operator.neg, range(1000, 1010))) == [-n for n in range(1000, 1010)]
