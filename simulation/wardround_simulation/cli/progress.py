"""What a person watching sees: one line a stage, a bar for what takes long, nothing at all with --json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from wardround.printable import escaped

if TYPE_CHECKING:
    from wardround_server.rounds.loop import RoundRecord
    from wardround_simulation.run.run import Listener


class RunProgress:
    """A context manager around rich's progress bars. Finished bars stay on the screen as a record of what was done."""

    def __init__(self, console: Console, rounds: int, *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(
            *columns, TextColumn("{task.fields[note]}", markup=False), console=console, disable=quiet
        )
        self._console, self._quiet, self._rounds = console, quiet, rounds
        self._bars: dict[str, TaskID] = {}
        self._stage = ""

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:  # without a bar rich would still print an empty line
            self._progress.stop()

    def stage(self, text: str) -> None:
        """A new part of the work begins."""
        self._stage = text
        if not self._quiet:
            self._progress.console.print(Text(text, style="bold"))

    def ingest(self, site: str, done: int, total: int) -> None:
        """Files of a site looked at or prepared so far."""
        self._advance(f"  {site}", done, total)

    def pieces(self, done: int, total: int) -> None:
        """Pieces of the current stage."""
        self._advance(f"  {self._stage.split(',')[0][:32]}", done, total)

    def named_pieces(self, name: str, done: int, total: int) -> None:
        """Pieces of a named part."""
        self._advance(f"  {name}"[:34], done, total)

    def round(self, record: RoundRecord, note: str) -> None:
        """A finished round, and how good the model is by then (a simulation may look)."""
        missing = [line.site for line in record.sites if line.code is not None]
        self._advance(
            "  rounds", record.round, record.rounds, note + (f"  missing: {', '.join(missing)}" if missing else "")
        )

    def replies(self, lines: Sequence[Mapping[str, Any]], rounds: int) -> None:
        """What a server's metrics.jsonl says so far: rounds done, each site's replies, and how its last one went."""
        last = max((line["round"] for line in lines), default=0)
        self._advance("  rounds", last, rounds)
        for site in sorted({line["site"] for line in lines}):
            of_site = [line for line in lines if line["site"] == site]
            now = of_site[-1]
            note = now["code"] or f"replied after {now['seconds']:.1f} s"
            self._advance(f"  {site}", sum(line["code"] is None for line in of_site), rounds, note)

    def warn(self, line: str) -> None:
        """One line that a person should read."""
        if not self._quiet:
            self._progress.console.print(Text(escaped(f"warning: {line}"), style="yellow"))

    def listener(self) -> Listener:
        """This progress as what `run` tells its stages to."""
        from wardround_simulation.run.run import Listener

        return Listener(ingest=self.ingest, stage=self.stage, round=self.round, warn=self.warn)

    def _advance(self, name: str, done: int, total: int, note: str = "") -> None:
        self._progress.start()
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=max(total, 1), note=note)
        self._progress.update(self._bars[name], completed=done, total=max(total, 1), note=note)
