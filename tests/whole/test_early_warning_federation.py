"""Early warning between hospitals: tables are ingested, daemons train, figures are released and charged once, and the
intercept of a hospital's own counts reaches its predictions. The study counts deaths within a horizon only.

The server and two hospitals are real processes with simulated stays.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from builders.federation import Federation, approve, command, deadline_s

from wardround.accounting import PureEvent
from wardround.handover.network import load_network
from wardround.handover.package import CARD, open_package
from wardround.networks.weights import trained_parameters, weights_of
from wardround.study.load import Study, load_study
from wardround.tasks.early_warning.intercepts import from_histogram
from wardround.wire.protocol import EVALUATE, PERSONALISE, TRAIN
from wardround_client.ledger.ledger import Ledger
from wardround_client.rounds.evaluation import released_counts
from wardround_client.sources.cohort import open_cohort
from wardround_simulation.stays.hospitals import OUTCOME, OUTCOME_HOURS, PATIENTS_FILE, write_simulated_hospitals

pytestmark = pytest.mark.slow
SITES = {"east": 1, "north": 2}  # the simulated hospital that each one has
PATIENTS, WINDOW_H, HORIZON_H = 200, 48, 96
STUDY = """
[study]
name = "warning"
task = "early-warning"
rounds = 3
[data]
vocabulary = "icu"
window_hours = {window}
horizon_hours = {horizon}
outcome = "in_hospital_death"
labels = ["survived", "died"]
[model]
name = "severity-head"
init = "phantom"
trainable = "head"
[training]
learning_rate = "rule"
[privacy]
epsilon = 8.0
delta = 1e-4
max_grad_norm = 0.4
nominal_patients = 100
[aggregation]
nominal_sites = 2
min_sites = 2
round_deadline_s = {deadline}
[evaluation]
holdout = 0.5
epsilon = 6.0
[personalisation]
epsilon = 2.0
steps = 3
"""


def labels_within_horizon(folder: Path) -> list[int]:
    """The labels that the study should see in a hospital's table, in ascending order."""
    with open(folder / PATIENTS_FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return sorted(int(row[OUTCOME] == "1" and float(row[OUTCOME_HOURS]) <= WINDOW_H + HORIZON_H) for row in rows)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        for name in list(made.processes):
            made.stop(name)


def allow(folder: Path) -> None:
    """Let a site release noised counts, under a cap that holds the study."""
    path = folder / "site.toml"
    text = path.read_text().replace('evaluation = "off"', 'evaluation = "noised"')
    path.write_text(text.replace("epsilon_cap = 8.0", "epsilon_cap = 22.0"))
    assert 'evaluation = "noised"' in path.read_text() and "epsilon_cap = 22.0" in path.read_text()


def test_from_tables_to_a_calibrated_prediction(federation: Federation, tmp_path: Path) -> None:
    path = tmp_path / "warning.toml"
    path.write_text(STUDY.format(window=WINDOW_H, horizon=HORIZON_H, deadline=round(deadline_s())).lstrip())
    study = load_study(path)
    write_simulated_hospitals(tmp_path / "data", len(SITES), PATIENTS, seed=3)
    for name, number in SITES.items():
        folder, data = federation.folders[name], tmp_path / "data" / f"hospital-{number}"
        shutil.rmtree(folder / "cohort")  # of images, from the builder
        command("client", "ingest", data, "--study", path, "--site", folder)
        found_N = open_cohort(folder / "cohort").labels_N
        assert sorted(found_N.tolist()) == labels_within_horizon(data), "later deaths do not count"
        assert 0 < (found_N == 1).sum() < PATIENTS
        allow(folder)
        approve(path, folder)
    for name in ("server", *SITES):
        federation.start(name)
    run = command("server", "submit", path, "--server", federation.server)["run"]
    federation.wait_for(lambda found: found["state"] == "finished", 300)

    result = json.loads((federation.server / "runs" / run / "result.json").read_text())
    released = result["federated_test"]
    assert released["sites"] == sorted(SITES) and released["epsilon"] == 6.0
    shift = released["fitted_calibration"]["intercept"]
    assert np.isfinite(shift)
    for name in SITES:
        check_charged_once(federation.folders[name], study, run)

    model = tmp_path / "model"
    command("server", "model", "export", run, model, "--force-unsafe", "--server", federation.server)
    card = (model / CARD).read_text()
    assert f"logits are shifted by {shift:+.2f}" in card and "not calibrated" not in card
    own = own_intercept(federation.folders["east"], study, run, model)
    assert own is not None, "the counts of about 100 patients exceed the noise"
    words = ("predict", model, tmp_path / "data" / "hospital-1")
    command("client", *words, "--site", federation.folders["east"], "--out", tmp_path / "at-east")
    assert calibration_in(tmp_path / "at-east") == ("site", pytest.approx(own))
    command("client", *words, "--out", tmp_path / "elsewhere")
    assert calibration_in(tmp_path / "elsewhere") == ("federation", pytest.approx(shift))
    check_charged_once(federation.folders["east"], study, run)

    personal = command("client", "personalise", model, "--site", federation.folders["east"])
    assert not personal["again"] and personal["epsilon"]["epsilon"] <= 2.0
    assert personal["released"]["patients"] == personal["personalised"]["patients"] > 20
    check_charged_once(federation.folders["east"], study, run, PERSONALISE)


def calibration_in(folder: Path) -> tuple[str, float]:
    model = json.loads((folder / "predictions.json").read_text())["model"]
    return model["calibration"], model["intercept"]


def own_intercept(folder: Path, study: Study, run: str, model: Path) -> float | None:
    weights = weights_of(trained_parameters(load_network(open_package(model)), study))
    counts = released_counts(folder, study, run, weights)
    return None if counts is None else from_histogram(counts)


def check_charged_once(folder: Path, study: Study, run: str, *more: str) -> None:
    """Three rounds of training and one release are in the ledger, and what `more` names, all settled."""
    ledger = Ledger(folder / "ledger.sqlite3")
    try:
        attempts = ledger.attempts(study.sha256(), run)
        assert sorted(one.purpose for one in attempts) == sorted([EVALUATE, TRAIN, TRAIN, TRAIN, *more])
        assert all(one.reply_sha256 for one in attempts)
        assert list(ledger.events(run, EVALUATE)) == [PureEvent(epsilon=6.0, count=1)]
    finally:
        ledger.close()
