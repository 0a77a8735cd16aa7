"""The privacy of synthesis as theorems: what one patient moves, what is added after the noise, what is charged."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.randomness import KnownRandom
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.errors import BudgetRefusal
from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study, parse_study
from wardround.tasks.synthesis import gan_objective, sampler_objective
from wardround.tasks.synthesis.dcgan import hinge_of_real
from wardround.tasks.synthesis.study import section_of
from wardround_client.clipping.engines import PatientBatch, clip_by_loop
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds.training import answer
from wardround_client.site.site import Site
from wardround_client.training.batches import Material, material_of
from wardround_client.training.train import plan_speed, train

CPU = torch.device("cpu")
PATIENTS = 5
CLIP = 0.05


def study_of(name: str, **sections) -> Study:
    content = {
        "study": {"name": "t", "task": "synthesis", "rounds": 2, "spare_rounds": 0},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "model": {"name": name, "init": "phantom" if name == "phantom-sampler" else "random"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": CLIP, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
    }
    for section, changes in sections.items():
        content[section] = content.get(section, {}) | changes
    return parse_study(content)


def gan_study(**sections) -> Study:
    sections["model"] = {"trainable": "all"} | sections.get("model", {})
    sections["synthesis"] = {"fakes_per_step": 6, "generator_steps": 1} | sections.get("synthesis", {})
    return study_of("dcgan", **sections)


def material(seed: int, patients: int = PATIENTS, name: str = "dcgan") -> Material:
    """Patients with one to three rows each: noise images, or features for the sampler."""
    dice = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(patients), dice.integers(1, 4, patients))
    inputs_N = dice.integers(0, 256, (len(patient_N), 1, 64, 64), dtype=np.uint8)
    if name == "phantom-sampler":
        inputs_N = dice.normal(size=(len(patient_N), 33)).astype(np.float32)
    labels_N = dice.integers(0, 2, len(patient_N)).astype(np.int16)
    return material_of(inputs_N, labels_N, patient_N, np.ones(len(patient_N), bool))


def start_of(study: Study) -> dict[str, np.ndarray]:
    """The study's start; realness tilts already, for at zero the phantoms' side is zero too."""
    parameters = trained_parameters(initial_network(study), study)
    start = {name: p.detach().numpy().copy() for name, p in parameters.items()}
    if "head.realness.weight" in start:
        start["head.realness.weight"] += np.linspace(-2, 2, 33, dtype=np.float32)
    return start


def trained(study: Study, plan: PrivacyPlan, data: Material, key: bytes = b"k") -> dict[str, np.ndarray]:
    return train(study, plan, initial_network(study), start_of(study), data, 1, KnownRandom(key), CPU)


def noiseless(study: Study) -> PrivacyPlan:
    return dataclasses.replace(plan_from_study(study), epsilon_asked=math.inf, noise_multiplier=0.0)


def batch_of(data: Material, study: Study) -> PatientBatch:
    inputs_N = torch.from_numpy(data.inputs_N[data.index.rows_N])
    if study.model.name == "dcgan":
        inputs_N = initial_network(study).prepare(inputs_N)
    labels_N = torch.from_numpy(data.labels_N[data.index.rows_N].astype(np.int64))
    return PatientBatch(inputs_N=inputs_N, labels_N=labels_N, start_U1=torch.from_numpy(data.index.start_P1))


def length(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradients.values()))


@pytest.mark.parametrize("name", ["phantom-sampler", "dcgan"])
@settings(max_examples=4)
@given(seed=st.integers(0, 10_000))
def test_adding_a_patient_moves_the_clipped_sum_over_both_heads_or_the_discriminator_by_at_most_c(
    name: str, seed: int
) -> None:
    study = study_of(name) if name == "phantom-sampler" else gan_study()
    network, data = initial_network(study), material(seed, name=name)
    parameters = trained_parameters(network, study)
    speed = plan_speed(network, study, plan_from_study(study), CPU)
    if name == "dcgan":
        part, local = network.discriminator, gan_objective.part_of(parameters, "discriminator.")
        loss = hinge_of_real
    else:
        part, local = network.head, {key.removeprefix("head."): p for key, p in parameters.items()}
        loss = sampler_objective.loss_of(section_of(study).realness_weight)
    batch = batch_of(data, study)
    more = speed.engine(part, local, batch, loss, CLIP)
    last = int(batch.start_U1[-2])
    fewer = PatientBatch(inputs_N=batch.inputs_N[:last], labels_N=batch.labels_N[:last], start_U1=batch.start_U1[:-1])
    less = speed.engine(part, local, fewer, loss, CLIP)
    moved = length({key: more.gradients[key] - less.gradients[key] for key in local})
    assert moved <= CLIP * (1 + 1e-5)
    assert set(more.gradients) == set(local) and more.sensitivity == CLIP
    assert moved > 0.9 * CLIP  # these patients are clipped: the bound is reached, so the test can fail


def test_the_generators_step_is_the_same_function_when_the_private_data_change() -> None:
    """The discriminator is held (a rate below what float32 resolves); patients differ in all, their number too."""
    study = gan_study(training={"learning_rate": 1e-30}, synthesis={"generator_steps": 2})
    plan = noiseless(study)
    one, other = trained(study, plan, material(1)), trained(study, plan, material(2, patients=9))
    start = start_of(study)
    moved = [name for name in one if name.startswith("generator.") and (one[name] != start[name]).any()]
    assert moved
    for name in one:
        if name.startswith("generator."):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
        else:  # a bias of zero takes up even 1e-30
            np.testing.assert_allclose(one[name], other[name], atol=1e-29, rtol=0)
    # with a discriminator that moves, the same two data sets do differ
    study = gan_study(training={"learning_rate": 1.0})
    one, other = trained(study, plan, material(1)), trained(study, plan, material(2, patients=9))
    assert any((one[name] != other[name]).any() for name in one if name.startswith("discriminator."))


@pytest.mark.parametrize("name", ["phantom-sampler", "dcgan"])
def test_unequal_real_and_fake_counts_change_nothing(name: str) -> None:
    """What is added after the noise is the same for 1 patient and for 12: the step less the patients' sum over B."""
    study = study_of(name) if name == "phantom-sampler" else gan_study(synthesis={"generator_steps": 0})
    plan, network = noiseless(study), initial_network(study)
    parameters = trained_parameters(network, study)
    rate, added = study.training.learning_rate, []
    for patients in (1, 12):
        data = material(7, patients, name)
        reply, start = trained(study, plan, data), start_of(study)
        if name == "dcgan":
            part, local, loss = (
                network.discriminator,
                gan_objective.part_of(parameters, "discriminator."),
                hinge_of_real,
            )
        else:
            part, local = network.head, {key.removeprefix("head."): p for key, p in parameters.items()}
            loss = sampler_objective.loss_of(section_of(study).realness_weight)
        prefix = "discriminator." if name == "dcgan" else "head."
        own = clip_by_loop(part, local, batch_of(data, study), loss, CLIP).gradients
        added.append({
            key: (start[prefix + key] - reply[prefix + key]) / rate - own[key].numpy() / plan.expected_patients
            for key in local
        })  # fmt: skip
    if name == "phantom-sampler":
        with torch.no_grad():
            network.head.realness.weight.copy_(torch.from_numpy(start["head.realness.weight"]))
        expected = sampler_objective.phantoms_gradient(network, section_of(study).realness_weight).numpy()
        np.testing.assert_allclose(added[0]["realness.weight"], expected, atol=2e-6)
    assert max(np.abs(one).max() for one in added[0].values()) > 1e-5
    for key in added[0]:
        np.testing.assert_allclose(added[0][key], added[1][key], atol=3e-6, err_msg=key)


