"""The metrics of both programs: their values, who gets them, and that the dashboard uses none that does not exist."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
from pathlib import Path

import httpx
import pytest
from builders.consoles import server_folder, site_folder
from builders.runs import run_of
from paths import ROOT
from starlette.testclient import TestClient

from wardround.records.audit_events import MessageRefused
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.web import metrics
from wardround.web.config import ConsoleConfig
from wardround.web.metrics import metrics_app
from wardround_client.console.app import console_of as site_console
from wardround_client.console.budget import budget_of
from wardround_server.console.app import console_of as server_console
from wardround_server.runs.folder import write_json
from wardround_server.runs.paths import ROUND_FILE

PORT = 9191
DASHBOARD = json.loads((ROOT / "deploy/grafana/wardround.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_folder(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return server_folder(tmp_path_factory.mktemp("server"))


def client_of(parts, address: str = "127.0.0.1") -> TestClient:
    app = metrics_app(dict(parts), PORT)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}", client=(address, 1))


def values_of(folder: Path, console) -> dict[str, float]:
    answer = client_of(console(folder, ConsoleConfig()).metrics).get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_a_site_tells_its_budget_studies_and_replies(site: Path) -> None:
    values, budget = values_of(site, site_console), budget_of(site)
    assert values["wardround_epsilon_spent"] == pytest.approx(budget.spent.value)
    assert values["wardround_epsilon_held"] == pytest.approx(budget.held.value)
    assert values["wardround_epsilon_cap"] == 8.0 and values["wardround_replies_sent_total"] == 2
    assert values['wardround_studies{state="proposed"}'] == 1 and values['wardround_studies{state="approved"}'] == 1
    assert values["wardround_serving"] == 0, "no daemon is running"
    assert {value for name, value in values.items() if "unreadable{part" in name} == {0}


def test_no_metric_of_a_site_counts_its_patients(site: Path) -> None:
    """12 patients and 24 images are prepared; a monitoring system is not the place for small counts."""
    text = client_of(site_console(site, ConsoleConfig()).metrics).get("/metrics").text
    assert not re.search(r"patients?_|images|cohort", text)


def test_a_server_tells_its_runs_sites_and_certificates(server: Path) -> None:
    run = run_of(server, "second")
    with run.phase("train"):
        now = {"round": 1, "began": 0.0, "deadline_s": 60.0, "away": ["b"], "waiting_for": ["a", "b"], "answered": {}}
        write_json(run.path / ROUND_FILE, now)
        values = values_of(server, server_console)
    (run.path / ROUND_FILE).unlink()
    assert values['wardround_runs{state="finished"}'] == 1 and values['wardround_runs{state="proposed"}'] == 1
    assert values[f'wardround_run_sites_waiting{{run="{run.run_id}"}}'] == 2
    assert values[f'wardround_run_sites_away{{run="{run.run_id}"}}'] == 1
    assert values['wardround_certificate_expiry_timestamp_seconds{certificate="server"}'] > 1.7e9


def test_what_cannot_be_read_is_named_and_the_rest_is_served(site: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(site, tmp_path / "north"))
    (folder / "ledger.sqlite3").write_bytes(b"x" * 4096)
    log = folder / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"Ada", b"Eve", 1))
    values = values_of(folder, site_console)
    assert {name for name, value in values.items() if "unreadable{part" in name and value == 1} == {
        f'wardround_unreadable{{part="{part}"}}' for part in ("ledger", "audit", "replies")
    }
    assert "wardround_epsilon_spent" not in values and values["wardround_disk_free_bytes"] > 0


def test_a_peer_cannot_make_series_without_end(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 10)
    folder = Path(shutil.copytree(site, tmp_path / "north"))
    log = AuditLog(folder / AUDIT_FILE)
    for number in range(15):
        log.append(MessageRefused(code=f"c{number}"))
    values = values_of(folder, site_console)
    found = {name: value for name, value in values.items() if "messages_refused_total{" in name}
    assert len(found) == 11 and sum(found.values()) == 15
    assert found['wardround_messages_refused_total{code="other"}'] == 5


def test_a_folder_that_does_not_answer_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LIMIT_S", 0.05)
    begun, let_go = [], threading.Event()

    def stuck() -> list:
        begun.append(1)
        let_go.wait(20)
        return []

    async def asked_again_and_again() -> tuple[list[int], int]:
        transport = httpx.ASGITransport(metrics_app({"stuck": stuck}, PORT), client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{PORT}") as client:
            codes = [(await client.get("/metrics")).status_code for _ in range(4)]
            let_go.set()
            await asyncio.sleep(0.05)
            return codes, (await client.get("/metrics")).status_code

    codes, last = asyncio.run(asked_again_and_again())
    assert codes == [503] * 4 and last == 200, "it is read once the folder answers"
    assert len(begun) <= 2, "the last request may have begun another reading"


def test_only_this_machine_under_its_own_name_gets_metrics(site: Path) -> None:
    parts = site_console(site, ConsoleConfig()).metrics
    assert client_of(parts, "10.0.0.5").get("/metrics").status_code == 421
    client = client_of(parts)
    for host in ("evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1"):
        assert client.get("/metrics", headers={"host": host}).status_code == 421
    for path in ("/", "/metrics/", "/login", "/metrics/../x"):
        assert client.get(path).status_code == 404
    assert client.post("/metrics").status_code == 404


def test_the_dashboard_asks_for_metrics_that_exist(site: Path, server: Path) -> None:
    run = run_of(server, "second")
    assert run.state() == "proposed"
    text = "".join(
        client_of(console(folder, ConsoleConfig()).metrics).get("/metrics").text
        for folder, console in ((site, site_console), (server, server_console))
    )
    known = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    asked = {
        name
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\bwardround_\w+", target["expr"])
    }
    assert asked <= known and len(asked) > 15
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
