"""The operator's commands report correctly on runs: models and cards, replies, reasons, stops and failures.

`phases.train` itself makes the runs, over sites that are plain functions.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders.handover import attack_report, export_in_process, write_report
from builders.runs import Sites, run_of, study_of, trained
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.task_identity import TaskIdentity

from wardround.errors import AuditError, RoundError
from wardround.handover.package import open_package
from wardround.networks.initial_weights import write_start
from wardround.records.audit_log import verified
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.wire.packets import Broadcast, SiteReply, is_code, weights_sha256
from wardround.wire.versions import ours
from wardround_server.cli.main import main
from wardround_server.flower.exchange import FlowerExchange, Polling
from wardround_server.flower.server_app import stop_watch
from wardround_server.operations.config import config_text
from wardround_server.runs.attendance import Attended
from wardround_server.runs.audit import RunRecord
from wardround_server.runs.folder import create_run
from wardround_server.runs.phases import ask, start_of, train
from wardround_server.sites import software
from wardround_server.sites.registry import Registry


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Path:
    """A server's folder with two finished runs, one that is proposed, and figures released by the first."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    codes = {(2, "north"): "refused:no_spare_rounds", (3, "east"): "refused:evaluation_off"}
    for study, sites in (
        (study_of("first", figures=1.0), Sites(codes=codes)),
        (study_of("second", epsilon=math.inf, figures=0.0), Sites(entries=6)),
    ):
        trained(create_run(folder, study), sites)
    create_run(folder, study_of("third"))
    return folder


