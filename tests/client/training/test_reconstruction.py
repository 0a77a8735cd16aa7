"""Reconstruction at a site: one clip over generator and discriminator together, one noise, one event per step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders.randomness import KnownRandom

from wardround.errors import StudyError, WardroundError
from wardround.networks.build import build_model, initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import exchanged_names, trained_parameters
from wardround.study.load import Study, parse_study
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.objective import joint_loss
from wardround.tasks.reconstruction.restorer import INPUTS
from wardround_client.clipping.bookkeeping import clip_by_bookkeeping
from wardround_client.clipping.engines import PatientBatch, check_engine, clip_by_loop, sum_unclipped
from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import plan_from_study
from wardround_client.training import steps
from wardround_client.training.batches import HeldOutRows, SpeedPlan, material_of
from wardround_client.training.scoring import held_out_scores
from wardround_client.training.train import plan_speed, train

SIDE = 32


def study_of(**changes) -> Study:
    content = {
        "study": {"name": "restore", "task": "reconstruction", "rounds": 3, "spare_rounds": 0},
        "data": {"labels": ["benign", "malignant"], "image_size": SIDE},
        "model": {"name": "restorer", "init": "random", "trainable": "all"},
        "training": {"learning_rate": 0.05},
        "privacy": {"epsilon": 8, "delta": 1e-3, "max_grad_norm": 0.1, "nominal_patients": 6},
        "aggregation": {"nominal_sites": 1},
        "reconstruction": {"crop_px": SIDE, "adversarial_weight": 0.5},
    }
    for key, value in changes.items():
        section, field = key.split("__")
        content[section] = {**content[section], field: value}
    return parse_study(content)


def phantom_images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 (N, 1, 32, 32)."""
    coarse = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 255).to(torch.uint8).numpy()


