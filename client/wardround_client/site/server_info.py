"""The server's software version and clock, as last seen in its messages. Stored in `server.json`.

A site cannot query the server by itself, because the one public port serves Flower only. The first comparison is
therefore made at the server's first message, and `doctor` reports the time of that message.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wardround.errors import UsageError
from wardround.operations.health_checks import Check, fault, note, ok
from wardround.storage.atomic import write_private
from wardround.wire.versions import SOFTWARE, Software, mismatch, ours, software_in
from wardround_client.site.paths import SERVER_FILE

MOST_DELAY_S = (
    90.0  # a proposal is valid for a minute, a SuperNode polls every few seconds, and its task takes time to start
)
LEAST_DELAY_S = -5.0
EARLIEST, LATEST = 1_577_836_800.0, 4_102_444_800.0  # the years 2020 and 2100; a server's clock outside them is wrong


@dataclass(frozen=True, kw_only=True)
class LastMessage:
    """The server's clock and software, as last seen in its messages.

    Attributes:
        sent_at: When the last message was sent, by the server's clock (seconds since 1970).
        read_at: When the last message was read, by this machine's clock (seconds since 1970).
        software: The server's software; None until a message names it.
        software_at: When the software was last reported.
    """

    sent_at: float
    read_at: float
    software: Software | None
    software_at: float


def is_time(sent_at: float) -> bool:
    """Return whether `sent_at`, in seconds since 1970, is plausible for a clock; NaN and infinity are not."""
    return EARLIEST <= sent_at <= LATEST


def keep(folder: Path, sent_at: float, software: Software | None) -> None:
    """Store the time of a message, and the server's software that it reports.

    Raises:
        UsageError: The file cannot be written, or the time is not plausible.
    """
    if not is_time(sent_at):
        raise UsageError(f"the server's clock shows {sent_at:g} seconds since 1970, an impossible time")
    now, last = time.time(), last_message(folder)
    software_at = now
    if software is None and last is not None:
        software, software_at = last.software, last.software_at
    content: dict[str, Any] = {"sent_at": float(sent_at), "read_at": now, "software_at": software_at}
    content[SOFTWARE] = None if software is None else asdict(software)
    write_private(folder / SERVER_FILE, (json.dumps(content) + "\n").encode())


def last_message(folder: Path) -> LastMessage | None:
    """Return the last stored information, or None if there is none or the file cannot be read."""
    try:
        content = json.loads((folder / SERVER_FILE).read_text(encoding="utf-8"))
        times = {key: float(content[key]) for key in ("sent_at", "read_at", "software_at")}
        return LastMessage(software=software_in(content), **times) if all(map(is_time, times.values())) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def version_against_server(folder: Path) -> Check:
    """Check whether the versions of this site and the server fit, as far as the server has reported its own."""
    here, last = ours(), last_message(folder)
    if last is None or last.software is None:
        return ok("version", f"{here}; the server's is unknown until it first proposes a study to this site")
    when, there = f"heard {_when(last.software_at)}", last.software
    problem = mismatch(site=here, server=there)
    if problem is not None:
        return fault("version", f"{problem} ({when})", "upgrade the named side; ledger and keys do not change")
    if there.wardround != here.wardround:
        words = f"{here}; the server has wardround {there.wardround}: they are compatible ({when})"
        return note("version", words, "no action is needed now; the older side catches up at its next upgrade")
    return ok("version", f"{here}; the server has the same ({when})")


def clock_against_server(folder: Path) -> Check:
    """Check whether this clock and the server's agree, as far as the transit time of the last message shows.

    A clock that is ahead by less than the transit time cannot be detected. The server refuses calls from a site whose
    clock is more than five seconds ahead.
    """
    name, last = "server's clock", last_message(folder)
    if last is None:
        return ok(name, "is compared when the server's first request arrives")
    delay_s, when = last.read_at - last.sent_at, _when(last.read_at)
    if delay_s < LEAST_DELAY_S:
        words = f"this clock was at least {-delay_s:.0f} s behind the server's ({when})"
        return note(name, words, "switch on NTP here; if it is already on, inform the operator")
    if delay_s > MOST_DELAY_S:
        words = f"a request took {delay_s:.0f} s by the two clocks: this clock was ahead, or the network slow ({when})"
        return note(name, words, "compare this clock with one you trust; if it is correct, inform the operator")
    return ok(name, f"agreed with this clock within the {max(delay_s, 0):.0f} s that a request took ({when})")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
