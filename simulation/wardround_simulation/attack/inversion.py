"""Gradient inversion: reconstruct a patient's image from that patient's part of one step.

The attack is made on three versions of the gradient:

    raw        the patient's gradient unchanged, which is what leaves a hospital without protection
    clipped    scaled to length C; the direction is unchanged, so the image can still be recovered
    private    clipped, with the study's noise added; this is what a hospital under this study sends

The patient is as exposed as possible: alone in the step with a single image (the attacker knows all other patients and
has subtracted them), and the attacker knows the network and its weights.

The network is the seed CNN, from random weights, on the middle `SIDE_PX` pixels; the clipping, C and the noise are the
study's. The gradients of its dense layer reveal the layer's input exactly, because the gradient of a row is that input
times the gradient of the row's bias (Phong et al. 2018; Boenisch et al. 2023). Gradient descent from a random start
then finds an image with these feature maps, with a total-variation prior that fades out (the prior of Geiping et al.
2020). Where the study trains a linear head over frozen features, the same division gives the patient's features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.build import initial_network
from wardround.networks.seed_cnn import BRIGHTEST, SeedCNN
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study
from wardround.tasks.labelled.objective import loss_per_row, reads_features, trained_part
from wardround_client.clipping.engines import PatientBatch
from wardround_client.clipping.select import engine_for
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.training.rows import training_rows
from wardround_simulation.attack.system import Finding, System, passed
from wardround_simulation.engine.in_process import Hospital

PATIENTS = 3
SIDE_PX = 50  # every pooling layer divides evenly, so no pixels are lost
RESTARTS_OF_PRIOR, STEPS_EACH = 14, 30
FIRST_RATE, FIRST_PRIOR = 0.1, 0.5
KINDS = ("raw", "clipped", "private")
INVERSION_ASKS = "Can a patient's image be rebuilt from what a hospital sends?"
_DENSE = 7  # index of the dense layer in the trunk; the layers before it are convolutional


@dataclass(frozen=True, kw_only=True, eq=False)
class Inversion:
    """Results of the inversion.

    `psnr` holds peak signal-to-noise ratios in dB against the true image, (P,) per kind. `images` (kind ->
    (P, 1, H, W) uint8) are kept for the report's pictures. `feature_error` (raw, private) is the relative error of a
    linear head's reconstructed input; None for studies without such a head.
    """

    psnr: dict[str, np.ndarray]  # KINDS and "mean image"
    images: dict[str, np.ndarray]  # KINDS, "mean image" and "true image"
    feature_error: tuple[float, float] | None
    own_network: bool
    finding: Finding


def invert(
    system: System,
    study: Study,
    hospitals: Sequence[Hospital],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inversion | None:
    """Attack the step of `PATIENTS` patients of the run's hospitals.

    Returns None if fewer than `PATIENTS` patients, or no further training images, are available.
    `progress(done, total)` is called after each restart.
    """
    plan = plan_from_study(study)
    true_P, others = _choose(study, hospitals, seed)
    if len(true_P) < PATIENTS or not len(others):
        return None
    network = _audit_network(seed)
    bounded = plan if math.isfinite(plan.max_grad_norm) else None
    features = []
    for kind in KINDS:
        for image in true_P:
            gradients = _one_step(system, network, image, plan, kind)
            features.append(_dense_input(gradients[f"trunk.{_DENSE}.weight"], gradients[f"trunk.{_DENSE}.bias"]))
    found = _image_of(network, torch.stack(features), seed, progress)
    images = {kind: found[i * len(true_P) : (i + 1) * len(true_P)] for i, kind in enumerate(KINDS)}
    images["true image"] = true_P
    images["mean image"] = np.repeat(np.round(others.mean(0, keepdims=True)), len(true_P), axis=0).astype(np.uint8)
    ratios = {kind: np.array([psnr(*pair) for pair in zip(images[kind], true_P, strict=True)])
              for kind in (*KINDS, "mean image")}  # fmt: skip
    return Inversion(
        psnr=ratios,
        images=images,
        feature_error=_feature_error(system, study, plan, hospitals) if reads_features(study) else None,
        own_network=study.model.name == "seed-cnn",
        finding=_judge(ratios, bounded is not None and plan.private),
    )


def _judge(ratios: dict[str, np.ndarray], promised: bool) -> Finding:
    raw, private, mean = (float(ratios[kind].mean()) for kind in ("raw", "private", "mean image"))
    measured = f"{private:.1f} dB from what is sent; {raw:.1f} dB from the raw gradient"
    verdict = passed(bool((ratios["private"] < ratios["mean image"]).all()))
    if not promised:
        verdict, measured = "does not apply", f"{private:.1f} dB from what is sent: no privacy"
    elif raw < mean:
        verdict, measured = "does not apply", f"the raw gradient yields {raw:.1f} dB: this attack fails on these images"
    return Finding(
        name="inversion",
        question=INVERSION_ASKS,
        measured=measured,
        limit=f"the mean image, {mean:.1f} dB, for every patient",
        verdict=verdict,
    )


def psnr(image_CHW: np.ndarray, true_CHW: np.ndarray) -> float:
    """Return 10 log10(255^2 / mean squared error) in dB; 99 for equal images, because JSON has no infinity."""
    error = float(np.square(image_CHW.astype(np.float64) - true_CHW).mean())
    return 10 * math.log10(BRIGHTEST**2 / error) if error else 99.0


def _choose(study: Study, hospitals: Sequence[Hospital], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one image each of `PATIENTS` training patients, and images of others.

    Both are grey and cropped, uint8 (n, 1, side, side).
    """
    generator, true, others = np.random.default_rng(seed), [], []
    for turn, hospital in enumerate(hospitals):
        rows = np.flatnonzero(training_rows(study, hospital.cohort))
        rows = generator.permutation(rows)
        first, taken = [], set()
        for row in rows:  # one image per patient
            patient = int(hospital.cohort.patient_N[row])
            if patient not in taken:
                taken.add(patient)
                first.append(row)
        share = -(-PATIENTS // len(hospitals)) if turn < PATIENTS else 0
        true += [_grey_middle(hospital.cohort.values_N[row]) for row in first[:share]]
        others += [_grey_middle(hospital.cohort.values_N[row]) for row in first[share : share + 100]]
    empty = np.empty((0, 1, 1, 1), dtype=np.uint8)
    return np.stack(true[:PATIENTS]) if true else empty, np.stack(others) if others else empty


def _grey_middle(image_CHW: np.ndarray) -> np.ndarray:
    """Return the mean over channels of the middle `SIDE_PX` pixels, uint8 (1, side, side). Pads small images."""
    grey_HW = np.asarray(image_CHW, dtype=np.float64).mean(0)
    lack = [max(0, SIDE_PX - side) for side in grey_HW.shape]
    grey_HW = np.pad(grey_HW, [(gap // 2, gap - gap // 2) for gap in lack], mode="edge")
    top, left = ((side - SIDE_PX) // 2 for side in grey_HW.shape)
    return np.round(grey_HW[top : top + SIDE_PX, left : left + SIDE_PX]).astype(np.uint8)[None]


def _audit_network(seed: int) -> SeedCNN:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SeedCNN(1, SIDE_PX, 1)


def _one_step(
    system: System, network: nn.Module, image_CHW: np.ndarray, plan: PrivacyPlan, kind: str
) -> dict[str, Tensor]:
    """Return the gradients of one step on a patient with this one image: raw, clipped, or clipped and noised."""
    norm = math.inf if kind == "raw" else plan.max_grad_norm
    parameters = dict(network.named_parameters())
    batch = PatientBatch(
        inputs_N=torch.from_numpy(image_CHW[None]),
        labels_N=torch.ones(1, dtype=torch.int64),
        start_U1=torch.tensor([0, 1]),
    )
    gradients = engine_for(network, norm)(network, parameters, batch, loss_per_row, norm).gradients
    return _noised(system, gradients, plan) if kind == "private" else gradients


def _noised(system: System, gradients: dict[str, Tensor], plan: PrivacyPlan) -> dict[str, Tensor]:
    if plan.noise_multiplier == 0:
        return gradients
    randomness, unit = system.randomness(), plan.noise_multiplier * plan.max_grad_norm
    return {
        name: gradient + randomness.normal(gradient.numel()).mul_(unit).view_as(gradient).to(gradient)
        for name, gradient in gradients.items()
    }


def _dense_input(weight_OD: Tensor, bias_O: Tensor) -> Tensor:
    """Return the input of a dense layer, (D,), from its gradients. Exact for one image without noise."""
    row = int(bias_O.abs().argmax())
    if bias_O[row] == 0:  # the loss gradient is zero, so it contains no information about the input
        return torch.zeros(weight_OD.shape[1])
    return (weight_OD[row] / bias_O[row]).detach()


def _image_of(network: SeedCNN, features_PD: Tensor, seed: int, progress: Callable[[int, int], None]) -> np.ndarray:
    """Find images with these inputs of the dense layer by descent from random ones, uint8 (P, 1, side, side)."""
    target_PD = features_PD.clamp(min=0)  # the layer's inputs come from a ReLU
    scale_P1 = target_PD.square().sum(1, keepdim=True).clamp(min=1e-12)
    maps = network.trunk[:_DENSE]
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((len(target_PD), 1, SIDE_PX, SIDE_PX), generator=generator).requires_grad_()
    for turn in range(RESTARTS_OF_PRIOR):
        optimizer = torch.optim.Adam([images], lr=FIRST_RATE * 0.8**turn)
        for _ in range(STEPS_EACH):
            optimizer.zero_grad()
            away = ((maps(images) - target_PD).square() / scale_P1).sum()
            rough = (images.diff(dim=2).abs().mean((1, 2, 3)) + images.diff(dim=3).abs().mean((1, 2, 3))).sum()
            (away + FIRST_PRIOR * 0.5**turn * rough).backward()
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        progress(turn + 1, RESTARTS_OF_PRIOR)
    return np.round(images.detach().numpy() * BRIGHTEST).astype(np.uint8)


def _feature_error(
    system: System, study: Study, plan: PrivacyPlan, hospitals: Sequence[Hospital]
) -> tuple[float, float]:
    """Return the relative error of features reconstructed from the head's gradient: (raw, as sent)."""
    network = initial_network(study)
    part = trained_part(network, study)
    named = trained_parameters(network, study)
    parameters = {name.removeprefix("head."): parameter for name, parameter in named.items()}
    errors = []
    for hospital in hospitals[:PATIENTS]:
        row = int(np.flatnonzero(training_rows(study, hospital.cohort))[0])
        true_D = torch.from_numpy(np.array(hospital.inputs_N[row]))
        batch = PatientBatch(
            inputs_N=true_D[None],
            labels_N=torch.tensor([int(hospital.cohort.labels_N[row])]),
            start_U1=torch.tensor([0, 1]),
        )
        norm = plan.max_grad_norm
        engine = engine_for(part, norm)
        clipped = engine(part, parameters, batch, loss_per_row, norm).gradients
        raw = engine_for(part, math.inf)(part, parameters, batch, loss_per_row, math.inf).gradients
        found = [_dense_input(one["weight"], one["bias"]) for one in (raw, _noised(system, clipped, plan))]
        errors.append([float((one - true_D).norm() / true_D.norm()) for one in found])
    raw_error, private_error = np.median(errors, axis=0).tolist()
    return raw_error, private_error
