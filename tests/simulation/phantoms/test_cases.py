"""The kinds of nodules of phantom hospitals: each looks as described, and a mix draws them in its proportions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.phantoms.anatomy import Dice
from wardround.phantoms.nodule import draw_nodule
from wardround_simulation.phantoms import cases
from wardround_simulation.phantoms.cases import BENIGN, MALIGNANT, CaseMix, Kind, draw_nodule_of

DRAWS = 400


def drawn(kind: Kind) -> dict[str, torch.Tensor]:
    """`DRAWS` nodules of one kind, by attribute."""
    dice = Dice(1, torch.Generator().manual_seed(3))
    nodules = [draw_nodule_of(dice, kind) for _ in range(DRAWS)]
    names = ("malignant", "radius_mm", "lobulation", "elongation", "edge_mm", "solid_hu", "spiculated", "calcified",
             "ground_glass", "part_solid", "cavity")  # fmt: skip
    return {name: torch.cat([getattr(nodule, name) for nodule in nodules]) for name in names}


@pytest.mark.parametrize("kind", BENIGN + MALIGNANT, ids=lambda kind: kind.name)
def test_a_kind_looks_as_it_is_described(kind: Kind) -> None:
    nodules = drawn(kind)
    assert nodules["malignant"].unique().tolist() == [float(kind.malignant)]
    assert float((2 * nodules["radius_mm"]).median()) == pytest.approx(kind.diameter_mm, rel=0.1)
    for name in ("lobulation", "elongation", "solid_hu"):
        low, high = getattr(kind, name)
        assert low - 1e-5 <= float(nodules[name].min()) and float(nodules[name].max()) <= high + 1e-5
    solid = 1 - kind.ground_glass - kind.part_solid
    shares = {"spiculated": kind.spiculated, "ground_glass": kind.ground_glass, "part_solid": kind.part_solid}
    for name, share in {**shares, "calcified": kind.calcified * solid}.items():
        assert float(nodules[name].mean()) == pytest.approx(share, abs=0.1), name  # 4 standard deviations of a share


def test_a_kind_is_never_two_densities_at_once() -> None:
    for kind in BENIGN + MALIGNANT:
        nodules = drawn(kind)
        assert float((nodules["ground_glass"] + nodules["part_solid"] + nodules["calcified"]).max()) <= 1


def test_size_separates_labels_less_than_in_pretraining_and_density_more() -> None:
    """The difference between the hospitals' phantoms and those of pre-training, which `cases` describes."""
    label_N = torch.arange(4 * DRAWS) % 2
    taught = draw_nodule(Dice(len(label_N), torch.Generator().manual_seed(4)), label_N.float())
    gap_taught = taught.radius_mm[label_N == 1].log().mean() - taught.radius_mm[label_N == 0].log().mean()
    glass_taught = (taught.ground_glass + taught.part_solid)[label_N == 1].mean()
    by_label = {False: [drawn(kind) for kind in BENIGN], True: [drawn(kind) for kind in MALIGNANT]}
    size = {label: torch.cat([found["radius_mm"].log() for found in kinds]).mean() for label, kinds in by_label.items()}
    glass = torch.cat([found["ground_glass"] + found["part_solid"] for found in by_label[True][:2]]).mean()
    assert size[True] - size[False] < 0.3 * gap_taught
    assert glass > glass_taught


@given(prevalence=st.floats(0.05, 0.95), count=st.integers(1, 300))
def test_malignant_nodules_come_at_the_prevalence_however_many_there_are(prevalence: float, count: int) -> None:
    mix = CaseMix(prevalence=prevalence, benign=(25, 25, 25, 25), malignant=(40, 30, 30))
    malignant = sum(mix.is_malignant(number) for number in range(1, count + 1))
    assert abs(malignant - prevalence * count) <= 0.5 + 1e-9


def test_kinds_are_drawn_by_their_shares_with_the_right_label_and_the_same_again() -> None:
    mix = CaseMix(prevalence=0.5, benign=(70, 20, 10, 0), malignant=(0, 60, 40))
    kinds = [mix.draw(False, seed) for seed in range(2000)]
    counts = Counter(kind.name for kind in kinds)
    assert not any(kind.malignant for kind in kinds)
    assert counts[cases.GRANULOMA.name] == pytest.approx(1400, abs=90)
    assert counts[cases.LYMPH_NODE.name] == 0
    assert all(mix.draw(True, seed).malignant for seed in range(50))
    assert kinds[:20] == [mix.draw(False, seed) for seed in range(20)]