def called(monkeypatch, capfd, *words: object) -> tuple[int, str, str]:
    """The program's own `main` in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setattr(sys, "argv", ["wardround-server", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    return int(ended.value.code or 0), said.out, said.err


# Models


def test_the_list_of_models_is_that_of_the_finished_runs_with_the_hashes_of_their_files(server, monkeypatch, capfd):
    code, said, _ = called(monkeypatch, capfd, "model", "list", "--server", server, "--json")
    rows = {row["study"]: row for row in json.loads(said)}
    assert code == 0 and list(rows) == ["first", "second"]
    assert (rows["first"]["epsilon"], rows["second"]["epsilon"]) == (8.0, "inf")
    for name, row in rows.items():
        content = (run_of(server, name).path / "model.safetensors").read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest() and row["rounds"] == 2
        assert row["finished_at"].endswith("Z") and row["architecture"] == "seed-cnn" and row["delta"] == 1e-5
    code, said, _ = called(monkeypatch, capfd, "model", "list", "--server", server)
    assert code == 0 and "∞" in said and "seed-cnn" in said and "third" not in said
    assert {(row["stage"], row["start"]) for row in rows.values()} == {("released", "random weights")}


def test_a_card_says_what_happened_under_which_promise_and_what_is_missing(server, monkeypatch, capfd):
    run = run_of(server, "first")
    code, said, _ = called(monkeypatch, capfd, "model", "show", run.run_id, "--server", server, "--json")
    card, result = json.loads(said), run.result()
    assert code == 0 and card["privacy"] == result["privacy"] and card["missing"] == result["missing"]
    assert {site: one["rounds_counted"] for site, one in card["sites"].items()} == {"east": 2, "north": 1}
    assert card["federated_test"] == result["federated_test"] and card["study_sha256"] == run.study().sha256()
    tensors, _ = load_checkpoint(run.path / "model.safetensors")
    assert card["numbers"] == sum(array.size for array in tensors.values())
    code, text, _ = called(monkeypatch, capfd, "model", "show", run.run_id, "--server", server)
    for part in (
        "Research software, not a medical device",
        '"benign" and "malignant"',
        "ε 8 at δ 1e-05, for each patient of each site (add or remove one)",
        "differs by at most the factor",
        "round 2: north, the site's budget for this run is used up",
        "| north | 1 of 2 |",
        "north alone: AUC",
        "east released none: the site releases no figures",
    ):
        assert part in text, part


def test_a_card_without_privacy_promises_nothing(server, monkeypatch, capfd):
    words = ("model", "show", run_of(server, "second").run_id, "--server", server)
    _, text, _ = called(monkeypatch, capfd, *words)
    assert "No privacy: this model was trained without noise" in text and "Promised: ε ∞" in text
    assert "differs by at most" not in text and "asked the sites for no figures" in text


def test_a_model_without_an_attack_report_stays_and_a_forced_export_is_recorded(server, monkeypatch, capfd, tmp_path):
    export_in_process(monkeypatch)
    run, target = run_of(server, "second"), tmp_path / "models" / "second"
    words = ("model", "export", run.run_id, target, "--server", server)
    code, _, complaint = called(monkeypatch, capfd, *words)
    assert code == 3 and "no attack report" in complaint and len(complaint.splitlines()) == 1 and not target.exists()
    code, said, _ = called(monkeypatch, capfd, *words, "--force-unsafe", "--by", "Ada Lovelace")
    assert code == 0 and "UNSAFE: there is no attack report" in said
    assert json.loads((target / "model.json").read_text())["unsafe"] is True
    assert "UNSAFE" in (target / "model-card.md").read_text() and "UNSAFE" in (target / "model-card.html").read_text()
    entries = [
        entry for entry in verified(server / "audit.jsonl").entries if entry.get("decision") == "exported-unsafe"
    ]
    assert [(entry["run"], entry["who"]) for entry in entries] == [(run.run_id, "Ada Lovelace")]
    _, said, _ = called(monkeypatch, capfd, "model", "list", "--server", server, "--json")
    assert [row["stage"] for row in json.loads(said) if row["study"] == "second"] == ["exported unsafe"]


def test_an_exported_model_is_the_released_one_with_its_card_and_nothing_is_overwritten(
    server, monkeypatch, capfd, tmp_path
):
    export_in_process(monkeypatch)
    run, target = run_of(server, "first"), tmp_path / "models" / "first"
    content = (run.path / "model.safetensors").read_bytes()
    attack = write_report(tmp_path / "attack.json", attack_report(run.study()))
    words = ("model", "export", run.run_id, target, "--attack", attack, "--server", server)
    code, said, _ = called(monkeypatch, capfd, *words, "--json")
    assert code == 0 and json.loads(said)["unsafe"] is False
    package = open_package(target)
    assert (target / "model.safetensors").read_bytes() == content and package.study == run.study()
    assert package.content["federated_test"] == run.result()["federated_test"]
    assert package.content["sites"]["north"] == {"rounds_counted": 1, "epsilon": None}
    assert package.content["attack"]["same_run"] is False
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    code, _, complaint = called(monkeypatch, capfd, *words)
    assert code == 2 and "not overwritten" in complaint and len(complaint.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    assert {path.name for path in target.parent.iterdir()} == {"first"}  # no temporary folder is left
    assert all(path.stat().st_mode & 0o077 == 0 for path in target.rglob("*"))
    _, said, _ = called(monkeypatch, capfd, "model", "list", "--server", server, "--json")
    assert [row["stage"] for row in json.loads(said) if row["study"] == "first"] == ["exported"]


def test_an_export_that_cannot_be_recorded_does_not_happen(server, monkeypatch, capfd, tmp_path):
    export_in_process(monkeypatch)

    def full(*_: object) -> None:
        raise AuditError("the audit log cannot be written")

    monkeypatch.setattr(RunRecord, "exported", full)
    words = (run_of(server, "second").run_id, tmp_path / "x", "--force-unsafe", "--server", server)
    code, _, complaint = called(monkeypatch, capfd, "model", "export", *words)
    assert code == 1 and "cannot be written" in complaint and list(tmp_path.iterdir()) == []


def test_a_run_without_a_model_and_a_damaged_model_are_told_in_one_line_and_hide_no_other(
    server, monkeypatch, capfd, tmp_path
):
    words = ("--server", server)
    code, _, complaint = called(monkeypatch, capfd, "model", "show", run_of(server, "third").run_id, *words)
    assert code == 2 and "is proposed and has released no model" in complaint
    path = run_of(server, "first").path / "model.safetensors"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, said, complaint = called(
            monkeypatch, capfd, "model", "export", run_of(server, "first").run_id, tmp_path / "x", *words
        )
        assert code == 2 and "damaged or altered" in complaint and not (tmp_path / "x").exists()
        path.unlink()
        code, said, _ = called(monkeypatch, capfd, "model", "list", *words)
        assert code == 1 and "model.safetensors: cannot be read" in said and "second" in said
    finally:
        path.write_bytes(content)


# The audit log


def events(folder: Path, *kinds: str) -> list[dict]:
    return [entry for entry in verified(folder / "audit.jsonl").entries if entry["event"] in kinds]


def test_the_audit_log_says_of_every_round_whose_reply_counted_with_its_hash_and_whose_not_and_why(server):
    run, study = run_of(server, "first"), run_of(server, "first").study()
    software_in = [entry for entry in events(server, "counted", "not-counted") if entry["run"] == run.run_id]
    assert [(e["round"], e["purpose"], e["site"], e.get("code")) for e in software_in] == [
        (1, "train", "east", None),
        (1, "train", "north", None),
        (2, "train", "east", None),
        (2, "train", "north", "refused:no_spare_rounds"),
        (3, "evaluate", "east", "refused:evaluation_off"),
        (3, "evaluate", "north", None),
    ]
    start, _ = load_checkpoint(run.path / "start.safetensors")
    sent = Broadcast(study_sha256="", run_id="", round=1, weights=start, architecture_sha256="")
    (reply, _) = Sites()(sent, 1.0)
    assert software_in[0]["reply"] == software_in[1]["reply"] == weights_sha256(reply.weights)
    assert (software_in[2]["ledger_entries"], software_in[2]["ledger_head"]) == (4, "a" * 64)
    assert all(entry["study"] == study.sha256() for entry in software_in)
    finished = [entry for entry in events(server, "run") if entry["decision"] == "finished"]
    content = (run.path / "model.safetensors").read_bytes()
    assert finished[0]["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_audit_log_says_once_what_each_site_decided_and_again_when_it_changes(tmp_path):
    run = create_run(tmp_path, study_of())
    record = RunRecord(run, run.study())
    record.decided_by_sites({"east": "proposed", "north": "late", "west": "approved"})
    since = run.approvals()["east"].at
    record.decided_by_sites({"east": "proposed", "north": "refused:" + "x" * 64, "west": "late"})
    assert run.approvals()["east"].at == since and run.approvals()["west"].state == "approved"
    record.decided_by_sites({"east": "approved", "west": "revoked"})
    said = [(entry["site"], entry["decision"]) for entry in events(tmp_path, "said")]
    assert said == [("east", "proposed"), ("west", "approved"), ("east", "approved"), ("west", "revoked")]


def test_a_reply_that_cannot_be_written_down_ends_the_round_before_anything_of_it_is_stored(tmp_path):
    run = create_run(tmp_path, study_of())
    write_start(run.study(), run.path / "start.safetensors")
    ask(run, Sites())
    altered = (tmp_path / "audit.jsonl").read_bytes().replace(b"north", b"south")
    (tmp_path / "audit.jsonl").write_bytes(altered)
    with pytest.raises(AuditError, match="altered"):
        train(run, Sites())
    assert run.metrics() == [] and run.result() is None and "altered" in run.problem()["error"]


def test_the_longest_code_that_a_site_may_send_fits_into_the_audit_log(tmp_path):
    code = "refused:" + "x" * 64
    assert is_code("x" * 64) and not is_code("x" * 65)
    run = trained(create_run(tmp_path, study_of(rounds=1)), Sites(codes={(1, "north"): code}))
    assert [entry["code"] for entry in events(tmp_path, "not-counted")] == [code] and run.result() is not None


def test_submitting_stopping_and_resuming_are_in_the_audit_log_with_who_decided(server, monkeypatch, capfd, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    words = ("--server", server, "--json", "--by", "Ada Lovelace")
    code, said, _ = called(monkeypatch, capfd, "submit", study, *words)
    run = json.loads(said)["run"]
    assert code == 0 and called(monkeypatch, capfd, "submit", study, *words)[0] == 0
    assert [called(monkeypatch, capfd, word, run, *words)[0] for word in ("stop", "resume", "resume")] == [0, 0, 2]
    entries = [entry for entry in events(server, "run") if entry["run"] == run]
    assert [entry["decision"] for entry in entries] == ["submitted", "stopped", "resumed"]
    assert {entry["who"] for entry in entries} == {"Ada Lovelace"}
    code, _, complaint = called(monkeypatch, capfd, "stop", run, "--server", server, "--by", "PAT-0012345")
    assert code == 2 and "--by" in complaint and run_of(server, "fourth").state() == "proposed"


STUDY = """
[study]
name = "fourth"
rounds = 2
[data]
labels = ["benign", "malignant"]
[privacy]
epsilon = 8.0
delta = 1e-5
max_grad_norm = 1.0
nominal_patients = 100
[aggregation]
nominal_sites = 2
"""


def test_a_study_that_starts_from_a_file_is_refused_in_one_line_and_makes_no_run(server, monkeypatch, capfd, tmp_path):
    save_checkpoint(tmp_path / "start.safetensors", {"w": np.zeros(3, np.float32)}, {"kind": "model"})
    study = tmp_path / "study.toml"
    study.write_text(STUDY.replace("fourth", "fifth") + '[model]\ninit = "start.safetensors"\n')
    before = sorted((server / "runs").iterdir())
    code, _, complaint = called(monkeypatch, capfd, "submit", study, "--server", server)
    assert code == 2 and len(complaint.splitlines()) == 1
    assert "model.init" in complaint and "starts from a file" in complaint
    assert sorted((server / "runs").iterdir()) == before


# Stopping


def test_a_stop_ends_a_phase_that_waits_for_its_sites_within_seconds_and_the_run_goes_on_from_there(
    tmp_path, monkeypatch
):
    """The phase is one that waits for a site which never answers, through Flower's exchange itself."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    run = create_run(tmp_path, study_of(rounds=3))
    stopped_in_round = Silent(silent_from=2, stopped=stop_watch(run))
    write_start(run.study(), run.path / "start.safetensors")
    ask(run, stopped_in_round)
    ended: list[BaseException] = []

    def phase() -> None:
        try:
            train(run, stopped_in_round)
        except RoundError as error:
            ended.append(error)

    thread = threading.Thread(target=phase)
    thread.start()
    assert stopped_in_round.waits.wait(60)
    run.stop()
    asked = time.monotonic()
    thread.join(10)
    assert not thread.is_alive() and time.monotonic() - asked < 10 and "stopped" in str(ended[0])
    assert run.state() == "stopped" and run.problem() is None and not run.at_work()
    assert {line["round"] for line in run.metrics()} == {1}
    run.resume()
    train(run, Sites())
    assert run.state() == "finished" and {line["round"] for line in run.metrics()} == {1, 2, 3}


