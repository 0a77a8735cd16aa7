"""A patient whose data cause an error counts as zero, and the parts of all others are unchanged.

If one error turned a whole round into noise alone, one patient would move the sum by the parts of all others.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from builders.randomness import KnownRandom

from wardround.errors import DataError
from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study, parse_study
from wardround.tasks.classification import objective
from wardround.tasks.reconstruction import objective as restoration
from wardround_client.privacy.plan import plan_from_study
from wardround_client.privacy.sampling import draw_patients, index_patients
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.cohort import CohortRow, open_cohort, write_cohort
from wardround_client.training import features
from wardround_client.training.batches import (
    PRODUCTS_PER_BATCH,
    HeldOutRows,
    Material,
    material_of,
    most_rows,
    or_one_by_one,
)
from wardround_client.training.scoring import held_out_scores
from wardround_client.training.train import train

CPU = torch.device("cpu")
BAD = 255  # every pixel of the image that fails


def study_of(**sections) -> Study:
    content = {
        "study": {"name": "t", "rounds": 1},
        "data": {"labels": ["a", "b"], "image_size": 32},
        "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
        "training": {"learning_rate": 0.1, "augmentation": "flips"},
        "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.5, "nominal_patients": 10},
        "aggregation": {"nominal_sites": 1},
    }
    return parse_study({name: content.get(name, {}) | sections.get(name, {}) for name in {*content, *sections}})


def images_of(patients: int, failing: int | None = None) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 250, (2 * patients, 1, 32, 32), dtype=np.uint8)
    if failing is not None:
        images[2 * failing + 1] = BAD
    return images


def trained(study: Study, images: np.ndarray, patients: list[int]) -> dict[str, np.ndarray]:
    """One step without noise, with all of `patients`, each with two images and a label that follows the number."""
    network = initial_network(study)
    start = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    plan = dataclasses.replace(plan_from_study(study), epsilon_asked=math.inf, noise_multiplier=0.0, sampling_rate=1.0)
    rows = np.array([row for patient in patients for row in (2 * patient, 2 * patient + 1)], dtype=int)
    labels = (rows // 2 % 2).astype(np.int16)
    material = material_of(images[rows], labels, np.repeat(patients, 2), np.ones(len(rows), bool))
    return train(study, plan, network, start, material, 1, KnownRandom(b"k"), CPU)


@pytest.fixture
def unviewable(monkeypatch) -> None:
    """Views of an image of one colour cannot be made; all others are themselves."""

    def augmentation(study, randomness):
        def views(images):
            if bool((images == BAD).flatten(1).all(1).any()):
                raise MemoryError("a view that does not fit")
            return images

        return views

    monkeypatch.setattr(objective, "augmentation", augmentation)


@pytest.mark.parametrize("failing", [0, 3, 6])
def test_a_patient_whose_views_cannot_be_made_counts_as_zero_and_the_others_as_before(failing, unviewable) -> None:
    study, others = study_of(), [patient for patient in range(7) if patient != failing]
    whole, rest = (trained(study, images_of(7, failing), patients) for patients in (list(range(7)), others))
    start = trained(study, images_of(7), [])
    assert any(not np.array_equal(start[name], rest[name]) for name in start)
    assert all(np.allclose(whole[name], rest[name], rtol=0, atol=1e-7) for name in start)


def test_where_everyone_fails_the_log_says_so_and_the_round_is_that_of_nobody(unviewable, caplog) -> None:
    images = np.full((4, 1, 32, 32), BAD, np.uint8)
    found, nobody = trained(study_of(), images, [0, 1]), trained(study_of(), images, [])
    assert "training failed for every patient" in caplog.text
    assert all(np.array_equal(found[name], nobody[name]) for name in nobody)


def test_an_engine_that_fails_on_one_patient_gives_the_others_alone() -> None:
    def engine(units: list[int]) -> int:
        if 3 in units:
            raise RuntimeError("out of memory")
        return sum(units)

    everyone = [1, 2, 3, 4]
    assert or_one_by_one(lambda: engine(everyone), [lambda u=u: engine([u]) for u in everyone]) == [1, 2, 4]
    assert or_one_by_one(lambda: engine([1, 2]), []) == [3]


def test_no_patient_brings_more_images_than_a_batch_holds() -> None:
    plan = plan_from_study(study_of(privacy={"sampling_rate": 1.0}))
    index = index_patients(np.array([0] * 3 + [1] * 5000))
    draw = draw_patients(plan, index, SecretRandom(), 256)
    assert np.diff(draw.start_U1).tolist() == [3, 256]
    assert len(set(draw.rows_N.tolist())) == 259, "without replacement"
    everything = draw_patients(plan, index, SecretRandom())
    assert np.diff(everything.start_U1).tolist() == [3, 5000]
    asked = dataclasses.replace(plan, images_per_patient=1000)
    assert np.diff(draw_patients(asked, index, SecretRandom(), 256).start_U1).tolist() == [256, 256]


def test_a_patient_brings_no_more_rows_of_features_than_memory_for_their_products_allows() -> None:
    def features(width: int) -> Material:
        return material_of(np.zeros((2, width), np.float32), np.zeros(2, np.int16), np.arange(2), np.ones(2, bool))

    assert most_rows(features(33), 64, 1) == PRODUCTS_PER_BATCH // 33
    assert most_rows(features(1024), 64, 64) == 64
    assert most_rows(features(1024), 64, 8) == PRODUCTS_PER_BATCH // (1024 * 8)


def test_features_of_an_image_that_cannot_be_computed_are_not_numbers_and_are_not_kept(tmp_path, monkeypatch) -> None:
    rows = [CohortRow(pseudonym=f"{patient:064d}", label=0) for patient in range(3)]
    images = images_of(2)[:3]
    images[1] = BAD
    settings = {"row_shape": (1, 32, 32), "label_names": ("a", "b"), "site_key": b"k" * 32}
    write_cohort(tmp_path / "cohort", rows, list(images), **settings)
    cohort, network = open_cohort(tmp_path / "cohort"), initial_network(study_of(model={"trainable": "head"}))
    right = features.features_of(network, cohort, CPU, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(b"damaged")
    assert np.array_equal(features.features_of(network, cohort, CPU, tmp_path / "cache"), right)
    kept.unlink()
    of = network.features

    def fails(images_NCHW: torch.Tensor) -> torch.Tensor:
        if bool((images_NCHW == BAD).all()):
            raise OSError("the share is gone")
        return of(images_NCHW)

    monkeypatch.setattr(network, "features", fails)
    found = features.features_of(network, cohort, CPU, tmp_path / "cache")
    assert np.isnan(found[1]).all() and np.array_equal(found[[0, 2]], right[[0, 2]])
    assert not list((tmp_path / "cache").iterdir()), "a passing cause must not stay"

    def all_fail(images_NCHW: torch.Tensor) -> torch.Tensor:
        if images_NCHW.any():
            raise OSError("the share is gone")
        return of(images_NCHW)

    monkeypatch.setattr(network, "features", all_fail)
    with pytest.raises(DataError, match="no prepared image"):
        features.features_of(network, cohort, CPU, None)


def test_a_held_out_patient_who_cannot_be_scored_changes_no_other_score(monkeypatch) -> None:
    study = study_of()
    network = initial_network(study)
    start = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    images = images_of(4, failing=2)
    held_out = HeldOutRows(
        values_N=images, labels_N=np.zeros(8, np.int64), patient_N=np.repeat(np.arange(4), 2).astype(np.int32)
    )
    right, _ = held_out_scores(network, study, start, held_out, CPU)
    forward = type(network).forward

    def fails(self, images_NCHW):
        if bool((images_NCHW == BAD).all()):
            raise RuntimeError("out of memory")
        return forward(self, images_NCHW)

    monkeypatch.setattr(type(network), "forward", fails)
    found, _ = held_out_scores(network, study, start, held_out, CPU)
    assert math.isnan(found[2]) and np.array_equal(found[[0, 1, 3]], right[[0, 1, 3]])


def test_so_is_one_who_cannot_be_restored(monkeypatch) -> None:
    study = study_of(
        study={"task": "reconstruction"}, model={"name": "restorer", "init": "phantom"}, reconstruction={"crop_px": 32}
    )
    network = initial_network(study)
    start = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    held_out = HeldOutRows(
        values_N=images_of(3, failing=1),
        labels_N=np.zeros(6, np.int64),
        patient_N=np.repeat(np.arange(3), 2).astype(np.int32),
    )
    restored = restoration.restored

    def fails(network, degradation, images, device):
        if (images == BAD).all():
            raise MemoryError
        return restored(network, degradation, images, device)

    monkeypatch.setattr(restoration, "restored", fails)
    found, _ = held_out_scores(network, study, start, held_out, CPU)
    assert math.isnan(found[1]) and np.isfinite(found[[0, 2]]).all()
