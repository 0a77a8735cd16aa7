"""Health over real gRPC: SERVING only while no check finds a fault, each check bounded in time, loopback only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from wardround.errors import WardroundError
from wardround.operations.health import HEALTH_FILE, HealthService, Probe, Watch, asked
from wardround.operations.health_checks import Check, fault, note, ok
from wardround.records.audit_events import ReplyReleased
from wardround.records.audit_log import AuditLog
from wardround.study.load import parse_study
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site import checks
from wardround_client.site.config import load_site_config
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Switch:
    """A look whose finding a test sets."""

    def __init__(self, name: str) -> None:
        self.name, self.find = name, lambda: ok(name, "well")

    def look(self, limit_s: float = 5.0) -> Probe:
        return Probe(name=self.name, run=lambda: self.find(), todo="mend it", limit_s=limit_s)


@pytest.fixture
def switches() -> tuple[Switch, Switch]:
    return Switch("data"), Switch("budget")


@pytest.fixture
def service(switches, tmp_path: Path) -> Iterator[tuple[int, HealthService]]:
    service = HealthService([switch.look(limit_s=0.5) for switch in switches], tmp_path, every_s=0.05)
    yield service.start(), service
    service.stop()


def status(port: int, name: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def becomes(wanted: int, port: int, name: str = "", within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if status(port, name) == wanted:
            return True
        time.sleep(0.02)
    return False


def raises(error: Exception):
    def look() -> Check:
        raise error

    return look


def test_serving_means_that_every_look_is_well_and_one_fault_ends_it(service, switches) -> None:
    port, _ = service
    data, budget = switches
    assert becomes(SERVING, port)
    budget.find = lambda: note("budget", "little is left", "ask")
    time.sleep(0.2)
    assert becomes(SERVING, port), "a note is no fault"
    for broken in (lambda: fault("data", "gone", "look"), raises(WardroundError("gone")), raises(OSError("/CANARY/x"))):
        data.find = broken
        assert becomes(NOT_SERVING, port) and status(port, "data") == NOT_SERVING
        assert status(port, "budget") == SERVING
        data.find = lambda: ok("data", "well")
        assert becomes(SERVING, port)


def test_a_look_that_hangs_is_a_fault_costs_one_thread_and_is_believed_again_when_it_ends(service, switches) -> None:
    port, _ = service
    data, _ = switches
    assert becomes(SERVING, port)
    end, calls = threading.Event(), []

    def hang() -> Check:
        calls.append(1)
        end.wait(30)
        return ok("data", "well")

    data.find = hang
    assert becomes(NOT_SERVING, port)
    time.sleep(1.5)
    assert len(calls) == 1, "a hanging look was started again"
    end.set()
    assert becomes(SERVING, port)


def test_nothing_serves_before_the_first_look_is_done(tmp_path: Path) -> None:
    end = threading.Event()
    look = Probe(name="slow", run=lambda: ok("slow", str(end.wait(20))), todo="", limit_s=20)
    service = HealthService([look], tmp_path)
    port = service.start()
    try:
        assert status(port) == NOT_SERVING
        end.set()
        assert becomes(SERVING, port)
    finally:
        service.stop()


def test_an_exception_that_is_not_ours_is_told_by_its_kind_only(caplog) -> None:
    (check,) = Watch([Probe(name="data", run=raises(OSError("/data/CANARY")), todo="look")]).findings()
    assert check == fault("data", "cannot be determined (OSError)", "look")


def test_findings_take_the_longest_limit_at_most_and_say_which_look_was_late() -> None:
    end = threading.Event()
    hang = Probe(name="share", run=lambda: ok("share", str(end.wait(30))), todo="mount it", limit_s=0.3)
    other = Probe(name="disk", run=lambda: ok("disk", str(end.wait(30))), todo="look", limit_s=0.3)
    well = Probe(name="clock", run=lambda: ok("clock", "right"), todo="")
    started = time.monotonic()
    found = Watch([hang, well, other]).findings()
    assert time.monotonic() - started < 2
    end.set()
    assert [check.state for check in found] == ["fault", "ok", "fault"]
    assert (found[0].found, found[0].todo) == ("no answer within 0.3 s", "mount it")


def test_it_listens_on_loopback_only_and_its_file_is_its_owners(service, tmp_path: Path) -> None:
    port, _ = service
    assert becomes(SERVING, port)
    tables = [Path(f"/proc/{os.getpid()}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    listening = [line.split()[1] for table in tables for line in table.splitlines()[1:] if line.split()[3] == "0A"]
    ours = [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == port]
    assert ours and set(ours) <= {"0100007F", "0000000000000000FFFF00000100007F"}, "127.0.0.1, as IPv4 or mapped"
    while not (tmp_path / HEALTH_FILE).exists():
        time.sleep(0.01)
    assert (tmp_path / HEALTH_FILE).stat().st_mode & 0o777 == 0o600


def test_the_command_asks_the_daemon_and_ends_with_1_unless_it_serves(service, switches, tmp_path: Path) -> None:
    port, running = service
    assert becomes(SERVING, port)
    while not (tmp_path / HEALTH_FILE).exists():
        time.sleep(0.01)
    run = CliRunner().invoke
    done = run(app, ["health", "--site", str(tmp_path), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["serving"] is True
    switches[0].find = lambda: fault("data", "the share is gone", "mount it")
    assert becomes(NOT_SERVING, port)
    time.sleep(0.2)
    done = run(app, ["health", "--site", str(tmp_path)])
    assert done.exit_code == 1 and "the share is gone" in done.output and "NOT SERVING" in done.output
    left = (tmp_path / HEALTH_FILE).read_bytes()
    running.stop()
    with pytest.raises(WardroundError, match="no daemon is running"):
        asked(tmp_path)
    (tmp_path / HEALTH_FILE).write_bytes(left)  # as a kill leaves it
    with pytest.raises(WardroundError, match="does not answer"):
        asked(tmp_path)


def test_a_taken_port_is_one_line(service, tmp_path: Path) -> None:
    port, _ = service
    with pytest.raises(WardroundError, match=f"port {port} of 127.0.0.1 is taken"):
        HealthService([], tmp_path, port=port).start()


# A site's own looks


@pytest.fixture
def site(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [CohortRow(pseudonym=pseudonym(b"k" * 32, f"p{n}"), label=n % 2) for n in range(6)]
    images = (generator.integers(0, 256, (1, 16, 16), dtype=np.uint8) for _ in rows)
    names = ("benign", "malignant")
    write_cohort(tmp_path / "cohort", rows, images, row_shape=(1, 16, 16), label_names=names, site_key=b"k" * 32)
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    return tmp_path


def test_data_that_cannot_be_read_are_a_fault(site: Path) -> None:
    assert checks.readable(site).state == "ok"
    (array,) = [path for path in (site / "cohort").iterdir() if path.stat().st_size > 1000]
    array.write_bytes(array.read_bytes()[:100])
    (check,) = Watch([Probe(name="data", run=lambda: checks.readable(site), todo="ingest")]).findings()
    assert check.state == "fault"
    for path in (site / "cohort").iterdir():
        path.unlink()
    assert checks.readable(site).state == "fault"


def test_a_budget_that_is_used_up_is_a_fault_unless_a_study_at_work_holds_it(site: Path) -> None:
    config = load_site_config(site / "site.toml")
    assert checks.enough(site, config).state == "ok"
    study = parse_study(
        {
            "study": {"name": "t", "rounds": 1, "spare_rounds": 0},
            "data": {"labels": ["a", "b"]},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 1},
        }
    )
    ledger = Ledger(site / "ledger.sqlite3")
    cap = Cap(epsilon=8.0, delta=1e-4)
    ledger.hold(study.sha256(), "run", plan_from_study(study), cap)
    (site / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 0.5\ndelta_cap = 1e-4\n')
    config = load_site_config(site / "site.toml")
    assert checks.enough(site, config).state == "ok", "the study's round is still to come"
    ledger.settle(ledger.reserve(study.sha256(), "run", 1, "w", cap=cap), "reply")
    assert checks.enough(site, config).state == "fault"


def test_the_last_reply_is_told_and_an_altered_log_is_a_fault(site: Path) -> None:
    assert checks.last_reply(site).found == "none yet"
    released = ReplyReleased(study="ab" * 32, run="run-1", round=7, purpose="train", reply="cd" * 32)
    AuditLog(site / "audit.jsonl").append(released)
    assert "round 7 of run run-1" in checks.last_reply(site).found
    (site / "audit.jsonl").write_bytes((site / "audit.jsonl").read_bytes().replace(b'"round":7', b'"round":9'))
    (check,) = Watch([Probe(name="last reply", run=lambda: checks.last_reply(site), todo="")]).findings()
    assert check.state == "fault" and "altered" in check.found


def test_the_looks_of_a_site_that_belongs_to_no_federation_do_not_serve(site: Path) -> None:
    looks = checks.probes_of(site, registered=lambda: fault("registered", "no", "ask"))
    found = {check.name: check.state for check in Watch(looks).findings()}
    assert list(found) == ["registered", "clock", "CA", "server", "data", "budget", "last reply"]
    assert found["registered"] == found["CA"] == found["server"] == "fault" and found["data"] == "ok"


def test_watching_a_site_loads_nothing_heavy() -> None:
    code = "import sys, wardround_client.site.checks; print([n for n in ('torch', 'flwr', 'ray') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
