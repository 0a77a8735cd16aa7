"""The console of the operator: the federation as it is, late sites with the reason, decisions in a person's name."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders.consoles import APPROVER, OPERATOR, READER, Browser, add_users, hidden, server_folder, text_of
from builders.keys import public_key
from builders.runs import run_of

from wardround.errors import UsageError
from wardround.identity import EnrolmentRequest, in_groups, key_fingerprint
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.web.accounts.users import User, users_of
from wardround.web.config import ConsoleConfig
from wardround_server.console import runs as console_runs
from wardround_server.console.app import console_of
from wardround_server.operations.config import load_server_config
from wardround_server.operations.folder import found
from wardround_server.runs.folder import RunFolder, runs, write_json
from wardround_server.runs.paths import APPROVALS_FILE, PROBLEM_FILE, ROUND_FILE
from wardround_server.runs.summary import facts_of
from wardround_server.sites.registry import Registry

STUDY = """\
[study]
name = "pasted"
rounds = 2
[data]
labels = ["benign", "malignant"]
image_size = 64
[privacy]
epsilon = 3.0
delta = 1e-4
max_grad_norm = 0.3
nominal_patients = 8
[aggregation]
nominal_sites = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = server_folder(tmp_path_factory.mktemp("made"))
    for name in ("east", "north"):
        Registry(folder).add(name, public_key())
    add_users(folder)
    return folder


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "server", copy_function=shutil.copy2))


@pytest.fixture
def at_work(server: Path) -> Iterator[RunFolder]:
    """The second run, with a round under way: east has replied, north is not connected, south was refused."""
    run = run_of(server, "second")
    now = {
        "round": 1, "began": time.time() - 95, "deadline_s": 600.0, "away": ["north"], "waiting_for": ["north", "west"],
        "answered": {"east": None, "south": "invalid:norm"},
    }  # fmt: skip
    with run.phase("train"):
        write_json(run.path / APPROVALS_FILE, {"east": {"state": "approved", "at": time.time()}})
        write_json(run.path / ROUND_FILE, now)
        yield run


def browser_of(server: Path, user=OPERATOR) -> Browser:
    browser = Browser(console_of(server, ConsoleConfig()))
    assert browser.sign_in(user).status_code == 303
    return browser


def pages_of(server: Path) -> list[str]:
    first, second = run_of(server, "first").run_id, run_of(server, "second").run_id
    of_runs = [f"/runs/{first}", f"/runs/{second}", f"/models/{first}"]
    return ["/", "/runs", *of_runs, "/sites", "/models", "/audit", "/health", "/account"]


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_page_is_shown_in_each_language(made: Path, language: str) -> None:
    both = User(login="bo", person="Bo Both", roles=("approve", "operate"))
    if both.login not in users_of(made):
        add_users(made, both)
    browser = browser_of(made, both)
    for path in [*pages_of(made), "/runs/submit", "/sites/enrol", f"/runs/{run_of(made, 'second').run_id}/stop"]:
        answer = browser.get(path, params={"language": language})
        assert answer.status_code == 200, (path, text_of(answer.text))
        assert f'<html lang="{language}">' in answer.text and answer.text.count("<h1>") == 1, path
        assert answer.text.count('<p class="next">') == 1, f"{path} says what to do next"


def test_without_a_session_no_page_is_shown(made: Path) -> None:
    browser = Browser(console_of(made, ConsoleConfig()))
    for path in [*pages_of(made), "/logs", "/runs/submit", "/sites/east/revoke"]:
        assert (browser.get(path).headers["location"], browser.get(path).text) == ("/login", "")


