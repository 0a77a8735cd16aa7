"""The bounds on what either side may send hold to the Flower that is installed; see test_hostile.py for the attacks."""

from __future__ import annotations

import inspect

import pytest
from flwr.app import Array
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode import start_client_internal

from wardround.errors import WireError
from wardround.inflation import arrays_at_most
from wardround_client import intake
from wardround_server import fleet

MB = 2**20


def test_flower_has_what_the_bounds_replace() -> None:
    started = inspect.getsource(fleet.inside._run_fleet_api_grpc_rere)
    for name in ("FleetServicer(", "generic_create_grpc_server(", "max_message_length=GRPC_MAX_MESSAGE_LENGTH"):
        assert name in started
    assert "max_concurrent_workers" in inspect.signature(fleet.inside.generic_create_grpc_server).parameters
    for name in ("ActivateNode", "PushMessages", "PushObject"):
        ours, theirs = (inspect.signature(getattr(one, name)) for one in (fleet.BoundedFleet, FleetServicer))
        assert list(ours.parameters) == list(theirs.parameters)
    for name in (
        "start_session", "preregister_object_tree", "store_message_res", "get_valid_message_ins", "object_store",
        "_store_generated_message", "_cleanup_push_session", "add_clientapp_runtime",
    ):  # fmt: skip
        assert hasattr(SqlLinkState, name)


def test_flower_has_what_the_supernodes_bound_replaces() -> None:
    assert "with _init_connection(" in inspect.getsource(start_client_internal.start_client_internal)
    assert "GRPC_MAX_MESSAGE_LENGTH," in inspect.getsource(intake.inside._init_connection)
    link = [object() for _ in range(8)]
    given = intake.BoundedLink(None, link).functions()
    assert [one is other for one, other in zip(link, given, strict=True)] == [n not in (1, 5) for n in range(8)]


def test_an_array_of_equal_pieces_grows_no_further_than_the_bound_and_many_share_it() -> None:
    """Zeros of any size travel as one piece, so what was sent says nothing of what comes of it."""
    array = Array("float32", (11 * MB // 4,), "raw", bytes(11 * MB))
    sent = {name: one.deflate() for name, one in get_all_nested_objects(array).items()}
    assert sum(map(len, sent.values())) < 7 * MB

    def together() -> bytes:
        return inflate_object_from_contents(array.object_id, dict(sent)).data

    with arrays_at_most(11 * MB):
        assert together() == bytes(11 * MB)
        with pytest.raises(WireError) as refused:
            together()
    assert refused.value.code == "size"
    assert len(together()) == 11 * MB, "outside the block Flower is as it was"
