"""Implement the round loop's `Exchange` over Flower's Grid. This adapter contains no logic of its own.

Each round sends one message to every site and then pulls the replies one by one in the order of site names, so that the
server keeps one reply in memory at a time. All sites share one deadline, and no wait exceeds it. Sites are identified
by the `directory` (site name -> node id), which comes from the registered keys in a federation and from the engine's
own list in a simulation, never from the content of a reply. Errors that Flower reports become codes; their texts are
dropped because a client may have written them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from wardround.errors import RoundError, WireError
from wardround.flower.array_limit import arrays_at_most
from wardround.flower.record import record_of
from wardround.wire.evaluation import SiteRelease, unpack_release
from wardround.wire.packets import (
    Broadcast,
    SiteReply,
    pack_broadcast,
    packet_from,
    payload_bytes,
    unpack_answer,
)
from wardround.wire.protocol import EVALUATE, TRAIN, TTL_BEYOND_DEADLINE_S

NO_ARRAYS_BYTES = 2**20  # limit on the arrays of a reply in which few numbers or none are expected
TOO_LARGE = 1000  # error code that `fleet_api.py` stores for a reply that is too large; Flower's codes are far lower

_CODES = {
    TOO_LARGE: "invalid:size",
    ErrorCode.NODE_UNAVAILABLE: "unreachable",
    ErrorCode.MESSAGE_UNAVAILABLE: "late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "late",
}


@dataclass(frozen=True, kw_only=True)
class Polling:
    """The pause between two pulls of a reply: `share` of the time waited so far, within the two limits (seconds).

    These settings affect speed only. The defaults are for a federation; a simulation, where a pull costs nothing, uses
    shorter pauses.
    """

    shortest_s: float = 1.0
    longest_s: float = 3.0
    share: float = 0.02

    def pause_s(self, waited_s: float) -> float:
        return min(max(self.share * waited_s, self.shortest_s), self.longest_s)


class FlowerExchange:
    """The round loop's exchange with the sites over Flower's grid.

    Args:
        grid: Flower's grid.
        directory: Site name -> node id; None marks a site that is not connected.
        polling: The pauses between pulls.
        stopped: Once this event is set, every wait ends with `RoundError`.
    """

    def __init__(
        self, grid: Grid, directory: Mapping[str, int | None], polling: Polling, stopped: threading.Event | None = None
    ) -> None:
        self._grid = grid
        self._directory = dict(sorted(directory.items()))
        self._polling = polling
        self._stopped = stopped or threading.Event()

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        """Send a broadcast to every site and yield the replies in the order of names; see `rounds.loop.Exchange`.

        `seconds` of a reply is the time until the server pulled it, so it is at least that of the previous site in the
        order. Raises `WireError` if the weights to send are not finite.
        """
        started = time.monotonic()
        for site, message_id, message in self._ask(broadcast, TRAIN, deadline_s):
            reply = _reply(site, message_id, message, broadcast, time.monotonic() - started)
            del message  # frees the memory before the next one is awaited
            yield reply
            del reply

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        """Request the noised counts of every site and yield them in the order of names; see `rounds.evaluation`."""
        for site, message_id, message in self._ask(question, EVALUATE, deadline_s):
            yield _release(site, message_id, message, question, bins)

    def _ask(
        self, broadcast: Broadcast, kind: str, deadline_s: float
    ) -> Iterator[tuple[str, str | None, Message | WireError | None]]:
        """Send a request to all sites and yield (site, message id, reply) in the order of names.

        The message id is None if no request was sent. The reply is None if none came, and a `WireError` if it cannot be
        read as a message.
        """
        started = time.monotonic()
        content = record_of(pack_broadcast(broadcast))
        ttl = deadline_s + TTL_BEYOND_DEADLINE_S
        asked = self._push(content, kind, ttl, broadcast.round)
        del content
        for site, message_id in asked.items():
            most_bytes = payload_bytes(broadcast.weights) + NO_ARRAYS_BYTES
            ends = started + deadline_s
            yield site, message_id, self._pull(message_id, started, ends, most_bytes) if message_id else None

    def _push(self, content: RecordDict, kind: str, ttl: float, round: int) -> dict[str, str | None]:
        """Send one request to every site and return the message id by site.

        The id is None if the site is not connected or Flower refuses the message. All messages are pushed in one call,
        so that their shared content reaches the SuperLink once, before traffic with the first site keeps it busy.
        """
        messages = {
            site: Message(content, dst_node_id=node, message_type=kind, ttl=ttl, group_id=str(round))
            for site, node in self._directory.items()
            if node is not None
        }
        taken = set(self._grid.push_messages(list(messages.values()))) if messages else set()
        sent = {site: message.metadata.message_id for site, message in messages.items()}
        return {site: sent[site] if sent.get(site) in taken else None for site in self._directory}

    def _pull(self, message_id: str, began: float, ends: float, most_bytes: int) -> Message | WireError | None:
        while True:
            try:
                message = pull_reply(self._grid, message_id, most_bytes)
            except WireError as error:
                return error
            if message is not None:
                return message
            now = time.monotonic()
            if now >= ends:
                return None
            if self._stopped.wait(min(self._polling.pause_s(now - began), ends - now)):
                raise RoundError("the run was stopped while it was waiting for its sites")


def pull_reply(grid: Grid, message_id: str, most_bytes: int = NO_ARRAYS_BYTES) -> Message | None:
    """Pull the reply to one request; return None if it has not arrived. Replies to other requests are dropped.

    Raises `WireError` "message" if the reply cannot be read as a message and "size" if its arrays exceed `most_bytes`:
    a faulty reply comes from a peer and must not end the run. If the grid itself is unreachable, its own error is
    raised.
    """
    try:
        with arrays_at_most(most_bytes):
            found = list(grid.pull_messages([message_id]))
    except WireError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or any(base.__module__.startswith("httpx") for base in type(error).__mro__):
            raise  # the connection to the SuperLink failed, not the parsing of the message
        raise WireError("message", "the reply is not a readable message") from None
    return next((message for message in found if message.metadata.reply_to_message_id == message_id), None)


def make_server_app(main: Callable[[Grid], None]) -> ServerApp:
    """Return a ServerApp that only calls `main` with its grid."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(grid)

    return app


