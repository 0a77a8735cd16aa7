"""The ClientApp of a real hospital, over its folder: training and figures as in the simulation, and proposed studies.

Every error becomes a code. A message of an unknown kind is refused before any of the site's files are opened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, RecordDict

from wardround.errors import RefusedError, UsageError, WireError
from wardround.flower.record import record_of
from wardround.records.audit_events import MessageRefused
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.wire.evaluation import ScoreRelease
from wardround.wire.packets import PROTOCOL_VERSION, Answer, Broadcast, is_code, pack_refusal
from wardround.wire.proposal import pack_state, unpack_proposal
from wardround.wire.protocol import EVALUATE, PROPOSE, TRAIN
from wardround.wire.versions import older_side, software_in
from wardround_client.flower.client_app import make_client_app
from wardround_client.site import server_info
from wardround_client.studies import proposals

if TYPE_CHECKING:
    from wardround_client.site.site import Site

QUESTIONS = (TRAIN, EVALUATE, PROPOSE)

log = logging.getLogger(__name__)


def site_app(folder: Path, proofs: Path | None = None) -> Callable[[Message, Context], Message]:
    """Return the app that answers for the hospital in `folder`, with `proofs` as for `open_site`."""
    app = make_client_app(lambda context: _open(folder, proofs), _answer, _release, lambda code: recorded(folder, code))

    @app.query("propose")
    def propose(message: Message, context: Context) -> Message:
        try:
            study = unpack_proposal(message.content)
            record = pack_state(study.sha256(), proposals.receive(folder, study))
            log.info("study %s (%s): %s", study.study.name, study.sha256()[:12], record["decision"]["state"])
        except RefusedError as error:
            log.warning("a proposal was refused: %s: %s", error.code, error)
            return recorded_refusal(folder, message, error.code)
        except WireError as error:
            log.warning("a proposal cannot be read: %s: %s", error.code, error)
            code = f"version-{_older(message)}-older" if error.code == "protocol" else f"wire-{error.code}"
            return recorded_refusal(folder, message, code)
        content = RecordDict({name: ConfigRecord(dict(fields)) for name, fields in record.items()})
        return Message(content, reply_to=message)

    def ask(message: Message, context: Context) -> Message:
        if message.metadata.message_type not in QUESTIONS:
            log.error("a request of an unknown kind was refused")
            return recorded_refusal(folder, message, "question")
        if not server_info.is_time(message.metadata.created_at):
            at = f"{message.metadata.created_at:g}"
            log.error("a request was refused: the server's clock shows %s seconds since 1970, an impossible time", at)
            return recorded_refusal(folder, message, "clock")
        try:
            server_info.keep(folder, message.metadata.created_at, software_in(message.content))
        except UsageError as error:  # for example a full disk, which the message may not need
            log.warning("the server's software versions cannot be saved: %s", error)
        return app(message, context)

    return ask


def _older(message: Message) -> str:
    """Return which side must be upgraded, for a proposal in another protocol version than ours."""
    theirs = message.content["proposal"].get("protocol") if "proposal" in message.content else None
    return older_side(site_protocol=PROTOCOL_VERSION, server_protocol=theirs)


def refusal(message: Message, code: str) -> Message:
    """Return a reply that refuses the message with a code and contains nothing else."""
    return Message(record_of(pack_refusal(None, code if is_code(code) else "failed")), reply_to=message)


def recorded_refusal(folder: Path, message: Message, code: str) -> Message:
    """Record a refusal in the audit log, and return the reply that refuses the message."""
    recorded(folder, code)
    return refusal(message, code)


def recorded(folder: Path, code: str) -> None:
    """Record in the audit log that a message was refused."""
    AuditLog(folder / AUDIT_FILE).append(MessageRefused(code=code))


def _open(folder: Path, proofs: Path | None) -> Site:
    from wardround_client.site.site import open_site

    return open_site(folder, proofs)


def _answer(broadcast: Broadcast, site: Site) -> Answer:
    from wardround_client.rounds.training import answer

    return answer(broadcast, site)


def _release(question: Broadcast, site: Site) -> ScoreRelease:
    from wardround_client.rounds.evaluation import release_scores

    return release_scores(question, site)