@pytest.mark.parametrize("name", ["phantom-sampler", "dcgan"])
def test_an_empty_draw_steps(name: str) -> None:
    study = study_of(name) if name == "phantom-sampler" else gan_study()
    reply = trained(study, plan_from_study(study), material(1, patients=0, name=name))
    start = start_of(study)
    assert reply.keys() == start.keys()
    patients_part = "head." if name == "phantom-sampler" else "discriminator."
    assert all((reply[key] != start[key]).any() for key in reply if key.startswith(patients_part))


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_what_travels_is_the_generator_and_the_part_of_the_discriminator_that_patients_move(trainable: str) -> None:
    study = gan_study(model={"trainable": trainable})
    names = set(start_of(study))
    whole = {name for name, _ in initial_network(study).named_parameters()}
    assert {name for name in whole if name.startswith("generator.")} <= names
    of_discriminator = {name for name in names if name.startswith("discriminator.")}
    heads = {"discriminator.head.bias", "discriminator.head.weight"}
    assert of_discriminator == (heads if trainable == "head" else names - {n for n in whole if n[:2] == "ge"})


def site_with(studies: list[Study], cap: Cap) -> Site:
    known = {study.sha256(): study for study in studies}

    def data_of(study: Study) -> Material:
        if study.study.task == "classification" or study.model.name == "phantom-sampler":
            return material(3, name="phantom-sampler")
        return material(3)

    return Site(
        name="hospital",
        cap=cap,
        ledger=Ledger(None),
        replies={},
        study_of=known.__getitem__,
        material_of=data_of,
        randomness=SecretRandom(),
        device=CPU,
    )


def test_classifier_and_gan_on_one_cohort_add_up_and_the_second_is_refused_when_the_cap_is_reached() -> None:
    classifier = parse_study({
        "study": {"name": "cnn", "rounds": 2, "spare_rounds": 0},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "privacy": {"epsilon": 4.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
    })  # fmt: skip
    gan = gan_study(study={"name": "gan"}, privacy={"epsilon": 4.0})
    both = site_with([classifier, gan], Cap(epsilon=7.0, delta=1e-4))
    answer(broadcast_of(classifier, run_id=classifier.study.name), both)
    alone = both.ledger.spent(1e-4).value
    answer(broadcast_of(gan, run_id=gan.study.name), both)
    together = both.ledger.spent(1e-4).value
    assert alone < together
    assert sorted(event.steps for event in both.ledger.events()) == [1, 1]
    narrow = site_with([classifier, gan], Cap(epsilon=4.5, delta=1e-4))
    answer(broadcast_of(classifier, run_id=classifier.study.name), narrow)
    with pytest.raises(BudgetRefusal):
        answer(broadcast_of(gan, run_id=gan.study.name), narrow)
    assert len(narrow.ledger.events()) == 1
