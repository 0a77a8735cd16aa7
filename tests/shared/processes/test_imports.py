"""Garbage collection waits for imports, and goes on afterwards whatever happens."""

from __future__ import annotations

import gc

import pytest

from wardround.processes.imports import collection_paused


def test_collection_is_paused_inside_and_goes_on_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ImportError), collection_paused():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collection_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
