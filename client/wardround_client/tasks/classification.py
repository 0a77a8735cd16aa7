"""Classification: from a site's cohort to the reply of one round.

`material_of` turns a cohort into what training reads (images, or the frozen network's features, computed once and
kept), `train` runs the local steps of one round on it. Neither knows where the cohort or the weights came from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.checkpoint import load_checkpoint, save_checkpoint
from wardround.errors import DataError, WardroundError
from wardround.models.registry import build_model, exchanged_names
from wardround.study import Study, TrainingSection
from wardround_client.data.cohort import Cohort
from wardround_client.privacy.bookkeeping import Precision, SpeedSettings
from wardround_client.privacy.clipping import ClippingEngine, PatientBatch
from wardround_client.privacy.engine_choice import Sample, checked_engine, engine_for
from wardround_client.privacy.memory_plan import images_at_once
from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.sampling import Draw, PatientIndex, draw_patients, index_patients
from wardround_client.privacy.secret import SecretRandom

IMAGES_PER_PHYSICAL_BATCH = 64  # without a plan of the machine's memory
_FEATURE_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Material:
    """What training reads at a site. Rows without a label and patients held out are not in `index`.

    `inputs_N` is uint8 images (N, C, H, W), or float32 features (N, D) where the network's features are frozen.
    """

    inputs_N: np.ndarray
    labels_N: np.ndarray
    index: PatientIndex


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """How a site does the arithmetic of a study's steps. Nothing here affects privacy."""

    engine: ClippingEngine
    images_at_once: int = IMAGES_PER_PHYSICAL_BATCH


def training_rows(study: Study, cohort: Cohort) -> np.ndarray:
    """Rows with a label whose patient is not held out by this study, bool (N,)."""
    held_out_P = cohort.holdout_rank_P < study.evaluation.holdout
    return (cohort.labels_N >= 0) & ~held_out_P[cohort.patient_N]


def material_of(inputs_N: np.ndarray, labels_N: np.ndarray, patient_N: np.ndarray, rows_N: np.ndarray) -> Material:
    """Keep the rows where `rows_N` is true as training material; `inputs_N` itself is not copied."""
    kept = np.flatnonzero(rows_N)
    index = index_patients(patient_N[kept])
    index = PatientIndex(rows_N=kept[index.rows_N], start_P1=index.start_P1)
    return Material(inputs_N=inputs_N, labels_N=labels_N, index=index)


def reads_features(study: Study) -> bool:
    """Whether training reads frozen features instead of images: only the head moves, and nothing is augmented."""
    return study.model.trainable == "head" and study.training.augmentation == "none"


def trained_part(network: nn.Module, study: Study) -> nn.Module:
    """The module that training runs: the head alone over frozen features, else the whole network."""
    return network.head if reads_features(study) else network


def trained_parameters(network: nn.Module, study: Study) -> dict[str, nn.Parameter]:
    """The parameters that move and travel, by their names in the whole network, in the order of their names.

    All others are frozen, so that autograd builds nothing for them.
    """
    names = exchanged_names(network, study.model.trainable)
    found = dict(network.named_parameters())
    for parameter in found.values():
        parameter.requires_grad_(False)
    for name in names:
        found[name].requires_grad_(True)
    return {name: found[name] for name in names}


def features_of(network: nn.Module, cohort: Cohort, device: torch.device, cache_folder: Path | None) -> np.ndarray:
    """Frozen features of every image, float32 (N, D); kept in `cache_folder` by network, weights and cohort."""
    path = None
    if cache_folder is not None:
        path = cache_folder / f"features-{_frozen_sha256(network)[:16]}-{cohort.key[:16]}.safetensors"
        if path.is_file():
            tensors, _ = load_checkpoint(path)
            if len(tensors["features_ND"]) == len(cohort.images_NCHW):
                return tensors["features_ND"]
    network = network.to(device).eval()
    parts = []
    with torch.no_grad():
        for begin in range(0, len(cohort.images_NCHW), _FEATURE_BATCH):
            images = torch.from_numpy(np.array(cohort.images_NCHW[begin : begin + _FEATURE_BATCH])).to(device)
            parts.append(network.features(images).float().cpu().numpy())
    if not parts:
        raise DataError("the cohort holds no image; ingest data first")
    features_ND = np.concatenate(parts)
    if path is not None:
        cache_folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"features_ND": features_ND}, {"cohort": cohort.key})
    return features_ND


