"""`wardround-sim compare` for tasks that are compared with other methods: every fold is tested by all of them.

Each piece of work is one fold with one draw of the noise: at each epsilon the federation trains on the other folds, and
every method is measured on this one (`methods_rows` of the task's `assess.py`). Finished pieces are lines of
comparison.jsonl, so that the same command on the same folder continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path

from rich.table import Table

from wardround.storage.atomic import write_file
from wardround.study.load import Study, study_from_json
from wardround.tasks.assessment import ComparisonRow
from wardround.tasks.registry import assess_part
from wardround_simulation.compare.compare import (
    HOLDOUT,
    Folders,
    Folds,
    append_work,
    comparison_identity,
    finished_work,
)
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, sites_of_fold
from wardround_simulation.engine.workers import process_pool
from wardround_simulation.run.paths import COMPARISON_FILE, COMPARISON_LOG


def compare_methods(
    study: Study,
    site_folders: dict[str, Path],
    folds: Folds,
    epsilons: Sequence[float],
    draws: int,
    folder: Path,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[ComparisonRow]:
    """Do every piece that `folder`/comparison.jsonl does not hold yet; write comparison.json; return all rows.

    Raises `UsageError` where the folder holds another comparison.
    """
    pieces = [
        (split, fold, draw)
        for split, by_patient in folds.fold_by_split.items()
        for fold in ([0] if split == HOLDOUT else sorted(set(by_patient.values())))
        for draw in range(draws)
    ]
    log, keys = folder / COMPARISON_LOG, {piece: "/".join(map(str, piece)) for piece in pieces}
    content = [comparison_identity(study, site_folders, {}, folds, ()), [repr(epsilon) for epsilon in epsilons]]
    identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    done = finished_work(log, identity)
    rest = [piece for piece in pieces if keys[piece] not in done]
    arguments = (study.to_json(), tuple(sorted(site_folders.items())), folds, tuple(epsilons))
    if progress:
        progress(len(pieces) - len(rest), len(pieces))
    if rest:
        with process_pool(min(processes, len(rest))) as pool:
            running = {pool.submit(run_piece, *piece, *arguments): piece for piece in rest}  # type: ignore[arg-type]  # two tuples in a row
            for future in as_completed(running):
                key = keys[running[future]]
                done[key] = future.result()
                append_work(log, {"identity": identity, "work": key, "rows": done[key]})
                if progress:
                    progress(sum(k in done for k in keys.values()), len(pieces))
    rows = [row for piece in pieces for row in done[keys[piece]]]
    write_file(folder / COMPARISON_FILE, (json.dumps(rows, indent=1) + "\n").encode(), mode=None)
    return rows


def run_piece(
    split: str, fold: int, draw: int, study_json: str, site_folders: Folders, folds: Folds, epsilons: Sequence[float]
) -> list[ComparisonRow]:
    """One fold, in a process of the pool."""
    study = study_from_json(study_json)
    hospitals = in_process.open_hospitals(dict(site_folders), study)
    sites = sites_of_fold(study, hospitals, folds.fold_by_split[split], fold)
    rows = assess_part(study.study.task).methods_rows(study, sites, epsilons, InProcessTrainer(hospitals))
    return [{"split": split, "fold": fold, "draw": draw, **row} for row in rows]


def methods_table(study: Study, rows: Sequence[ComparisonRow]) -> Table:
    """The task's table of all rows, for the terminal."""
    content = assess_part(study.study.task).methods_table(rows)
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(content.columns):
        table.add_column(name, justify="right" if number else "left")
    for row in content.rows:
        table.add_row(*row)
    return table
