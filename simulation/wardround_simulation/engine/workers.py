"""Worker processes for a command's own work: they start fresh, leave Ctrl-C to the command, and end when it ends.

Python's pool by itself waits at a Ctrl-C for every piece that is being worked on, and after a SIGKILL of the command
its workers wait for work for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from wardround.errors import WardroundError
from wardround.processes.spawn import FreshContext


@contextmanager
def process_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers, one torch thread each, are gone when the block ends, however it ends.

    Raises `WardroundError` where a worker was ended from outside.
    """
    with ProcessPoolExecutor(processes, mp_context=FreshContext(), initializer=_start_worker) as pool:
        try:
            yield pool
        except BaseException as error:
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise WardroundError(
                    "a worker process was ended from outside, perhaps for want of memory; the same command continues"
                ) from None
            raise


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
