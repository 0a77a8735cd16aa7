"""`wardround-sim compare`: alone, pooled and federated at each epsilon, over folds by patient and draws of the noise.

Every model is trained by the round functions of a real site and server (`in_process`). Work is cut into (split, fold,
epsilon, draw) and spread over processes; each finished piece is a line of comparison.jsonl, so that the same command on
the same folder goes on where it was ended. `comparison.json` is the list of all rows.

Hyper-parameters that were tuned on these patients are not covered by the epsilon of a row.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wardround.errors import DataError, UsageError
from wardround.storage.atomic import write_file
from wardround.storage.json_numbers import json_number
from wardround.storage.jsonl import append_lines, read_lines, trim_lines
from wardround.storage.table import read_table, refuse_shortened, spellings_of_number
from wardround.study.load import Study, study_from_json, with_epsilon
from wardround.tasks.assessment import ComparisonRow
from wardround.tasks.registry import assess_part
from wardround_client.site.paths import COHORT
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, other_sites, sites_of_fold
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.engine.workers import process_pool
from wardround_simulation.run.hospitals import SIMULATION_KEY
from wardround_simulation.run.paths import COMPARISON_FILE, COMPARISON_LOG

SETTINGS = ("federated", "pooled", "alone")
HOLDOUT = "holdout"  # the only split where no folds are given


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece: every setting is trained and tested on one fold, at one epsilon, with one draw of the noise."""

    split: str
    fold: int
    epsilon: float
    draw: int

    @property
    def key(self) -> str:
        return f"{self.split}/{self.fold}/{json_number(self.epsilon)}/{self.draw}"


@dataclass(frozen=True, kw_only=True)
class Folds:
    """`fold_by_split[split][pseudonym]` is the patient's fold; patients without one take no part in that split."""

    fold_by_split: dict[str, dict[str, int]]
    rows: tuple[tuple[int, str], ...] = field(default=(), repr=False)  # row number and patient_id, as in the file


Folders = tuple[tuple[str, Path], ...]  # site -> its folder, as a key of a cache


