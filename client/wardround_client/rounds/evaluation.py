"""Release of evaluation counts of held-out patients: admit, reserve, count, settle, reply.

Releases are off by default. Only the site itself can allow them (`[release]` of site.toml); a study from the server
cannot change these settings. A release is one noised histogram of scores under the study's `evaluation.epsilon`
(`privacy/score_noise.py`), charged to the ledger as one pure event. If the same request arrives twice, the site sends
the same bytes and charges them once. If patients' data cause an error, the site replies with the noised counts of a
site without held-out patients (`training.answer_as_empty_on_error`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from wardround.errors import LedgerError, PolicyRefusal
from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.storage.text_file import path_text
from wardround.study.load import Study
from wardround.wire.evaluation import COUNTS, ScoreRelease, evaluation_round
from wardround.wire.packets import Broadcast, weights_sha256
from wardround.wire.protocol import EVALUATE
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.score_noise import noised, score_histogram
from wardround_client.rounds import training
from wardround_client.rounds.audit import record_release, refusals_recorded
from wardround_client.rounds.personalisation import keep_released
from wardround_client.rounds.training import Admitted
from wardround_client.site.config import ReleaseConfig
from wardround_client.site.paths import LEDGER_FILE, REPLIES
from wardround_client.site.site import ReplyFolder, Site
from wardround_client.training.batches import HeldOutRows
from wardround_client.training.rows import no_held_out_rows
from wardround_client.training.scoring import held_out_scores


def release_scores(question: Broadcast, site: Site) -> ScoreRelease:
    """Return the site's noised counts for the weights of `question`.

    The round number of `question` is one after the study's last round.

    Raises:
        PolicyRefusal, BudgetRefusal, WireError: The request is refused, with a code for the server.
        WardroundError: Something failed at this site.
    """
    with refusals_recorded(question, site):
        study = site.study_of(question.study_sha256)
        require_permission(study, site.release)
        admitted = training.admit(question, site, rounds=range(evaluation_round(study), evaluation_round(study) + 1))
        with site.exclusive():
            site = site.with_current_rules()  # approvals and rules may have changed during the wait
            require_permission(site.study_of(question.study_sha256), site.release)
            counts_2B = _settled_or_new(question, admitted, site)
            keep_released(question, study, site)
            head, recent = site.ledger.shown()
    per_site = shows_own_figures(site.release, counts_2B)
    return ScoreRelease(counts_2B=counts_2B, per_site=per_site, head=head, recent=recent)


def require_permission(study: Study, release: ReleaseConfig) -> None:
    """Raise `PolicyRefusal` unless the study asks for figures, and for no more than this site releases."""
    if study.evaluation.epsilon == 0:
        raise PolicyRefusal("evaluation_not_asked", "the study has no budget for figures (evaluation.epsilon = 0)")
    if release.evaluation == "off":
        raise PolicyRefusal("evaluation_off", 'this site releases no figures (site.toml: [release] evaluation = "off")')
    if math.isinf(study.evaluation.epsilon) and release.evaluation != "exact":
        raise PolicyRefusal("evaluation_exact", "the study asks for exact counts; this site releases noised ones only")


def released_counts(site: Path, study: Study, run: str, weights: Mapping[str, np.ndarray]) -> ScoreHistogram | None:
    """Return the noised counts that a site released about its held-out patients, from the site's own files.

    They were charged when they were sent; what is computed from them is post-processing and costs no more.

    Args:
        site: The site's folder.
        study: The study of the run.
        run: The run whose model was evaluated.
        weights: The model's trained weights; counts of other weights of the run say nothing about it.

    Returns:
        The counts; None if the site released none for these weights, or no longer keeps them.

    Raises:
        LedgerError: The stored counts are not those that the ledger settled.
    """
    path = site / LEDGER_FILE
    if not path.is_file():
        return None
    ledger = Ledger(path)
    try:
        attempts = ledger.attempts(study.sha256(), run)
    finally:
        ledger.close()
    replies, evaluated = ReplyFolder(site / REPLIES), weights_sha256(weights)
    for attempt in reversed(attempts):
        if (attempt.purpose, attempt.weights) != (EVALUATE, evaluated):
            continue
        if attempt.reply_sha256 is None or attempt.id not in replies:
            continue
        reply = replies[attempt.id]
        if weights_sha256(reply) != attempt.reply_sha256:
            raise LedgerError(f"{path_text(site / REPLIES)}: the stored counts differ from those in the ledger")
        return ScoreHistogram(
            counts_2B=reply[COUNTS],
            noise_variance=noise_variance(study.evaluation.epsilon),
            logit_scale=study.evaluation.logit_scale,
        )
    return None


def shows_own_figures(release: ReleaseConfig, counts_2B: np.ndarray) -> bool:
    """Return whether the server may show figures of this site alone.

    The check reads noised counts only, so it costs no privacy.
    """
    return release.per_site and int(counts_2B.sum()) >= release.minimum_patients


def _settled_or_new(question: Broadcast, admitted: Admitted, site: Site) -> np.ndarray:
    study_sha256, run, received = question.study_sha256, question.run_id, weights_sha256(question.weights)
    settled = site.ledger.settled(study_sha256, run, question.round, received, purpose=EVALUATE)
    if settled is not None:
        counts = training.settled_reply(site, settled.id, settled.reply_sha256)
        record_release(question, site, EVALUATE, weights_sha256(counts), again=True)
        return counts[COUNTS]
    if site.held_out_of is None:
        raise PolicyRefusal("evaluation_off", "this site has no held-out patients")
    attempt = site.ledger.reserve(study_sha256, run, question.round, received, EVALUATE, cap=site.cap)
    counts = {COUNTS: _noised_counts(question, admitted, site, site.held_out_of)}
    site.replies[attempt] = counts
    site.ledger.settle(attempt, weights_sha256(counts))
    record_release(question, site, EVALUATE, weights_sha256(counts), again=False)
    return counts[COUNTS]


def _noised_counts(
    question: Broadcast, admitted: Admitted, site: Site, held_out_of: Callable[[Study], HeldOutRows]
) -> np.ndarray:
    study = admitted.study

    def counted_on_nobody() -> np.ndarray:
        again = training.with_new_network(question.study_sha256, admitted, site)
        return _counts(question, again, site, no_held_out_rows(study))

    counts_2B = training.answer_as_empty_on_error(
        question, lambda: _counts(question, admitted, site, held_out_of(study)), counted_on_nobody
    )
    return noised(counts_2B, admitted.plan.evaluation_epsilon, site.randomness)


def _counts(question: Broadcast, admitted: Admitted, site: Site, held_out: HeldOutRows) -> np.ndarray:
    study, settings = admitted.study, admitted.study.evaluation
    scores_P, positive_P = held_out_scores(admitted.network, study, question.weights, held_out, site.device)
    return score_histogram(scores_P, positive_P, settings.bins, settings.logit_scale)
