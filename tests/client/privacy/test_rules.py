"""Privacy end to end, through `train`, `answer` and the wire, beyond what tests of the single parts can show."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.randomness import KnownRandom

from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study, parse_study
from wardround.wire.packets import pack_answer, pack_refusal
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds.training import answer
from wardround_client.site.site import ReplyFolder, Site
from wardround_client.training.batches import IMAGES_PER_PHYSICAL_BATCH, Material, material_of
from wardround_client.training.train import train

CPU = torch.device("cpu")


def study_of(model: dict[str, str] | None = None, **privacy) -> Study:
    settings = {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8}
    content = {
        "study": {"name": "t", "rounds": 3, "spare_rounds": 1},
        "data": {"labels": ["benign", "malignant"], "image_size": 32},
        "model": model or {},
        "training": {"learning_rate": 0.5},
        "privacy": settings | privacy,
        "aggregation": {"nominal_sites": 1},
    }
    return parse_study(content)


def features_of(patients: int, scale: float = 1.0) -> Material:
    generator = np.random.default_rng(5)
    features = (scale * generator.normal(size=(3 * patients, 33))).astype(np.float32)
    labels = generator.integers(0, 2, 3 * patients).astype(np.int16)
    return material_of(features, labels, np.repeat(np.arange(patients), 3), np.ones(3 * patients, bool))


def only(material: Material, patients: int) -> Material:
    """The same material with its first `patients` patients."""
    index = dataclasses.replace(material.index, start_P1=material.index.start_P1[: patients + 1])
    return dataclasses.replace(material, index=index)


def start_of(study: Study) -> dict[str, np.ndarray]:
    network = initial_network(study)
    return {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}


def step(study: Study, material: Material, plan: PrivacyPlan | None = None) -> np.ndarray:
    """How one round moves the weights, as one vector, float64."""
    plan, before = plan or plan_from_study(study), start_of(study)
    network = initial_network(study)
    after = train(study, plan, network, before, material, 1, KnownRandom(b"k"), CPU)
    return np.concatenate([(after[name].astype(np.float64) - before[name]).ravel() for name in sorted(before)])


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_one_patient_more_moves_the_trained_weights_by_at_most_the_promised_length(scale: float) -> None:
    study = study_of()
    plan = dataclasses.replace(plan_from_study(study), epsilon_asked=math.inf, noise_multiplier=0.0)
    whole = features_of(9, scale)
    moved = np.linalg.norm(step(study, whole, plan) - step(study, only(whole, 8), plan))
    bound = 0.5 * plan.max_grad_norm / plan.expected_patients
    assert moved <= bound * (1 + 1e-4)
    if scale >= 1:
        assert moved > 0.9 * bound, "a patient that is clipped reaches the bound, or this test could not fail"


def test_a_step_is_divided_by_the_public_number_and_never_by_the_patients_there_are() -> None:
    study = study_of(epsilon=math.inf)
    one = features_of(6)
    twice = material_of(
        np.concatenate([one.inputs_N, one.inputs_N]),
        np.concatenate([one.labels_N, one.labels_N]),
        np.repeat(np.arange(12), 3),
        np.ones(36, bool),
    )
    assert np.allclose(step(study, twice), 2 * step(study, one), rtol=1e-4, atol=1e-7)


def test_a_draw_larger_than_a_physical_batch_is_split_between_patients_and_is_still_one_step() -> None:
    study = study_of(model={"name": "seed-cnn", "init": "random", "trainable": "all"}, epsilon=math.inf)
    sizes = [IMAGES_PER_PHYSICAL_BATCH + 30, 20, 50, 1, 40]
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (sum(sizes), 1, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 2, sum(sizes)).astype(np.int16)
    patient_N = np.repeat(np.arange(len(sizes)), sizes)
    together = step(study, material_of(images, labels, patient_N, np.ones(sum(sizes), bool)))
    alone = [step(study, material_of(images, labels, patient_N, patient_N == patient)) for patient in range(len(sizes))]
    assert np.allclose(together, np.sum(alone, axis=0), atol=1e-6)
    assert np.linalg.norm(together) > 1e-3


def site_of(study: Study, folder: Path, material_of) -> Site:
    return Site(
        name="hospital",
        cap=Cap(epsilon=8.0, delta=1e-4),
        ledger=Ledger(folder / "ledger.sqlite3"),
        replies=ReplyFolder(folder / "replies"),
        study_of=lambda _: study,
        material_of=material_of,
        randomness=SecretRandom(),
        device=CPU,
    )


def test_a_round_checks_holds_and_charges_before_it_reads_and_settles_before_it_sends(tmp_path: Path) -> None:
    """The order in which the parts are really entered, seen by the interpreter's own profiling hook."""
    study = study_of()
    story = {
        "check_engine": "check the clipping",
        "hold": "hold the budget",
        "reserve": "charge the attempt",
        "material_of_this_site": "read the data",
        "draw_patients": "draw",
        "add_noise": "add the noise",
        "__setitem__": "keep the reply's bytes",
        "settle": "settle",
    }
    seen: list[str] = []

    def material_of_this_site(_: Study) -> Material:
        return features_of(6)

    def watch(frame: FrameType, event: str, _: object) -> None:
        name, place = frame.f_code.co_name, frame.f_code.co_filename
        ours = "wardround_client" in place or place == __file__
        if event == "call" and ours and name in story and story[name] not in seen:
            seen.append(story[name])

    site, broadcast = site_of(study, tmp_path, material_of_this_site), broadcast_of(study)
    sys.setprofile(watch)
    try:
        answer(broadcast, site)
    finally:
        sys.setprofile(None)
    assert seen == list(story.values())


def test_a_reply_holds_the_noised_weights_and_nothing_else(tmp_path: Path) -> None:
    study = study_of()
    broadcast = broadcast_of(study)
    answered = answer(broadcast, site_of(study, tmp_path, lambda _: features_of(6)))
    packet = pack_answer(broadcast, answered)
    assert dict(packet.header) == {
        "protocol": 3,
        "kind": "answer",
        "study_sha256": study.sha256(),
        "run_id": "run",
        "round": 1,
        "code": "",
        "ledger_entries": answered.head.entries,
        "ledger_head": answered.head.sha256,
        "ledger_recent": answered.recent,
    }
    assert {name: tensor.shape for name, tensor in packet.tensors.items()} == {
        name: array.shape for name, array in broadcast.weights.items()
    }
    assert (
        set(pack_refusal(broadcast, "late").header) == set(packet.header) and not pack_refusal(broadcast, "x").tensors
    )
