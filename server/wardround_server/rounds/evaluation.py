"""Federated test: figures from the noised counts that sites release about their held-out patients, never from scores.

After the last round the server requests from every site its noised histogram under the released weights, once. The
figures are computed from the sum over the sites that reply. A site that releases no histogram, is late or sends
anything else is listed with its code and does not fail the run. Figures of a single site are computed only if that site
allows it.

Formal guarantee: a patient is held out at one site, so the sites' releases compose in parallel and each patient's cost
is one epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np

from wardround.errors import WireError
from wardround.metrics.noised_auc import ScoreHistogram, auc_estimate, noise_variance, roc_points, sensitivity_at
from wardround.metrics.noised_calibration import calibration_estimate
from wardround.storage.json_numbers import json_number
from wardround.study.load import Study
from wardround.tasks.registry import release_part
from wardround.wire.evaluation import SiteRelease, evaluation_round
from wardround.wire.packets import Broadcast
from wardround_server.rounds.loop import Exchange
from wardround_server.sites.ledger_heads import LedgerHeads

SPECIFICITIES = (0.8, 0.9, 0.95)


class FiguresExchange(Protocol):
    """The exchange with the sites about figures.

    It yields one `SiteRelease` per site, in the order of names, and never waits longer than `deadline_s` seconds.
    """

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]: ...


class SitesExchange(Exchange, FiguresExchange, Protocol):
    """An exchange for both training rounds and figures."""


def federated_test(
    study: Study,
    run_id: str,
    architecture_sha256: str,
    weights: dict[str, np.ndarray],
    exchange: FiguresExchange,
    on_answer: Callable[[SiteRelease], object] | None = None,
    ledgers: LedgerHeads | None = None,
) -> dict[str, Any] | None:
    """Collect every site's noised counts under the released `weights` and return `federated_test` of result.json.

    Args:
        study: The study.
        run_id: The run's id.
        architecture_sha256: The hash of the network's architecture.
        weights: The released weights (float32).
        exchange: The exchange with the sites.
        on_answer: Called with each site's reply as it is processed.
        ledgers: As for `run_rounds`.

    Returns:
        The figures, or None if the study requests none; then no message is sent.
    """
    if study.evaluation.epsilon == 0:
        return None
    question = Broadcast(
        study_sha256=study.sha256(),
        run_id=run_id,
        round=evaluation_round(study),
        weights=weights,
        architecture_sha256=architecture_sha256,
    )
    bins, deadline_s = study.evaluation.bins, study.aggregation.round_deadline_s
    answers, ledgers = [], ledgers or LedgerHeads(None)
    for answer in exchange.ask_for_figures(question, bins, deadline_s):
        answer = _with_its_ledger(answer, ledgers)
        answers.append(answer)
        if on_answer is not None:
            on_answer(answer)
    return figures_of(study, answers)


def _with_its_ledger(answer: SiteRelease, ledgers: LedgerHeads) -> SiteRelease:
    """Return the reply, or a refused copy without counts if the site's ledger went back or shows a gap."""
    if answer.release is None:
        return answer
    try:
        ledgers.take(answer.site, answer.release.head, answer.release.recent)
    except WireError as error:
        return replace(answer, release=None, code=f"invalid:{error.code}")
    return answer


def figures_of(study: Study, answers: Sequence[SiteRelease]) -> dict[str, Any]:
    """Return the figures of all sites that replied, and of each site that allows its own; plain JSON values only."""
    releases = {answer.site: answer.release for answer in answers if answer.release is not None}
    epsilon = study.evaluation.epsilon
    alone = {
        site: _figures(merged(study, [release.counts_2B])) for site, release in releases.items() if release.per_site
    }
    together = [release.counts_2B for release in releases.values()]
    if len(together) == 1 and not alone:
        together = []  # the sum would be the figures of a single site, which did not allow them
    of_task = release_part(study.study.task).figures(merged(study, together))
    return {
        "unit": "patient",
        "epsilon": json_number(epsilon),
        "bins": study.evaluation.bins,
        "sites": sorted(releases),
        "missing": [{"site": a.site, "code": a.code} for a in answers if a.release is None],
        **_figures(merged(study, together)),
        **of_task,
        "per_site": alone,
    }


def merged(study: Study, counts: Sequence[np.ndarray]) -> ScoreHistogram:
    """Return the sum of the sites' noised counts (2, B), with the total variance of their noise."""
    total_2B = np.sum([np.zeros((2, study.evaluation.bins), np.int64), *counts], axis=0)
    variance = len(counts) * noise_variance(study.evaluation.epsilon)
    return ScoreHistogram(counts_2B=total_2B, noise_variance=variance, logit_scale=study.evaluation.logit_scale)


def _figures(histogram: ScoreHistogram) -> dict[str, Any]:
    area, calibration, roc = auc_estimate(histogram), calibration_estimate(histogram), roc_points(histogram)
    negatives, positives = (int(total) for total in histogram.counts_2B.sum(axis=1))
    rows = [sensitivity_at(histogram, specificity) for specificity in SPECIFICITIES]
    return {
        "auc": area.value if area else None,
        "auc_ci95": [area.low, area.high] if area else None,
        "auc_ci95_these_patients": [area.low_here, area.high_here] if area else None,
        "tied_pairs": area.tied_pairs if area else None,
        "patients_noised": negatives + positives,
        "positives_noised": positives,
        "thresholds": [asdict(row) for row in rows if row],
        "calibration": {**asdict(calibration), "points": [asdict(p) for p in calibration.points]}
        if calibration
        else None,
        "roc": {"false_positive_rate": roc[0].tolist(), "true_positive_rate": roc[1].tolist()} if roc else None,
    }
