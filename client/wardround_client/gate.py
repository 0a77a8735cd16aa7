"""The gate between Flower and this hospital: all that replaces something inside Flower, in one file.

Flower brings a bundle of code with every run, unpacks it and puts it first on Python's path: a bundle with a package of
our name would run at every hospital. Here Flower's own loop takes the tasks, and everything behind it is ours:

    executor process   Flower's loop that acquires tasks, with `SiteExecutor` in place of its launcher
    task process       Flower's exchange of one message, with no installer and a loader that knows our app alone

So a bundle is never unpacked, whatever it holds, and only the installed ClientApp answers. Tasks of any other type are
taken and refused: left lying, they would block the node. A task's token goes through a pipe, not on a command line. A
task that passes its message's deadline is killed from outside, after `app.py` had its chance to end it from within.

    python -I -m wardround_client.gate executor SITE_FOLDER ADDRESS SECRET_FILE
    python -I -m wardround_client.gate task SITE_FOLDER ADDRESS TASK_TYPE PIPE     token on stdin, deadline to PIPE
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

from wardround.errors import WardroundError
from wardround.inflation import arrays_at_most
from wardround.logs import print_lines
from wardround.tied import tied

START_LIMIT_S = 300.0  # until a task has its message: a slow disk may take a while to load torch
MOST_BYTES = 2**30  # of a question; ten times the largest of the usual networks
BEFORE_TTL_S = 15.0  # a reply after its message's time to live is lost, and app.py has had its time by then

log = logging.getLogger(__name__)


# The executor process


@dataclass(kw_only=True)
class Running:
    """A task process: what it reads its deadline from, and when it is killed (seconds since 1970)."""

    process: subprocess.Popen[bytes]
    pipe: int
    ends: float


class SiteExecutor:
    """Flower's `Executor`, which starts `wardround_client.gate task` for whatever comes, and kills what hangs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[Running] = []

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """Every type, so that what is not for us is refused and not left lying."""
        return set(TaskType), set()

    def wait_for_capacity(self, *args: object, **kwargs: object) -> None:
        """There is always room: a SuperNode hands out one message at a time."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the task's process, tied to this one, with its token on stdin."""
        reads, writes = os.pipe()
        program = [sys.executable, "-I", "-m", __spec__.name if __spec__ else "wardround_client.gate"]
        command = [*program, "task", str(self._folder), spec.runtime_api_address, str(spec.task_type), str(writes)]
        process = subprocess.Popen(
            tied(command, signal.SIGKILL), cwd=self._folder, stdin=subprocess.PIPE, pass_fds=(writes,)
        )
        os.close(writes)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(spec.token.encode("ascii") + b"\n")
                process.stdin.close()
        fcntl.fcntl(reads, fcntl.F_SETFL, os.O_NONBLOCK)
        self._running.append(Running(process=process, pipe=reads, ends=time.time() + START_LIMIT_S))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Called between looks for tasks: forget what ended, learn deadlines, kill what passed its own."""
        for task in list(self._running):
            with contextlib.suppress(BlockingIOError, ValueError):
                if told := os.read(task.pipe, 64):
                    task.ends = float(told.split()[0]) - BEFORE_TTL_S
            if task.process.poll() is None and time.time() > task.ends:
                log.error("task process %s is past its deadline; it is killed", task.process.pid)
                task.process.kill()
            if task.process.poll() is not None:
                os.close(task.pipe)
                self._running.remove(task)

    def close(self) -> None:
        """Kill what still runs: its message gets no reply, and the server names this site as late or unreachable."""
        for task in self._running:
            task.process.kill()
            task.process.wait()


def run_executor(folder: Path, address: str, secret: Path) -> None:
    """Take the tasks of the SuperNode at `address` until this process is ended."""
    from flwr.supercore.superexec import run_superexec as inside

    executor = SiteExecutor(folder)
    inside.get_executor = lambda *args, **kwargs: executor
    inside.run_superexec(
        runtime_api_address=address,
        insecure=True,  # loopback, between processes of one user; the secret tells them apart from others
        superexec_auth_secret=secret.read_bytes(),
        runtime_dependency_install=False,
    )


# The task process

App = Callable[[Message, Context], Message]


def run_task(folder: Path, address: str, task_type: str, deadline_pipe: int, token: str) -> None:
    """Answer one message and end."""
    from flwr.supernode.runtime import run_clientapp as inside

    app = functools.partial(_behind_the_gate, folder, task_type, deadline_pipe)
    inside.pull_task_input = functools.partial(whatever_came, inside.pull_task_input)
    close_the_gate(app, functools.partial(_not_understood, folder))
    with arrays_at_most(MOST_BYTES):
        inside.run_clientapp(
            runtime_api_address=address, token=token, insecure=True, certificates=None, runtime_dependency_install=False
        )


def close_the_gate(app: App, failed: Callable[[], object] = list) -> None:
    """From here on Flower unpacks nothing in this process, knows no app but `app`, and tells the server no text of an
    exception of its own; `failed` is called first where it has one.
    """
    from flwr.supernode.runtime import run_clientapp as inside

    def error(code: int, reason: str) -> Error:
        failed()
        return Error(code=code, reason="failed")

    inside.install_from_fab = lambda *args, **kwargs: None
    inside.get_load_client_app_fn = lambda *args, **kwargs: lambda *bundle: app
    inside.Error = error


def whatever_came(pull: Callable[[Any], tuple[Message, Any, Any, Any]], client: Any) -> tuple[Message, Any, Any, Any]:
    """Flower's `pull_task_input`, which gives a message without content where its content cannot be put together.

    Flower's own raises: nobody answers then, and the SuperNode waits for the answer for ever.
    """
    from flwr.common.serde import context_from_proto, fab_from_proto, message_from_proto, run_from_proto

    given: dict[str, Any] = {}

    def keep(name: str) -> None:
        ask = getattr(client, name)

        def asked(request: Any) -> Any:
            given[name] = ask(request)
            return given[name]

        setattr(client, name, asked)

    for name in ("PullTaskInput", "PullMessages"):
        keep(name)
    try:
        return pull(client)
    except Exception:
        if "PullMessages" not in given or not given["PullMessages"].messages_list:
            raise  # there is nobody to answer
        log.exception("a message could not be put together")
    task, messages = given["PullTaskInput"], given["PullMessages"]
    message = message_from_proto(messages.messages_list[0])
    message.metadata.__dict__["_message_id"] = messages.message_object_trees[0].object_id
    return message, context_from_proto(task.context), run_from_proto(task.run), fab_from_proto(task.fab)


def _not_understood(folder: Path) -> None:
    """A message could not be read, by Flower or by us: write it down as refused."""
    from wardround.audit import AUDIT_FILE, AuditLog
    from wardround.audit_events import MessageRefused

    AuditLog(folder / AUDIT_FILE).append(MessageRefused(code="failed"))


def _behind_the_gate(folder: Path, task_type: str, deadline_pipe: int, message: Message, context: Context) -> Message:
    from wardround_client.site_app import recorded_refusal, refusal, site_app

    try:
        os.write(deadline_pipe, f"{message.metadata.created_at + message.metadata.ttl}\n".encode())
        if task_type != TaskType.CLIENT_APP:
            log.error("a task of type %s was refused: this hospital runs no code that is sent to it", task_type)
            return recorded_refusal(folder, message, "task_type")
        return site_app(folder)(message, context)
    except Exception:  # Flower would send its text to the server
        log.exception("failed")
        with contextlib.suppress(WardroundError):  # what cannot be written down is refused all the same
            _not_understood(folder)
        return refusal(message, "failed")


def main(arguments: Sequence[str]) -> None:
    """Be one of the two processes."""
    print_lines(__name__, "wardround", "wardround_client")
    part, folder, address, *rest = arguments
    if part == "executor":
        run_executor(Path(folder), address, Path(rest[0]))
    elif part == "task":
        run_task(Path(folder), address, rest[0], int(rest[1]), sys.stdin.readline().strip())
    else:
        sys.exit("wardround_client.gate has two parts: executor and task")


if __name__ == "__main__":
    main(sys.argv[1:])
