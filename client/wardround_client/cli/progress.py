"""Progress bars for work in several stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


@contextmanager
def stages(console: Console, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function `(stage, done, total)`, which moves the bar of each stage; nothing is shown if `quiet`."""
    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bars: dict[str, TaskID] = {}
    bar = Progress(*columns, console=console, disable=quiet)

    def advance(stage: str, done: int, total: int) -> None:
        if not bars:
            bar.start()
        if stage not in bars:
            bars[stage] = bar.add_task(stage, total=None)
        bar.update(bars[stage], completed=done, total=max(total, 1))

    try:
        yield advance
    finally:
        if bars:  # without a bar rich would still print an empty line
            bar.stop()
