"""Both consoles in Chromium, as the people of a hospital and an operator use them.

With WARDROUND_PICTURES=docs/pictures the pictures of docs/console.md are written anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.consoles import (
    APPROVER,
    OPERATOR,
    PASSWORD,
    READER,
    add_users,
    proposed_study,
    server_folder,
    site_folder,
)
from builders.keys import public_key
from builders.runs import run_of
from whole.browser import Tab, console, missing, tab

from wardround.operations.health import HealthService, Probe
from wardround.operations.health_checks import note, ok
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround_client.studies.approvals import find_study
from wardround_server.runs.folder import write_json
from wardround_server.runs.paths import APPROVALS_FILE, ROUND_FILE
from wardround_server.sites.registry import Registry

pytestmark = pytest.mark.slow
SHA256 = proposed_study().sha256()


@pytest.fixture(scope="module", autouse=True)
def chromium() -> None:
    if fault := missing():
        pytest.skip(fault)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return Path(os.environ.get("WARDROUND_PICTURES", tmp_path)).absolute()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = site_folder(tmp_path_factory.mktemp("site"))
    add_users(folder)
    probes = [
        Probe(name="registered", run=lambda: ok("registered", "the server accepts this site's key"), todo=""),
        Probe(
            name="CA", run=lambda: note("CA", "valid until 2026-12-20, 21 days left", "ask for the next CA"), todo=""
        ),
        Probe(name="data", run=lambda: ok("data", "12 patients, 24 images"), todo=""),
    ]
    health = HealthService(probes, folder)
    health.start()
    with console("client", folder) as address:
        yield folder, address
    health.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = server_folder(tmp_path_factory.mktemp("server"))
    for name in ("east", "north", "west"):
        Registry(folder).add(name, public_key())
    add_users(folder)
    probes = [
        Probe(name="superlink", run=lambda: ok("superlink", "running as process 4711"), todo=""),
        Probe(name="sites", run=lambda: ok("sites", "3 enrolled: east, north, west"), todo=""),
    ]
    health = HealthService(probes, folder)
    health.start()
    with console("server", folder) as address:
        yield folder, address
    health.stop()


def no_complaints(page: Tab) -> None:
    """No script or style was refused by the page's own policy, and nothing failed to load."""
    assert [one for one in page.complaints() if "favicon" not in one and "status of 4" not in one] == []


def test_a_hospital_signs_in_reads_refuses_and_approves(site: tuple[Path, str], pictures: Path) -> None:
    folder, address = site
    with tab(address) as page:
        page.open("/")
        assert page.path == "/login"
        page.sign_in(APPROVER)
        assert page.path == "/" and "One proposed study waits for a decision" in page.text()
        page.picture(pictures / "console-site.png")
        page.click("lung-nodules")
        assert "is right at most 95.3 % of the time" in page.text()
        page.click("Refuse …")
        page.fill("reason", "The ethics committee has not met yet")
        page.fill("sure", "yes")
        page.click("Refuse")
        assert page.path.startswith(f"/studies/{SHA256}?done=") and find_study(folder, SHA256).state == "refused"
        assert "The ethics committee has not met yet" in page.text()
        page.fill("runs", "2")
        page.click("Approve …")
        page.picture(pictures / "console-approve.png")
        assert page.script("return document.querySelector('form.card').checkValidity()") is False, "the tick is missing"
        page.fill("reason", "The ethics committee agreed on 27 November")
        page.fill("sure", "yes")
        page.click("Approve")
        page.wait_for(lambda: page.path.startswith(f"/studies/{SHA256}?done="))
        known = find_study(folder, SHA256)
        assert (known.state, known.runs, known.decisions[-1]["who"]) == ("approved", 2, "Dr. Marie Curie")
        for name in ("ledger", "data", "audit"):
            page.open(f"/{name}")
            page.picture(pictures / f"console-{name}.png")
        page.open("/ledger")
        page.click("Give back …")
        page.picture(pictures / "console-release.png")
        page.fill("sure", "yes")
        page.click("Give back the unused part")
        page.wait_for(lambda: page.path.startswith("/ledger?done="))
        assert "The unused part was given back" in page.text() and "Give back …" not in page.text()
        assert verified(folder / AUDIT_FILE).entries[-1]["event"] == "budget-released"
        no_complaints(page)
        page.click("Sign out")
        assert page.path == "/login"
        page.open("/studies")
        assert page.path == "/login"


