"""Whether a personalised model helped: the verdict, and what the command shows and keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.personal import released, site_folder, study_of
from torch import nn
from typer.testing import CliRunner

from wardround.metrics import classification
from wardround.metrics.intervals import Estimate
from wardround_client.cli.main import app
from wardround_client.figures.personal import OUTCOME_FILE, PersonalOutcome, compare_models
from wardround_client.figures.scores import figures_of, scored
from wardround_client.ledger.ledger import Ledger
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import answer
from wardround_client.site.paths import LEDGER_FILE
from wardround_client.site.site import open_site
from wardround_client.training.batches import HeldOutRows

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Logits from an image's mean, with a sign: 1 tells bright from dark images, -1 the opposite, 0 nothing."""

    def __init__(self, sign: float, labels: int = 1) -> None:
        super().__init__()
        self.sign, self.labels = sign, labels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.float().mean((1, 2, 3))[:, None] / 64 - 2
        return self.sign * mean if self.labels == 1 else torch.cat([mean * k for k in range(self.labels)], 1)


def held_out(patients: int = 40, labels: int = 2) -> HeldOutRows:
    """Two images a patient, the brighter the higher the label, with some noise."""
    generator, patient_N = np.random.default_rng(1), np.repeat(np.arange(patients), 2)
    labels_N = patient_N % labels
    level_N = 60 + 50 * labels_N + generator.normal(0, 25, 2 * patients)
    images = np.clip(level_N, 0, 255).astype(np.uint8)[:, None, None, None].repeat(16, 2).repeat(16, 3)
    return HeldOutRows(values_N=images, labels_N=labels_N, patient_N=patient_N)


def test_the_verdict_follows_the_interval_of_the_difference() -> None:
    rows = held_out()
    assert compare_models(Brightness(-1), Brightness(1), rows, CPU).verdict == "helped"
    assert compare_models(Brightness(1), Brightness(-1), rows, CPU).verdict == "did harm"
    assert compare_models(Brightness(1), Brightness(1), rows, CPU).verdict == "no clear difference"


def test_with_nobody_held_out_or_one_label_only_the_verdict_is_unknown() -> None:
    rows = held_out()
    for chosen in (np.zeros(80, bool), rows.labels_N == 1):
        few = HeldOutRows(
            values_N=rows.values_N[chosen], labels_N=rows.labels_N[chosen], patient_N=rows.patient_N[chosen]
        )
        outcome = compare_models(Brightness(-1), Brightness(1), few, CPU)
        assert outcome.verdict == "unknown" and outcome.to_json()["difference"] is None
        json.dumps(outcome.to_json(), allow_nan=False)


def test_scores_are_by_patient_for_two_labels_and_by_image_for_more() -> None:
    two = figures_of(scored(Brightness(1), held_out(), CPU))
    three = figures_of(scored(Brightness(1, labels=3), held_out(labels=3), CPU))
    assert (two.unit, two.patients, two.positives) == ("patient", 40, 20)
    assert (three.unit, three.images, three.positives) == ("slice", 80, None)
    assert compare_models(Brightness(1, 3), Brightness(1, 3), held_out(labels=3), CPU).verdict == "no clear difference"


def test_the_boundary_of_a_verdict_is_no_help() -> None:
    figures = classification.TestFigures(
        unit="patient", auc=0.8, auc_ci95=(0.7, 0.9), patients=20, images=20, positives=10, ece=0.1
    )
    touching = Estimate(value=0.1, low=0.0, high=0.2, confidence=0.95, patients=20)
    assert PersonalOutcome(released=figures, personalised=figures, difference=touching).verdict == "no clear difference"


def test_the_command_personalises_once_and_shows_the_same_again(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2, "spare_rounds": 0}, "evaluation": {"epsilon": 1.0, "holdout": 0.4}})
    folder = site_folder(tmp_path, study)
    command = ["personalise", study.sha256()[:12], "--site", str(folder), "--json"]
    nothing = CliRunner().invoke(app, command)
    assert nothing.exit_code == 2 or isinstance(nothing.exception, Exception)
    site = open_site(folder)
    answer(broadcast_of(study), site)
    release_scores(released(study), site)
    first, again = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == 0, first.output + repr(first.exception)
    one, two = json.loads(first.output), json.loads(again.output)
    assert not one.pop("again") and two.pop("again") and one == two
    assert one["epsilon"]["epsilon"] <= 3.0 < one["epsilon_with_training"]["epsilon"]
    kept = json.loads((Path(one["model"]) / OUTCOME_FILE).read_text())
    assert kept["verdict"] == one["verdict"] and Path(one["model"]).is_relative_to(folder)
    assert [a.purpose for a in Ledger(folder / LEDGER_FILE).attempts()] == ["train", "evaluate", "personalise"]
    words = CliRunner().invoke(app, command[:-1]).output
    assert "nothing was charged now" in words and "stay at this site" in words


def test_a_run_of_another_site_is_refused_by_policy(tmp_path: Path) -> None:
    study = study_of()
    site = open_site(site_folder(tmp_path, study))
    with pytest.raises(Exception, match="took no part in the run"):
        from wardround_client.figures.personal import personalised_and_tested

        personalised_and_tested(released(study), site)
