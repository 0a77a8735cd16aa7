"""Membership inference against the released model: was this patient among the training patients?

The attacker has the released model and, as a reference, the public start from which it was trained. A patient's score
is the decrease of the loss in training, as the mean over the patient's images. This is a loss attack calibrated by a
reference (Watson et al. 2022); with the start as the reference, each patient's own difficulty cancels. Members are the
training patients. Others are the held-out patients of the same hospitals, who were chosen by a hash and therefore
differ in no other way.

No attacker can exceed, at false-positive rate a, a true-positive rate of min(e^eps a + delta, 1 - e^-eps (1 - delta -
a)) (Kairouz, Oh, Viswanath 2015). Where every patient takes part in every step, the limit is exactly
Phi(Phi^-1(a) + mu) with mu = sqrt(steps) / sigma (Dong, Roth, Su 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from wardround.accounting import GaussianEvent, spent
from wardround.errors import required
from wardround.metrics.classification import auc, auc_interval
from wardround.networks.build import initial_network
from wardround.study.load import Study
from wardround.tasks.labelled.scores import score
from wardround_client.sources.cohort import AnyRows
from wardround_client.training.rows import training_rows
from wardround_simulation.attack.system import Finding, Weights, passed
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital

FALSE_POSITIVE_RATE = 0.01
CONFIDENCE, ALARM_CONFIDENCE = 0.95, 1 - 1e-5
CONTRAST_PATIENTS = 120  # members, and as many others: enough to show the effect, few enough to memorise in seconds
CONTRAST_SIDE_PX = 32
CONTRAST_STEPS = 300
MEMBERSHIP_ASKS = "Does the released model reveal which patients took part in its training?"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How well members were identified: AUC, and the share of members found when at most 1 % of others are accused.

    Intervals are at 95 % over patients. The true-positive rate's is Clopper and Pearson's for the chosen threshold. The
    `surely_` values are lower ends of the same intervals at `ALARM_CONFIDENCE`.
    """

    members: int
    others: int
    auc: float
    auc_ci95: tuple[float, float]
    true_positive_rate: float
    true_positive_rate_ci95: tuple[float, float]
    false_positive_rate: float  # measured at the chosen threshold
    surely_auc: float
    surely_true_positive_rate: float


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Results of the membership attack.

    `released` is the attack on the released model; the `_limit` values are what no attacker can exceed. `contrast` is
    the same attack on a network that was trained without privacy on some of the same patients; it shows that the attack
    works.
    """

    released: Attack
    auc_limit: float
    true_positive_rate_limit: float
    contrast: Attack | None
    finding: Finding


def attack_run(
    study: Study, hospitals: Sequence[Hospital], released: Weights, events: Sequence[GaussianEvent], seed: int = 0
) -> Membership | None:
    """Attack a run's released model. Returns None if no patient was held out.

    `events` are those that the run charged at one site.
    """
    network = initial_network(study)
    start = in_process.start_weights(study)
    parts = []
    for hospital in hospitals:
        trained_N = training_rows(study, hospital.cohort)
        rows = np.flatnonzero(hospital.labelled_N)
        loss_2N = [
            loss(score(network, study, weights, hospital.inputs_N[rows]), hospital.cohort.labels_N[rows])
            for weights in (start, released)
        ]
        parts.append((hospital, rows, trained_N[rows], loss_2N[0] - loss_2N[1]))
    offsets = np.cumsum([0] + [hospital.cohort.patient_count for hospital in hospitals])
    patients_N = np.concatenate(
        [h.cohort.patient_N[rows] + o for (h, rows, *_), o in zip(parts, offsets, strict=False)]
    )
    member_N, drop_N = np.concatenate([part[2] for part in parts]), np.concatenate([part[3] for part in parts])
    scores_P, member_P = by_patient(drop_N, member_N, patients_N)
    if not 0 < member_P.sum() < len(member_P):
        return None
    found = attack(scores_P, member_P)
    auc_limit, rate_limit = limits(study, events)
    return Membership(
        released=found,
        auc_limit=auc_limit,
        true_positive_rate_limit=rate_limit,
        contrast=_contrast(study, hospitals, seed),
        finding=_judge(found, auc_limit, rate_limit),
    )


def _judge(found: Attack, auc_limit: float, rate_limit: float) -> Finding:
    low, high = found.auc_ci95
    broken = found.surely_auc > auc_limit or found.surely_true_positive_rate > rate_limit
    return Finding(
        name="membership",
        question=MEMBERSHIP_ASKS,
        measured=f"AUC {found.auc:.3f} ({low:.3f}–{high:.3f}); finds {found.true_positive_rate:.1%} at 1 % false "
        "alarms",
        limit=f"at most AUC {auc_limit:.3f} and {rate_limit:.1%}, by theory",
        verdict=passed(not broken),
    )  # fmt: skip


def loss(scores: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Return the cross-entropy, (N,), of probabilities (N,) or (N, K)."""
    labels_N = np.asarray(labels_N, dtype=np.int64)
    right_N = (
        np.where(labels_N == 1, scores, 1 - scores) if scores.ndim == 1 else scores[np.arange(len(scores)), labels_N]
    )
    return -np.log(np.maximum(right_N, 1e-12))