def _frozen_sha256(network: nn.Module) -> str:
    """SHA-256 over the names and bytes of everything but the head."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode() + str(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def loss_per_image(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Binary cross-entropy for one output, cross-entropy for more; (N,) losses."""
    if logits_NK.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(
            logits_NK[:, 0], labels_N.to(logits_NK.dtype), reduction="none"
        )
    return functional.cross_entropy(logits_NK, labels_N, reduction="none")


def learning_rate(study: Study, plan: PrivacyPlan, parameters: int, round_: int) -> float:
    """The learning rate of a round (1-based), from public numbers only.

    `"rule"`: min(32, 3 N / (C s sqrt(d T K))) with N the federation's nominal patients, C the clipping norm, s the
    noise multiplier, d the parameters that move, T the steps of the study, K the nominal sites: the noise of all
    steps together then moves the weights by a bounded length. `cosine` scales by a linear warm-up and half a cosine
    over the rounds.
    """
    training, rounds = study.training, study.study.rounds
    if training.learning_rate == "rule":
        sites = study.aggregation.nominal_sites
        spread = plan.max_grad_norm * plan.noise_multiplier * math.sqrt(parameters * rounds * plan.local_steps * sites)
        peak = 32.0 if spread == 0 else min(32.0, 3 * sites * plan.nominal_patients / spread)
    else:
        peak = float(training.learning_rate)
    if training.schedule == "constant":
        return peak
    if round_ <= training.warmup_rounds:
        return peak * round_ / (training.warmup_rounds + 1)
    done = (round_ - training.warmup_rounds) / max(1, rounds - training.warmup_rounds)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done) * 0.97))


def train(
    study: Study,
    plan: PrivacyPlan,
    network: nn.Module,
    weights: dict[str, np.ndarray],
    material: Material,
    round_: int,
    randomness: SecretRandom,
    device: torch.device,
    speed: SpeedPlan | None = None,
) -> dict[str, np.ndarray]:
    """Run the local steps of one round from `weights`; returns the new weights, float32, same names and shapes.

    Exactly `plan.local_steps` noisy steps happen whatever the data are; no optimiser state outlives the call. `speed`
    comes from `plan_speed`; without it the engine is the one by rule.
    """
    network = network.to(device).train()
    parameters = trained_parameters(network, study)
    received = load_weights(parameters, weights)
    part = trained_part(network, study)
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}
    speed = speed or SpeedPlan(engine=engine_for(part, plan.max_grad_norm))
    rate = learning_rate(study, plan, sum(p.numel() for p in parameters.values()), round_)
    optimizer = PatientOptimizer(_optimizer(study.training, rate, list(local.values())), plan, local, randomness)

    def pull_to_start() -> None:
        # FedProx (Li et al. 2020): mu (w - w_received) needs no patient, so it is added after the noise
        for parameter, start in zip(local.values(), received, strict=True):
            parameter.grad.add_(parameter.detach() - start, alpha=study.aggregation.proximal_mu)

    proximal = pull_to_start if study.aggregation.strategy == "fedprox" else None
    augment = _augmentation(study, randomness)
    for _ in range(plan.local_steps):
        draw = draw_patients(plan, material.index, randomness)
        for batch in _physical_batches(material, draw, device, augment, speed.images_at_once):
            optimizer.accumulate_sum(speed.engine(part, local, batch, loss_per_image, plan.max_grad_norm))
        optimizer.noisy_step(proximal)
    if optimizer.noisy_steps != plan.local_steps:
        raise WardroundError(
            f"{optimizer.noisy_steps} noisy steps ran where the ledger was charged for {plan.local_steps}"
        )
    return {name: p.detach().to("cpu", torch.float32).numpy().copy() for name, p in parameters.items()}