def test_a_round_under_way_is_shown_with_who_is_late_and_why(server: Path, at_work: RunFolder) -> None:
    browser = browser_of(server, READER)
    page = browser.get(f"/runs/{at_work.run_id}").text
    text = text_of(page)
    assert "Round 1 has been running for 1 min 35 s, of at most 10 min 00 s" in text
    assert "north 1 not connected" in text and "west 1 connected, has not replied yet" in text
    assert "south 1 its reply changes the weights by more than the study's max_update_norm invalid:norm" in text
    assert "north 1 not connected" in text_of(browser.get("/").text), "the overview names them as well"
    assert f'hx-get="/runs/{at_work.run_id}/live" hx-trigger="every 5s"' in page
    live = browser.get(f"/runs/{at_work.run_id}/live", headers={"HX-Request": "true"}).text
    assert live.strip().startswith("<div") and "<html" not in live and "north" in live
    (at_work.path / ROUND_FILE).unlink()
    assert "north 1 not connected" not in text_of(browser.get(f"/runs/{at_work.run_id}/live").text)


def test_the_facts_of_a_run_are_read_once_for_a_page(
    server: Path, at_work: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its metrics and approvals are read for them, and twice could be two states of the run on one page."""
    read: list[str] = []
    monkeypatch.setattr(console_runs, "facts_of", lambda run: read.append(run.run_id) or facts_of(run))
    browser, first = browser_of(server, READER), run_of(server, "first").run_id
    for path, expected in ((f"/runs/{at_work.run_id}", [at_work.run_id]), ("/", sorted([first, at_work.run_id]))):
        read.clear()
        assert "north 1 not connected" in text_of(browser.get(path).text)
        assert sorted(read) == expected, path


def test_a_page_that_updates_itself_sends_a_browser_without_a_session_to_the_sign_in(server: Path) -> None:
    answer = Browser(console_of(server, ConsoleConfig())).get("/runs/x/live", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"], answer.text) == (401, "true", "")


def test_a_missed_round_of_a_finished_run_names_the_site(made: Path) -> None:
    run = run_of(made, "first")
    text = text_of(browser_of(made, READER).get(f"/runs/{run.run_id}").text)
    facts = facts_of(run)
    assert "north 2 answered after the deadline, or not at all late" in text
    assert f"{facts['round']} of {facts['rounds']} rounds are done" in text and "ε 8 at δ 1e-05" in text
    assert re.search(r"replies [\d.,]+ [kM]?B, weights sent out [\d.,]+ [kM]?B", text)


def test_a_model_card_shows_what_the_command_line_shows(made: Path) -> None:
    from wardround_server.runs.model_card import card_of

    run = run_of(made, "first")
    browser = browser_of(made, READER)
    assert run.run_id in browser.get("/models").text
    text, card = text_of(browser.get(f"/models/{run.run_id}").text), card_of(run).to_text()
    for line in re.findall(r"^- (.*)$", card.split("## Figures")[0], re.MULTILINE):
        shown = line.partition(", ")[2] if line.startswith("round ") else line
        assert " ".join(shown.split()) in text, line
    assert "Not a medical device" in text or "not a medical device" in text


def test_a_damaged_model_is_a_fault_and_not_a_page(server: Path) -> None:
    run = run_of(server, "first")
    (run.path / "model.safetensors").write_bytes(b"x" * 100)
    answer = browser_of(server).get(f"/models/{run.run_id}")
    assert answer.status_code == 400 and "Traceback" not in answer.text


def test_a_run_is_stopped_and_resumed_in_the_persons_name(server: Path) -> None:
    browser, run = browser_of(server), run_of(server, "second")
    for what, state in (("stop", "stopped"), ("resume", "proposed")):
        form = hidden(browser.get(f"/runs/{run.run_id}/{what}").text)
        assert browser.post(f"/runs/{run.run_id}/{what}", form).status_code == 303
        assert run.state() == state
    decided = [(one["decision"], one.get("who")) for one in verified(server / AUDIT_FILE).entries[-2:]]
    assert decided[-2:] == [("stopped", "Otto Operator"), ("resumed", "Otto Operator")]


def test_a_study_is_submitted_by_its_text(server: Path) -> None:
    browser = browser_of(server)
    form = hidden(browser.get("/runs/submit").text)
    for text, fault in (
        ("nonsense", "not TOML"),
        (STUDY.replace("epsilon = 3.0", "epsilon = -1"), "privacy.epsilon"),
        (STUDY + '[model]\ninit = "/etc/passwd"\n', "init"),
        (STUDY.replace('"pasted"', '"<script>alert(1)</script>"'), "study.name"),
    ):
        answer = browser.post("/runs/submit", {**form, "text": text})
        assert answer.status_code == 400 and fault in text_of(answer.text) and "<script>alert" not in answer.text
        if "init" not in text:
            assert "\n[data]" in answer.text or text == "nonsense", "the text stays in the field, line by line"
    answer = browser.post("/runs/submit", {**form, "text": STUDY})
    (run,) = (one for one in runs(server) if one.study().study.name == "pasted")
    assert answer.headers["location"] == f"/runs/{run.run_id}"
    entry = verified(server / AUDIT_FILE).entries[-1]
    assert (entry["decision"], entry["who"], entry["run"]) == ("submitted", "Otto Operator", run.run_id)


def test_a_site_is_revoked_only_when_its_name_is_written_once_more(server: Path) -> None:
    browser = browser_of(server, APPROVER)
    form = hidden(browser.get("/sites/north/revoke").text)
    assert browser.post("/sites/north/revoke", {**form, "again": "east"}).status_code == 409
    assert [site.name for site in Registry(server).sites()] == ["east", "north"]
    assert browser.post("/sites/north/revoke", {**form, "again": "north"}).status_code == 303
    assert [site.name for site in Registry(server).sites()] == ["east"]
    entry = verified(server / AUDIT_FILE).entries[-1]
    assert (entry["decision"], entry["site"], entry["who"]) == ("revoked", "north", "Dr. Marie Curie")
    assert browser.get("/sites/north/remove").status_code == 400, "it is gone"


def test_a_site_is_enrolled_only_with_the_fingerprint_that_was_read_out(server: Path) -> None:
    browser, key = browser_of(server, APPROVER), public_key()
    asked = EnrolmentRequest(name="west", public_key=key, fingerprint=key_fingerprint(key))
    form = hidden(browser.get("/sites/enrol").text) | {"text": asked.model_dump_json()}
    for fields, fault in (
        ({"fingerprint": "0" * 64}, "differs from the one read out"),
        ({"fingerprint": asked.fingerprint, "text": "<script>alert(1)</script>"}, "not an enrolment request"),
        ({"fingerprint": asked.fingerprint, "name": "../x"}, "not a valid site name"),
        ({"fingerprint": asked.fingerprint, "name": "east"}, "enrolled with another key"),
    ):
        answer = browser.post("/sites/enrol", form | fields)
        assert answer.status_code == 400 and fault in text_of(answer.text) and "<script>alert" not in answer.text
    assert browser.post("/sites/enrol", form | {"fingerprint": in_groups(asked.fingerprint)}).status_code == 303
    assert [site.name for site in Registry(server).sites()] == ["east", "north", "west"]
    entry = verified(server / AUDIT_FILE).entries[-1]
    assert (entry["decision"], entry["site"], entry["who"]) == ("added", "west", "Dr. Marie Curie")


def test_another_ledger_is_accepted(server: Path) -> None:
    browser = browser_of(server, APPROVER)
    form = hidden(browser.get("/sites/east/accept-ledger").text)
    assert browser.post("/sites/east/accept-ledger", {**form, "again": "east"}).status_code in (303, 400)


def test_a_decision_about_a_site_is_about_the_key_and_ledger_that_were_shown(server: Path) -> None:
    browser = browser_of(server, APPROVER)
    form = hidden(browser.get("/sites/east/remove").text)
    answer = browser.post("/sites/east/remove", {**form, "shown": "0" * 64, "again": "east"})
    assert answer.status_code == 409 and "Nothing was changed" in answer.text
    assert "east" in [site.name for site in Registry(server).sites()]
    assert browser.post("/sites/east/remove", {**form, "again": "east"}).status_code == 303


@pytest.mark.parametrize("user", [READER, APPROVER, OPERATOR])
def test_each_right_is_needed_for_its_own_decisions(server: Path, user) -> None:
    browser, run = browser_of(server, user), run_of(server, "second").run_id
    csrf = {"csrf": browser.csrf(), "again": "north", "text": STUDY}
    of_runs = [f"/runs/{run}/stop", f"/runs/{run}/resume", "/runs/submit"]
    of_sites = ["/sites/enrol", "/sites/north/revoke", "/sites/north/remove", "/sites/north/accept-ledger"]
    denied = [*([] if user is OPERATOR else [*of_runs, "/logs"]), *([] if user is APPROVER else of_sites)]
    before = (server / AUDIT_FILE).read_bytes()
    for path in denied:
        assert browser.get(path).status_code == 403, path
        if path != "/logs":
            answer = browser.post(path, csrf)
            assert answer.status_code == 403 and "lacks the right" in answer.text
    assert (server / AUDIT_FILE).read_bytes() == before


def test_a_form_without_the_token_of_the_session_changes_nothing(server: Path) -> None:
    for user, paths in (
        (OPERATOR, [f"/runs/{run_of(server, 'second').run_id}/stop", "/runs/submit"]),
        (APPROVER, ["/sites/north/revoke"]),
    ):
        browser = browser_of(server, user)
        before = verified(server / AUDIT_FILE).entries
        for path in paths:
            for token in ("", "x", browser_of(server, READER).csrf()):
                answer = browser.post(path, {"csrf": token, "again": "north", "text": STUDY})
                assert answer.status_code == 403
        after = verified(server / AUDIT_FILE).entries[len(before) :]
        assert {one["event"] for one in after} == {"console"}, "sign-ins and nothing else"


def test_what_a_site_or_a_log_says_is_shown_and_never_executed(server: Path, at_work: RunFolder) -> None:
    """Stored XSS through logs, a phase's error, a code and a site's software."""
    evil = "<script>alert(1)</script>\u202e"
    write_json(at_work.path / PROBLEM_FILE, {"phase": evil, "error": evil, "at": time.time()})
    now = json.loads((at_work.path / ROUND_FILE).read_text())
    write_json(at_work.path / ROUND_FILE, {**now, "answered": {"east": evil}, "waiting_for": [evil], "away": []})
    write_json(at_work.path / APPROVALS_FILE, {evil: {"state": evil, "at": 1.0}})
    (server / "logs").mkdir(exist_ok=True)
    line = {
        "at": "2026-11-24T21:50:03.120Z",
        "level": evil,
        "logger": "x",
        "text": evil,
        "site": evil,
        "traceback": evil,
    }
    (server / "logs" / "server.log").write_text(json.dumps(line) + "\n" + evil + "\n")
    browser = browser_of(server)
    for path in ("/", "/runs", f"/runs/{at_work.run_id}", f"/runs/{at_work.run_id}/live", "/logs", "/sites"):
        text = browser.get(path).text
        assert "<script>alert" not in text and "\u202e" not in text, path
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in browser.get("/logs").text


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2f..%2fserver.toml", "/runs/../../etc/passwd", "/models/%2e%2e/x", "/models/%2e%2e%2fca", "/runs/*",
        "/sites/../revoke", "/sites/north/../../x", "/static/../../ca/ca.key", "/runs/x%00y", "/docs", "/metrics",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_pages(made: Path, path: str) -> None:
    answer = browser_of(made).get(path)
    assert answer.status_code in (400, 404) and "Traceback" not in answer.text and "root:" not in answer.text


def test_the_console_is_never_on_a_port_of_the_hospitals(made: Path) -> None:
    for config in ({"port": 9092}, {"port": 9093}, {"metrics_port": 9092}):
        with pytest.raises(UsageError, match="must differ"):
            console_of(made, ConsoleConfig(**config))
    path = made / "server.toml"
    before = path.read_text()
    try:
        path.write_text(before.replace("port = 9096", "port = 9092"))
        with pytest.raises(UsageError, match="must differ"):
            console_of(made, ConsoleConfig())
        path.write_text(before.partition("[console]")[0].replace("9092", "9095"))
        assert load_server_config(made).server.fleet_port == 9095, "an older server that never had a console goes on"
        with pytest.raises(UsageError, match="must differ"):
            console_of(made, ConsoleConfig())
    finally:
        path.write_text(before)
    found(made.parent / "other", "127.0.0.1", "fed", 9095, None, datetime.now(UTC))
    assert load_server_config(made.parent / "other").console.port == 9096
