"""Assessment of a synthesis run: trained in one process on small phantom hospitals, measured, shown in a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT

from wardround.errors import DataError
from wardround.networks.build import initial_network
from wardround.phantoms.crops import generate_crops
from wardround.study.load import Study, load_study
from wardround.tasks.assessment import AtEnd
from wardround.tasks.synthesis import assess
from wardround.tasks.synthesis.measures import classifiers, figures
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.training.rows import held_out_rows, training_rows
from wardround_client.training.scoring import held_out_scores
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, sites_of
from wardround_simulation.engine.in_process import Hospital, open_hospitals
from wardround_simulation.report.evidence import RunEvidence
from wardround_simulation.report.report import write_report

STUDIES = ROOT / "studies"
NODULES = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared/data")) / "lidc_nodules"
GAN = (
    "model.name=dcgan",
    "model.init=random",
    "model.trainable=all",
    "training.learning_rate=0.01",
    "synthesis.fakes_per_step=4",
)
SMALL = ("study.rounds=2", "data.image_size=64", "aggregation.nominal_sites=2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assess, "POOL", 150)
    monkeypatch.setattr(assess, "A_ROUND", 20)
    monkeypatch.setattr(figures, "CLASSIFIERS", 1)
    monkeypatch.setattr(classifiers, "STEPS", 5)


def hospitals_of(folder: Path, study: Study, patients: int = 16) -> list[Hospital]:
    """Two hospitals of phantom patients, one to three images each."""
    folders = {}
    for number in (1, 2):
        dice = np.random.default_rng(number)
        images = generate_crops(100, seed=50 + number)
        rows, taken = [], []
        for patient in range(patients):
            for _ in range(int(dice.integers(1, 4))):
                taken.append(len(taken))
                label = int(images.labels_N[taken[-1]])
                rows.append(CohortRow(pseudonym=pseudonym(b"k" * 32, f"{number}-{patient}"), label=label))
        where = folder / f"site-{number}"
        where.mkdir(parents=True)
        chosen = images.images_NHW[taken][:, None].numpy()
        names = study.data.labels
        write_cohort(where / "cohort", rows, chosen, row_shape=(1, 64, 64), label_names=names, site_key=b"k" * 32)
        folders[f"site-{number}"] = where
    return open_hospitals(folders, study)


def assessment_of(study: Study, hospitals: list[Hospital], out: Path) -> assess.SynthesisAssessment:
    """The assessment of a run, as `run` makes it."""
    return assess.assessment_of(study, sites_of(study, hospitals), out, InProcessTrainer(hospitals))


def judged(study: Study, hospitals: list[Hospital], out: Path):
    """Rounds and assessment as `run` calls them, without an engine."""
    assessment = assessment_of(study, hospitals, out)
    start = in_process.start_weights(study)
    said = [assessment.after_round(0, start)]
    admitted: dict[str, object] = {}
    sites = [
        in_process.temporary_site(study, h.name, [(h, training_rows(study, h.cohort))], admitted) for h in hospitals
    ]
    weights = in_process.train_together(study, sites)
    said += [assessment.after_round(round_, weights) for round_ in (1, 2)]
    end = AtEnd(weights=weights, released=None, others=(), baselines=True, show_images=True, stage=lambda text: None)
    return said, assessment.at_end(end), weights


@pytest.mark.parametrize("overrides", [pytest.param((), marks=pytest.mark.slow), GAN], ids=["sampler", "gan"])
def test_a_run_is_measured_beside_its_public_start_and_told_in_a_report(
    small: None, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    study = load_study(STUDIES / "synthesis.toml", (*SMALL, "aggregation.min_sites=2", *overrides))
    hospitals = hospitals_of(tmp_path, study)
    said, assessed, weights = judged(study, hospitals, tmp_path)
    assert all(one.startswith("Fréchet distance") for one in said)
    measured = assessed.result["synthesis"]
    for name in ("model", "start"):
        figure = measured[name]
        assert figure["images"] > 5 and figure["frechet"]["low"] <= figure["frechet"]["value"]
        assert 0 <= figure["auc"]["value"] <= 1 and 0 < figure["copies"]["p_value"] <= 1
    assert measured["model"]["images"] == measured["start"]["images"]  # a Fréchet distance depends on the number
    json.dumps(assessed.result, allow_nan=False)
    notes = [json.loads(line) for line in (tmp_path / "synthesis.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [note["round"] for note in notes] == [1, 2]
    privacy = {"epsilon": 8.0, "delta": 1e-4, "unit": "patient"}
    result = {**assessed.result, "privacy": privacy, "rounds_completed": 2, "sites": {}}
    evidence = RunEvidence(
        study=study, result=result, asked=assessed.asked, headline=assessed.headline, sections=assessed.sections
    )
    page = write_report(tmp_path, evidence).read_text(encoding="utf-8")
    assert "Check for copies" in page and "Public start" in page and "Held-out images" in page
    assert set(assessed.samples) == {0, 1, 2} and assessed.samples[2].dtype == np.uint8


def test_without_show_images_no_patient_is_in_the_report(small: None, tmp_path: Path) -> None:
    study = load_study(STUDIES / "synthesis.toml", (*SMALL, "aggregation.min_sites=2"))
    assessment = assessment_of(study, hospitals_of(tmp_path, study), tmp_path)
    start = in_process.start_weights(study)
    assessment.after_round(0, start)
    end = AtEnd(weights=start, released=None, others=(), baselines=False, show_images=False, stage=lambda text: None)
    (section,) = assessment.at_end(end).sections
    assert section.sheets and all("Held-out" not in sheet.title for sheet in section.sheets)


def test_nobody_held_out_is_said_before_training(tmp_path: Path) -> None:
    study = load_study(STUDIES / "synthesis.toml", (*SMALL, "aggregation.min_sites=2", "evaluation.holdout=0"))
    with pytest.raises(DataError, match="raise evaluation.holdout"):
        assessment_of(study, hospitals_of(tmp_path, study), tmp_path)


@pytest.mark.parametrize("overrides", [pytest.param((), marks=pytest.mark.slow), GAN], ids=["sampler", "gan"])
def test_a_held_out_patients_score_is_from_that_patient_alone(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    study = load_study(STUDIES / "synthesis.toml", (*SMALL, "aggregation.min_sites=2", *overrides))
    (hospital, _) = hospitals_of(tmp_path, study)
    held_out, weights = held_out_rows(study, hospital.cohort), in_process.start_weights(study)
    network, cpu = initial_network(study), torch.device("cpu")
    scores_P, positive_P = held_out_scores(network, study, weights, held_out, cpu)
    assert len(scores_P) == len(np.unique(held_out.patient_N)) == len(positive_P) and np.ptp(scores_P) > 0
    rows = held_out.patient_N == held_out.patient_N[-1]
    alone = type(held_out)(
        values_N=held_out.values_N[rows], labels_N=held_out.labels_N[rows], patient_N=held_out.patient_N[rows]
    )
    last = np.flatnonzero(np.unique(held_out.patient_N) == held_out.patient_N[-1])[0]
    assert held_out_scores(network, study, weights, alone, cpu)[0][0] == scores_P[last]


@pytest.mark.slow
@pytest.mark.skipif(not NODULES.is_dir(), reason=f"{NODULES} is missing")
@pytest.mark.parametrize(
    "options",
    ["synthesis_folds --folds 0 --pool 400", "synthesis_gan --rounds 1 --local-steps 1 --generator-steps 1"],
    ids=["folds", "gan"],
)
def test_the_benchmarks_on_real_nodules_print_one_document(options: str) -> None:
    name, *rest = options.split()
    command = [sys.executable, str(ROOT / "bench" / f"{name}.py"), "--data", str(NODULES), "--json", *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    figures = document["folds"]["0"]["sampler"] if "folds" in document else document["figures"]["model"]
    assert figures["frechet"]["value"] > 0 and figures["images"] > 20