class Silent(Sites):
    """Its sites do not answer from one round on: `FlowerExchange` waits for them over a grid that brings nothing."""

    def __init__(self, silent_from: int, stopped: threading.Event) -> None:
        super().__init__()
        self.silent_from, self.stopped, self.waits = silent_from, stopped, threading.Event()

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        if broadcast.round < self.silent_from:
            return super().__call__(broadcast, deadline_s)
        return FlowerExchange(SilentGrid(self.waits), self.online(), Polling(), self.stopped)(broadcast, deadline_s)


class SilentGrid:
    def __init__(self, waits: threading.Event) -> None:
        self.waits = waits

    def push_messages(self, messages):
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"message-{number}"
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids):
        self.waits.set()
        return []


def test_a_stop_ends_the_making_of_the_first_weights_and_the_wait_for_absent_sites(tmp_path, monkeypatch):
    run = create_run(tmp_path, study_of())
    monkeypatch.setattr("wardround_server.runs.phases.LOOK_S", 0.1)
    run.stop()
    sleeps = tmp_path / "sleeps"
    sleeps.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeps.chmod(0o700)
    monkeypatch.setattr("wardround_server.runs.phases.ISOLATED_PYTHON", (str(sleeps),))
    began = time.monotonic()
    with pytest.raises(RoundError, match="stopped"):
        start_of(run, run.study())
    assert time.monotonic() - began < 10


