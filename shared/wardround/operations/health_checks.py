"""The checks of `doctor` on both sides: a tick or a cross, the finding, and what to do about it."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wardround.errors import WardroundError
from wardround.printable import escaped
from wardround.storage.folders import too_open

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {"ok": "✓", "note": "!", "fault": "✗"}
DAYS_TO_RENEW = 30
_CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check.

    `note` means that nothing is broken but the user should know. `todo` is empty if all is well.
    """

    name: str
    state: Literal["ok", "note", "fault"]
    found: str
    todo: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {"name": self.name, "state": self.state, "found": self.found, "todo": self.todo}


def ok(name: str, found: str) -> Check:
    return Check(name=name, state="ok", found=found)


def note(name: str, found: str, todo: str) -> Check:
    return Check(name=name, state="note", found=found, todo=todo)


def fault(name: str, found: str, todo: str) -> Check:
    return Check(name=name, state="fault", found=found, todo=todo)


def checked(name: str, look: Callable[[], Check], todo: str) -> Check:
    """Return the check that `look` makes.

    A `WardroundError` becomes a fault with its text, so that the other checks still run.
    """
    try:
        return look()
    except WardroundError as error:
        return fault(name, " ".join(str(error).split()), todo)


def files_closed(folder: Path, names: Iterable[str]) -> Check:
    """Check that the folder (0700) and its secrets (0600) are accessible to their owner only."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        return fault("files", f"{', '.join(missing)} missing", "put them back from a backup; they cannot be made again")
    found = [path.relative_to(folder).as_posix() for path in too_open(folder, *(folder / name for name in names))]
    if found:
        return fault("files", f"other users can read {', '.join(found)}", f"chmod go= {' '.join(found)} in {folder}")
    return ok("files", "keys are readable by their owner only")


def disk(folder: Path, needed_bytes: int) -> Check:
    """Check the free space on the folder's disk."""
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free"
    if free < needed_bytes:
        return fault("disk", text, f"make room: at least {needed_bytes / 1e9:.0f} GB")
    return ok("disk", text)


def days_left(name: str, not_before: datetime, not_after: datetime, now: datetime, todo: str) -> Check:
    """Check a certificate's period of validity."""
    days = (not_after - now).days
    if now < not_before:
        return fault(name, f"not valid before {not_before:%Y-%m-%d %H:%M} UTC", "set this machine's clock")
    if now >= not_after:
        return fault(name, f"expired on {not_after:%Y-%m-%d}", todo)
    text = f"valid until {not_after:%Y-%m-%d}, {days} days left"
    return note(name, text, todo) if days < DAYS_TO_RENEW else ok(name, text)


def clock() -> Check:
    """Check whether this machine's clock is synchronised, according to the kernel (adjtimex(2), without changing it).

    Sites sign with the time: calls are refused if a site's clock is more than five seconds ahead of the server's.
    """
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024))  # a zeroed struct timex only queries
    except AttributeError:  # not Linux
        return note("clock", f"{now}; it is unknown whether it is synchronised", "compare it with a clock you trust")
    if state in (-1, _CLOCK_UNSYNCHRONISED):
        return note("clock", f"{now}; not synchronised", "switch on NTP: systemd-timesyncd or chrony")
    return ok("clock", f"{now}, synchronised by the system")


def table_of(checks: Iterable[Check]) -> Table:
    """Return the checks as a table for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("")
    table.add_column("name")
    table.add_column("found", overflow="fold")
    for check in checks:
        table.add_row(MARKS[check.state], check.name, Text(escaped(check.found)))
        if check.todo:
            table.add_row("", "", Text(escaped(f"→ {check.todo}")))
    return table


def exit_code(checks: Iterable[Check]) -> int:
    """Return 1 if any check is a fault, otherwise 0."""
    return int(any(check.state == "fault" for check in checks))