def test_a_reader_is_refused(site: tuple[Path, str]) -> None:
    _, address = site
    with tab(address) as page:
        page.sign_in(READER)
        page.open(f"/studies/{SHA256}")
        assert "Approve …" not in page.text() and "right to approve decides" in page.text()
        page.open(f"/studies/{SHA256}/approve")
        assert "lacks the right that this needs: approve" in page.text()
        page.open("/logs")
        assert "lacks the right" in page.text()


def test_pages_are_read_without_javascript_in_german_and_with_the_keyboard(
    site: tuple[Path, str], pictures: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    _, address = site
    with tab(address, language="de", javascript=False) as page:
        page.open("/login")
        login = page.driver.switch_to.active_element
        login.send_keys("marie", Keys.TAB)
        page.driver.switch_to.active_element.send_keys(PASSWORD, Keys.ENTER)
        page.wait_for(lambda: page.path == "/")
        assert "Überblick" in page.text("nav")
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        assert page.driver.switch_to.active_element.text == "Zum Inhalt springen", "the first stop of the keyboard"
        page.picture(pictures / "console-german.png")
        for path in ("/studies", "/ledger", "/data", "/rounds", "/audit", "/health"):
            page.open(path)
            assert page.text("h1") and page.text("nav [aria-current]")


def test_an_operator_watches_a_run_sees_a_late_site_and_opens_a_card(server: tuple[Path, str], pictures: Path) -> None:
    folder, address = server
    run = run_of(folder, "second")

    def now(number: int, away: list[str], waiting: list[str], answered: dict[str, str | None]) -> None:
        content = {"round": number, "began": time.time() - 95, "deadline_s": 600.0, "away": away}
        write_json(run.path / ROUND_FILE, {**content, "waiting_for": waiting, "answered": answered})

    with tab(address) as page, run.phase("train"):
        approved = {name: {"state": "approved", "at": time.time()} for name in ("east", "north", "west")}
        write_json(run.path / APPROVALS_FILE, approved)
        now(1, [], ["east", "north", "west"], {})
        page.sign_in(OPERATOR)
        assert "Federation fed" in page.text("h1")
        page.click(run.run_id)
        assert "east 1 connected, has not replied yet" in page.text("#live")
        page.script("document.body.dataset.kept = 'yes'")
        now(1, ["north"], ["north"], {"east": None, "west": "invalid:norm"})
        page.wait_for(lambda: "north 1 not connected" in page.text("#live"))
        assert "max_update_norm" in page.text("#live")
        assert page.script("return document.body.dataset.kept") == "yes", "the page itself was not loaded again"
        page.picture(pictures / "console-run.png")
        page.open("/")
        page.picture(pictures / "console-operator.png")
        assert "north 1 not connected" in page.text()
        page.open("/models")
        page.click("first, version 1")
        assert "Who took part" in page.text() and "north" in page.text()
        page.picture(pictures / "console-model.png")
        page.open("/sites")
        page.open(f"/runs/{run.run_id}/stop")
        page.click("Stop the run")
        assert run.is_stopped and "stopped" in page.text("#live")
        no_complaints(page)


def test_a_reader_of_the_operator_decides_nothing(server: tuple[Path, str]) -> None:
    folder, address = server
    run = run_of(folder, "first").run_id
    with tab(address) as page:
        page.sign_in(READER)
        for path in (f"/runs/{run}/resume", "/runs/submit", "/sites/north/revoke", "/logs"):
            page.open(path)
            assert "lacks the right" in page.text(), path


def test_a_foreign_page_can_neither_frame_nor_send_nor_read(site: tuple[Path, str], tmp_path: Path) -> None:
    """Clickjacking and CSRF by a page of another origin, with a browser that is signed in."""
    folder, address = site
    evil = tmp_path / "evil.html"
    evil.write_text(
        f"<iframe src='{address}/'></iframe><form method=post action='{address}/studies/{SHA256}/revoke'>"
        "<input name=sure value=yes><input name=reason value=evil><button class=main>x</button></form>"
        f"<script>fetch('{address}/audit', {{credentials: 'include'}}).then(r => r.text()).then("
        "t => document.title = t, e => document.title = 'blocked')</script>"
    )
    before = find_study(folder, SHA256).state
    with tab(address) as page:
        page.sign_in(APPROVER)
        page.driver.get(evil.as_uri())
        page.wait_for(lambda: page.driver.title == "blocked")
        page.driver.switch_to.frame(0)
        assert "north" not in page.text()
        page.driver.switch_to.default_content()
        page.click("x")
        assert "another web site" in page.text() and find_study(folder, SHA256).state == before
