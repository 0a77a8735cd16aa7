"""Audit-log entries for messages: one for each refusal, and one for each reply before it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wardround.errors import AuditError, RefusedError, WireError
from wardround.records.audit_events import MessageRefused, ReplyReleased
from wardround.wire.packets import Broadcast, is_code
from wardround_client.rounds.deadline import OutOfTime
from wardround_client.site.site import Site


def record_release(question: Broadcast, site: Site, purpose: str, reply_sha256: str, again: bool) -> None:
    """Record in the audit log that a reply is about to be sent, with the epsilon that the site has spent so far.

    Called after the reply is settled and before it is returned, so every reply that leaves the site is in the log.
    `again` marks a settled reply that is sent once more.

    Raises:
        AuditError: The entry cannot be written. The reply is then not sent.
    """
    if site.record is not None:
        site.record(
            ReplyReleased(
                study=question.study_sha256,
                run=question.run_id,
                round=question.round,
                purpose=purpose,
                reply=reply_sha256,
                epsilon=site.ledger.spent(site.cap.delta),
                again=again,
            )
        )


@contextmanager
def refusals_recorded(question: Broadcast, site: Site) -> Iterator[None]:
    """Record any refusal, failure or timeout inside the block by its code, and re-raise it."""
    try:
        yield
    except AuditError:
        raise
    except (Exception, OutOfTime) as error:
        if site.record is not None:
            code = code_of(error)
            named: dict[str, Any] = {"study": question.study_sha256, "run": question.run_id, "round": question.round}
            site.record(MessageRefused(code=code, **named))
        raise


def code_of(error: BaseException) -> str:
    """Return the code of an error that may be sent to a peer; the error's text stays at the site."""
    if isinstance(error, OutOfTime):
        return "late"
    if isinstance(error, WireError):
        return f"wire-{error.code}"
    return error.code if isinstance(error, RefusedError) and is_code(error.code) else "failed"
