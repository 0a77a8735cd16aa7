"""Worker processes that may die: a decoder that crashes or hangs costs one file and never stops the run.

`WorkerPool.map` yields one result per item, in the order of the items, independently of timing. Items are sent in short
batches and each result comes back separately, so the parent can tell which item a worker was processing when it died.
That item is tried once more, because the system may have killed the worker for another reason. A second failure gives
`Lost("decoder_crashed")`; an item that exceeds its time limit gives `Lost("too_slow")`.

Workers are started fresh (spawn): they inherit no state and do not import torch. Their output is discarded, because
text printed by a decoder could quote a tag.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from types import TracebackType
from typing import Any

from wardround.errors import WardroundError
from wardround.processes.memory import keep_freed_memory, machine_memory_bytes
from wardround.processes.spawn import FreshContext

BATCH = 8  # items sent at once: enough to hide the latency of the pipe, few enough to share the work evenly
AHEAD = 4  # batches that a worker may be ahead of the results yielded: bounds the parent's memory use
START_LIMIT_S = 60.0
MOST_WORKER_BYTES = 16 * 2**30  # of memory for one worker: a decompression bomb raises MemoryError
LEAST_WORKER_BYTES = 768 * 2**20
# glibc returns arrays of an image's size to the system and asks for them again, which costs a fifth of a worker's time.
KEPT_BYTES = 1 << 28
SHARE_FOR_WORKERS = 0.5  # of the machine's memory, for all workers together


@dataclass(frozen=True)
class Lost:
    """Stands in for a missing result; `code` is the reason."""

    code: str


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: connection.Connection
    busy: deque[int] = field(default_factory=deque)  # indices of items that were sent and have no result yet, in order
    deadline: float = 0.0
    ready: bool = False


class WorkerPool:
    """A pool of `workers` processes; a context manager that starts them on entry and kills them on exit."""

    def __init__(self, workers: int, *, item_limit_s: float = 60.0) -> None:
        self._count = max(1, workers)
        self._item_limit_s = item_limit_s
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> WorkerPool:
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers = []

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Yield `function(item)` for each item, in order. `function` must be importable in a fresh process.

        Raises:
            WardroundError: `function` raised an exception, which is a fault of the program and ends the run.
        """
        waiting = deque(range(len(items)))
        results: dict[int, Any] = {}
        tries: dict[int, int] = {}
        try:
            for wanted in range(len(items)):
                while wanted not in results:
                    horizon = wanted + BATCH * AHEAD * self._count
                    self._hand_out(function, items, waiting, horizon)
                    self._collect(results, waiting, tries)
                yield results.pop(wanted)
        finally:  # if the caller stops half-way, results that are still to come must not reach the next `map`
            for worker in [worker for worker in self._workers if worker.busy]:
                self._replace(worker, waiting)

    def _hand_out(self, function: Callable, items: Sequence, waiting: deque[int], horizon: int) -> None:
        for worker in self._workers:
            if worker.busy or not waiting or waiting[0] >= horizon:
                continue
            share = max(1, min(BATCH, len(waiting) // self._count))
            batch = [waiting.popleft() for _ in range(share)]
            worker.busy.extend(batch)
            worker.deadline = time.monotonic() + self._item_limit_s + (0 if worker.ready else START_LIMIT_S)
            with suppress(OSError):  # the worker has died: `_collect` finds the end of its pipe
                worker.pipe.send((function, [items[index] for index in batch]))

    def _collect(self, results: dict[int, Any], waiting: deque[int], tries: dict[int, int]) -> None:
        """Wait for the next results, dead workers or expired deadlines."""
        busy = [worker for worker in self._workers if worker.busy]
        left_s = min(worker.deadline for worker in busy) - time.monotonic()
        ready = connection.wait([worker.pipe for worker in busy], timeout=max(0.0, left_s))
        for worker in busy:
            if worker.pipe in ready:
                self._read(worker, results, waiting, tries)
            elif time.monotonic() >= worker.deadline:
                worker.process.kill()
                if worker.ready:
                    results[worker.busy.popleft()] = Lost("too_slow")
                self._replace(worker, waiting)

    def _read(self, worker: _Worker, results: dict[int, Any], waiting: deque[int], tries: dict[int, int]) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            if worker.ready:
                suspect = worker.busy.popleft()
                tries[suspect] = tries.get(suspect, 0) + 1
                if tries[suspect] > 1:
                    results[suspect] = Lost("decoder_crashed")
                else:
                    worker.busy.appendleft(suspect)
            self._replace(worker, waiting)
            return
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
        elif kind == "done":
            results[worker.busy.popleft()] = value
        else:
            raise WardroundError(f"a worker process failed: {value}")
        worker.deadline = time.monotonic() + self._item_limit_s

    def _replace(self, worker: _Worker, waiting: deque[int]) -> None:
        """Return a dead worker's items to the front of the queue and start another worker in its place."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > 2 * self._count:
                raise WardroundError("worker processes cannot be started; check that enough memory is free")
        waiting.extendleft(reversed(worker.busy))
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        context = FreshContext()
        ours, theirs = context.Pipe()
        limit = memory_limit_bytes(self._count)
        process = context.Process(target=_serve, args=(theirs, limit), daemon=True, name="wardround-decoder")
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours)


def memory_limit_bytes(workers: int) -> int:
    """Return how much memory one of so many workers may take, from the memory of the machine."""
    share = int(SHARE_FOR_WORKERS * machine_memory_bytes() / workers)
    return max(LEAST_WORKER_BYTES, min(MOST_WORKER_BYTES, share))


def _serve(pipe: connection.Connection, memory_bytes: int) -> None:
    """Run a worker: process batches item by item until the parent closes the pipe."""
    keep_freed_memory(KEPT_BYTES, KEPT_BYTES)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _limit_memory(memory_bytes)
    try:
        pipe.send(("ready", None))
        while True:
            function, items = pipe.recv()
            for item in items:
                pipe.send(_answer(function, item))
    except (EOFError, OSError):
        return


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    try:
        return "done", function(item)
    except Exception as error:
        # Only the type is sent, because an exception's text may quote the data.
        return "failed", type(error).__name__


def _limit_memory(memory_bytes: int) -> None:
    """Limit the address space to what the process has now and `memory_bytes` more."""
    import resource

    pages = (
        int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if Path("/proc/self/statm").exists() else 0
    )
    limit = memory_bytes + pages * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
