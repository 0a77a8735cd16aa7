"""Measure figures from noised releases: error, bias and coverage of the federated AUC against the exact one.

    ./run bench released_figures [--seeds 400] [--json] [--markdown]

Each seed draws the hold-out patients of all sites, their scores under one of four distributions (`SCORES`, of which two
are skewed), and the noise of the sites' releases, and merges them as a server does. `error` and `bias` are relative to
the exact AUC of the same patients. `covers` is the share of intervals for that AUC that contain it. `covers_population`
is the share of the wider intervals that contain the AUC of the whole population. Both are nominally 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from measure import Sheet, arguments_of, machine, tell

from wardround.metrics.noised_auc import ScoreHistogram, auc_estimate, noise_variance, sensitivity_at
from wardround.metrics.ranking import auc, sensitivity_at_specificity
from wardround.metrics.score_bins import bins_of

BINS, LOGIT_SCALE = 16, 2.0
Scores = Callable[[np.random.Generator, int, int], np.ndarray]  # (generator, how many, label) -> logits
SCORES: dict[str, Scores] = {
    "normal .80": lambda g, n, label: 1.5 * g.normal(size=n) + 1.786 * label - 1,
    "normal .92, wide": lambda g, n, label: 3 * g.normal(size=n) + 5.961 * (label - 0.5),
    "skewed .73": lambda g, n, label: g.gumbel(size=n) * (1 + label) + 1.2 * label - 1,
    "exponential .75": lambda g, n, label: g.exponential(1 + 2 * label, size=n) - 2,
}
SETTINGS = [  # sites, patients per site, share of positives, epsilon
    (6, 100, 0.5, 1.0),
    (6, 100, 0.2, 1.0),
    (6, 100, 0.5, 3.0),
    (6, 100, 0.2, 3.0),
    (6, 100, 0.2, math.inf),
    (2, 100, 0.2, 3.0),
]


def released_counts(
    logits_P: np.ndarray, positive_P: np.ndarray, sites: int, epsilon: float, generator: np.random.Generator
) -> np.ndarray:
    """Return the sum of all sites' noised counts, (2, B).

    The noise has the distribution of `score_release`, but is drawn from a faster generator that is not secret.
    """
    cell_P = bins_of(logits_P, BINS, LOGIT_SCALE) + BINS * positive_P
    counts_2B = np.bincount(cell_P, minlength=2 * BINS).reshape(2, BINS)
    if math.isinf(epsilon):
        return counts_2B
    failure, shape = 1 - math.exp(-epsilon), (sites, 2, BINS)
    return counts_2B + (generator.geometric(failure, shape) - generator.geometric(failure, shape)).sum(axis=0)


def measure(
    scores: Scores, sites: int, patients: int, positives: float, epsilon: float, seeds: int
) -> dict[str, float]:
    """Return error, bias and coverage over `seeds` federations."""
    generator = np.random.default_rng(20260101)
    everyone = np.concatenate([scores(generator, 200_000, 0), scores(generator, 200_000, 1)])
    of_all = np.repeat([0, 1], 200_000)
    population, sensitivity = auc(everyone, of_all), sensitivity_at_specificity(everyone, of_all, 0.9)
    errors, covers, covers_population, covers_sensitivity, widths, none = [], 0, 0, 0, [], 0
    for _ in range(seeds):
        positive_P = (generator.random(sites * patients) < positives).astype(np.int64)
        logits_P = np.where(positive_P, scores(generator, len(positive_P), 1), scores(generator, len(positive_P), 0))
        histogram = ScoreHistogram(
            counts_2B=released_counts(logits_P, positive_P, sites, epsilon, generator),
            noise_variance=sites * noise_variance(epsilon),
            logit_scale=LOGIT_SCALE,
        )
        exact, found = auc(logits_P, positive_P), auc_estimate(histogram)
        threshold = sensitivity_at(histogram, 0.9)
        if found is None or threshold is None:
            none += 1
            continue
        errors.append(found.value - exact)
        covers += found.low_here <= exact <= found.high_here
        covers_population += found.low <= population <= found.high
        covers_sensitivity += threshold.low <= sensitivity <= threshold.high
        widths.append(found.high - found.low)
    made = len(errors)
    return {
        "error": float(np.abs(errors).mean()),
        "bias": float(np.mean(errors)),
        "bias_se": float(np.std(errors) / math.sqrt(made)),
        "covers": covers / made,
        "covers_population": covers_population / made,
        "covers_sensitivity": covers_sensitivity / made,
        "width": float(np.mean(widths)),
        "without_figure": none / seeds,
    }


def row_of(name: str, asked: tuple, found: dict[str, float]) -> list[str]:
    sites, patients, positives, epsilon = asked
    shares = [f"{found[key]:.1%}" for key in ("covers", "covers_population", "covers_sensitivity")]
    return [
        name, f"{sites}", f"{patients}", f"{positives:.0%}", f"{epsilon:g}", f"{found['error']:.4f}",
        f"{found['bias']:+.4f}", *shares, f"{found['width']:.3f}",
    ]  # fmt: skip


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=400)
    arguments = parser.parse_args()
    here, rows, shown = machine(), [], []
    for name, scores in SCORES.items():
        for asked in SETTINGS:
            found = measure(scores, *asked, arguments.seeds)
            sites, patients, positives, epsilon = asked
            settings = {"scores": name, "sites": sites, "patients": patients, "positives": positives}
            rows.append({**settings, "epsilon": "inf" if math.isinf(epsilon) else epsilon, **found})
            shown.append(row_of(name, asked, found))
    columns = ["scores", "sites", "patients", "positive", "epsilon", "error", "bias", "covers", "population",
               "sens. at 90 %", "width"]  # fmt: skip
    title = f"Released figures: {arguments.seeds} federations a row, {BINS} bins; AUC, and shares that cover"
    sheet = Sheet(title=title, columns=columns, rows=shown)
    tell(arguments, here, {"seeds": arguments.seeds, "bins": BINS, "rows": rows}, [sheet])


if __name__ == "__main__":
    main()
