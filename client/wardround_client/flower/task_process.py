"""The process that answers one message, in which Flower can run no code but the installed ClientApp.

Flower sends a bundle of code with every run, unpacks it and puts it first on Python's path: a bundle with a package of
our name would run at every hospital. In this process Flower exchanges the message without an installer and with a
loader that returns our app only. A bundle is therefore never unpacked, whatever its contents, and only the installed
ClientApp answers. Tasks of any other type are refused. `executor.py` starts the process, and kills it if it passes its
message's deadline.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.supercore.constant import TaskType

from wardround.errors import WardroundError
from wardround.flower.array_limit import arrays_at_most
from wardround.operations.logs import print_lines
from wardround.processes.parent_death import end_with_parent

MOST_BYTES = 2**30  # of a message; ten times the size of the largest usual network
PROCESS_NAME = "wardround-task"

log = logging.getLogger(__name__)

App = Callable[[Message, Context], Message]


def run_task(folder: Path, address: str, task_type: str, deadline: Connection, token: str, proofs: Path) -> None:
    """Answer one message of the SuperNode at `address`, and end.

    Args:
        deadline: Receives the time at which the message expires (seconds since 1970).
        proofs: As for `open_site`.
    """
    end_with_parent(signal.SIGKILL, PROCESS_NAME)
    print_lines(__name__, "wardround", "wardround_client")
    from flwr.supernode.runtime import run_clientapp as inside

    app = functools.partial(_behind_the_gate, folder, task_type, deadline, proofs)
    inside.pull_task_input = functools.partial(pull_or_first_message, inside.pull_task_input)
    refuse_other_tasks(app, functools.partial(_not_understood, folder))
    with arrays_at_most(MOST_BYTES):
        inside.run_clientapp(
            runtime_api_address=address, token=token, insecure=True, certificates=None, runtime_dependency_install=False
        )


def refuse_other_tasks(app: App, failed: Callable[[], object] = list) -> None:
    """Make Flower unpack no bundle in this process, load no app but `app`, and send no text of its own exceptions.

    If Flower reports an exception, `failed` is called first, and the server receives only the text "failed".
    """
    from flwr.supernode.runtime import run_clientapp as inside

    def error(code: int, reason: str) -> Error:
        failed()
        return Error(code=code, reason="failed")

    # Functions and a class of Flower's are replaced by others with the same signatures.
    inside.install_from_fab = lambda *args, **kwargs: None  # type: ignore[assignment]
    inside.get_load_client_app_fn = lambda *args, **kwargs: lambda *bundle: app  # type: ignore[assignment]
    inside.Error = error  # type: ignore[assignment, misc]


def pull_or_first_message(
    pull: Callable[[Any], tuple[Message, Any, Any, Any]], client: Any
) -> tuple[Message, Any, Any, Any]:
    """Call Flower's `pull_task_input`, but return a message without content if its content cannot be put together.

    Flower's own function raises in that case: no reply is sent, and the SuperNode waits for one forever. It also takes
    the labels of a message from its content, where they have not been checked; this function takes them from the
    message's envelope, where `message_limit.py` has checked them.
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
        message, *rest = pull(client)
        message.metadata.__dict__.update(_labels(given["PullMessages"]))
        return message, *rest
    except Exception:
        if "PullMessages" not in given or not given["PullMessages"].messages_list:
            raise  # there is no message to reply to
        log.exception("a message could not be assembled")
    task, messages = given["PullTaskInput"], given["PullMessages"]
    message = message_from_proto(messages.messages_list[0])
    message.metadata.__dict__.update(_labels(messages))
    return message, context_from_proto(task.context), run_from_proto(task.run), fab_from_proto(task.fab)


def _labels(messages: Any) -> dict[str, Any]:
    from flwr.common.serde import message_from_proto

    labels = vars(message_from_proto(messages.messages_list[0]).metadata)
    return {**labels, "_message_id": messages.message_object_trees[0].object_id}


def _not_understood(folder: Path) -> None:
    """Record as refused a message that could not be read, by Flower or by this process."""
    from wardround.records.audit_events import MessageRefused
    from wardround.records.audit_log import AUDIT_FILE, AuditLog

    AuditLog(folder / AUDIT_FILE).append(MessageRefused(code="failed"))


def _behind_the_gate(
    folder: Path, task_type: str, deadline: Connection, proofs: Path, message: Message, context: Context
) -> Message:
    from wardround_client.flower.site_app import recorded_refusal, refusal, site_app

    try:
        deadline.send_bytes(repr(message.metadata.created_at + message.metadata.ttl).encode())
        if task_type != TaskType.CLIENT_APP:
            log.error("a task of type %s was refused: this hospital does not run code from the server", task_type)
            return recorded_refusal(folder, message, "task_type")
        return site_app(folder, proofs)(message, context)
    except Exception:  # Flower would send the exception's text to the server
        log.exception("failed")
        with contextlib.suppress(WardroundError):  # the message is refused even if this cannot be recorded
            _not_understood(folder)
        return refusal(message, "failed")
