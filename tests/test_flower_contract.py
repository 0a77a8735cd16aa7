"""The parts of Flower on which this project relies without a guarantee, each with the reason.

`PUBLIC` is Flower's documented interface. Everything else is private and may change with any release. The tests compare
the two tables with the source, so that neither can be out of date, and with the installed Flower, so that a new version
that moves a part fails here first, next to the reason.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation")

# What is replaced at run time: module -> attribute -> why, and what breaks if it moves.
REPLACED = {
    "flwr.app.Array": {
        "inflate": "bounds what the arrays of one message may hold before memory is asked for; without it a peer "
        "fills the memory",
    },
    "flwr.client.grpc_rere_client.connection": {
        "create_channel": "keep-alive for the site's connection; without it a dead network is noticed after hours",
    },
    "flwr.supernode.start_client_internal": {
        "grpc_request_response": "a reply survives a cut connection; without it a cut loses the round's reply",
        "_init_connection": "bounds each message of the server; without it a server fills the site's memory",
        "GRPC_MAX_MESSAGE_LENGTH": "the same, for one call",
        "get_fused_config_from_fab": "reads no configuration out of a bundle; without it a server's zip is unpacked",
    },
    "flwr.supernode.nodestate.nodestate_factory": {
        "InMemoryNodeState": "keeps a bounded number of messages; without it they pile up in memory",
    },
    "flwr.supernode.runtime.run_clientapp": {
        "pull_task_input": "takes over a message without its bundle; without it a task that hangs is in no log",
        "install_from_fab": "installs nothing that a server sends; without it a server runs code at a site",
        "get_load_client_app_fn": "the site's own app answers; without it a server's does",
        "Error": "no text of an exception leaves the site; without it a traceback may name a patient's file",
    },
    "flwr.supercore.superexec.run_superexec": {
        "get_executor": "tasks run in forks of one loaded process; without it each message loads torch anew (seconds)",
    },
    "flwr.superlink.cli.flower_superlink": {
        "FleetServicer": "bounds what a site may send; without it a site fills the server's disk and memory",
        "GRPC_MAX_MESSAGE_LENGTH": "the same, for one call",
        "generic_create_grpc_server": "calls at once; without it a few slow sites take all threads",
    },
    "flwr.server.superlink.fleet.vce.vce_api": {
        "add_messages_to_queue": "simulation: a message starts at once instead of after up to 0.1 s",
    },
    "flwr.server.superlink.fleet.vce.backend.raybackend": {
        "RayBackend": "simulation: a worker that died is replaced, and a stop ends in time",
        "ClientAppActor": "simulation: workers load less of Flower, which saves time and memory at the start",
    },
}

# What is imported from private modules: module -> names -> why.
IMPORTED = {
    "flwr.client.grpc_rere_client": {"connection": "see REPLACED"},
    "flwr.clientapp.client_app": {"ClientAppException": "how a worker of the simulation reports an app that failed"},
    "flwr.common.constant": {
        "ErrorCode": "tells apart why a message has no answer",
        "PUBLIC_KEY_HEADER": "who calls the Fleet API",
        "SUPERLINK_NODE_ID": "the sender of an answer that the server makes for a site",
    },
    "flwr.common.serde": {
        "context_from_proto": "reads a task's context, its bundle left out",
        "fab_from_proto": "the same",
        "message_from_proto": "reads a message",
        "run_from_proto": "the same",
    },
    "flwr.proto.fleet_pb2": {"PushMessagesResponse": "answers a call that is refused"},
    "flwr.proto.message_pb2": {"ObjectTree": "the pieces of a message", "PushObjectResponse": "as above"},
    "flwr.app.message": {"make_message": "an answer that the server makes for a site whose own is too large"},
    "flwr.server.superlink.fleet.grpc_rere.fleet_servicer": {"FleetServicer": "the class that is bounded"},
    "flwr.server.superlink.fleet.vce": {"vce_api": "see REPLACED"},
    "flwr.server.superlink.fleet.vce.backend": {"raybackend": "see REPLACED"},
    "flwr.supercore.constant": {"TaskType": "which kind of task a process is for"},
    "flwr.supercore.date": {"now": "the clock that Flower stamps messages with"},
    "flwr.supercore.fab": {"Fab": "the empty bundle"},
    "flwr.supercore.inflatable.inflatable_object": {
        "get_all_nested_objects": "the pieces of a message, to bound them",
        "get_object_body": "the order of an array's pieces",
        "get_object_children_ids_from_object_content": "the same",
        "get_object_tree": "the pieces of a message",
        "iterate_object_tree": "the same",
    },
    "flwr.supercore.inflatable.inflatable_utils": {"ObjectPushError": "a piece that the server does not take"},
    "flwr.supercore.logger": {"FLOWER_LOGGER": "sends what Flower says to a file"},
    "flwr.supercore.run": {"Run": "the run of a message, without what a server says about it"},
    "flwr.supercore.superexec": {"run_superexec": "see REPLACED"},
    "flwr.supercore.superexec.executor.types": {
        "ExecutionSpec": "the executor's interface",
        "LaunchResult": "the same",
    },
    "flwr.supercore.task_identity": {"TaskIdentity": "whose task a message is"},
    "flwr.superlink.cli": {"flower_superlink": "the SuperLink's main function"},
    "flwr.supernode": {"start_client_internal": "see REPLACED"},
    "flwr.supernode.cli": {"flower_supernode": "the SuperNode's main function"},
    "flwr.supernode.nodestate": {"nodestate_factory": "see REPLACED"},
    "flwr.supernode.nodestate.in_memory_nodestate": {"InMemoryNodeState": "the class that is bounded"},
    "flwr.supernode.runtime": {"run_clientapp": "see REPLACED"},
    "flwr.supernode.runtime.run_clientapp": {"": "loaded before tasks are forked"},
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for room in ("shared", "client", "server", "simulation"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def private(module: str) -> bool:
    return module.split(".")[0] == "flwr" and module not in PUBLIC


def imported_parts() -> set[tuple[str, str]]:
    """(module, name) of every private import; the name is empty for `import module`."""
    found = set()
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names if private(alias.name)}
            if isinstance(node, ast.ImportFrom) and node.module and private(node.module):
                found |= {(node.module, alias.name) for alias in node.names}
    return found


def replaced_parts() -> set[tuple[str, str]]:
    """(module or class, attribute) of every assignment to an attribute of a part of Flower."""
    found = set()
    for _, tree in sources():
        names = dict(parts_of_flower(tree))
        for node in ast.walk(tree):
            for target in assigned(node):
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                    found |= {(names[target.value.id], target.attr)} if target.value.id in names else set()
    return found


def assigned(node: ast.AST) -> Iterator[ast.expr]:
    for target in node.targets if isinstance(node, ast.Assign) else ():
        yield from target.elts if isinstance(target, ast.Tuple) else [target]


def parts_of_flower(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in the file, dotted name) of what is imported from Flower, and of modules that are found through it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from found.items()
    for node in ast.walk(tree):
        value = ast.unparse(node.value) if isinstance(node, ast.Assign) else ""
        for name, part in found.items():  # the module of a function that its package's own name hides
            if value == f"sys.modules[{name}.__module__]":
                yield from ((target.id, part) for target in node.targets)


def test_every_private_part_that_is_imported_has_its_reason_here() -> None:
    assert imported_parts() == {(module, name) for module, names in IMPORTED.items() for name in names}


def test_every_part_that_is_replaced_has_its_reason_here() -> None:
    assert replaced_parts() == {(module, name) for module, names in REPLACED.items() for name in names}


@pytest.mark.parametrize("module", sorted({*IMPORTED, *REPLACED}))
def test_the_installed_flower_has_the_part(module: str) -> None:
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        parent, _, name = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), name)
    for name in (*IMPORTED.get(module, {}), *REPLACED.get(module, {})):
        if name and not hasattr(owner, name):
            importlib.import_module(f"{module}.{name}")
