"""`wardround-site predict` for records: risks, their parts, refusals, and files that a nurse and a program can read."""

from __future__ import annotations

import csv
import hashlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from builders.networks import records_study
from builders.packages import edit_record, write_package
from typer.testing import CliRunner

from wardround.errors import LedgerError, UsageError, WardroundError
from wardround.handover.network import load_network
from wardround.handover.package import open_package
from wardround.networks.weights import trained_parameters, weights_of
from wardround.phantoms.stays import stays
from wardround.study.load import Study
from wardround.wire.evaluation import COUNTS, evaluation_round
from wardround.wire.packets import weights_sha256
from wardround.wire.protocol import EVALUATE
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Ledger, cap_of
from wardround_client.predict.records.predict import predict_records, risk_text
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.paths import LEDGER_FILE, REPLIES
from wardround_client.site.site import ReplyFolder
from wardround_simulation.stays.hospitals import SITE_SEEDS, write_simulated_hospitals

PATIENTS, SEED = 6, 4


@pytest.fixture(scope="module")
def ward(tmp_path_factory) -> Path:
    """Six simulated stays, and a seventh patient of whom only the age is known."""
    folder = tmp_path_factory.mktemp("ward")
    write_simulated_hospitals(folder / "data", 1, PATIENTS, SEED)
    with open(folder / "data" / "hospital-1" / "patients.csv", "a", encoding="utf-8") as file:
        file.write("=2+3,70,1,,,3,,\n")
    return folder / "data" / "hospital-1"


def package(folder: Path, name: str = "severity-head") -> Path:
    return write_package(folder / name, records_study(name, hours=48, model={"init": "phantom"}))


@pytest.mark.parametrize("name", ["severity-head", "gru"])
def test_each_patient_gets_a_risk_with_parts_or_a_refusal(tmp_path: Path, ward: Path, name: str) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in ward.iterdir()}
    found = predict_records(open_package(package(tmp_path, name)), ward)
    assert len(found.patients) == PATIENTS + 1
    risks = [one.risk for one in found.patients if one.risk is not None]
    assert len(risks) == PATIENTS and risks == sorted(risks, reverse=True)
    refused = found.patients[-1]
    assert refused.refused == "0 of 33 measurements are known, and the model needs 6" and refused.parts is None
    for one in found.patients[:-1]:
        assert one.parts is not None and one.risks[-1][0] == 48
        assert one.risk == pytest.approx(1 / (1 + np.exp(-one.parts.logit)), abs=1e-5)
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in ward.iterdir()}


def test_the_rows_are_those_of_ingestion(ward: Path) -> None:
    from wardround_client.sources.records.asked import read_asked

    asked = read_asked(ward, records_study("gru", hours=48).data)
    right_NTV, _ = stays(PATIENTS, SEED * SITE_SEEDS + 1)
    assert (~np.isnan(asked.rows_PTV[:PATIENTS])).sum() == pytest.approx((~np.isnan(right_NTV)).sum(), rel=0.01)


def test_an_intercept_of_the_federation_s_counts_shifts_every_risk(tmp_path: Path, ward: Path) -> None:
    folder = package(tmp_path)
    plain = predict_records(open_package(folder), ward)
    edit_record(folder, calibration={"intercept": 1.5})
    shifted = predict_records(open_package(folder), ward)
    assert (plain.calibration, shifted.calibration) == ("none", "federation")
    logits = [np.log(one.patients[0].risk / (1 - one.patients[0].risk)) for one in (plain, shifted)]
    assert logits[1] - logits[0] == pytest.approx(1.5, abs=1e-4)


def test_a_site_s_own_released_counts_go_before_those_of_the_federation(tmp_path: Path, ward: Path) -> None:
    study = records_study("severity-head", hours=48, model={"init": "phantom"}, evaluation={"epsilon": 4.0})
    folder = write_package(tmp_path / "model", study)
    edit_record(folder, calibration={"intercept": 0.5})
    run = open_package(folder).content["run"]
    site, other = tmp_path / "site", tmp_path / "other"
    site.mkdir()
    assert predict_records(open_package(folder), ward, site).calibration == "federation"
    weights = weights_of(trained_parameters(load_network(open_package(folder)), study))
    ledger, attempt = released_at(site, study, run, weights_sha256(weights))
    spent = ledger.events()
    found = predict_records(open_package(folder), ward, site)
    assert found.calibration == "site" and 2 < found.shift < 6  # one in ten among those with the lowest scores
    assert ledger.events() == spent  # nothing more is charged
    ReplyFolder(site / REPLIES)[attempt] = {COUNTS: RELEASED[COUNTS] + 1}
    with pytest.raises(LedgerError, match="differ from those in the ledger"):
        predict_records(open_package(folder), ward, site)
    other.mkdir()
    released_at(other, study, run, "0" * 64)
    assert predict_records(open_package(folder), ward, other).calibration == "federation"  # counted for other weights


RELEASED = {COUNTS: np.array([[900, *[0] * 15], [100, *[0] * 15]], dtype=np.int64)}


def released_at(site: Path, study: Study, run: str, weights: str) -> tuple[Ledger, int]:
    """A site that released counts for the weights with this hash."""
    ledger, round_ = Ledger(site / LEDGER_FILE), evaluation_round(study)
    ledger.hold(study.sha256(), run, plan_from_study(study), cap_of(study))
    attempt = ledger.reserve(study.sha256(), run, round_, weights, EVALUATE, cap=cap_of(study))
    ReplyFolder(site / REPLIES)[attempt] = RELEASED
    ledger.settle(attempt, weights_sha256(RELEASED))
    return ledger, attempt


def test_the_command_writes_json_csv_and_a_picture_for_each_patient(tmp_path: Path, ward: Path) -> None:
    folder, out = package(tmp_path), tmp_path / "out"
    result = CliRunner().invoke(app, ["predict", str(folder), str(ward), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "refused" in result.output and "not for diagnosis" in result.output
    document = json.loads((out / "predictions.json").read_text())
    assert len(document["patients"]) == PATIENTS + 1 and document["model"]["outcome"] == "died"
    assert document["patients"][0]["explanation"]["method"] == "exact"
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["patient"] == "'=2+3"  # no formula for a spreadsheet
    pictures = sorted(out.glob("patient-*.svg"))
    assert len(pictures) == PATIENTS
    words = " ".join(ElementTree.fromstring(pictures[0].read_text()).itertext())
    assert "Risk of “died”" in words and "usual" in words and "not for diagnosis" in words
    again = CliRunner().invoke(app, ["predict", str(folder), str(ward), "--out", str(out)])
    assert isinstance(again.exception, UsageError)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["{model}", "{empty}"], "no records found in it"),
        (["{model}", "{empty}/none"], "no such folder"),
        (["{model}", "{ward}", "--points", "{empty}"], "--points: is for images"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, ward: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"model": str(package(tmp_path)), "empty": str(tmp_path / "empty"), "ward": str(ward)}
    result = CliRunner().invoke(app, ["predict", *(one.format(**places) for one in arguments)])
    assert isinstance(result.exception, WardroundError) and says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_small_risk_is_not_none() -> None:
    assert [risk_text(risk) for risk in (0.001, 0.04, 0.999)] == ["< 1 %", "4%", "> 99 %"]