def awake(study: Study, seed: int = 1) -> torch.nn.Module:
    """The network with no weight at zero, so that every part has a gradient."""
    network = build_model(study.model, study.data, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


def quadruples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, INPUTS + 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 255


def batch_of(images: torch.Tensor, *sizes: int) -> PatientBatch:
    start_U1 = torch.tensor([0, *np.cumsum(sizes)])
    return PatientBatch(inputs_N=images, labels_N=torch.zeros(len(images), dtype=torch.int64), start_U1=start_U1)


def length(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


@pytest.mark.parametrize("trainable", ["head", "norm+head", "all"])
@pytest.mark.parametrize("engine", [clip_by_loop, clip_by_bookkeeping])
def test_adding_a_patient_moves_the_joint_clipped_sum_by_at_most_c(engine, trainable) -> None:
    """Over generator and discriminator together, not each: their two halves share one bound."""
    study = study_of(model__trainable=trainable)
    network = awake(study)
    joint, parameters = joint_loss(network, study), trained_parameters(network, study)
    images = quadruples(6)
    images[4:] = 255 * (images[4:] > 127)  # a patient unlike the others
    bound = 1e-3
    whole = engine(joint, parameters, batch_of(images, 1, 3, 2), loss_of_image, bound)
    without = engine(joint, parameters, batch_of(images[:4], 1, 3), loss_of_image, bound)
    moved = {name: whole.gradients[name] - without.gradients[name] for name in whole.gradients}
    assert whole.sensitivity == bound
    assert 0.99 * bound < length(moved) <= bound * (1 + 1e-5)  # it is clipped, and to C
    for part in ("generator", "discriminator"):
        assert length({name: g for name, g in moved.items() if name.startswith(part)}) > 1e-3 * bound


@pytest.mark.parametrize("trainable", ["head", "norm+head", "all"])
def test_book_keeping_of_the_joint_loss_equals_the_loop(trainable) -> None:
    study = study_of(model__trainable=trainable)
    network = awake(study)
    joint, parameters = joint_loss(network, study), trained_parameters(network, study)
    check_engine(clip_by_bookkeeping, joint, parameters, loss_of_image, quadruples(7), 1, 1.0)


def test_the_generators_term_moves_no_weight_of_the_discriminator_and_the_other_way_round() -> None:
    study = study_of()
    network = awake(study)
    images = quadruples(3)
    inputs, true = images[:, :INPUTS], images[:, INPUTS:]
    judge, start = network.discriminator, inputs[:, 1:2]
    names = [name for name, _ in network.named_parameters()]
    gradients = dict(
        zip(
            names,
            torch.autograd.grad(JointLoss(network, LossWeights(adversarial=1.0, ssim=0.0))(images).sum(),
                                list(network.parameters())),
            strict=True,
        )
    )  # fmt: skip
    restored = network.generator(inputs)
    own = judge(torch.cat([true, start], 1)), judge(torch.cat([restored.detach(), start], 1))
    hinge = torch.relu(1 - own[0]).flatten(1).mean(1).sum() + torch.relu(1 + own[1]).flatten(1).mean(1).sum()
    for name, parameter in judge.named_parameters():
        (alone,) = torch.autograd.grad(hinge, parameter, retain_graph=True)
        torch.testing.assert_close(gradients[f"discriminator.{name}"], alone, rtol=1e-4, atol=1e-6)
    error = ((restored - true) / 64).abs().flatten(1).mean(1).sum()
    fooled = error - judge(torch.cat([restored, start], 1)).flatten(1).mean(1).sum()
    for name, parameter in network.generator.named_parameters():
        (alone,) = torch.autograd.grad(fooled, parameter, retain_graph=True)
        torch.testing.assert_close(gradients[f"generator.{name}"], alone, rtol=1e-4, atol=1e-6)


def test_an_image_s_loss_depends_on_that_image_alone() -> None:
    study = study_of()
    joint = joint_loss(awake(study), study)
    images = quadruples(4)
    others = images.clone()
    others[1:] = 255 - others[1:]
    others[1:, :INPUTS] = others[1:, INPUTS:]  # easy to restore: each term of theirs is another
    torch.testing.assert_close(joint(images)[0], joint(others)[0], rtol=1e-5, atol=1e-6)


def test_a_patient_whose_gradient_is_not_a_number_counts_as_zero() -> None:
    study = study_of()
    network = awake(study)
    joint, parameters = joint_loss(network, study), trained_parameters(network, study)
    images = quadruples(3)
    images[2, 0, 0, 0] = math.nan
    whole = clip_by_bookkeeping(joint, parameters, batch_of(images, 1, 1, 1), loss_of_image, 1e-3)
    without = clip_by_loop(joint, parameters, batch_of(images[:2], 1, 1), loss_of_image, 1e-3)
    for name in parameters:
        torch.testing.assert_close(whole.gradients[name], without.gradients[name], rtol=1e-3, atol=1e-7)


def trained(study: Study, images: np.ndarray, patient_N: np.ndarray, key: bytes = b"k") -> dict[str, np.ndarray]:
    network = initial_network(study)
    start = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    rows_N = np.ones(len(images), dtype=bool)
    material = material_of(images, np.zeros(len(images), np.int64), patient_N, rows_N)
    plan, cpu = plan_from_study(study), torch.device("cpu")
    speed = SpeedPlan(engine=sum_unclipped if math.isinf(plan.max_grad_norm) else clip_by_bookkeeping)
    return train(study, plan, network, start, material, 1, KnownRandom(key), cpu, speed)


def test_an_empty_draw_steps_on_noise_alone_and_what_travels_is_all_that_changes() -> None:
    study = study_of(model__trainable="head", privacy__sampling_rate=1e-6)
    network = initial_network(study)
    before = trained_parameters(network, study)
    after = trained(study, phantom_images(4), np.arange(4))
    assert set(after) == set(exchanged_names(network, "head"))
    moved = np.concatenate([(after[name] - before[name].detach().numpy()).ravel() for name in sorted(after)])
    plan = plan_from_study(study)
    deviation = 0.05 * plan.noise_multiplier * plan.max_grad_norm / plan.expected_patients
    assert np.std(moved) == pytest.approx(deviation, rel=0.15)


def test_without_noise_and_bound_it_is_plain_training_and_it_learns() -> None:
    study = study_of(
        privacy__epsilon=math.inf, privacy__max_grad_norm=math.inf, training__optimizer="adam",
        training__learning_rate=2e-3, training__local_steps=15, reconstruction__adversarial_weight=0.01,
    )  # fmt: skip
    images = phantom_images(6)
    after = trained(study, images, np.arange(6))
    held_out = HeldOutRows(values_N=images, labels_N=np.zeros(6, np.int64), patient_N=np.array([3, 3, 1, 1, 9, 9]))
    network = initial_network(study)
    gain_P, _ = held_out_scores(network, study, after, held_out, torch.device("cpu"))
    assert len(gain_P) == 3 and gain_P.mean() > 0.3


def test_a_held_out_patient_s_score_depends_on_that_patient_alone_and_is_zero_for_the_start() -> None:
    study = study_of(reconstruction__degradation="low-dose")
    images, cpu = phantom_images(4), torch.device("cpu")
    labels = np.zeros(4, np.int64)
    start = {name: p.detach().numpy() for name, p in trained_parameters(initial_network(study), study).items()}
    other = {name: value + 0.01 for name, value in start.items()}
    everyone = HeldOutRows(values_N=images, labels_N=labels, patient_N=np.array([0, 1, 1, 2]))
    one = HeldOutRows(values_N=images[1:3], labels_N=labels[:2], patient_N=np.array([1, 1]))
    scores, _ = held_out_scores(initial_network(study), study, other, everyone, cpu)
    alone, positive = held_out_scores(initial_network(study), study, other, one, cpu)
    assert scores[1] == alone[0] and not positive.any()
    again, _ = held_out_scores(initial_network(study), study, start, everyone, cpu)
    assert np.array_equal(again, np.zeros(3))


def test_a_site_refuses_to_train_when_its_clipping_differs_from_the_loop(monkeypatch) -> None:
    """Planted: the discriminator's views forgotten, so that half of its gradient is another patient's."""
    study = study_of()
    plan, cpu = plan_from_study(study), torch.device("cpu")
    assert plan_speed(awake(study), study, plan, cpu).images_per_batch >= 1
    from wardround_client.clipping import layer_rules, select

    monkeypatch.setattr(layer_rules.Units, "seen", lambda self, views: self)
    monkeypatch.setattr(select, "_loop", lambda speed: clip_by_loop)
    chosen = plan_speed(awake(study), study, plan, cpu).engine
    assert chosen is clip_by_loop  # the book-keeping engine did not pass, and gave way to the oracle


def test_a_study_says_in_one_line_what_does_not_fit() -> None:
    with pytest.raises(StudyError, match="multiple of 8"):
        study_of(data__image_size=36)
    with pytest.raises(StudyError, match="crop_px"):
        study_of(reconstruction__crop_px=64)
    with pytest.raises(StudyError, match="grey"):
        study_of(data__channels="rgb")
    with pytest.raises(StudyError, match="not a network for"):
        study_of(model__name="dcgan")


class Forgetful(PatientOptimizer):
    """Steps once in a round, however often it is asked to."""

    def noisy_step(self, after_noise=None) -> None:
        if self.noisy_steps == 0:
            super().noisy_step(after_noise)


class Eager(PatientOptimizer):
    """Releases a noised sum once more than it was asked to."""

    def noisy_step(self, after_noise=None) -> None:
        super().noisy_step(after_noise)
        if self.noisy_steps == 1:
            super().noisy_step(after_noise)


@pytest.mark.parametrize(("optimizer", "taken"), [(Forgetful, 1), (Eager, 3)])
def test_the_charge_and_the_noisy_steps_must_agree(monkeypatch, optimizer, taken) -> None:
    study = study_of(training__local_steps=2)
    images, patient_N = phantom_images(2), np.arange(2)
    assert plan_from_study(study).event(1).steps == 2  # what an attempt is charged, and what the steps are held against
    trained(study, images, patient_N)
    monkeypatch.setattr(steps, "step_optimizer", optimizer)
    with pytest.raises(WardroundError, match=f"{taken} noisy steps ran, but the ledger was charged for 2"):
        trained(study, images, patient_N)


def test_what_travels_is_the_head_the_norms_or_all_of_both_networks_and_the_description_knows_every_layer() -> None:
    study = study_of()
    network = awake(study)
    head, norms, every = (exchanged_names(network, part) for part in ("head", "norm+head", "all"))
    assert set(head) == {
        f"{part}.head.{kind}" for part in ("generator", "discriminator") for kind in ("weight", "bias")
    }
    assert set(head) < set(norms) < set(every) == {name for name, _ in network.named_parameters()}
    assert sum(dict(network.named_parameters())[name].numel() for name in head) == 722
    assert architecture_sha256(network) == architecture_sha256(awake(study, seed=2))
    with torch.no_grad():  # a view the other way round is the same image the other way round
        inputs = quadruples(2)[:, :INPUTS]
        torch.testing.assert_close(
            network.eval()(inputs.transpose(2, 3)), network(inputs).transpose(2, 3), rtol=1e-4, atol=1e-2
        )
