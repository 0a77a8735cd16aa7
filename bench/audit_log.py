"""Measure the cost of the audit log by its length: an append, a refusal that is only counted, and verification.

    ./run bench audit_log [--entries 10,10000,100000] [--repeats 20] [--folder DIR] [--markdown]

The figures are wall time, because most of an append is spent waiting for the disk; `--folder` selects the disk. Each
append opens the log anew, as each message at a site does. The logs are filled without waiting for the disk.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

from measure import Sheet, arguments_of, interleaved, machine, spread, tell

from wardround.accounting import Epsilon
from wardround.records.audit_events import MessageRefused, ReplyReleased
from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified

RELEASED = ReplyReleased(
    study="ab" * 32,
    run="run-1",
    round=1,
    purpose="train",
    reply="cd" * 32,
    epsilon=Epsilon(value=1.0, delta=1e-5, accountant="RDP"),
    again=False,
)
REFUSED = MessageRefused(code="budget", study="ab" * 32, run="run-1", round=1)
NAMES = {"append": "append a release", "refuse": "count a refusal of a flood", "verify": "verify", "insert": "fsync"}


def filled(folder: Path, entries: int) -> Path:
    """Write a log with `entries` releases, and with so many refusals that further ones are only counted."""
    folder.mkdir()
    with mock.patch("os.fsync"):
        log = AuditLog(folder / AUDIT_FILE)
        for _ in range(entries):
            log.append(RELEASED)
        for _ in range(30):
            log.append(REFUSED)
    return folder / AUDIT_FILE


def one_fsync(path: Path) -> Callable[[], None]:
    """Return a work that appends a line of the same length to a plain file and syncs it.

    An append to the log cannot take less time.
    """

    def insert() -> None:
        with path.open("ab") as file:
            file.write(b"0" * 500)
            file.flush()
            os.fsync(file.fileno())

    return insert


def works_of(path: Path) -> Mapping[str, Callable[[], object]]:
    return {
        "append": lambda: AuditLog(path).append(RELEASED),
        "refuse": lambda: AuditLog(path).append(REFUSED),
        "verify": lambda: verified(path),
        "insert": one_fsync(path.with_name("plain")),
    }


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--entries", default="10,10000,100000")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the logs lie; by default the system's temporary folder")
    arguments = parser.parse_args()
    found, sizes = machine(), [int(size) for size in arguments.entries.split(",")]
    measured: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for size in sizes:
            path = filled(Path(place) / f"log-{size}", size)
            measured[size] = interleaved(works_of(path), arguments.repeats, clock=time.perf_counter)
    rows = [[text, *(spread(measured[size][name]).text(2, 1e3) for size in sizes)] for name, text in NAMES.items()]
    columns = ["ms of wall time", *(f"{size:,} entries" for size in sizes)]
    title = f"The audit log; median (smallest–largest) of {arguments.repeats}"
    seconds = {
        str(size): {name: spread(values).to_json() for name, values in times.items()}
        for size, times in measured.items()
    }
    document = {"settings": {"repeats": arguments.repeats}, "seconds_by_entries": seconds}
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows)])


if __name__ == "__main__":
    main()
