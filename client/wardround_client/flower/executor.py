"""The executor process of a site: it takes Flower's tasks and has each answered in a process of its own.

    executor process   Flower's loop that acquires tasks, with `SiteExecutor` in place of its launcher
    warm process       loaded once with all that an answer needs (`preload.py`), and nothing else
    task processes     forked off the warm one, one a message (`task_process.py`)

Tasks of every type are taken, so that what is not for us is refused: left lying, it would block the node. A task that
passes its message's deadline is killed from outside, after `client_app.py` had its chance to end it from within. The
warm process (`multiprocessing`'s fork server) has no thread, no device, no data and no secret, so that its forks share
none. The kernel ends it with the executor, and its forks with it.

    python -I -m wardround_client.flower.executor SITE_FOLDER ADDRESS SECRET_FILE
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

from wardround.operations.logs import print_lines
from wardround_client.flower.task_process import run_task
from wardround_client.site.paths import PROOFS

START_LIMIT_S = 300.0  # until a task has its message: a slow disk may take a while to load torch
BEFORE_TTL_S = 15.0  # a reply after its message's time to live is lost, and client_app.py has had its time by then
END_LIMIT_S = 10.0  # for a killed process to be gone
WARM = ["wardround_client.flower.preload"]  # what the warm process imports

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Running:
    """A task process: where it says its deadline, and when it is killed (seconds since 1970)."""

    process: ForkServerProcess
    deadline: Connection
    ends: float


class SiteExecutor:
    """Flower's `Executor`, which answers whatever comes in a process of its own, and kills what hangs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Running] = []
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(WARM)

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """Every type, so that what is not for us is refused and not left lying."""
        return set(TaskType), set()

    def wait_for_capacity(self, *args: object, **kwargs: object) -> None:
        """There is always room: a SuperNode hands out one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork the task's process. Its token is in no command line, environment or file."""
        reads, writes = self._processes.Pipe(duplex=False)
        where = (self._folder, spec.runtime_api_address, str(spec.task_type), writes, spec.token, self._folder / PROOFS)
        process = self._processes.Process(target=run_task, args=where)
        try:
            process.start()
        except (OSError, EOFError):  # the warm process is gone; the next task starts it again
            log.exception("no process could be started for a task")
            reads.close()
            return LaunchResult.failed("no process could be started")
        finally:
            writes.close()
        self._running.append(Running(process=process, deadline=reads, ends=time.time() + START_LIMIT_S))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Called between looks for tasks: forget what ended, learn deadlines, kill what passed its own."""
        for task in list(self._running):
            with contextlib.suppress(EOFError, OSError, ValueError):
                if task.deadline.poll():
                    task.ends = float(task.deadline.recv_bytes(64)) - BEFORE_TTL_S
            if task.process.is_alive() and time.time() > task.ends:
                log.error("task process %s has passed its deadline and is killed", task.process.pid)
                task.process.kill()
            if not task.process.is_alive():
                task.deadline.close()
                self._running.remove(task)

    def close(self) -> None:
        """Kill what still runs: its message gets no reply, and the server names this site as late or unreachable."""
        for task in self._running:
            task.process.kill()
            task.process.join(END_LIMIT_S)


def run_executor(folder: Path, address: str, secret: Path) -> None:
    """Take the tasks of the SuperNode at `address` until this process is ended."""
    from flwr.supercore.superexec import run_superexec as inside

    if (folder / PROOFS).exists():
        shutil.rmtree(folder / PROOFS)  # an earlier start's count no more; where they cannot be removed nothing starts
    executor = SiteExecutor(folder)
    forkserver.ensure_running()  # while nobody asks yet
    inside.get_executor = lambda *args, **kwargs: executor
    inside.run_superexec(
        runtime_api_address=address,
        insecure=True,  # loopback, between processes of one user; the secret tells them apart from others
        superexec_auth_secret=secret.read_bytes(),
        runtime_dependency_install=False,
    )


def main(arguments: Sequence[str]) -> None:
    """Be the executor process."""
    print_lines(__name__, "wardround", "wardround_client")
    folder, address, secret = arguments
    run_executor(Path(folder), address, Path(secret))


if __name__ == "__main__":
    main(sys.argv[1:])
