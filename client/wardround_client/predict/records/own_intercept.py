"""A hospital's own intercept for a model, from the noised counts that it released when the model was evaluated.

The counts were noised with the study's `evaluation.epsilon` and charged to the site's ledger once, when they were sent.
What is computed from them here is post-processing and costs no more. The site keeps its reply; the ledger has its hash.
"""

from __future__ import annotations

from pathlib import Path

from wardround.errors import LedgerError
from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.storage.text_file import path_text
from wardround.study.load import Study
from wardround.tasks.early_warning.intercepts import from_histogram
from wardround.wire.evaluation import COUNTS
from wardround.wire.packets import weights_sha256
from wardround.wire.protocol import EVALUATE
from wardround_client.ledger.ledger import Ledger
from wardround_client.site.paths import LEDGER_FILE, REPLIES
from wardround_client.site.site import ReplyFolder


def own_intercept(site: Path, study: Study, run: str) -> float | None:
    """Return the shift of the logits for this site, or None if it released no counts of this run, or too few.

    Args:
        site: The site's folder.
        study: The study of the model.
        run: The run that made the model.

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
    replies = ReplyFolder(site / REPLIES)
    for attempt in reversed(attempts):
        if attempt.purpose != EVALUATE or attempt.reply_sha256 is None or attempt.id not in replies:
            continue
        reply = replies[attempt.id]
        if weights_sha256(reply) != attempt.reply_sha256:
            raise LedgerError(f"{path_text(site / REPLIES)}: the stored counts differ from those in the ledger")
        return from_histogram(
            ScoreHistogram(
                counts_2B=reply[COUNTS],
                noise_variance=noise_variance(study.evaluation.epsilon),
                logit_scale=study.evaluation.logit_scale,
            )
        )
    return None
