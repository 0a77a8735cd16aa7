"""Measure the cost of the ledger's operations with 1, 100 and 10,000 attempts on record, against bare SQLite inserts.

    ./run bench ledger [--attempts 1,100,10000] [--repeats 20] [--folder DIR] [--markdown]

The figures are wall time, because most of it is spent waiting for the disk; `--folder` selects the disk. A round costs
one reserve and one settle. The ledgers are filled in memory-backed storage, if there is any, and then copied.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from measure import Sheet, arguments_of, interleaved, machine, spread, tell
from simulated_round import study_of

from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study

CAP = Cap(epsilon=1e6, delta=1e-4)
STUDY, RUN = "study", "run"
FAST_STORAGE = Path("/dev/shm")
WORDS = {
    "open": "open",
    "hold": "hold a study",
    "round": "reserve and settle",
    "spent": "epsilon spent",
    "verify": "verify",
    "insert": "SQLite: two inserts, full sync",
    "unsynced": "SQLite: two inserts, no sync",
}


def filled(place: Path, attempts: int, plan: PrivacyPlan) -> Path:
    """Write a ledger file under `place` with `attempts` settled attempts of one run, and return its path."""
    with tempfile.TemporaryDirectory(dir=FAST_STORAGE if FAST_STORAGE.is_dir() else None) as fast:
        folder = Path(fast) / "site"
        folder.mkdir()
        ledger = Ledger(folder / "ledger.sqlite3")
        ledger.hold(STUDY, RUN, plan, CAP)
        for round_ in range(1, attempts + 1):
            ledger.settle(ledger.reserve(STUDY, RUN, round_, f"{round_:064x}", cap=CAP), f"{round_:064x}")
        ledger.close()
        shutil.copytree(folder, place / f"site-{attempts}")
    return place / f"site-{attempts}" / "ledger.sqlite3"


def bare_inserts(path: Path, synchronous: str) -> Callable[[], None]:
    """Return a work that inserts two rows in separate transactions.

    A plain table would store an attempt and its settlement in this way.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, content TEXT NOT NULL, at REAL NOT NULL)")

    def insert() -> None:
        for _ in range(2):
            connection.execute("INSERT INTO entries (content, at) VALUES (?, ?)", ("0" * 200, time.time()))

    return insert


def works_of(path: Path, attempts: int, plan: PrivacyPlan) -> Mapping[str, Callable[[], object]]:
    ledger = Ledger(path)
    rounds, runs = count(attempts + 1), count()

    def one_round() -> None:
        round_ = next(rounds)
        ledger.settle(ledger.reserve(STUDY, RUN, round_, f"{round_:064x}", cap=CAP), f"{round_:064x}")

    return {
        "open": lambda: Ledger(path).close(),
        "hold": lambda: ledger.hold(STUDY, f"other-{next(runs)}", plan, CAP, runs=10**9),
        "round": one_round,
        "spent": lambda: ledger.spent(CAP.delta),
        **({"verify": ledger.verify} if hasattr(ledger, "verify") else {}),
        "insert": bare_inserts(path.with_name("full.sqlite3"), "FULL"),
        "unsynced": bare_inserts(path.with_name("off.sqlite3"), "OFF"),
    }


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--attempts", default="1,100,10000")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the ledgers lie; by default the system's temporary folder")
    arguments = parser.parse_args()
    found = machine()
    sizes = [int(size) for size in arguments.attempts.split(",")]
    measured: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for size in sizes:
            plan = plan_from_study(study_of(3, size + 10 * arguments.repeats, "resnet-small", 1))
            path = filled(Path(place), size, plan)
            measured[size] = interleaved(works_of(path, size, plan), arguments.repeats, clock=time.perf_counter)
    shown = [name for name in WORDS if name in measured[sizes[0]]]
    rows = [[WORDS[name], *(spread(measured[size][name]).text(2, 1e3) for size in sizes)] for name in shown]
    columns = ["ms of wall time", *(f"{size:,} attempts" for size in sizes)]
    title = f"The ledger; median (smallest–largest) of {arguments.repeats}"
    seconds = {
        str(size): {name: spread(values).to_json() for name, values in times.items()}
        for size, times in measured.items()
    }
    settings = {"repeats": arguments.repeats}
    document = {"settings": settings, "seconds_by_attempts": seconds}
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows)])


if __name__ == "__main__":
    main()
