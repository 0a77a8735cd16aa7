"""What synthetic images are worth beside real ones: fidelity, whether a classifier can tell them, and whether patients
were copied.

All of it reads real patients exactly, as only a simulation can. Intervals are over patients.
Shapes: N rows, D features, P patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.metrics.ranking import auc

GROUPS = 10  # of patients, for the interval of a Fréchet distance
RIDGE = 0.1
PERMUTATIONS = 2000
LEAST_P = 0.01  # below: the check for copies fails
SEED = 20260101  # fixed and public: these are figures of a model, not draws that protect a patient


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """How often the patient nearest to a synthetic image is one of those who trained, beside what chance gives."""

    share: float
    by_chance: float
    p_value: float

    @property
    def passed(self) -> bool:
        return self.p_value >= LEAST_P

    def to_json(self) -> dict[str, float | bool]:
        return {
            "share": round(self.share, 4),
            "by_chance": round(self.by_chance, 4),
            "p_value": round(self.p_value, 4),
            "passed": self.passed,
        }


def frechet(one_ND: np.ndarray, other_ND: np.ndarray) -> float:
    """Fréchet distance of two samples as if each were normal: |difference of means|^2 + tr(S + T - 2 (S T)^(1/2)).

    As of two samples it is above zero also for equal sources, the more the fewer rows: compare like with like. The
    formula is D. Dowson and B. Landau's (1982); on a network's features it is M. Heusel's (arXiv:1706.08500).
    """
    one, other = np.asarray(one_ND, dtype=np.float64), np.asarray(other_ND, dtype=np.float64)
    gap = one.mean(0) - other.mean(0)
    S, T = np.cov(one.T), np.cov(other.T)
    values, vectors = np.linalg.eigh(S)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ T @ root).clip(min=0)).sum()
    return float(gap @ gap + np.trace(S) + np.trace(T) - 2 * cross)


def frechet_interval(synthetic_ND: np.ndarray, real_ND: np.ndarray, patients_N: np.ndarray) -> Measured:
    """Fréchet distance with an interval over the real patients: a jackknife that leaves out a group of them at a time
    (J. Tukey; the interval is the normal one, for the distance is a smooth function of means)."""
    value = frechet(synthetic_ND, real_ND)
    group_P = _groups(patients_N)
    left_out = [frechet(synthetic_ND, real_ND[group_P != group]) for group in range(GROUPS) if (group_P == group).any()]
    spread = np.sqrt((len(left_out) - 1) / len(left_out) * np.square(np.subtract(left_out, np.mean(left_out))).sum())
    return Measured(value=value, low=max(0.0, value - 1.96 * spread), high=value + 1.96 * spread)


def _groups(patients_N: np.ndarray) -> np.ndarray:
    """A group 0 .. GROUPS-1 for each row, by its patient, (N,)."""
    patients, place_N = np.unique(patients_N, return_inverse=True)
    return np.random.default_rng(SEED).permutation(np.arange(len(patients)) % GROUPS)[place_N]


def told_apart(synthetic_ND: np.ndarray, real_ND: np.ndarray, patients_N: np.ndarray, repeats: int = 20) -> Measured:
    """AUC of a linear classifier that tells synthetic from real, tested on patients it has not seen: .5 is perfect.

    Each repeat halves the patients and the synthetic images anew and draws as many of one kind as of the other; the
    interval is the middle 95 % of the repeats. (D. Lopez-Paz, M. Oquab, arXiv:1610.06545.)
    """
    dice = np.random.default_rng(SEED)
    patients = np.unique(patients_N)
    areas = []
    for _ in range(repeats):
        half = np.isin(patients_N, dice.permutation(patients)[: len(patients) // 2])
        order = dice.permutation(len(synthetic_ND))
        parts = []
        for real, made in ((real_ND[half], order[::2]), (real_ND[~half], order[1::2])):
            rows = min(len(real), len(made))
            features = np.concatenate([real[dice.permutation(len(real))[:rows]], synthetic_ND[made[:rows]]])
            parts.append((features, np.repeat([0, 1], rows)))
        (train_ND, train_N), (test_ND, test_N) = parts
        found = auc(test_ND @ _direction(train_ND, train_N), test_N)
        areas.append(0.5 if found is None else found)
    return Measured(
        value=float(np.mean(areas)), low=float(np.quantile(areas, 0.025)), high=float(np.quantile(areas, 0.975))
    )


def _direction(features_ND: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Fisher's linear discriminant with a ridge, (D,)."""
    one, other = features_ND[labels_N == 1], features_ND[labels_N == 0]
    within = (np.cov(one.T) + np.cov(other.T)) / 2
    ridge = RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    return np.linalg.solve(within + ridge, one.mean(0) - other.mean(0))


def copies(synthetic_ND: np.ndarray, real_ND: np.ndarray, patients_N: np.ndarray, trained_N: np.ndarray) -> CopyCheck:
    """Whether synthetic images lie nearer to patients who trained than to patients held out.

    For each synthetic image the nearest patient is found, among all, by the nearest of their images (Euclidean). Who
    was held out was decided by a keyed hash, so without copying the two kinds of patient are exchangeable: `p_value` is
    the share of random exchanges of who is called trained that give as large a share, an exact permutation test.
    """
    patients, place_N = np.unique(patients_N, return_inverse=True)
    trained_P = np.zeros(len(patients), dtype=bool)
    trained_P[place_N[trained_N]] = True
    nearest_S = place_N[_nearest(synthetic_ND, real_ND)]
    count_P = np.bincount(nearest_S, minlength=len(patients))
    dice = np.random.default_rng(SEED)
    found = int(count_P[trained_P].sum())
    drawn = [int(count_P[dice.permutation(trained_P)].sum()) for _ in range(PERMUTATIONS)]
    return CopyCheck(
        share=found / len(nearest_S),
        by_chance=float(trained_P.mean()),
        p_value=(1 + sum(one >= found for one in drawn)) / (1 + PERMUTATIONS),
    )


def _nearest(rows_ND: np.ndarray, among_MD: np.ndarray) -> np.ndarray:
    """The place in `among_MD` of what is nearest to each row, (N,)."""
    square_M = np.square(among_MD).sum(1)
    parts = [
        np.argmin(square_M - 2 * part @ among_MD.T, 1) for part in np.array_split(rows_ND, -(-len(rows_ND) // 512))
    ]
    return np.concatenate(parts)
