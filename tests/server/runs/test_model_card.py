"""The model card of a reconstruction: it has the accept test and the released weights, and no AUC."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from builders.runs import Sites, trained

from wardround.study.load import Study, parse_study
from wardround.wire.evaluation import ScoreRelease, SiteRelease
from wardround_server.runs.folder import create_run
from wardround_server.runs.model_card import ModelCard, card_of

BINS = 16


def restoration(figures: float) -> Study:
    return parse_study(
        {
            "study": {"name": "restore", "task": "reconstruction", "rounds": 1, "spare_rounds": 0},
            "data": {"image_size": 32, "labels": ("benign", "malignant")},
            "model": {"name": "restorer", "init": "phantom", "trainable": "head"},
            "training": {"learning_rate": 0.01},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
            "aggregation": {"nominal_sites": 2, "min_sites": 1, "round_deadline_s": 60},
            "evaluation": {"epsilon": figures, "bins": BINS, "logit_scale": 0.1},
            "reconstruction": {"crop_px": 32},
        }
    )


class Restoring(Sites):
    """Sites all of whose held-out patients have the same gain, in one bin."""

    def __init__(self, bin_: int) -> None:
        super().__init__()
        self.bin_ = bin_

    def ask_for_figures(self, question, bins, deadline_s):
        for site in self.names:
            counts_2B = np.zeros((2, bins), np.int64)
            counts_2B[0, self.bin_] = 40
            release = ScoreRelease(counts_2B=counts_2B, per_site=site == "north", **self.ledger(question.round))
            yield SiteRelease(site=site, release=release, code=None, bytes_up=99)


def card(tmp_path: Path, figures: float, bin_: int) -> ModelCard:
    return card_of(trained(create_run(tmp_path, restoration(figures)), Restoring(bin_)))


@pytest.mark.parametrize(
    ("bin_", "decision", "weights"),
    [
        (BINS - 1, "accept test: accepted; the gain over the public start is +", "the weights that the sites trained"),
        (
            0,
            "accept test: not accepted; the gain over the public start is -",
            "the public start weights and nothing",
        ),
    ],
)
def test_a_reconstructions_card_gives_its_accept_test_and_which_weights_it_holds(
    tmp_path: Path, bin_: int, decision: str, weights: str
) -> None:
    made = card(tmp_path, math.inf, bin_)
    text = made.to_text()
    for part in (decision, weights, "About 80 held-out patients of east, north", "north alone: about 40 patients"):
        assert part in text, part
    assert "AUC" not in text and "sensitivity" not in text
    assert made.to_json()["released"] == ("trained" if bin_ else "start")


def test_a_reconstruction_without_an_accept_test_says_which_weights_its_file_holds(tmp_path: Path) -> None:
    text = card(tmp_path, 0.0, 0).to_text()
    assert "the weights that the sites trained" in text and "the study asked the sites for no figures" in text