# What `show` tells


FAILURES = {
    "late": "answered after the deadline, or not at all",
    "failed": "the site failed; its own log says why",
    "unreachable": "not connected",
    "refused:not_approved": "has not approved this study",
    "refused:budget": "privacy budget",
    "refused:another_code": "the site refused: another code",
    "invalid:not-finite": "NaN or infinity",
    "invalid:norm": "max_update_norm",
    "invalid:ledger-rollback": "its ledger went back",
    "invalid:another-code": "the reply failed its checks: another code",
    "refused:version-site-older": "the site must upgrade",
}


@pytest.mark.parametrize("code", FAILURES)
def test_show_names_the_site_that_has_no_part_in_a_round_and_why_in_words_and_by_code(
    code, tmp_path, monkeypatch, capfd, wide
):
    (tmp_path / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    run = trained(create_run(tmp_path, study_of(rounds=1)), Sites(codes={(1, "north"): code}))
    exit_code, said, _ = called(monkeypatch, capfd, "show", run.run_id, "--server", tmp_path)
    (line,) = [line for line in said.splitlines() if FAILURES[code] in line]
    assert exit_code == 0 and "north" in line and f"({code})" in line
    (row,) = [line for line in said.splitlines() if line.startswith("north")]
    assert row.rstrip().endswith("0 of 1")


@pytest.fixture
def wide(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def test_show_says_who_approved_and_since_when_who_is_silent_who_cannot_speak_with_this_server_and_what_it_costs(
    tmp_path, monkeypatch, capfd, wide
):
    (tmp_path / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    for name in ("east", "north", "silent", "west"):
        key = ec.generate_private_key(ec.SECP384R1()).public_key()
        Registry(tmp_path).add(name, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
    run = create_run(tmp_path, study_of())
    words = {"east": "approved", "north": "proposed", "west": "refused:version-site-older", "former": "revoked"}
    RunRecord(run, run.study()).decided_by_sites(words)
    software.keep(tmp_path, "east", ours())
    software.keep(tmp_path, "west", replace(ours(), protocol=1))
    _, said, _ = called(monkeypatch, capfd, "show", run.run_id, "--server", tmp_path)
    row = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    day = time.strftime("%Y-%m-%d", time.gmtime(run.approvals()["east"].at))
    assert "approved" in row["east"] and day in row["east"] and str(ours()) in row["east"]
    assert "received, awaiting a decision" in row["north"] and "unknown" in row["north"]
    assert "not connected since the study was submitted" in row["silent"]
    assert row["west"].count("the site must upgrade") == 2 and "protocol 1" in row["west"]
    assert "no longer enrolled" in row["former"] and "revoked" in row["former"]
    assert "ε 8 at δ 1e-05 for each patient" in said and "approved by 1 site, 1 needed" in said
    _, said, _ = called(monkeypatch, capfd, "show", run.run_id, "--server", tmp_path, "--json")
    facts = json.loads(said)
    assert facts["words"] == words and facts["sites"]["silent"]["word"] is None and facts["approved"] == ["east"]


def test_show_says_who_is_waited_for_and_who_was_cut_off_while_a_round_is_under_way(tmp_path, monkeypatch, capfd, wide):
    """A site that was connected when the round began is cut off in the middle of it."""
    monkeypatch.setattr("wardround_server.runs.attendance.LOOK_EVERY_S", 0.1)
    (tmp_path / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    run = create_run(tmp_path, study_of())
    there = {"east": 1, "north": 2, "south": 3}
    question = Broadcast(study_sha256="", run_id="", round=7, weights={}, architecture_sha256="")

    class Slow(Sites):
        def __call__(self, broadcast, deadline_s):
            yield SiteReply(site="east", weights=None, code="refused:budget", seconds=1.0, bytes_up=0)
            ends = time.monotonic() + 30
            while (run.path / "round.json").read_text().count("south") < 2 and time.monotonic() < ends:
                there.pop("south", None)
                time.sleep(0.1)
            yield SiteReply(site="north", weights=None, code="late", seconds=1.0, bytes_up=0)

    directory = {"east": 1, "north": 2, "south": 3, "west": None}
    replies = Attended(Slow(), run, directory, lambda: there)(question, 60.0)
    with run.phase("train"):
        assert [next(replies).site, next(replies).site] == ["east", "north"]
        _, said, _ = called(monkeypatch, capfd, "show", run.run_id, "--server", tmp_path)
        assert "round 7 has been running for" in said and "of at most 60 s" in said
        assert "waiting for south (not connected), west (not connected)" in said
        assert "east is not counted: the study does not fit what is left" in said
        assert list(replies) == [] and not (run.path / "round.json").exists()


def test_show_tells_the_last_problem_and_a_killed_phase_leaves_no_round_under_way(tmp_path, monkeypatch, capfd, wide):
    (tmp_path / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    run = create_run(tmp_path, study_of(rounds=1))
    with pytest.raises(RoundError):
        trained(run, Sites(codes={(1, "east"): "late", (1, "north"): "invalid:norm"}))
    (run.path / "round.json").write_text("{}")  # as a kill leaves it
    _, said, _ = called(monkeypatch, capfd, "show", run.run_id, "--server", tmp_path)
    (line,) = [line for line in said.splitlines() if line.startswith("last problem")]
    assert "east (late), north (invalid:norm)" in line and "under way" not in said


def test_a_later_run_of_the_same_server_refuses_ledgers_that_went_back_since_the_earlier_one(tmp_path):
    (tmp_path / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    trained(create_run(tmp_path, study_of("first", figures=0.0)), Sites(entries=4))
    with pytest.raises(RoundError, match=r"east \(invalid:ledger-rollback\), north \(invalid:ledger-rollback\)"):
        trained(create_run(tmp_path, study_of("second", figures=0.0)), Sites())
    trained(create_run(tmp_path, study_of("third", figures=0.0)), Sites(entries=8))