def by_patient(drop_N: np.ndarray, member_N: np.ndarray, patients_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean score of each patient's images, and whether the patient is a member; both (P,)."""
    patients, first, patient_N = np.unique(patients_N, return_index=True, return_inverse=True)
    scores_P = np.bincount(patient_N, weights=drop_N) / np.bincount(patient_N)
    return scores_P, np.asarray(member_N)[first]


def attack(scores_P: np.ndarray, member_P: np.ndarray) -> Attack:
    """Return the figures of an attack whose scores are higher for members.

    Needs at least one member and one other patient.
    """
    members, others = int(member_P.sum()), int((~member_P).sum())
    patients_P = np.arange(len(scores_P))
    kinds_P = member_P.astype(np.int64)
    area = required(auc_interval(scores_P, kinds_P, patients_P), "AUC")
    surely = required(auc_interval(scores_P, kinds_P, patients_P, ALARM_CONFIDENCE), "AUC")
    accused = math.floor(FALSE_POSITIVE_RATE * others)
    threshold = np.sort(scores_P[~member_P])[::-1][accused]
    right = int((scores_P[member_P] > threshold).sum())
    return Attack(
        members=members,
        others=others,
        auc=area.value,
        auc_ci95=(area.low, area.high),
        true_positive_rate=right / members,
        true_positive_rate_ci95=clopper_pearson(right, members, CONFIDENCE),
        false_positive_rate=float((scores_P[~member_P] > threshold).mean()),
        surely_auc=surely.low,
        surely_true_positive_rate=clopper_pearson(right, members, ALARM_CONFIDENCE)[0],
    )


def clopper_pearson(right: int, count: int, confidence: float) -> tuple[float, float]:
    """Return the exact confidence interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, right, count - right + 1)) if right else 0.0
    return low, float(stats.beta.isf(tail, right + 1, count - right)) if right < count else 1.0


def limits(study: Study, events: Sequence[GaussianEvent]) -> tuple[float, float]:
    """Return the AUC and the true-positive rate at 1 % false positives that no attacker exceeds.

    Both are 1 without privacy. An attack sets its threshold on a sample of others, so its true false-positive rate is
    uncertain; the limit is for the rate as stated.
    """
    delta = study.privacy.delta
    epsilon = spent(events, delta).value
    rates_A = np.linspace(0, 1, 20_001)
    best_A = np.ones_like(rates_A)
    if math.isfinite(epsilon):
        factor = math.exp(min(epsilon, 500.0))
        best_A = np.minimum(best_A, factor * rates_A + delta)
        best_A = np.minimum(best_A, 1 - (1 - delta - rates_A) / factor)
        if all(event.sampling_rate == 1 for event in events):
            mu = math.sqrt(sum(event.steps / event.noise_multiplier**2 for event in events))
            best_A = np.minimum(best_A, stats.norm.sf(stats.norm.isf(rates_A) - mu))
    return float(np.trapezoid(best_A, rates_A)), float(np.interp(FALSE_POSITIVE_RATE, rates_A, best_A))


def _contrast(study: Study, hospitals: Sequence[Hospital], seed: int) -> Attack | None:
    """Return the same attack on a network that memorised some of the same patients' images without any privacy."""
    generator = np.random.default_rng(seed)
    images, labels, patients, members, offset = [], [], [], [], 0
    for hospital in hospitals:
        cohort = hospital.cohort
        trained_N = training_rows(study, cohort)
        rows = np.flatnonzero(hospital.labelled_N)
        images.append(_small(cohort.values_N, rows))
        labels.append(cohort.labels_N[rows])
        patients.append(cohort.patient_N[rows] + offset)
        members.append(trained_N[rows])
        offset += cohort.patient_count
    images_ND, labels_N = np.concatenate(images), np.concatenate(labels).astype(np.int64)
    patients_N, member_N = np.concatenate(patients), np.concatenate(members)
    chosen = [
        generator.permutation(np.unique(patients_N[member_N == kind]))[:CONTRAST_PATIENTS] for kind in (True, False)
    ]
    keep_N = np.isin(patients_N, np.concatenate(chosen))
    images_ND, labels_N, patients_N, member_N = (
        images_ND[keep_N],
        labels_N[keep_N],
        patients_N[keep_N],
        member_N[keep_N],
    )
    drop_N = memorised_drop(images_ND, labels_N, member_N, len(study.data.labels), seed)
    scores_P, member_P = by_patient(drop_N, member_N, patients_N)
    return attack(scores_P, member_P) if auc(scores_P, member_P.astype(np.int64)) is not None else None


def _small(values_N: AnyRows, rows: np.ndarray) -> np.ndarray:
    """Return rows as float32 (n, D), each with mean 0 and standard deviation 1: images shrunk to `CONTRAST_SIDE_PX`,
    of records what is missing as 0.
    """
    parts = []
    for begin in range(0, len(rows), 128):
        batch = torch.from_numpy(np.array(values_N[rows[begin : begin + 128]])).float()
        if batch.dim() == 4:
            batch = functional.interpolate(batch, CONTRAST_SIDE_PX, mode="area")
        small = batch.flatten(1).nan_to_num(0.0)
        parts.append((small - small.mean(1, keepdim=True)) / (small.std(1, keepdim=True) + 1e-3))
    return torch.cat(parts).numpy() if parts else np.empty((0, 0), dtype=np.float32)


def memorised_drop(
    inputs_ND: np.ndarray, labels_N: np.ndarray, member_N: np.ndarray, classes: int, seed: int
) -> np.ndarray:
    """Train a wide network on the members' rows without noise until it has memorised them.

    Returns:
        The decrease of each row's loss, (N,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = nn.Sequential(nn.Linear(inputs_ND.shape[1], 256), nn.ReLU(), nn.Linear(256, classes))
    inputs, labels, member = (torch.from_numpy(np.asarray(a)) for a in (inputs_ND, labels_N, member_N))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def losses() -> np.ndarray:
        with torch.no_grad():
            return functional.cross_entropy(network(inputs), labels, reduction="none").double().numpy()

    before = losses()
    for _ in range(CONTRAST_STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs[member]), labels[member]).backward()
        optimizer.step()
    return before - losses()
