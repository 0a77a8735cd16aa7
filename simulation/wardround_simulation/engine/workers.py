"""A pool of worker processes for a command's own work.

Workers are spawned rather than forked, ignore Ctrl-C, which the command handles, and end when the command ends. A plain
`ProcessPoolExecutor` waits after Ctrl-C for every task that is being worked on, and its workers wait for work for ever
after a SIGKILL of the command.
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
    """Yield a pool whose workers use one torch thread each and have ended, or been killed, when the block ends.

    Raises:
        WardroundError: If a worker was killed from outside.
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
                    "a worker process was killed, possibly because memory ran out; the same command continues the run"
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