def load_weights(parameters: dict[str, nn.Parameter], weights: dict[str, np.ndarray]) -> list[Tensor]:
    """Copy received weights into the parameters; names and shapes were checked at the border. Returns copies, in
    order.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])).view_as(parameter))
    return [parameter.detach().clone() for parameter in parameters.values()]


def plan_speed(
    network: nn.Module,
    study: Study,
    plan: PrivacyPlan,
    device: torch.device,
    cache_folder: Path | None = None,
    precision: Precision = "float32",
) -> SpeedPlan:
    """Choose the clipping engine, prove it against the one-patient loop on synthetic input, and plan the memory.

    `cache_folder` keeps the choice of a site (`engine_choice.py`). Raises `WardroundError` where the proof fails.
    """
    part = trained_part(network.to(device), study)
    parameters = trained_parameters(network, study)
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(0)  # synthetic input: no patient, no secret
    if reads_features(study):
        inputs_N = torch.randn(7, network.head.in_features, generator=generator)
    else:
        size = (7, study.data.channel_count, study.data.image_size, study.data.image_size)
        inputs_N = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    inputs_N = inputs_N.to(device)
    sample = Sample(images_N=inputs_N, outputs=network.head.out_features, images_per_unit=plan.images_per_patient)
    most = IMAGES_PER_PHYSICAL_BATCH if reads_features(study) else images_at_once(part, local, inputs_N)
    engine = checked_engine(
        part,
        local,
        loss_per_image,
        sample,
        plan.max_grad_norm,
        speed=SpeedSettings(precision=precision, images_at_once=most),
        cache_folder=cache_folder,
    )
    return SpeedPlan(engine=engine, images_at_once=most)


def _optimizer(training: TrainingSection, rate: float, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=training.weight_decay)


def _physical_batches(
    material: Material, draw: Draw, device: torch.device, augment, most_images: int
) -> Iterator[PatientBatch]:
    """Split a draw at patient boundaries into batches of at most `most_images`, or of one patient with more; features
    all at once.
    """
    limit = most_images if material.inputs_N.dtype == np.uint8 else 1 << 20
    first = 0
    while first < draw.units:
        last = first + 1
        while last < draw.units and draw.start_U1[last + 1] - draw.start_U1[first] <= limit:
            last += 1
        rows = draw.rows_N[draw.start_U1[first] : draw.start_U1[last]]
        inputs_N = torch.from_numpy(material.inputs_N[rows]).to(device)
        yield PatientBatch(
            inputs_N=augment(inputs_N),
            labels_N=torch.from_numpy(material.labels_N[rows].astype(np.int64)).to(device),
            start_U1=torch.from_numpy(draw.start_U1[first : last + 1] - draw.start_U1[first]),
        )
        first = last


def _augmentation(study: Study, randomness: SecretRandom):
    """Views of the drawn images, (N, C, H, W): `flips`, a random flip and quarter turn each; `light`, also turns by any
    angle, shifts by up to 6 %, scales by up to 15 %, grey values by up to 10 %.
    """
    kind = study.training.augmentation
    if kind == "none":
        return lambda images_NCHW: images_NCHW

    def turn(images_NCHW: Tensor) -> Tensor:
        code_N = torch.from_numpy((randomness.words(len(images_NCHW)) >> np.uint64(61)).astype(np.int64))
        out = torch.empty_like(images_NCHW)
        for code in range(8):
            chosen = (code_N == code).to(images_NCHW.device)
            turned = torch.rot90(images_NCHW[chosen], code // 2, (2, 3))
            out[chosen] = turned.flip(3) if code % 2 else turned
        return out

    def light(images_NCHW: Tensor) -> Tensor:
        uniform_N6 = torch.from_numpy(randomness.uniform(6 * len(images_NCHW)).reshape(-1, 6) * 2 - 1)
        angle, zoom, right, down, gain, shift = uniform_N6.float().to(images_NCHW.device).unbind(1)
        scale, cosine, sine = torch.exp(0.15 * zoom), torch.cos(torch.pi * angle), torch.sin(torch.pi * angle)
        rows = [scale * cosine, -scale * sine, 0.06 * right, scale * sine, scale * cosine, 0.06 * down]
        grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), images_NCHW.shape, align_corners=False)
        moved = functional.grid_sample(turn(images_NCHW).float(), grid, padding_mode="reflection", align_corners=False)
        return (moved * (1 + 0.1 * gain)[:, None, None, None] + 25.5 * shift[:, None, None, None]).clamp(0, 255)

    return turn if kind == "flips" else light


def initial_network(study: Study) -> nn.Module:
    """The study's network with its initial weights, on the CPU."""
    return build_model(study.model, study.data, study.study.seed)
