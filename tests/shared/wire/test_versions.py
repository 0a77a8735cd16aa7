"""Site and server compare their versions, and if these do not fit, one line names the side that must be updated."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import UsageError
from wardround.study.load import parse_study
from wardround.wire.packets import PROTOCOL_VERSION, pack_refusal
from wardround.wire.proposal import pack_proposal, pack_state, unpack_proposal, unpack_state
from wardround.wire.protocol import PROPOSE
from wardround.wire.reply_codes import code_text
from wardround.wire.versions import Software, mismatch, older_side, ours, software_in
from wardround_client.flower.site_app import site_app
from wardround_client.site import server_info
from wardround_server.flower.server_app import _decision_or_code
from wardround_server.operations.doctor import versions
from wardround_server.sites import software as at_server
from wardround_server.sites.registry import Registry

STUDY = parse_study(
    {
        "study": {"name": "tiny", "rounds": 2},
        "data": {"labels": ("benign", "malignant")},
        "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
        "aggregation": {"nominal_sites": 3},
    }
)
HERE = Software(wardround="1.2.0", flower="1.39.0", protocol=3)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def asked(folder: Path, records: dict, sent_at: float | None = None) -> Message:
    """What a site answers to a proposal of these records."""
    content = RecordDict({name: ConfigRecord(dict(fields)) for name, fields in records.items()})
    message = Message(content, dst_node_id=2, message_type=PROPOSE, ttl=60.0)
    message.metadata.__dict__["_message_id"] = "asked"
    if sent_at is not None:
        message.metadata.__dict__["_created_at"] = sent_at
    return site_app(folder)(message, Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={}))


def server_with(protocol: int = PROTOCOL_VERSION, **software: object) -> dict:
    """A proposal of a server that runs something else."""
    records = pack_proposal(STUDY)
    records["proposal"]["protocol"] = records["software"]["protocol"] = protocol
    records["software"].update(software)
    return records


@pytest.mark.parametrize(
    ("site", "who"),
    [
        ({}, None),
        ({"wardround": "9.0.0"}, None),
        ({"flower": "1.39.7"}, None),
        ({"protocol": 2}, "site"),
        ({"protocol": 4}, "server"),
        ({"flower": "1.38.2"}, "site"),
        ({"flower": "1.40.0"}, "server"),
        ({"flower": "2.0"}, "server"),
        ({"flower": "1.9.0"}, "site"),
    ],
)
def test_who_must_move_is_the_older_side_and_nobody_where_both_fit(site: dict, who: str | None) -> None:
    said = mismatch(site=replace(HERE, **site), server=HERE)
    assert (said is None) == (who is None)
    assert said is None or f"the {who} must upgrade" in said


@given(st.one_of(st.integers(), st.none(), st.text()), st.one_of(st.integers(), st.none(), st.text()))
def test_one_side_is_always_named_whatever_the_other_one_says(site: object, server: object) -> None:
    assert older_side(site_protocol=site, server_protocol=server) in ("site", "server")


@given(st.dictionaries(st.sampled_from(["wardround", "flower", "protocol", "more"]), st.one_of(
    st.text(), st.integers(), st.floats(), st.none(), st.binary(), st.just("1.0")
)))  # fmt: skip
def test_what_a_peer_says_of_itself_is_versions_or_nothing(record: dict) -> None:
    said = software_in({"software": record})
    if said is not None:
        assert len(f"{said}") < 300 and all(sign.isalnum() or sign in " ,.+-" for sign in f"{said}")


def test_it_travels_beside_a_proposal_and_its_answer_and_both_are_read_without_it() -> None:
    for records in (pack_proposal(STUDY), pack_state(STUDY.sha256(), "approved")):
        assert software_in(records) == ours()
        del records["software"]
        assert software_in(records) is None
    assert unpack_proposal({"proposal": pack_proposal(STUDY)["proposal"]}) == STUDY
    assert unpack_state({"decision": pack_state(STUDY.sha256(), "refused")["decision"]}, STUDY.sha256()) == "refused"


@pytest.mark.parametrize(("protocol", "older"), [(PROTOCOL_VERSION + 1, "site"), (PROTOCOL_VERSION - 1, "server")])
def test_a_site_refuses_another_protocol_saying_who_must_move_and_its_doctor_says_it_too(
    tmp_path: Path, protocol: int, older: str
) -> None:
    assert server_info.version_against_server(tmp_path).state == "ok"
    reply = asked(tmp_path, server_with(protocol))
    word = _decision_or_code(reply, STUDY)
    assert word == f"refused:version-{older}-older" and f"the {older} must upgrade" in code_text(word)
    check = server_info.version_against_server(tmp_path)
    assert check.state == "fault" and f"the {older} must upgrade" in check.found and "heard 20" in check.found
    assert not (tmp_path / "proposals").exists()
    asked(tmp_path, server_with())
    assert server_info.version_against_server(tmp_path).state == "ok"


def test_an_answer_of_an_older_site_that_does_not_say_who_must_move_is_told_apart_by_its_protocol() -> None:
    content = pack_refusal(None, "wire-protocol")
    for protocol, older in ((PROTOCOL_VERSION - 1, "site"), (PROTOCOL_VERSION + 1, "server")):
        records = {"header": ConfigRecord({**content.header, "protocol": protocol}), "tensors": ConfigRecord({})}
        message = Message(RecordDict(records), dst_node_id=2, message_type=PROPOSE, ttl=60.0)
        assert _decision_or_code(message, STUDY) == f"refused:version-{older}-older"


def test_another_version_that_fits_is_a_note_and_neither_file_nor_server_can_break_the_doctor(tmp_path: Path) -> None:
    asked(tmp_path, server_with(wardround="9.1.0"))
    check = server_info.version_against_server(tmp_path)
    assert check.state == "note" and "wardround 9.1.0: they are compatible" in check.found
    asked(tmp_path, server_with(wardround="9.1.0\nforged"))
    assert "wardround 9.1.0: they are compatible" in server_info.version_against_server(tmp_path).found, (
        "the last that could be read"
    )
    for content in ("", "{", "[]", json.dumps({"sent_at": "x"}), json.dumps({"software": 3})):
        (tmp_path / "server.json").write_text(content)
        assert (
            server_info.version_against_server(tmp_path).state
            == server_info.clock_against_server(tmp_path).state
            == "ok"
        )


@pytest.mark.parametrize(("ago_s", "state", "words"), [
    (3.0, "ok", "agreed with this clock within"),
    (-30.0, "note", "s behind the server's"),
    (500.0, "note", "this clock was ahead, or the network slow"),
])  # fmt: skip
def test_the_clocks_are_compared_by_what_a_questions_way_takes(tmp_path: Path, ago_s, state, words) -> None:
    asked(tmp_path, server_with(), sent_at=time.time() - ago_s)
    check = server_info.clock_against_server(tmp_path)
    assert check.state == state and words in check.found


NO_TIMES = (math.nan, math.inf, -math.inf, 1e308, 0.0, -1.0, 1e12)


@pytest.mark.parametrize("sent_at", NO_TIMES)
def test_a_time_of_the_server_that_is_none_is_refused_in_one_line_and_kept_nowhere(tmp_path, sent_at, caplog) -> None:
    good = time.time()
    asked(tmp_path, server_with(), sent_at=good)
    before = (tmp_path / "server.json").read_text()
    reply = asked(tmp_path, server_with(), sent_at=sent_at)
    assert _decision_or_code(reply, STUDY) == "refused:clock" and "NTP at the server" in code_text("refused:clock")
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert "an impossible time" in line and "\n" not in line and len(line) < 200
    with pytest.raises(UsageError, match="an impossible time"):
        server_info.keep(tmp_path, sent_at, None)
    assert (tmp_path / "server.json").read_text() == before
    (tmp_path / "server.json").write_text(json.dumps({**json.loads(before), "sent_at": sent_at}))
    check = server_info.clock_against_server(tmp_path)  # as an older version may have kept it
    assert check.state == "ok" and "server's first request" in check.found


@pytest.mark.parametrize(("seconds", "works"), [(math.nan, False), (0.0, False), (math.inf, True), (1e300, True)])
def test_a_deadline_that_is_no_time_stops_the_round_and_one_beyond_every_study_is_cut(seconds, works: bool) -> None:
    from wardround_client.rounds.deadline import OutOfTime, time_limit

    began = False
    try:
        with time_limit(seconds):
            began = True
    except OutOfTime:
        assert not works
    assert began is works


def test_the_servers_doctor_names_the_site_that_must_move_and_forgets_one_that_is_out(tmp_path: Path) -> None:
    for name in ("east", "north"):
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        Registry(tmp_path).add(name, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
    assert versions(tmp_path).state == "ok" and "0 of 2" in versions(tmp_path).found
    at_server.keep(tmp_path, "east", ours())
    assert versions(tmp_path).state == "ok" and "1 of 2" in versions(tmp_path).found
    at_server.keep(tmp_path, "north", replace(ours(), wardround="0.0.9"))
    assert versions(tmp_path).state == "note" and "0.0.9" in versions(tmp_path).found
    at_server.keep(tmp_path, "north", replace(ours(), flower="1.0.0"))
    check = versions(tmp_path)
    assert check.state == "fault" and "north: the site has Flower 1.0.0" in check.found
    assert "the site must upgrade" in check.found
    Registry(tmp_path).end("north", "removed")
    assert versions(tmp_path).state == "ok"
