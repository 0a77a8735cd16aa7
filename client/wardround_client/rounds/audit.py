"""What a site's audit log says of messages: each refusal, and each reply before it leaves."""

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
    """Write down that this reply is about to leave, with all that the site has spent by then.

    Called when the reply is settled and before it is returned, so nothing leaves that is not in the log. Raises
    `AuditError` where it cannot be written: then the reply stays.
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
    """Write down whatever refuses, fails or is late inside the block, by its code, and raise it again."""
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
    """The code under which a peer learns of an error; its text stays here."""
    if isinstance(error, OutOfTime):
        return "late"
    if isinstance(error, WireError):
        return f"wire-{error.code}"
    return error.code if isinstance(error, RefusedError) and is_code(error.code) else "failed"
