"""The audit log: every alteration is detected, a kill loses nothing, and no name is written."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from wardround.accounting import Epsilon
from wardround.errors import AuditError
from wardround.records import audit_log
from wardround.records.audit_events import (
    RULES,
    Event,
    MessageRefused,
    ModelPersonalised,
    PatientForgotten,
    RefusalsCounted,
    ReplyCounted,
    ReplyRefused,
    ReplyReleased,
    RunDecided,
    SiteDecided,
    SiteReplied,
    Started,
    Stopped,
    StudyDecided,
    Torn,
)
from wardround.records.audit_log import AuditLog, read_entries, verified
from wardround.records.refusal_counts import IN_FULL, MOST_CODES, only_counted
from wardround_client.cli.main import app
from wardround_client.cli.status import lines_of
from wardround_client.ledger.ledger import Ledger
from wardround_client.site.status import status_of

STUDY = "ab" * 32
EPSILON = Epsilon(value=0.52, delta=1e-5, accountant="RDP, opacus 1.6.0")
RELEASED = ReplyReleased(
    study=STUDY, run="run-1", round=3, purpose="train", reply="cd" * 32, epsilon=EPSILON, again=False
)
KINDS = (
    StudyDecided, RunDecided, SiteDecided, SiteReplied, MessageRefused, ReplyReleased, ReplyCounted, ReplyRefused,
    ModelPersonalised, PatientForgotten, RefusalsCounted, Started, Stopped, Torn,
)  # fmt: skip


def written(folder: Path, count: int = 5) -> Path:
    log = AuditLog(folder / "audit.jsonl", clock=lambda: 1_790_000_000.0)
    for number in range(1, count + 1):
        log.append(PatientForgotten(count=number))
    return folder / "audit.jsonl"


def test_what_is_appended_is_read_back_in_order_and_each_line_holds_the_hash_before(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append(StudyDecided(decision="approved", study=STUDY, who="Dr. Marie Sk\u0142odowska-Curie"))
    head = log.append(RELEASED)
    found = verified(tmp_path / "audit.jsonl")
    assert found.head == head and [entry["event"] for entry in found.entries] == ["study", "released"]
    assert found.entries[0]["who"] == "Dr. Marie Sk\u0142odowska-Curie"
    assert found.entries[1]["epsilon"] == EPSILON.to_json() and found.entries[1]["number"] == 2
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert lines[1]["previous"] == lines[0]["sha256"] and lines[1]["sha256"] == head.sha256
    assert os.stat(tmp_path / "audit.jsonl").st_mode & 0o777 == 0o600


@settings(max_examples=60)
@given(st.data())
def test_every_byte_counts(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = written(folder)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 2))  # the last line end may be missing: then nothing is lost
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(AuditError):
        verified(path)


@given(st.integers(0, 4), st.booleans())
def test_a_line_left_out_or_put_in_twice_is_noticed(tmp_path_factory, place: int, twice: bool) -> None:
    path = written(tmp_path_factory.mktemp("log"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:place] + [lines[place]] * 2 * twice + lines[place + 1 :]))
    with pytest.raises(AuditError):
        verified(path)


def test_an_older_copy_and_another_history_are_noticed_by_the_witness(tmp_path: Path) -> None:
    for name in ("first", "other"):
        (tmp_path / name).mkdir()
    path, old = written(tmp_path / "first"), written(tmp_path / "other", count=3).read_bytes()
    whole = path.read_bytes()
    assert whole.startswith(old), "the same events at the same time are the same chain"
    path.write_bytes(old)
    for touch in (lambda: verified(path), lambda: AuditLog(path).append(PatientForgotten(count=9))):
        with pytest.raises(AuditError, match=r"ends at entry 3, but its .head file records 5"):
            touch()
    path.write_bytes(whole)
    path.unlink()
    log = AuditLog(path)
    with pytest.raises(AuditError, match="ends at entry 0"):
        log.append(PatientForgotten(count=1))
    (tmp_path / "first" / "audit.head").unlink()
    for number in (9, 8, 7, 6, 5, 4):
        AuditLog(path).append(PatientForgotten(count=number))
    (tmp_path / "other" / "audit.head").write_bytes(b"%015d %s\n" % (3, verified_sha(whole, 3)))
    (tmp_path / "other" / "audit.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(AuditError, match="a different history"):
        verified(tmp_path / "other" / "audit.jsonl")


def verified_sha(whole: bytes, number: int) -> bytes:
    return json.loads(whole.splitlines()[number - 1])["sha256"].encode()


@settings(max_examples=40)
@given(cut=st.integers(1, 400), again=st.integers(0, 700))
def test_a_torn_end_stays_is_named_and_the_log_goes_on(tmp_path_factory, cut: int, again: int) -> None:
    """The write of an entry is cut at any byte; then so is the write that would name it."""
    path = written(tmp_path_factory.mktemp("log"), count=4)
    path.with_suffix(".head").unlink()
    lines = path.read_bytes().splitlines(keepends=True)
    before, last = b"".join(lines[:3]), lines[3]
    path.write_bytes(before + last[: min(cut, len(last) - 2)])
    found = verified(path)
    assert found.head.entries == 3 and found.torn
    length = path.stat().st_size
    AuditLog(path).append(PatientForgotten(count=7))
    kept = path.read_bytes()
    path.write_bytes(kept[: length + min(again, len(kept) - length)])
    path.with_suffix(".head").unlink()
    AuditLog(path).append(PatientForgotten(count=8))
    assert path.read_bytes().startswith(before + last[: min(cut, len(last) - 2)]), "something was dropped"
    after = verified(path)
    assert not after.torn
    events = [entry["event"] for entry in after.entries[3:]]
    assert "torn" in events and events[-1] == "forgot" and after.entries[-1]["count"] == 8


def test_an_entry_without_its_line_end_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path, count=2)
    path.write_bytes(path.read_bytes()[:-1])
    AuditLog(path).append(PatientForgotten(count=3))
    assert [entry["count"] for entry in verified(path).entries] == [1, 2, 3]


def test_bytes_that_no_entry_names_are_no_torn_line(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for planted in (b"x\n", b"\x00\x00\n", b"{}\n", b'{"entry":{}}\n', b"[1]\n", b"\n"):
        with pytest.raises(AuditError, match="not an entry"):
            read_entries(b"".join([*lines[:2], planted, *lines[2:]]))


def append_many(path: Path, count: int) -> None:
    log = AuditLog(path)
    for number in range(count):
        log.append(PatientForgotten(count=number))


def test_two_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(path, 60)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert verified(path).head.entries == 120


def test_a_kill_at_any_moment_loses_no_entry_that_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom wardround.records.audit_log import AuditLog\n"
        "from wardround.records.audit_events import PatientForgotten\nlog = AuditLog(Path(sys.argv[1]))\nn = 0\n"
        "while True:\n    n += 1\n    print(log.append(PatientForgotten(count=n)).entries, flush=True)\n"
    )
    promised = 0
    for wait in (0.0, 0.01, 0.02):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline()  # it is at work
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        promised = int((first + child.stdout.read()).split()[-1])
        child.wait(60)
        assert verified(path).head.entries >= promised
    AuditLog(path).append(PatientForgotten(count=0))
    assert verified(path).head.entries > promised >= 3


# An append reads the end only


def test_an_append_of_a_new_process_reads_the_end_of_the_log_only(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path, count=60)
    monkeypatch.setattr(audit_log, "TAIL_BYTES", 1024)
    sizes: list[int] = []

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return real(descriptor, size, offset)

    real = os.pread
    monkeypatch.setattr(os, "pread", pread)
    for number in range(5):
        AuditLog(path).append(PatientForgotten(count=number))
    assert max(sizes) <= 4096 < path.stat().st_size, "4096: the witness"
    assert verified(path).head.entries == 65


def test_an_append_notices_an_altered_last_entry_verify_and_a_start_one_further_back(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"count":5', b'"count":6'))
    with pytest.raises(AuditError, match="entry 5 was altered"):
        AuditLog(path).append(PatientForgotten(count=9))
    path.write_bytes(whole.replace(b'"count":2', b'"count":3'))
    AuditLog(path).append(PatientForgotten(count=9))
    for reads_all in (
        lambda: verified(path),
        lambda: AuditLog(path).append(Started(program="wardround-server", version="0.1.0")),
    ):
        with pytest.raises(AuditError, match="entry 2 was altered"):
            reads_all()


def test_an_append_behind_another_history_of_the_same_length_fails(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "other").mkdir()
    other = AuditLog(tmp_path / "other" / "audit.jsonl")
    for number in range(50, 57):
        other.append(PatientForgotten(count=number))
    path.write_bytes((tmp_path / "other" / "audit.jsonl").read_bytes())
    with pytest.raises(AuditError, match="a different history: its .head file records entry 5"):
        AuditLog(path).append(PatientForgotten(count=9))


def test_a_process_that_wrote_an_entry_misses_it_where_log_and_witness_went_back_together(tmp_path: Path) -> None:
    path = written(tmp_path, count=2)
    old = {name: (tmp_path / name).read_bytes() for name in ("audit.jsonl", "audit.head")}
    log = AuditLog(path)
    log.append(PatientForgotten(count=3))
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AuditError, match="ends at entry 2"):
        log.append(PatientForgotten(count=4))


# A flood of refusals

NOON, DAY_S = 1_790_000_000.0, 86_400.0
REFUSED = MessageRefused(code="budget", study=STUDY, run="run-1", round=3)


def refuse(path: Path, count: int, event: Event = REFUSED, at: float = NOON) -> None:
    """Each by a log of its own, as each message has a process of its own."""
    for _ in range(count):
        AuditLog(path, clock=lambda: at).append(event)


def summaries(path: Path) -> list[tuple]:
    found = verified(path).entries
    return [(one["refused"], one["code"], one["day"], one["count"]) for one in found if one["event"] == "refusals"]


def test_a_flood_of_refusals_leaves_a_bounded_log_and_none_is_lost_from_the_count(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    refuse(path, 457)
    assert [one["event"] for one in verified(path).entries] == ["message-refused"] * IN_FULL + ["refusals"]
    assert summaries(path) == [("message-refused", "budget", "2026-09-21", 10 * IN_FULL)]
    assert only_counted(path) == 457 - 10 * IN_FULL
    shown = CliRunner().invoke(app, ["audit", "verify", str(path)]).output
    assert "beside 257 refusals and repeated replies that are only counted so far, in audit.refused" in shown
    AuditLog(path, clock=lambda: NOON + DAY_S).append(RELEASED)
    assert summaries(path)[-1] == ("message-refused", "budget", "2026-09-21", 457), "before the next entry"
    assert verified(path).entries[-1]["event"] == "released" and only_counted(path) == 0
    refuse(path, 1, at=NOON + DAY_S)
    assert verified(path).entries[-1]["event"] == "message-refused", "a new day: in full again"


def test_another_code_another_site_and_another_kind_are_counted_for_themselves(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    named = {"study": STUDY, "run": "run-1", "round": 1, "purpose": "train"}
    kinds = [
        REFUSED,
        MessageRefused(code="failed"),
        ReplyRefused(code="budget", site="north", **named),
        ReplyRefused(code="budget", site="south", **named),
    ]
    for _ in range(IN_FULL + 3):
        for event in kinds:
            refuse(path, 1, event)
    assert verified(path).head.entries == 4 * IN_FULL and only_counted(path) == 4 * 3
    AuditLog(path, clock=lambda: NOON + DAY_S).append(RELEASED)
    rest = [one for one in verified(path).entries if one["event"] == "refusals"]
    assert sorted((one["refused"], one["code"], one.get("site"), one["count"]) for one in rest if "site" in one) == [
        ("not-counted", "budget", site, IN_FULL + 3) for site in ("north", "south")
    ]
    assert len(rest) == 4


def test_a_peer_that_invents_a_code_for_each_refusal_fills_no_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(300):
        refuse(path, 1, MessageRefused(code=f"c{number}"))
    events = [one["event"] for one in verified(path).entries]
    assert events.count("message-refused") == MOST_CODES and events.count("refusals") <= 4
    assert sum(count for _, code, _, count in summaries(path)[-1:] if code == "other") + only_counted(path) == (
        300 - MOST_CODES
    )


@pytest.mark.parametrize("event", [RELEASED, StudyDecided(decision="approved", study=STUDY, who="Marie")])
def test_first_releases_and_decisions_are_never_summarised(tmp_path: Path, event: Event) -> None:
    path = tmp_path / "audit.jsonl"
    refuse(path, IN_FULL + 30, event)
    assert [one["event"] for one in verified(path).entries] == [event.kind] * (IN_FULL + 30)
    assert not (tmp_path / "audit.refused").exists()


def test_a_reply_asked_for_again_and_again_leaves_a_bounded_log_beside_its_first_release(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    refuse(path, IN_FULL + 30, RELEASED)
    refuse(path, 457, dataclasses.replace(RELEASED, again=True))
    refuse(path, 3)
    found = verified(path).entries
    assert [one["again"] for one in found if one["event"] == "released"] == [False] * (IN_FULL + 30) + [True] * IN_FULL
    assert summaries(path) == [("released", "again", "2026-09-21", 10 * IN_FULL)]
    assert only_counted(path) == 457 - 10 * IN_FULL
    AuditLog(path, clock=lambda: NOON + DAY_S).append(REFUSED)
    assert summaries(path)[-1] == ("released", "again", "2026-09-21", 457) and only_counted(path) == 0


def test_two_processes_count_every_refusal(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=refuse, args=(path, 60)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert verified(path).head.entries == IN_FULL and only_counted(path) == 120 - IN_FULL


def test_a_kill_at_any_moment_of_a_flood_loses_no_refusal_that_was_promised(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\nfrom wardround.records.audit_log import AuditLog\n"
        "from wardround.records.audit_events import MessageRefused\nn = 0\n"
        "while True:\n    AuditLog(Path(sys.argv[1]), clock=lambda: 1.79e9).append(MessageRefused(code='budget'))\n"
        "    n += 1\n    print(n, flush=True)\n"
    )
    promised = 0
    for wait in (0.0, 0.05, 0.1):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = "".join(child.stdout.readline() for _ in range(IN_FULL + 5))  # by now it only counts
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        promised += int((first + child.stdout.read()).split()[-1])
        child.wait(60)
    AuditLog(path, clock=lambda: NOON + DAY_S).append(RELEASED)
    counted = summaries(path)[-1][-1]
    assert promised <= counted <= promised + 3, "one more at most for each kill: what was under way"


def test_damaged_counts_are_named_in_one_line_and_the_log_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    refuse(path, IN_FULL + 5)
    for content in (b"", b"{", b"[]", b'{"day":"2026-09-21","counts":[["a"]]}', b"\xff"):
        (tmp_path / "audit.refused").write_bytes(content)
        with pytest.raises(AuditError, match=r"audit\.refused: damaged; move it") as error:
            refuse(path, 1)
        assert "\n" not in str(error.value)
    (tmp_path / "audit.refused").unlink()
    refuse(path, 1)
    assert verified(path).head.entries == IN_FULL + 1


def test_status_says_how_often_a_refusal_came(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 1.0\ndelta_cap = 1e-4\n')
    refuse(tmp_path / "audit.jsonl", 10 * IN_FULL)
    shown = dict(lines_of(status_of(tmp_path, Ledger(None))))
    assert shown["last refusal"].endswith(f", {10 * IN_FULL} times on 2026-09-21")


# No name and no path

CANARIES = (
    "CANARY^ANNA",
    "/data/CANARY/1.dcm",
    "CANARY_1.dcm",
    "PAT-0012345",
    "C:\\CANARY",
    "\u00e9=\n",
    "CANARY\nANNA",
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_any_event_takes_a_patients_name_or_a_path(kind: type[Event]) -> None:
    good = {
        "decision": "approved", "study": STUDY, "who": "Marie", "site": "north", "fingerprint": STUDY, "code": "budget",
        "run": "run-1", "round": 1, "purpose": "train", "reply": STUDY, "epsilon": EPSILON, "again": False, "count": 3,
        "program": "wardround-site", "version": "0.1.0", "sha256": STUDY, "ledger_entries": 3, "ledger_head": STUDY,
        "refused": "not-counted", "day": "2026-11-28",
        "runs": 2,
    }  # fmt: skip
    known = {field.name: good[field.name] for field in fields(kind)}
    kind(**known)
    free = {"run", "site"}  # names of runs and sites are words of the operator's own, never of a file's
    for name in known:
        for canary in (*CANARIES, b"CANARY", ["CANARY"], {"CANARY": 1}):
            if name in free and isinstance(canary, str) and RULES[name](canary):
                assert canary in ("PAT-0012345", "CANARY_1.dcm")
                continue
            with pytest.raises(AuditError) as error:
                kind(**{**known, name: canary})
            assert "CANARY" not in str(error.value)


def test_an_epsilon_carries_no_text() -> None:
    for change in ({"accountant": "/CANARY"}, {"unit": "CANARY"}, {"relation": "CANARY"}, {"value": float("nan")}):
        epsilon = Epsilon(**{"value": 1.0, "delta": 1e-5, "accountant": "RDP", **change})
        with pytest.raises(AuditError):
            ReplyReleased(study=STUDY, run="r", round=1, purpose="train", reply=STUDY, epsilon=epsilon)


# On the command line


def test_verify_and_export_say_what_is_in_it_and_an_altered_log_ends_with_1(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path, clock=lambda: 1_760_000_000.0).append(StudyDecided(decision="refused", study=STUDY, who="Marie"))
    AuditLog(path, clock=lambda: 1_790_000_000.0).append(RELEASED)
    run = CliRunner().invoke
    shown = json.loads(run(app, ["audit", "verify", str(path), "--json"]).output)
    assert shown == {"entries": 2, "head": verified(path).head.sha256, "torn_bytes": 0, "only_counted": 0}
    text = run(app, ["audit", "export", str(path)]).output
    assert "who Marie" in text and "epsilon 0.52 (per patient, add or remove one, delta 1e-05, RDP" in text
    since = run(app, ["audit", "export", str(path), "--since", "2026-01-01", "--json"]).output.splitlines()
    assert [json.loads(line)["event"] for line in since] == ["released"]
    assert run(app, ["audit", "export", str(path), "--since", "yesterday"]).exception.exit_code == 2
    path.write_bytes(path.read_bytes().replace(b"refused", b"revoked"))
    for words in (["audit", "verify", str(path)], ["audit", "export", str(path)]):
        done = run(app, words)
        assert isinstance(done.exception, AuditError) and "entry 1 was altered" in str(done.exception)
        assert "Marie" not in done.output
