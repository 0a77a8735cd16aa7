"""The system under attack: the parts of the product that the checks call, and functions for calling them.

A check uses only what an attacker would see, which is the weights that training returns, and compares them with the
plan. So the same check runs on the product and on a `System` in which a faulty part replaces one of the product's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from wardround.accounting import Epsilon, spent
from wardround.study.load import Study, parse_study
from wardround.tasks.labelled.objective import reads_features
from wardround.tasks.labelled.scores import score
from wardround.wire.packets import Answer
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.sampling import Draw, PatientIndex, draw_patients
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds.training import answer
from wardround_client.sources.registry import source_of
from wardround_client.training.batches import Material, material_of
from wardround_client.training.train import train
from wardround_server.rounds.loop import RunOutcome, run_rounds
from wardround_simulation.engine import in_process

CPU = torch.device("cpu")
Verdict = Literal["pass", "FAIL", "does not apply"]
Weights = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class System:
    """The parts that are audited; the defaults are the product's.

    In order: one round at a site, the training within it (clipping, noise and the optimizer's step), the sampler, the
    source of randomness, the accountant, and the server's rounds.
    """

    answer: Callable[..., Answer] = answer
    train: Callable[..., Weights] = train
    draw: Callable[[PrivacyPlan, PatientIndex, SecretRandom], Draw] = draw_patients
    randomness: Callable[[], SecretRandom] = SecretRandom
    spent: Callable[[Iterable, float], Epsilon] = spent
    run_rounds: Callable[..., RunOutcome] = run_rounds


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check: its question in plain words, the measured value, the limit and the verdict."""

    name: str
    question: str
    measured: str
    limit: str
    verdict: Verdict

    @property
    def failed(self) -> bool:
        return self.verdict == "FAIL"


def passed(good: bool) -> Verdict:
    return "pass" if good else "FAIL"


def plain_training(study: Study, rate: float) -> Study:
    """Return the study with the simplest step, w - rate x gradient. Privacy, network and data are unchanged.

    Momentum, Adam and FedProx only post-process the noised gradient, and would hide it from a measurement.
    """
    content = study.model_dump()
    content["training"].update(
        optimizer="sgd", learning_rate=rate, schedule="constant", warmup_rounds=0, momentum=0.0, weight_decay=0.0,
        augmentation="none",
    )  # fmt: skip
    content["aggregation"].update(strategy="fedavg", release="last")
    return parse_study(content)


def released_sums(
    system: System,
    study: Study,
    plan: PrivacyPlan,
    network: nn.Module,
    material: Material,
    calls: int,
    start: Weights,
    stretch: float | None = None,
) -> list[Weights]:
    """Return what a site releases in one step from `start`, times the public divisor: the clipped sum plus noise.

    Args:
        calls: Number of independent calls, each with fresh randomness, as in separate rounds.
        stretch: Factor on the length of the step. The default is so large that float32 weights represent the move to
            seven digits, whatever their start.

    Returns:
        One entry per call, float64 arrays by name.
    """
    one_step = replace(plan, local_steps=1)
    unit = plan.max_grad_norm if math.isfinite(plan.max_grad_norm) else 1.0
    stretch = stretch or 1000 / unit
    simple = plain_training(study, one_step.expected_patients * stretch)
    sums = []
    for _ in range(calls):
        after = system.train(simple, one_step, network, start, material, 1, system.randomness(), CPU)
        sums.append({name: (np.float64(start[name]) - after[name]) / stretch for name in start})
    return sums


def norm_of(gradients: Weights) -> float:
    return math.sqrt(sum(float(np.square(array).sum()) for array in gradients.values()))


def difference(first: Weights, second: Weights) -> Weights:
    return {name: first[name] - second[name] for name in first}


def synthetic_material(study: Study, network: nn.Module, images: Sequence[int], seed: int) -> Material:
    """Return invented patients with `images[p]` rows each, whose gradients at the study's start are long and alike.

    Features lie far from zero. The images of a patient are similar, which is the worst case for a system that clips
    each image separately. Each image has the label to which the network gives the lowest probability.
    """
    generator = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(len(images)), images)
    if reads_features(plain_training(study, 1.0)):
        features = cast(nn.Linear, network.head).in_features
        of_patient_PD = 100 * generator.normal(size=(len(images), features))
        inputs_N = of_patient_PD[patient_N] + generator.normal(size=(len(patient_N), features))
        inputs_N = inputs_N.astype(np.float32)
    else:
        inputs_N = source_of(study.data).synthetic_patients(study.data, images, generator)
    everyone = np.ones(len(patient_N), dtype=bool)
    believed_N = score(network, plain_training(study, 1.0), start_of(study), inputs_N)
    labels_N = believed_N.argmin(1) if believed_N.ndim == 2 else (believed_N < 0.5)
    return material_of(inputs_N, labels_N.astype(np.int16), patient_N, everyone)


def without(material: Material, patient: int) -> Material:
    """Return the neighbouring dataset, without any row of one patient."""
    index = material.index
    patient_N = np.repeat(np.arange(index.patients), np.diff(index.start_P1))
    keep_N = np.zeros(len(material.labels_N), dtype=bool)
    keep_N[index.rows_N[patient_N != patient]] = True
    whole_N = np.zeros(len(material.labels_N), dtype=np.int64)
    whole_N[index.rows_N] = patient_N
    return material_of(material.inputs_N, material.labels_N, whole_N, keep_N)


def start_of(study: Study) -> Weights:
    return in_process.start_weights(study)