def _reply(
    site: str, message_id: str | None, message: Message | WireError | None, broadcast: Broadcast, seconds: float
) -> SiteReply:
    weights, head, recent, code, size = None, None, "", transport_code(message_id, message), 0
    if code is None:
        try:
            # The content's `.array_records` is not used: it creates a reference cycle that keeps the arrays alive.
            packet = packet_from(_content(message))
            size = packet.payload_bytes
            answer, code_sent = unpack_answer(packet, broadcast)
            if answer is not None:
                weights, head, recent = answer.weights, answer.head, answer.recent
            code = _code_of_reply(code_sent)
        except WireError as error:
            code = f"invalid:{error.code}"
    return SiteReply(
        site=site,
        weights=weights,
        code=code,
        seconds=seconds,
        bytes_up=size,
        ledger_head=head,
        ledger_recent=recent,
    )


def _release(
    site: str, message_id: str | None, message: Message | WireError | None, question: Broadcast, bins: int
) -> SiteRelease:
    release, code, size = None, transport_code(message_id, message), 0
    if code is None:
        try:
            packet = packet_from(_content(message))
            size = packet.payload_bytes
            release, code_sent = unpack_release(packet, question, bins)
            code = _code_of_reply(code_sent)
        except WireError as error:
            code = f"invalid:{error.code}"
    return SiteRelease(site=site, release=release, code=code, bytes_up=size)


def _content(message: Message | WireError | None) -> RecordDict:
    """Return the content of a message that `transport_code` accepted. Raises `WireError` if there is none."""
    if message is None or isinstance(message, WireError):
        raise WireError("kind", "no readable message was received")
    return message.content


def transport_code(message_id: str | None, message: Message | WireError | None) -> str | None:
    """Return the code for a missing or unreadable reply, or None if the reply can be read."""
    if isinstance(message, WireError):
        return f"invalid:{message.code}"
    if message_id is None:
        return "unreachable"
    if message is None:
        return "late"
    return _CODES.get(message.error.code, "failed") if message.has_error() else None


def _code_of_reply(code_sent: str | None) -> str | None:
    """Return the code that a site sent, marked as a refusal unless the site failed or was late."""
    return code_sent if code_sent is None or code_sent in ("failed", "late") else f"refused:{code_sent}"
