"""The console of a site: it shows what the command line shows, decides in the person's name, and refuses the others."""

from __future__ import annotations

import html
import inspect
import json
import re
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from builders.consoles import (
    APPROVER,
    OPERATOR,
    READER,
    Browser,
    add_users,
    hidden,
    proposed_study,
    site_folder,
    text_of,
)
from builders.records import icu_folder, prepared

from wardround.errors import StudyError, required
from wardround.records.audit_events import MessageRefused, ReplyReleased, Started
from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified
from wardround.records.refusal_counts import IN_FULL
from wardround.study.describe import describe
from wardround.web.config import ConsoleConfig
from wardround_client.console import facts
from wardround_client.console.app import console_of
from wardround_client.console.budget import budget_of
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.budget import cap_of_site
from wardround_client.studies import description
from wardround_client.studies.approvals import approve, find_study
from wardround_client.studies.description import described
from wardround_client.studies.proposals import receive
from wardround_client.studies.store import read_decisions

SHA256 = proposed_study().sha256()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = site_folder(tmp_path_factory.mktemp("made"))
    add_users(folder)
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "north"))


def browser_of(site: Path, user=APPROVER) -> Browser:
    browser = Browser(console_of(site, ConsoleConfig()))
    assert browser.sign_in(user).status_code == 303
    return browser


def decide(browser: Browser, what: str, runs: int = 1, **fields: str):
    form = hidden(browser.get(f"/studies/{SHA256}/{what}?runs={runs}").text)
    return browser.post(f"/studies/{SHA256}/{what}", {**form, "sure": "yes", "reason": "it is useful", **fields})


PAGES = ("/", "/studies", f"/studies/{SHA256}", "/ledger", "/data", "/rounds", "/audit", "/health", "/account")


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_page_is_shown_in_each_language(made: Path, language: str) -> None:
    browser = browser_of(made, READER)
    for path in PAGES:
        answer = browser.get(path, params={"language": language})
        assert answer.status_code == 200, path
        assert f'<html lang="{language}">' in answer.text and answer.text.count("<h1>") == 1, path
        assert len(re.findall(r"<(?:input|select|textarea)(?![^>]*hidden)[^>]* id=\"(\w+)\"", answer.text)) == len(
            re.findall(r"<label for=", answer.text)
        ), path


