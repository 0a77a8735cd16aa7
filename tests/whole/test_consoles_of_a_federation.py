"""A whole study by browser: submitted, approved, watched with a site that goes away, and its model read.

The server and three hospitals are real processes; the operator and one hospital use their consoles for everything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders.consoles import APPROVER, OPERATOR, add_users
from builders.federation import NAMES, STUDY, Federation, approve, deadline_s
from whole.browser import console, missing, tab

from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.load import load_study
from wardround_client.ledger.ledger import Ledger
from wardround_client.studies.approvals import find_study

pytestmark = pytest.mark.slow
LIMIT_S = 400


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    if fault := missing():
        pytest.skip(fault)
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        for name in list(made.processes):
            made.stop(name)


def test_a_study_from_its_submission_to_its_model(federation: Federation, tmp_path: Path) -> None:
    text = STUDY.format(rounds=4, min_sites=2).replace("epsilon = inf", "epsilon = 4.0").strip()
    text = text.replace("round_deadline_s = 90", f"round_deadline_s = {round(deadline_s())}")
    path = tmp_path / "tiny.toml"
    path.write_text(text + "\n")
    sha256, north = load_study(path).sha256(), federation.folders["north"]
    for folder in (federation.server, north):
        add_users(folder, APPROVER, OPERATOR)
    for name in ("server", *NAMES):
        federation.start(name)
    with (
        console("server", federation.server) as of_server,
        console("client", north) as of_site,
        tab(of_server) as operator,
        tab(of_site) as hospital,
    ):
        operator.sign_in(OPERATOR)
        operator.open("/runs/submit")
        operator.script(f"document.getElementById('text').value = {text!r}")
        operator.click("Propose the study")
        assert operator.path.startswith("/runs/tiny-") and "proposed" in operator.text("#live")
        for name in ("east", "west"):
            approve(path, federation.folders[name])

        def proposed() -> bool:
            hospital.open("/studies")
            return "tiny" in hospital.text("main")

        hospital.sign_in(APPROVER)
        hospital.wait_for(proposed, LIMIT_S)
        hospital.click("tiny")
        assert "the server at 127.0.0.1:" in hospital.text("main")
        hospital.click("Approve …")
        hospital.fill("reason", "tested")
        hospital.fill("sure", "yes")
        hospital.click("Approve")
        assert find_study(north, sha256).state == "approved"
        operator.wait_for(lambda: "training" in operator.text("#live"), LIMIT_S)
        operator.wait_for(lambda: "1 of 4 rounds are done" in operator.text("#live"), LIMIT_S)
        federation.processes["west"].kill()
        federation.processes.pop("west").wait()
        gone = re.compile(r"west \d (not connected|answered after the deadline)")
        operator.wait_for(lambda: gone.search(operator.text("#live h2 + table")) is not None, LIMIT_S)
        if pictures := os.environ.get("WARDROUND_PICTURES"):
            operator.picture(Path(pictures).absolute() / "console-run.png")
        operator.wait_for(lambda: "finished" in operator.text("#live"), LIMIT_S)
        operator.click("The model and its card")
        assert "Who took part" in operator.text() and "ε 4 at δ 1e-05" in operator.text()
        hospital.open("/rounds")
        rounds = hospital.text("main").count("left this hospital")
        hospital.open("/ledger")
        assert "tiny" in hospital.text("main")
    left = [one for one in verified(north / AUDIT_FILE).entries if one["event"] == "released"]
    # Training begins with two approvals, so that north may miss the first round.
    assert len(left) == rounds >= 3 and 0 < Ledger(north / "ledger.sqlite3").spent(1e-5).value <= 4.0
