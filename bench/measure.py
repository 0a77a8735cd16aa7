"""Measurement and output of the benchmarks: interleaved and warm timings, with their spread and the machine.

Every benchmark of this folder prints one JSON document (`--json`), or the same as tables in the terminal or as Markdown
for docs/benchmarks.md (`--markdown`). A ratio is always formed within one repeat, between two works that are timed
seconds apart, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

Clock = Callable[[], float]
MB = 2**20


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with its smallest and largest value over `repeats` repeats."""

    median: float
    smallest: float
    largest: float
    repeats: int

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """Return `median (smallest–largest)`, each multiplied by `scale`."""
        low, high = (f"{value * scale:,.{digits}f}" for value in (self.smallest, self.largest))
        return f"{self.median * scale:,.{digits}f} ({low}–{high})"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table of a benchmark. The first column is left-aligned and the others are right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def spread(values: Sequence[float]) -> Spread:
    """Return the median, smallest and largest value. Raises `ValueError` if there are no values."""
    if not values:
        raise ValueError("no repeat was measured")
    return Spread(median=statistics.median(values), smallest=min(values), largest=max(values), repeats=len(values))


def interleaved(
    works: Mapping[str, Callable[[], object]], repeats: int, *, warm: int = 1, clock: Clock = time.process_time
) -> dict[str, list[float]]:
    """Return the seconds of each work in each repeat. Within a repeat all works run one after the other.

    Every second repeat runs in reverse order, so that no work always follows the same neighbour. `warm` untimed rounds
    come first. The default clock counts this process's CPU time over all its threads and excludes other load.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    for number in range(-warm, repeats):
        for name in order if number % 2 == 0 else reversed(order):
            began = clock()
            works[name]()
            if number >= 0:
                seconds[name].append(clock() - began)
    return seconds


def clock_for(device: str, threads: int) -> Clock:
    """Return the clock for a device: CPU time for one CPU thread, else wall time, including the GPU's pending work.

    Other load hardly affects CPU time.
    """
    if device == "cpu":
        return time.process_time if threads == 1 else time.perf_counter
    import torch

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of the ratios that are formed within each repeat."""
    return spread([one / other for one, other in zip(seconds, base, strict=True)])


def machine() -> dict[str, object]:
    """Return the machine's description: cores, processor, memory, GPUs, versions, and the load at the start."""
    names = _values("/proc/cpuinfo", "model name")
    kilobytes = [int(value.split()[0]) for value in _values("/proc/meminfo", "MemTotal")]
    gpus = [name for path in Path("/proc/driver/nvidia/gpus").glob("*/information") for name in _values(path, "Model")]
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "memory_gb": round(kilobytes[0] / 2**20) if kilobytes else None,
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_1min": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def machine_text(found: Mapping[str, object]) -> str:
    """Return the description from `machine` in one line."""
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return (
        f"{found['date']}, {found['cores']} cores, {found['processor']}, {gpus}, {found['memory_gb']} GB, "
        f"torch {found['torch']}, load {found['load_1min']} at the start"
    )


def _values(path: str | Path, field: str) -> list[str]:
    """Return the values of `field:` in the lines of a system file; none if there is no such file."""
    if not Path(path).is_file():
        return []
    pairs = [line.partition(":") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [value.strip() for name, _, value in pairs if name.strip() == field]


def arguments_of(description: str) -> argparse.ArgumentParser:
    """Return a parser with the two options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON document and nothing else")
    parser.add_argument("--markdown", action="store_true", help="tables as in docs/benchmarks.md")
    return parser


def tell(arguments: argparse.Namespace, found: Mapping[str, object], document: dict, sheets: Sequence[Sheet]) -> None:
    """Print a benchmark's result in the requested form. `found` is the result of `machine()` before the work."""
    if arguments.json:
        print(json.dumps({"machine": dict(found), **document}, allow_nan=False))
    elif arguments.markdown:
        print("\n\n".join([machine_text(found), *map(_markdown, sheets)]))
    else:
        _draw(found, sheets)


def _markdown(sheet: Sheet) -> str:
    lines = [sheet.columns, ["---", *["---:"] * (len(sheet.columns) - 1)], *sheet.rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n\n".join([f"**{sheet.title}**", table, *sheet.notes])


def _draw(found: Mapping[str, object], sheets: Sequence[Sheet]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 240  # output to a file must not be wrapped
    console.print(machine_text(found))
    for sheet in sheets:
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in sheet.rows:
            table.add_row(*row)
        console.print()
        console.print(sheet.title, style="bold")
        console.print(table)
        for note in sheet.notes:
            console.print(note)