def test_without_a_session_no_page_is_shown(made: Path) -> None:
    browser = Browser(console_of(made, ConsoleConfig()))
    for path in (*PAGES, "/logs", f"/studies/{SHA256}/approve"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/login", "")
    assert browser.post(f"/studies/{SHA256}/approve", {"sure": "yes"}).headers["location"] == "/login"


def test_a_study_is_described_word_for_word_as_on_the_command_line(made: Path) -> None:
    browser = browser_of(made, READER)
    for runs in (1, 2):
        page = browser.get(f"/studies/{SHA256}?runs={runs}").text
        exact = re.findall(r'<p class="exact[^>]*>(.*?)</p>', page)
        texts = [html.unescape(re.sub("<[^>]+>", "", one)) for one in exact]
        assert texts == [text for _, text in described(made, proposed_study(), runs)]


def test_the_words_have_a_heading_in_each_language() -> None:
    """`describe` and `description` may have more headings than the studies of the other tests."""
    texts = Path(facts.__file__).parent / "texts" / "en.toml"
    content = tomllib.loads(texts.read_text(encoding="utf-8"))
    known = set(content["word"]) & set(content["why"])
    source = inspect.getsource(describe) + inspect.getsource(description)
    headings = set(re.findall(r'\(\s*"([a-z ]+)", ', source))
    assert {one.replace(" ", "_") for one in headings} <= known and len(headings) > 12


def test_a_proposal_is_approved_in_the_persons_name_and_for_the_runs_shown(site: Path) -> None:
    browser = browser_of(site)
    assert "lung-nodules" in browser.get("/").text
    answer = decide(browser, "approve", runs=2)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{SHA256}?done=approve")
    known = find_study(site, SHA256)
    assert (known.state, known.runs) == ("approved", 2)
    (decision,) = read_decisions(site, SHA256)
    assert (decision["who"], decision["reason"]) == ("Dr. Marie Curie", "it is useful")
    entry = verified(site / AUDIT_FILE).entries[-1]
    assert (entry["decision"], entry["study"], entry["who"], entry["runs"]) == (
        "approved",
        SHA256,
        "Dr. Marie Curie",
        2,
    )
    assert "useful" not in (site / AUDIT_FILE).read_text(), "the audit log has no free text"
    assert "it is useful" in browser.get(answer.headers["location"]).text
    assert "Training begins when the server asks next" in browser.get(answer.headers["location"]).text
    for path in ("?done=<b>", "/approved", "/delete"):
        assert browser.get(f"/studies/{SHA256}{path}").status_code == 404, path
    assert browser.post(f"/studies/{SHA256}/delete", {"csrf": browser.csrf(), "sure": "yes"}).status_code == 404


def test_a_study_beyond_the_budget_has_no_button_to_approve(site: Path) -> None:
    config = (site / "site.toml").read_text(encoding="utf-8")
    (site / "site.toml").write_text(config.replace("epsilon_cap = 8.0", "epsilon_cap = 0.5"), encoding="utf-8")
    page = browser_of(site).get(f"/studies/{SHA256}").text
    assert "cannot be approved now" in page and f'action="/studies/{SHA256}/approve"' not in page
    assert "/refuse" in page


def test_a_proposal_is_refused_and_an_approval_revoked_with_a_reason(site: Path) -> None:
    browser = browser_of(site)
    answer = decide(browser, "refuse", reason="  ")
    assert answer.status_code == 409 and "write a reason" in answer.text
    assert decide(browser, "refuse", reason="not our patients").status_code == 303
    assert find_study(site, SHA256).state == "refused"
    assert decide(browser, "approve").status_code == 303
    assert decide(browser, "revoke", reason="changed our mind").status_code == 303
    assert find_study(site, SHA256).state == "revoked"
    assert [(one["decision"], one["reason"]) for one in read_decisions(site, SHA256)] == [
        ("refused", "not our patients"), ("approved", "it is useful"), ("revoked", "changed our mind"),
    ]  # fmt: skip


def test_nothing_is_decided_without_the_tick(site: Path) -> None:
    answer = decide(browser_of(site), "approve", sure="")
    assert answer.status_code == 409 and "tick the box" in answer.text and find_study(site, SHA256).state == "proposed"


def test_what_was_not_shown_is_not_approved(site: Path) -> None:
    """Other runs than shown, another study's page, or a budget that changed since the page was read."""
    browser = browser_of(site)
    form = hidden(browser.get(f"/studies/{SHA256}/approve?runs=1").text) | {"sure": "yes"}
    assert browser.post(f"/studies/{SHA256}/approve", form | {"runs": "5"}).status_code == 409
    other = proposed_study("other", epsilon=1.0)
    receive(site, other)
    assert browser.post(f"/studies/{other.sha256()}/approve", form).status_code == 409
    ledger, cap = Ledger(site / "ledger.sqlite3"), cap_of_site(site)
    approve(site, other, "Ada Lovelace", ledger, cap)
    ledger.hold(other.sha256(), "other-1", plan_from_study(other), cap)
    answer = browser.post(f"/studies/{SHA256}/approve", form)
    assert answer.status_code == 409 and "changed since you read it" in answer.text
    assert find_study(site, SHA256).state == "proposed"
    again = hidden(answer.text) | {"sure": "yes"}
    assert browser.post(f"/studies/{SHA256}/approve", again).status_code == 303, "the new page may be confirmed"


@pytest.mark.parametrize("runs", ["000001999999", "0", "1001", "1" * 5000])
def test_a_number_of_runs_that_is_none_is_refused(site: Path, runs: str) -> None:
    browser = browser_of(site)
    form = hidden(browser.get(f"/studies/{SHA256}/approve").text)
    answer = browser.post(f"/studies/{SHA256}/approve", {**form, "sure": "yes", "runs": runs})
    assert answer.status_code == 400 and "number from 1 to" in answer.text


def test_a_study_above_the_budget_is_refused_by_the_same_rule(site: Path) -> None:
    big = proposed_study("big", epsilon=50.0)
    receive(site, big)
    browser = browser_of(site)
    form = hidden(browser.get(f"/studies/{big.sha256()}/approve").text)
    answer = browser.post(f"/studies/{big.sha256()}/approve", {**form, "sure": "yes"})
    assert answer.status_code == 409 and "cap of epsilon" in answer.text
    assert find_study(site, big.sha256()).state == "proposed"


@pytest.mark.parametrize("user", [READER, OPERATOR])
def test_a_person_without_the_right_decides_nothing(site: Path, user) -> None:
    browser, approver = browser_of(site, user), browser_of(site)
    page = browser.get(f"/studies/{SHA256}").text
    assert "Refuse …" not in page and "right to approve decides" in text_of(page)
    form = hidden(approver.get(f"/studies/{SHA256}/approve").text) | {"sure": "yes", "csrf": browser.csrf()}
    for what in ("approve", "refuse", "revoke"):
        assert browser.get(f"/studies/{SHA256}/{what}").status_code == 403
        answer = browser.post(f"/studies/{SHA256}/{what}", form)
        assert answer.status_code == 403 and "lacks the right" in answer.text
    assert find_study(site, SHA256).state == "proposed"


def test_the_logs_are_for_those_who_operate(site: Path) -> None:
    (site / "logs").mkdir()
    line = {"at": "2026-11-24T21:50:03.120Z", "level": "error", "logger": "x", "text": "<script>alert(1)</script>"}
    (site / "logs" / "site.log").write_text(json.dumps(line) + "\n" + "\u202enot json \x1b[2J\n")
    assert browser_of(site, APPROVER).get("/logs").status_code == 403
    answer = browser_of(site, OPERATOR).get("/logs")
    assert answer.status_code == 200 and "<script>alert" not in answer.text
    assert "&lt;script&gt;alert(1)" in answer.text and "\\u202e" in answer.text and "\x1b" not in answer.text
    assert "alert" not in browser_of(site, OPERATOR).get("/logs?word=absent&problems=1").text


@pytest.mark.parametrize("token", ["", "x", None])
def test_a_form_without_this_sessions_token_changes_nothing(site: Path, token) -> None:
    """CSRF, also with the token of another person's session."""
    browser = browser_of(site)
    form = hidden(browser.get(f"/studies/{SHA256}/approve").text) | {"sure": "yes", "reason": "r"}
    form["csrf"] = browser_of(site, READER).csrf() if token is None else token
    for what in ("approve", "refuse"):
        assert browser.post(f"/studies/{SHA256}/{what}", form).status_code == 403
    assert browser.post("/logout", form).status_code == 403
    assert find_study(site, SHA256).state == "proposed"


def test_a_decision_is_never_made_by_following_a_link(site: Path) -> None:
    browser = browser_of(site)
    form = hidden(browser.get(f"/studies/{SHA256}/approve").text) | {"sure": "yes", "reason": "r"}
    assert browser.get(f"/studies/{SHA256}/approve", params=form).status_code == 200
    assert browser.get("/logout", params=form).status_code in (404, 405)
    assert find_study(site, SHA256).state == "proposed"


@pytest.mark.parametrize(
    "path",
    [
        "/studies/..%2f..%2fsite.toml", "/studies/../../etc/passwd", "/static/..%2fconfig.py", "/static/../app.py",
        "/static/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd", "/studies/" + "f" * 63, "/studies/*", "/docs",
        "/openapi.json", "/redoc", "/studies/" + "f" * 64 + "/delete", "/audit?page=0", "/static/htmx.LICENSE",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_pages(made: Path, path: str) -> None:
    browser = browser_of(made)
    answer = browser.get(path)
    assert answer.status_code in (404, 400) and "no such page" in answer.text.lower()
    for secret in ("epsilon_cap", "root:", "ConsoleConfig", "Traceback"):
        assert secret not in answer.text


@pytest.mark.parametrize(
    "path",
    ["//evil.example", "/login?next=https://evil.example", "/%0d%0aSet-Cookie:x=1", "/?language=%0d%0aX:1"],
)
def test_no_address_redirects_elsewhere_or_adds_a_header(made: Path, path: str) -> None:
    """Open redirects and header injection: no redirect or header is made of what a request holds."""
    for browser in (browser_of(made), Browser(console_of(made, ConsoleConfig()))):
        answer = browser.get(path)
        assert answer.headers.get("location", "/") in ("/", "/login")
        assert "x" not in answer.headers and "evil" not in str(answer.headers) and "x=1" not in str(answer.headers)


def test_a_report_of_records_is_shown_with_its_own_reasons(site: Path, tmp_path: Path) -> None:
    events = [(name, hour, "HR", 70 + hour) for name in ("CANARY", "p2") for hour in range(8)]
    data = icu_folder(tmp_path / "data", [*events, ("CANARY", 9, "HR", 999)], {"CANARY": 0, "p2": 1})
    prepared(data, site / "cohort")
    browser = browser_of(site)
    for language, words in (
        ("en", ("Records of 2 patients are prepared", "Impossible values", "Few patients of an outcome")),
        (
            "de",
            ("Die Daten von 2 Patienten sind vorbereitet", "Unmögliche Werte", "Wenige Patienten eines Ergebnisses"),
        ),
    ):
        pages = "".join(browser.get(path, params={"language": language}).text for path in ("/", "/data"))
        assert all(word in pages for word in words) and "CANARY" not in pages


def test_the_files_examined_add_up_on_the_page(site: Path) -> None:
    browser = browser_of(site, READER)
    for language, aside in (("en", "in quarantine"), ("de", "in Quarantäne")):
        page = browser.get("/data", params={"language": language}).text
        assert shown_sum(page) == ([24, 6, 1], 31)
        assert f"{aside} 6" in text_of(page), "the word of the file quarantine.csv"
    path = site / "cohort" / "quality.json"
    report = json.loads(path.read_text())
    del report["accounted"]  # written by an older version
    path.write_text(json.dumps(report))
    assert "Run wardround-site ingest again" in text_of(browser.get("/data", params={"language": "en"}).text)


def test_what_came_from_the_server_or_a_file_is_shown_and_never_executed(site: Path) -> None:
    """Stored XSS: through a study's name and labels, a reason, the data report, and an audit code."""
    path = site / "cohort" / "quality.json"
    report = json.loads(path.read_text())
    report["classes"] = {"<img src=x onerror=alert(1)>": {"images": 1, "patients": 1}}
    report["notes"] = ["<svg/onload=alert(2)>", "\u202eevil"]
    report["quarantined"] = {"<script>alert(3)</script>": 1}
    path.write_text(json.dumps(report))
    browser = browser_of(site)
    decide(browser, "approve", reason='"><script>alert(4)</script>{{ 7*7 }}')
    AuditLog(site / AUDIT_FILE).append(MessageRefused(code="budget"))
    for page in (*PAGES, f"/studies/{SHA256}/revoke"):
        text = browser.get(page).text
        assert not re.search(r"<(script(?! src)|img|svg/)|onerror=[^&]*>|\u202e", text.replace("&lt;", "")), page
    assert "&lt;img src=x onerror=alert(1)&gt;" in browser.get("/data").text
    assert "{{ 7*7 }}" in browser.get(f"/studies/{SHA256}").text


def test_replies_that_were_sent_again_are_not_shown_as_refused_messages(site: Path) -> None:
    """The 21st of a day is counted beside the log, and the count becomes an entry with the first one of a later day."""
    browser, day_s = browser_of(site), 86400.0
    resend = ReplyReleased(study=SHA256, run="lung-1", round=3, purpose="train", reply="3" * 64, again=True)
    started = Started(program="wardround-site", version="0.1.0")
    log = AuditLog(site / AUDIT_FILE, clock=lambda: time.time() + day_s)
    for _ in range(IN_FULL + 1):
        log.append(resend)
    day_s *= 2
    log.append(started)
    assert verified(site / AUDIT_FILE).entries[-2]["refused"] == "released"
    assert "last refused at" not in browser.get("/").text and "round 3 of run lung-1" in browser.get("/").text
    for _ in range(IN_FULL + 1):
        log.append(MessageRefused(code="budget"))
    assert facts.last_refusal(site) == verified(site / AUDIT_FILE).entries[-1]
    day_s *= 2
    log.append(started)
    assert required(facts.last_refusal(site), "refusal")["count"] == IN_FULL + 1
    assert "last refused at" in browser.get("/").text and "budget</code>" in browser.get("/").text


def test_a_study_whose_name_is_markup_never_becomes_a_study() -> None:
    for name in ("<b>x</b>", 'x" onload="y', "x\u202ey"):
        with pytest.raises(StudyError):
            proposed_study(name)


def test_a_damaged_ledger_or_log_is_shown_as_a_fault_and_the_rest_stays(site: Path) -> None:
    browser = browser_of(site)
    log = site / AUDIT_FILE
    log.write_bytes(log.read_bytes().replace(b"Ada", b"Eve", 1))
    text = text_of(browser.get("/").text)
    assert "damaged or was altered" in text and "budget" in text
    assert "was altered" in text_of(browser.get("/audit").text)
    assert browser.get("/rounds").status_code == 503
    answer = decide(browser, "approve")
    assert answer.status_code == 503 and find_study(site, SHA256).state == "proposed"


def test_the_ledger_is_drawn_to_scale(made: Path) -> None:
    page = browser_of(made, READER).get("/ledger").text
    widths = [float(one) for one in re.findall(r'class="(?:spent|held)" x="[\d.]+" y="0" width="([\d.]+)"', page)]
    parts = budget_of(made).parts
    expected = [100 * parts.spent / 8, 100 * parts.reserved / 8]
    assert widths == pytest.approx([*expected, *expected], abs=0.02), "one study, which is all that was spent"


def shown_sum(page: str) -> tuple[list[float], float]:
    """Return the parts of the budget as the page shows them, and the cap below them."""
    table = re.search(r'<table class="sum">(.*?)</table>', page, re.DOTALL)
    assert table is not None
    numbers = [float(one.replace("−", "-")) for one in re.findall(r'class="number">([−\d.]+)<', table[1])]
    return numbers[:-1], numbers[-1]


def test_the_parts_of_the_budget_add_up_as_they_are_shown(site: Path) -> None:
    """Each of 40 caps, so that no rounding of a single figure can pass by chance."""
    config = (site / "site.toml").read_text(encoding="utf-8")
    browser = browser_of(site, READER)
    for cap in [0.9 + 0.137 * number for number in range(40)]:
        text = config.replace("epsilon_cap = 8.0", f"epsilon_cap = {cap:.3f}")
        (site / "site.toml").write_text(text, encoding="utf-8")
        parts, whole = shown_sum(browser.get("/ledger").text)
        assert sum(parts) == pytest.approx(whole, abs=1e-9) and whole == pytest.approx(cap, abs=1e-9)


def test_what_approved_studies_were_promised_is_not_shown_as_left(site: Path) -> None:
    browser = browser_of(site)
    before = budget_of(site)
    assert decide(browser, "approve", runs=2).status_code == 303
    after = budget_of(site)
    assert (before.parts.promised, after.parts.spent) == (0.0, before.parts.spent) and after.parts.promised > 2
    assert after.left.value == pytest.approx(before.left.value - after.parts.promised)
    assert after.held == before.held, "the ledger holds it when the run begins"
    (_, promised) = after.studies
    assert promised.name == "lung-nodules" and promised.runs == 0
    assert f"ε {after.parts.left:.2f} of 8.00 is left" in text_of(browser.get("/").text)
    other = proposed_study("other", epsilon=6.5)
    receive(site, other)
    page = text_of(browser.get(f"/studies/{other.sha256()}").text)
    assert "not together with the approved studies that have not begun" in page
    ledger = Ledger(site / "ledger.sqlite3")
    ledger.hold(SHA256, "lung-1", plan_from_study(proposed_study()), cap_of_site(site), runs=2)
    begun = budget_of(site).parts
    assert 0 < begun.promised < after.parts.promised and begun.reserved > after.parts.reserved
    assert begun.left == pytest.approx(after.parts.left, abs=0.011), "what begins was promised before"


def test_a_page_says_who_asked_and_who_decided_also_after_the_decision(site: Path) -> None:
    browser = browser_of(site)
    assert "0" * 64 in browser.get(f"/studies/{SHA256}/approve").text, "the whole certificate, to be compared"
    decide(browser, "approve", runs=2, reason="ethics vote 17")
    for language in ("en", "de"):
        text = text_of(browser.get(f"/studies/{SHA256}", params={"language": language}).text)
        for shown in ("fed.example.org:9092", "0" * 64, "Dr. Marie Curie", "ethics vote 17"):
            assert shown in text, (language, shown)
    assert "fed.example.org:9092" in text_of(browser.get("/studies").text)
    assert "no longer stored" not in text_of(browser.get(f"/studies/{SHA256}").text)


def test_each_row_of_a_study_is_explained_in_each_language(made: Path) -> None:
    """With figures of this study, the same in both languages; field terms are in small print only."""
    browser = browser_of(made, READER)
    for language in ("en", "de"):
        page = browser.get(f"/studies/{SHA256}", params={"language": language}).text
        plain = [html.unescape(one) for one in re.findall(r'<p class="plain">(.*?)</p>', page)]
        assert len(plain) == len(described(made, proposed_study(), 1)) and len(set(plain)) == len(plain)
        assert not [one for one in plain if re.search(r"RDP|add or remove|δ|\{", one)]
        assert any(re.search(r"\b3\b.*\b8\b", one) for one in plain), "the cost of a run, and the cap"
        assert "RDP" in "".join(re.findall(r"<small>(.*?)</small>", page))


def release_form(browser: Browser, study: str, run: str) -> dict[str, str]:
    return hidden(browser.get(f"/ledger/release/{study}/{run}").text)


def test_unused_budget_is_given_back_as_on_the_command_line(site: Path) -> None:
    browser, study = browser_of(site), proposed_study("breast-density", epsilon=2.0).sha256()
    path = f"/ledger/release/{study}/breast-1"
    assert f'href="{path}"' in browser.get("/ledger").text
    form = release_form(browser, study, "breast-1")
    before = budget_of(site)
    assert browser.post(path, form).status_code == 409, "without the tick"
    assert browser.post(path, {**form, "sure": "yes", "shown": "x"}).status_code == 409
    assert budget_of(site) == before
    answer = browser.post(path, {**form, "sure": "yes"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/ledger?done=release")
    after = budget_of(site)
    assert (after.parts.reserved, after.reserved, after.parts.spent) == (0.0, (), before.parts.spent)
    assert after.left.value == pytest.approx(before.left.value + before.reserved[0].freed)
    (hold,) = Ledger(site / "ledger.sqlite3").holds()
    assert hold.released_by == "Dr. Marie Curie"
    entry = verified(site / AUDIT_FILE).entries[-1]
    assert [entry[name] for name in ("event", "study", "run", "who")] == [
        "budget-released", study, "breast-1", "Dr. Marie Curie",
    ]  # fmt: skip
    assert browser.post(path, {**form, "sure": "yes"}).status_code == 400, "nothing is held any more"
    assert path not in browser.get("/ledger").text


@pytest.mark.parametrize("user", [READER, OPERATOR])
def test_budget_is_given_back_by_an_approver_only(site: Path, user) -> None:
    study, browser = proposed_study("breast-density", epsilon=2.0).sha256(), browser_of(site, user)
    form = release_form(browser_of(site), study, "breast-1") | {"sure": "yes", "csrf": browser.csrf()}
    before = budget_of(site)
    path = f"/ledger/release/{study}/breast-1"
    assert path not in browser.get("/ledger").text
    assert [browser.get(path).status_code, browser.post(path, form).status_code] == [403, 403]
    assert budget_of(site) == before


@pytest.mark.parametrize("path", ["/x", "/..%2f", f"/{'f' * 64}/none", f"/{SHA256}/lung-1"])
def test_what_holds_nothing_cannot_be_given_back(site: Path, path: str) -> None:
    assert browser_of(site).get(f"/ledger/release{path}").status_code in (400, 404)


def test_rounds_say_what_left_and_when(made: Path) -> None:
    rounds = facts.rounds_of(made)
    assert [(one["study"], one["round"], one["state"]) for one in rounds] == [
        ("breast-density", 2, "sent"), ("breast-density", 1, "sent"),
    ]  # fmt: skip
    text = text_of(browser_of(made, READER).get("/rounds").text)
    assert text.count("left this hospital") == 2
