"""The actor that runs in the simulation's workers: it answers as Flower's does, and imports less."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.supercore.task_identity import TaskIdentity

from wardround_simulation.engine.client_app_actor import RARELY, ClientAppActor


@pytest.fixture(autouse=True)
def collection(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):  # as Flower sets them in a process that answers
        monkeypatch.setattr(TaskIdentity, name, 1)
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def message_and_context() -> tuple[Message, Context]:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return Message(RecordDict(), dst_node_id=1, message_type="query.ask"), context


def test_garbage_is_collected_as_usual_from_the_first_answer_on() -> None:
    app, (message, context) = ClientApp(), message_and_context()
    app.query("ask")(lambda message, context: Message(RecordDict(), reply_to=message))
    usual = gc.get_threshold()
    actor = ClientAppActor()
    assert gc.get_threshold()[0] == RARELY and gc.isenabled()
    name, reply, same = actor.run(lambda: app, message, "3", context)
    assert gc.get_threshold() == usual and name == "3" and same is context
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_an_app_that_fails_raises_what_flower_expects_and_garbage_is_collected() -> None:
    app, (message, context) = ClientApp(), message_and_context()

    @app.query("ask")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("no")

    usual = gc.get_threshold()
    actor = ClientAppActor()
    with pytest.raises(ClientAppException):
        actor.run(lambda: app, message, "3", context)
    assert gc.get_threshold() == usual


def test_a_worker_loads_nothing_of_flowers_server() -> None:
    heavy = ("sqlalchemy", "alembic", "fastapi", "flwr.simulation", "ray")
    code = f"import sys, wardround_simulation.engine.client_app_actor; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
