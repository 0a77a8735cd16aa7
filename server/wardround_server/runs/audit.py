"""What the server's audit log and log say of a run: every word of a site that is new, every reply, counted or not.

A reply is in the audit log before its round is stored, a word before it counts: what cannot be written down does not
happen. `reply` is the same hash that the site's own log has for what it sent, so that the two logs can be compared. A
round that was taken up again is recorded again, with the same hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from wardround.operations.logs import at
from wardround.records.audit_events import Event, ReplyCounted, ReplyRefused, RunDecided, SiteSaid
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.study.load import Study
from wardround.wire.evaluation import COUNTS, SiteRelease, evaluation_round
from wardround.wire.packets import weights_sha256
from wardround.wire.protocol import EVALUATE, TRAIN
from wardround.wire.reply_codes import code_text
from wardround_server.rounds.loop import SiteRound
from wardround_server.runs.folder import DECIDED, RunFolder

log = logging.getLogger(__name__)


class RunRecord:
    """Writes down what happens in one run."""

    def __init__(self, run: RunFolder, study: Study) -> None:
        self._run, self._study, self._audit = run, study, AuditLog(run.server / AUDIT_FILE)
        self._named = {"study": study.sha256(), "run": run.run_id}

    def heard(self, words: Mapping[str, str]) -> None:
        """Keep what sites said of the study; a decision that is new is in the audit log first."""
        known = {site: said.state for site, said in self._run.approvals().items()}
        for site, word in sorted(words.items()):
            with at(site=site):
                if word in DECIDED and word != known.get(site):
                    self._append(SiteSaid(decision=word, site=site, **self._named))
                if word != known.get(site):
                    log.log(
                        logging.INFO if word in DECIDED else logging.WARNING, "reply to the proposed study: %s", word
                    )
        self._run.hear(words)

    def replied(self, round: int, line: SiteRound) -> None:
        """A site's part of a round, as it was taken."""
        with at(site=line.site, round=round):
            if line.code is None and line.reply_sha256 is not None:
                head = line.ledger_head
                named: dict[str, Any] = {**self._named, "round": round, "purpose": TRAIN, "site": line.site}
                if head is not None:
                    named |= {"ledger_entries": head.entries, "ledger_head": head.sha256}
                self._append(ReplyCounted(reply=line.reply_sha256, **named))
                log.info("reply counted: %d bytes, after %.1f s", line.bytes_up, line.seconds)
            else:
                self._refused(round, TRAIN, line.site, line.code or "failed")

    def released(self, answer: SiteRelease) -> None:
        """A site's noised counts, as they were taken."""
        round = evaluation_round(self._study)
        with at(site=answer.site, round=round):
            if answer.release is not None:
                named: dict[str, Any] = {**self._named, "round": round, "purpose": EVALUATE, "site": answer.site}
                self._append(ReplyCounted(reply=weights_sha256({COUNTS: answer.release.counts_2B}), **named))
                log.info("figures counted")
            else:
                self._refused(round, EVALUATE, answer.site, answer.code or "failed")

    def finished(self, model_sha256: str) -> None:
        """The run has its model."""
        self._append(RunDecided(decision="finished", sha256=model_sha256, **self._named))
        log.info("finished")

    def decided(self, decision: str, who: str | None) -> None:
        """The operator submitted, stopped or resumed the run, and by whom where that was said."""
        self._append(RunDecided(decision=decision, who=who, **self._named))

    def _refused(self, round: int, purpose: str, site: str, code: str) -> None:
        self._append(ReplyRefused(code=code, round=round, purpose=purpose, site=site, **self._named))
        log.warning("reply missing or refused: %s (%s)", code_text(code), code)

    def _append(self, event: Event) -> None:
        self._audit.append(event)