def read_folds(path: Path) -> Folds:
    """Read a folds file: `patient_id` and one column of whole numbers a split; a column `site` is ignored.

    Raises `DataError` in one line naming the file, the row and the column.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give --folds a CSV file")
    table = read_table(path)
    splits = [name for name in table.header if name.lower() not in ("patient_id", "site")]
    if "patient_id" not in table.columns or not splits:
        raise DataError(f"{path}: needs the column patient_id and one column a split, for instance split0")
    fold_by_split: dict[str, dict[str, int]] = {split: {} for split in splits}
    for number, row in table.rows:
        refuse_shortened(row["patient_id"], f"{path}: row {number}: patient_id")
        patient = pseudonym(SIMULATION_KEY, row["patient_id"])
        for split in splits:
            text = row[split.lower()]
            if not text:
                continue
            if not (text.isascii() and text.isdigit()):
                raise DataError(f"{path}: row {number}, column {split}: the fold must be a whole number")
            if fold_by_split[split].setdefault(patient, int(text)) != int(text):
                raise DataError(f"{path}: row {number}, column {split}: this patient is already in another fold")
    for split, folds in fold_by_split.items():
        if len(set(folds.values())) < 2:
            raise DataError(f"{path}: column {split}: needs at least two folds")
    return Folds(fold_by_split=fold_by_split, rows=tuple((number, row["patient_id"]) for number, row in table.rows))


def check_folds(folds: Folds, path: Path, site_folders: dict[str, Path]) -> None:
    """Raise `DataError` if a split names no patient of the data or leaves none for training or testing, or an ID was
    changed by a spreadsheet.
    """
    known = {name for folder in site_folders.values() for name in open_cohort(folder / COHORT).pseudonyms}
    for number, patient in folds.rows:
        if pseudonym(SIMULATION_KEY, patient) not in known and any(
            pseudonym(SIMULATION_KEY, spelling) in known for spelling in spellings_of_number(patient)
        ):
            raise DataError(
                f"{path}: row {number}: no patient has this patient_id, but one has an ID that differs only in leading "
                "zeros or in .0; a spreadsheet has changed it: format the column as text, and export the table again"
            )
    for split, by_patient in folds.fold_by_split.items():
        found = {fold for patient, fold in by_patient.items() if patient in known}
        if found != set(by_patient.values()):
            missing = min(set(by_patient.values()) - found)
            raise DataError(
                f"{path}: column {split}: the data of {len(known)} patients contain no patient of fold {missing}"
            )


def holdout_folds(study: Study, site_folders: dict[str, Path]) -> Folds:
    """Without a folds file: one split, whose only tested fold (0) are the patients that the study holds out."""
    folds: dict[str, int] = {}
    for folder in site_folders.values():
        cohort = open_cohort(folder / COHORT)
        held_out_P = cohort.holdout_rank_P < study.evaluation.holdout
        folds.update(zip(cohort.pseudonyms, np.where(held_out_P, 0, 1).tolist(), strict=True))
    if not 0 < sum(folds.values()) < len(folds):
        raise DataError(
            "evaluation.holdout leaves no patients for training or for testing; give --folds or change this key"
        )
    return Folds(fold_by_split={HOLDOUT: folds})


def plan_work(study: Study, folds: Folds, epsilons: Sequence[float], draws: int) -> list[Work]:
    """All pieces. Without any randomness (epsilon = inf, everyone in every step, no augmentation) one draw says it
    all.
    """
    work = []
    for split, by_patient in folds.fold_by_split.items():
        tested = [0] if split == HOLDOUT else sorted(set(by_patient.values()))
        for fold in tested:
            for epsilon in epsilons:
                count = draws if _is_random(with_epsilon(study, epsilon)) else 1
                work += [Work(split=split, fold=fold, epsilon=epsilon, draw=draw) for draw in range(count)]
    return work


def _is_random(study: Study) -> bool:
    everyone = study.privacy.sampling_rate == 1 and study.privacy.images_per_patient == "all"
    return math.isfinite(study.privacy.epsilon) or not everyone or study.training.augmentation != "none"


def compare(
    study: Study,
    site_folders: dict[str, Path],
    test_folders: dict[str, Path],
    folds: Folds,
    epsilons: Sequence[float],
    draws: int,
    folder: Path,
    processes: int,
    settings: Sequence[str] = SETTINGS,
    progress: Callable[[int, int], None] | None = None,
) -> list[ComparisonRow]:
    """Train and test every piece that `folder`/comparison.jsonl does not hold yet; write comparison.json; return
    all rows.

    Raises `UsageError` where the folder holds the comparison of another study, other data or other folds.
    """
    work = plan_work(study, folds, epsilons, draws)
    log = folder / COMPARISON_LOG
    identity = comparison_identity(study, site_folders, test_folders, folds, settings)
    done = finished_work(log, identity)
    if progress:
        progress(sum(piece.key in done for piece in work), len(work))
    rest = [piece for piece in work if piece.key not in done]
    if rest:
        _open(study.to_json(), _frozen(site_folders), _frozen(test_folders))  # features are computed once, here
        arguments = (study.to_json(), _frozen(site_folders), _frozen(test_folders), folds, tuple(settings))
        with process_pool(min(processes, len(rest))) as pool:
            running = {pool.submit(run_work, piece, *arguments): piece for piece in rest}
            for future in as_completed(running):
                piece = running[future]
                done[piece.key] = future.result()
                append_work(log, {"identity": identity, "work": piece.key, "rows": done[piece.key]})
                if progress:
                    progress(sum(p.key in done for p in work), len(work))
    rows = [row for piece in work for row in done[piece.key]]
    write_file(folder / COMPARISON_FILE, (json.dumps(rows, indent=1) + "\n").encode(), mode=None)
    return rows


def _frozen(folders: dict[str, Path]) -> Folders:
    return tuple(sorted(folders.items()))


@functools.lru_cache(maxsize=2)
def _open(
    study_json: str, site_folders: Folders, test_folders: Folders
) -> tuple[Study, list[Hospital], list[Hospital]]:
    study = study_from_json(study_json)
    hospitals = in_process.open_hospitals(dict(site_folders), study)
    tests = in_process.open_hospitals(dict(test_folders), study)
    return study, hospitals, tests


def run_work(
    work: Work,
    study_json: str,
    site_folders: Folders,
    test_folders: Folders,
    folds: Folds,
    settings: Sequence[str] = SETTINGS,
) -> list[ComparisonRow]:
    """Train on the other folds and test on this one; rows by setting and unit."""
    asked, hospitals, tests = _open(study_json, site_folders, test_folders)
    study = with_epsilon(asked, work.epsilon)
    sites = sites_of_fold(study, hospitals, folds.fold_by_split[work.split], work.fold)
    others = other_sites(study, tests)
    rows = assess_part(study.study.task).settings_rows(study, sites, others, settings, InProcessTrainer(hospitals))
    piece = {"epsilon": json_number(work.epsilon), "split": work.split, "fold": work.fold, "draw": work.draw}
    return [_in_order(row, piece) for row in rows]


def _in_order(row: ComparisonRow, piece: ComparisonRow) -> ComparisonRow:
    """The row with what its piece of work was, after the setting."""
    setting: ComparisonRow = {name: row[name] for name in ("setting", "site") if name in row}
    return {**setting, **piece, **{name: value for name, value in row.items() if name not in setting}}


def comparison_identity(
    study: Study,
    site_folders: Mapping[str, Path],
    test_folders: Mapping[str, Path],
    folds: Folds,
    settings: Sequence[str],
) -> str:
    cohorts = {
        group: {name: _cohort_identity(folder) for name, folder in sorted(folders.items())}
        for group, folders in (("train", site_folders), ("test", test_folders))
    }
    content = [study.sha256(), cohorts, asdict(folds), sorted(settings)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cohort_identity(folder: Path) -> list[str]:
    """The key of a cohort, and a hash of its labels, which are not in the key."""
    cohort = open_cohort(folder / COHORT)
    return [cohort.key, hashlib.sha256(np.asarray(cohort.labels_N, np.int32).tobytes()).hexdigest()]


def finished_work(log: Path, identity: str) -> dict[str, list[ComparisonRow]]:
    """The rows of every finished piece, by its key. A line cut short by a kill is removed: its piece is repeated."""
    try:
        entries = read_lines(log)
    except ValueError as error:
        raise UsageError(f"{log}: {error}; restore the file from a backup, or choose another --out") from None
    if any(entry["identity"] != identity for entry in entries):
        raise UsageError(f"{log.parent}: contains a comparison of another study, data or folds; choose another --out")
    trim_lines(log, entries, mode=None)
    return {entry["work"]: entry["rows"] for entry in entries}


def append_work(log: Path, entry: dict[str, Any]) -> None:
    """Note a finished piece, durably; its mode is the umask's, as of all results of a simulation."""
    append_lines(log, [entry], mode=None)
