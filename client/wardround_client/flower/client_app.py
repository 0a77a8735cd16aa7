"""The Flower adapter of a site: a ClientApp that checks a message, lets the site answer it and sends the reply.

Only weights, noised counts, the head of the ledger or a code are sent. Every exception is caught in this module,
because Flower would send its text to the server, and the text may contain a path or more sensitive data. The full text
is written to the site's own log.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardround.errors import RefusedError, WireError
from wardround.flower.record import record_of
from wardround.operations.logs import at
from wardround.wire.evaluation import ScoreRelease, pack_release
from wardround.wire.packets import (
    Answer,
    Broadcast,
    Packet,
    is_code,
    pack_answer,
    pack_refusal,
    packet_from,
    unpack_broadcast,
)
from wardround.wire.protocol import TTL_BEYOND_DEADLINE_S
from wardround_client.rounds.deadline import OutOfTime, time_limit

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")


def make_client_app(
    open_site: Callable[[Context], S],
    answer: Callable[[Broadcast, S], Answer],
    release: Callable[[Broadcast, S], ScoreRelease] | None = None,
    unheard: Callable[[str], object] = str,
) -> ClientApp:
    """Return a ClientApp that answers two kinds of messages: a training round, and figures about held-out patients.

    All arguments must be picklable for the simulation: functions of a module, or partials of such functions.

    Args:
        open_site: Finds this node's site, and should keep it between calls.
        answer: Trains one round (`rounds.training.answer`).
        release: Returns noised counts (`rounds.evaluation.release_scores`). Without it, a request for figures is an
            error.
        unheard: Called with the code of a refusal that happened before the site was opened and therefore could not be
            recorded by the site.
    """
    app = ClientApp()
    app.train()(functools.partial(_reply, open_site, answer, pack_answer, unheard))
    if release is not None:
        app.evaluate()(functools.partial(_reply, open_site, release, pack_release, unheard))
    return app


def _reply(
    open_site: Callable[[Context], S],
    answer: Callable[[Broadcast, S], T],
    pack: Callable[[Broadcast, T], Packet],
    unheard: Callable[[str], object],
    message: Message,
    context: Context,
) -> Message:
    broadcast, heard, place = None, False, contextlib.ExitStack()
    deadline = message.metadata.created_at + message.metadata.ttl - TTL_BEYOND_DEADLINE_S
    try:
        with time_limit(deadline - time.time()):
            broadcast = unpack_broadcast(packet_from(message.content))
            place.enter_context(at(run=broadcast.run_id, round=broadcast.round))
            site = open_site(context)
            heard = True
            reply = pack(broadcast, answer(broadcast, site))
            log.info("answered: %d bytes", reply.payload_bytes)
    except OutOfTime:
        log.error("round %s: the deadline passed while this site was working", broadcast.round if broadcast else "?")
        reply = pack_refusal(broadcast, "late")
    except RefusedError as error:
        log.warning("refused: %s: %s", error.code, error)
        reply = pack_refusal(broadcast, error.code if is_code(error.code) else "failed")
    except WireError as error:
        log.warning("the request cannot be read, or the reply cannot be sent: %s: %s", error.code, error)
        reply = pack_refusal(broadcast, f"wire-{error.code}")
    except Exception:
        log.exception("failed")
        reply = pack_refusal(broadcast, "failed")
    finally:
        place.close()
    if not heard:
        unheard(str(reply.header["code"]))
    return Message(record_of(reply), reply_to=message)
