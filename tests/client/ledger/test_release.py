"""Giving back unused budget: one entry in the audit log, before it takes effect, and one in the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders.consoles import proposed_study, site_folder
from typer.testing import CliRunner

from wardround.errors import AuditError, UsageError
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Ledger
from wardround_client.ledger.release import release_hold
from wardround_client.site.budget import cap_of_site
from wardround_client.studies.approvals import approve

STUDY = proposed_study("breast-density", epsilon=2.0).sha256()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return site_folder(tmp_path / "north")


def entries(site: Path) -> list[dict]:
    return [one for one in verified(site / AUDIT_FILE).entries if one["event"] == "budget-released"]


@pytest.mark.parametrize("who, recorded", [("Dr. Marie Curie", "Dr. Marie Curie"), ("user_17", None)])
def test_the_command_is_in_the_audit_log_once(site: Path, who: str, recorded: str | None) -> None:
    for _ in range(2):  # a repeated call changes nothing
        done = CliRunner().invoke(app, ["ledger", "release", STUDY, "breast-1", "--who", who, "--site", str(site)])
        assert done.exit_code == 0, done.output
    (entry,) = entries(site)
    assert (entry["study"], entry["run"], entry.get("who")) == (STUDY, "breast-1", recorded)
    (hold,) = Ledger(site / "ledger.sqlite3").holds()
    assert hold.released_by == who


def test_without_its_entry_nothing_is_given_back(site: Path) -> None:
    log = site / AUDIT_FILE
    log.write_bytes(log.read_bytes()[:-20])
    log.with_suffix(".head").write_bytes(b"damaged")
    ledger = Ledger(site / "ledger.sqlite3")
    with pytest.raises(AuditError):
        release_hold(site, ledger, STUDY, "breast-1", "Ada Lovelace")
    assert ledger.holds()[0].released_by is None


def test_a_run_that_never_held_anything_is_one_line(site: Path) -> None:
    with pytest.raises(UsageError, match="holds nothing here"):
        release_hold(site, Ledger(site / "ledger.sqlite3"), STUDY, "none", "Ada Lovelace")


def test_the_command_shows_what_approved_runs_were_promised(site: Path) -> None:
    ledger, cap = Ledger(site / "ledger.sqlite3"), cap_of_site(site)
    approve(site, proposed_study(), "Ada Lovelace", ledger, cap, 2)
    words = ["ledger", "show", "--prv-timeout", "0", "--site", str(site)]
    shown = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert shown["with_promised"]["epsilon"] > shown["held"]["epsilon"] + 2
    assert "with what was promised to approved" in " ".join(CliRunner().invoke(app, words).output.split())
