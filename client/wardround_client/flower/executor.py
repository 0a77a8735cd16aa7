"""The executor process of a site: it takes Flower's tasks and answers each in a process of its own.

    executor process   Flower's loop that acquires tasks, with `SiteExecutor` in place of its launcher
    warm process       has loaded everything that an answer needs (`preload.py`), and nothing else
    task processes     forked from the warm process, one per message (`task_process.py`)

Tasks of every type are taken, so that tasks that are not for this site are refused; left waiting, they would block the
node. A task that passes its message's deadline is killed from outside, after `client_app.py` had the chance to end it
from within. The warm process (`multiprocessing`'s fork server) has no threads, no device, no data and no secret, so
that its forks share none of them. The kernel ends it together with the executor, and its forks with it.

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

START_LIMIT_S = 300.0  # until a task has its message; loading torch may take a while on a slow disk
BEFORE_TTL_S = 15.0  # a reply after its message's time to live is lost; client_app.py's own limit has passed by then
END_LIMIT_S = 10.0  # for a killed process to end
WARM = ["wardround_client.flower.preload"]  # what the warm process imports

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Running:
    """A task process.

    `deadline` is the connection on which the process reports its message's deadline; `ends` is when the process is
    killed (seconds since 1970).
    """

    process: ForkServerProcess
    deadline: Connection
    ends: float


class SiteExecutor:
    """Flower's `Executor`: answers each task in a process of its own, and kills processes that hang."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Running] = []
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(WARM)

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """Return every task type, so that tasks that are not for this site are refused and not left waiting."""
        return set(TaskType), set()

    def wait_for_capacity(self, *args: object, **kwargs: object) -> None:
        """Return at once: there is always capacity, because a SuperNode hands out one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork the task's process. The task's token appears in no command line, environment or file."""
        reads, writes = self._processes.Pipe(duplex=False)
        where = (self._folder, spec.runtime_api_address, str(spec.task_type), writes, spec.token, self._folder / PROOFS)
        process = self._processes.Process(target=run_task, args=where)
        try:
            process.start()
        except (OSError, EOFError):  # the warm process has ended; the next task starts it again
            log.exception("no process could be started for a task")
            reads.close()
            return LaunchResult.failed("no process could be started")
        finally:
            writes.close()
        self._running.append(Running(process=process, deadline=reads, ends=time.time() + START_LIMIT_S))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Remove ended processes, read reported deadlines and kill processes past their deadline.

        Flower calls this between polls for tasks.
        """
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
        """Kill the processes that still run.

        Their messages get no reply, and the server reports this site as late or unreachable.
        """
        for task in self._running:
            task.process.kill()
            task.process.join(END_LIMIT_S)


def run_executor(folder: Path, address: str, secret: Path) -> None:
    """Take the tasks of the SuperNode at `address` until this process is ended."""
    from flwr.supercore.superexec import run_superexec as inside

    if (folder / PROOFS).exists():
        shutil.rmtree(folder / PROOFS)  # discard proofs of an earlier start; fail if they cannot be removed
    executor = SiteExecutor(folder)
    forkserver.ensure_running()  # before the first task arrives
    inside.get_executor = lambda *args, **kwargs: executor
    inside.run_superexec(
        runtime_api_address=address,
        insecure=True,  # loopback, between processes of one user, which the secret authenticates
        superexec_auth_secret=secret.read_bytes(),
        runtime_dependency_install=False,
    )


def main(arguments: Sequence[str]) -> None:
    """Run the executor process."""
    print_lines(__name__, "wardround", "wardround_client")
    folder, address, secret = arguments
    run_executor(Path(folder), address, Path(secret))


if __name__ == "__main__":
    main(sys.argv[1:])
