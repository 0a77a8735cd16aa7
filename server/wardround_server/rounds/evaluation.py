"""Federated figures from what sites release about their held-out patients, without seeing one score.

After the last round every site is asked once for its noised histogram under the released weights; the sum over those
that answer is all the figures are made from. A site that releases none, is late or sends something else is named with
its code, and is no failure. The figures of one site alone are made only where that site said so.

A patient is held out at one site, so the sites' releases compose in parallel: each patient's cost is one epsilon.
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
    """The way to the sites and back for the one question about figures: one `SiteRelease` a site, in the order of
    names; nothing waits longer than `deadline_s`.
    """

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]: ...


class SitesExchange(Exchange, FiguresExchange, Protocol):
    """The way to the sites for both questions."""


def federated_test(
    study: Study,
    run_id: str,
    architecture_sha256: str,
    weights: dict[str, np.ndarray],
    exchange: FiguresExchange,
    on_answer: Callable[[SiteRelease], object] | None = None,
    ledgers: LedgerHeads | None = None,
) -> dict[str, Any] | None:
    """Ask every site about the released `weights` (float32) and return `federated_test` of result.json.

    `on_answer` gets each site's answer as it is taken; `ledgers` as for `run_rounds`. None where the study asks for no
    figures: no message is sent then.
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
    """The answer, or none of a site whose ledger went back."""
    if answer.release is None:
        return answer
    try:
        ledgers.take(answer.site, answer.release.head, answer.release.recent)
    except WireError as error:
        return replace(answer, release=None, code=f"invalid:{error.code}")
    return answer


def figures_of(study: Study, answers: Sequence[SiteRelease]) -> dict[str, Any]:
    """The figures of all sites that answered, and of each alone that allows it; numbers, texts and None only."""
    releases = {answer.site: answer.release for answer in answers if answer.release is not None}
    epsilon = study.evaluation.epsilon
    alone = {
        site: _figures(merged(study, [release.counts_2B])) for site, release in releases.items() if release.per_site
    }
    together = [release.counts_2B for release in releases.values()]
    if len(together) == 1 and not alone:
        together = []  # the figures of one site alone, under another name
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
    """The sum of sites' noised counts (2, B), with the variance that their noise adds up to."""
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
