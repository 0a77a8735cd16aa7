"""Records a run in the server's audit log and log: every new decision of a site and every reply, counted or refused.

A reply is in the audit log before its round is stored, and a decision before it takes effect: if the entry cannot be
written, the action does not happen. The field `reply` is the hash that the site's own log has for the data it sent, so
that the two logs can be compared. A round that is repeated after an interruption is recorded again, with the same
hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from wardround.operations.logs import at
from wardround.records.audit_events import Event, ReplyCounted, ReplyRefused, RunDecided, SiteReplied
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
    """Writes the audit events and log lines of one run."""

    def __init__(self, run: RunFolder, study: Study) -> None:
        self._run, self._study, self._audit = run, study, AuditLog(run.server / AUDIT_FILE)
        self._named = {"study": study.sha256(), "run": run.run_id}

    def decided_by_sites(self, words: Mapping[str, str]) -> None:
        """Store the sites' decisions on the study; a new decision is written to the audit log first."""
        known = {site: decision.state for site, decision in self._run.approvals().items()}
        for site, word in sorted(words.items()):
            with at(site=site):
                if word in DECIDED and word != known.get(site):
                    self._append(SiteReplied(decision=word, site=site, **self._named))
                if word != known.get(site):
                    log.log(
                        logging.INFO if word in DECIDED else logging.WARNING, "reply to the proposed study: %s", word
                    )
        self._run.record_decisions(words)

    def replied(self, round: int, line: SiteRound) -> None:
        """Record a site's outcome in a round as it is processed."""
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
        """Record a site's noised counts, or the reason for their absence, as they are processed."""
        round = evaluation_round(self._study)
        with at(site=answer.site, round=round):
            if answer.release is not None:
                named: dict[str, Any] = {**self._named, "round": round, "purpose": EVALUATE, "site": answer.site}
                self._append(ReplyCounted(reply=weights_sha256({COUNTS: answer.release.counts_2B}), **named))
                log.info("figures counted")
            else:
                self._refused(round, EVALUATE, answer.site, answer.code or "failed")

    def finished(self, model_sha256: str) -> None:
        """Record that the run has produced its model."""
        self._append(RunDecided(decision="finished", sha256=model_sha256, **self._named))
        log.info("finished")

    def decided(self, decision: str, who: str | None) -> None:
        """Record that the operator submitted, stopped or resumed the run, with the person's name if it was given."""
        self._append(RunDecided(decision=decision, who=who, **self._named))

    def exported(self, model_sha256: str, unsafe: bool, who: str | None) -> None:
        """Record that the operator exported the model, and whether the release gate was overridden."""
        decision = "exported-unsafe" if unsafe else "exported"
        self._append(RunDecided(decision=decision, sha256=model_sha256, who=who, **self._named))
        log.log(logging.WARNING if unsafe else logging.INFO, decision)

    def _refused(self, round: int, purpose: str, site: str, code: str) -> None:
        self._append(ReplyRefused(code=code, round=round, purpose=purpose, site=site, **self._named))
        log.warning("reply missing or refused: %s (%s)", code_text(code), code)

    def _append(self, event: Event) -> None:
        self._audit.append(event)
