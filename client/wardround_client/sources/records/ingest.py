"""Ingest of records: the patients, then their measurements, into hourly rows, a quality report and a cohort.

    stays       who there is, and what became of them
    parts       measurements that pass the checks, on disk, by neighbouring patients
    cells       each part in turn: repetitions, contradictions, hours
    cohort      each patient's row in turn

Source files are opened read-only. Memory grows neither with the number of measurements nor with that of the hours; a
few hundred bytes a patient remain.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.claim import claimed_cohort, refuse_full_disk
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.sources.quality import FEW_PATIENTS, Quality
from wardround_client.sources.records.attributes import columns_of_rows
from wardround_client.sources.records.events import Events, Names
from wardround_client.sources.records.folder import RecordsSite, measurements_of, stays_of
from wardround_client.sources.records.grid.checks import Limits, checked
from wardround_client.sources.records.grid.hours import CELL, Grid, cells_of, rows_of
from wardround_client.sources.records.grid.parts import Parts
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.quality.reasons import REASONS
from wardround_client.sources.records.quality.report import figures_of, write_quality
from wardround_client.sources.records.source import REPORT_PAGE, prepared_by
from wardround_client.sources.records.stays import HOUR_S, NO_LABEL, Stays
from wardround_client.sources.records.tables.long_table import Owners
from wardround_client.sources.records.tables.outcomes import with_horizon
from wardround_client.sources.registry import Progress

FEW_CELLS = 3
# Faults of an export, unlike those of single values. Where they are the majority, the export is wrong.
OF_THE_EXPORT = (
    *("unreadable_row", "no_patient", "unknown_patient", "not_a_number", "no_time", "day_only", "mixed_zones"),
    *("no_admission", "unknown_unit", "impossible", "unreadable_resource"),
)


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The result of an ingest. No field here or in `quality` can name a patient."""

    folder: Path
    key: str  # of the cohort
    quality: Quality
    values: int  # measurements in the cohort's hours
    seconds: float

    @property
    def unread(self) -> int:
        """0: a table that cannot be read ends the ingest with an error."""
        return 0

    @property
    def lost_most(self) -> bool:
        """False: an ingest that loses most measurements ends with an error."""
        return False

    @property
    def summary(self) -> str:
        """One line: patients, and how many values the hours of the cohort hold."""
        return f"{self.quality.patients:,} patients; {self.values:,} values in the hours that the study reads"

    def to_json(self) -> dict:
        """Return plain values for `--json` and a run's report."""
        figures = {"key": self.key, "values": self.values, "seconds": round(self.seconds, 3)}
        return {**figures, "quality": self.quality.to_json()}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the cells hold. Names of arrays: P patients, V variables."""

    kept_P: np.ndarray  # bool: the patient is in the cohort
    patients_V: np.ndarray  # with a value of the variable
    hours_V: np.ndarray


def ingest(
    site: RecordsSite,
    data: RecordsData,
    folder: Path,
    key: bytes,
    *,
    objectors: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> IngestReport:
    """Prepare a site's cohort and its quality report in `folder`.

    The rows are in the order of the table of patients. They do not depend on the order of the measurements.

    Args:
        site: The site's files.
        data: The study's data section.
        folder: The cohort folder.
        key: The site's own secret, from which pseudonyms are derived.
        objectors: Pseudonyms of patients who object. Their measurements are not used.
        progress: Called as `progress(done, total)`.

    Raises:
        DataError: No patient is fit for the study, most measurements cannot be used because of the export, a file
            cannot be read, the disk cannot hold the cohort, or another ingest is running in `folder`. An existing
            cohort is kept.
    """
    start = time.monotonic()
    vocabulary = load_vocabulary(data.vocabulary)
    names, counts, grid = Names(vocabulary), Counts(), Grid(vocabulary=vocabulary, hours=data.window_hours)
    with claimed_cohort(folder):
        stays = stays_of(site, data, names, counts)
        owners_P = [pseudonym(key, name) for name in stays.ids]
        label_P, taking_part_P = _taking_part(stays, owners_P, objectors, data, counts)
        limits = Limits(
            vocabulary=vocabulary,
            window_s=data.window_hours * HOUR_S,
            outcome_s_P=np.where((stays.label_P == 1) & ~np.isnan(stays.outcome_s_P), stays.outcome_s_P, np.inf),
        )
        refuse_full_disk(folder, int(taking_part_P.sum()), 4 * math.prod(grid.row_shape))
        with Parts(folder, len(stays)) as parts:
            read = 0
            for events in _measured(site, stays, taking_part_P, names, counts, progress):
                read += len(events)
                parts.add(checked(events, limits, counts))
            tally = _to_cells(parts, grid, counts, taking_part_P)
            quality = _quality(site, data, counts, label_P[tally.kept_P], len(stays))
            figures = figures_of(vocabulary, counts, tally.patients_V.tolist(), tally.hours_V.tolist())
            write_quality(folder, quality, counts, figures, stays.ids, key)
            _refuse_wrong_export(site, counts, read, folder)
            kept = np.flatnonzero(tally.kept_P)
            if not len(kept):
                raise DataError(
                    f"{site.root}: no patient of {site.name} can be used for the study; the reasons are in "
                    f"{folder / REPORT_PAGE}"
                )
            columns = columns_of_rows(_rows(parts, grid, tally.kept_P), vocabulary)
            rows = [
                CohortRow(pseudonym=owners_P[place], label=int(label_P[place]), extra=extra)
                for place, extra in zip(kept.tolist(), columns, strict=True)
            ]
            made_key = write_cohort(
                folder,
                rows,
                _rows(parts, grid, tally.kept_P),
                row_shape=grid.row_shape,
                dtype=np.float32,
                label_names=data.labels,
                site_key=key,
                prepared_by=prepared_by(data),
            )
    return IngestReport(
        folder=folder,
        key=made_key,
        quality=quality,
        values=int(tally.hours_V.sum()),
        seconds=time.monotonic() - start,
    )


def _taking_part(
    stays: Stays, owners_P: list[str], objectors: frozenset[str], data: RecordsData, counts: Counts
) -> tuple[np.ndarray, np.ndarray]:
    """Return each patient's label for the study, and whether the patient takes part as far as this can be known yet."""
    objecting_P = np.array([owner in objectors for owner in owners_P], dtype=bool)
    label_P, early_P, undated_P = with_horizon(stays.label_P, stays.outcome_s_P, data)
    counts.add_rows("opted_out", np.flatnonzero(objecting_P))
    counts.add_rows("no_outcome_time", np.flatnonzero(undated_P & ~objecting_P))
    if data.horizon_hours is None:
        counts.add_rows("early_outcome", np.flatnonzero(early_P & ~objecting_P))
        return label_P, ~objecting_P
    counts.add_rows("outcome_in_window", np.flatnonzero(early_P & ~objecting_P))
    return label_P, ~objecting_P & ~early_P


def _measured(
    site: RecordsSite,
    stays: Stays,
    taking_part_P: np.ndarray,
    names: Names,
    counts: Counts,
    progress: Progress | None,
) -> Iterator[Events]:
    """Yield the measurements of those who take part: what is known of the stays, then the files, batch by batch."""
    yield stays.events.where(taking_part_P[stays.events.patient_N])
    left_out = frozenset(stays.ids[place] for place in np.flatnonzero(~taking_part_P).tolist())
    owners = Owners(
        index={name: place for place, name in enumerate(stays.ids) if taking_part_P[place]},
        others=site.others | left_out,
        count_strays=site.first,
    )
    yield from measurements_of(site, owners, stays, names, counts, progress)


def _to_cells(parts: Parts, grid: Grid, counts: Counts, taking_part_P: np.ndarray) -> Tally:
    """Turn each part into cells in place, and find out who has enough of them."""
    hours, variables = grid.row_shape
    timed_V = np.array([not variable.of_the_stay for variable in grid.vocabulary.variables])
    kept_P = np.zeros(len(taking_part_P), dtype=bool)
    patients_V, hours_V = np.zeros(variables, np.int64), np.zeros(variables, np.int64)
    seen: Counter[bytes] = Counter()
    empty, few, late = [], [], []
    for first, end, events in parts:
        cells = cells_of(events, grid, counts)
        parts.replace(first, cells)
        hour_C, variable_C = np.divmod(cells["place"], variables)
        counted_C = timed_V[variable_C] if timed_V.any() else np.ones(len(cells), dtype=bool)
        number_P = np.bincount(cells["patient"][counted_C] - first, minlength=end - first)
        begin_P = np.full(end - first, hours)
        np.minimum.at(begin_P, cells["patient"][counted_C] - first, hour_C[counted_C])
        own_P = taking_part_P[first:end]
        kept_P[first:end] = own_P & (number_P > 0)
        empty.append(first + np.flatnonzero(own_P & (number_P == 0)))
        few.append(first + np.flatnonzero(own_P & (number_P > 0) & (number_P < FEW_CELLS)))
        late.append(first + np.flatnonzero(own_P & (number_P > 0) & (3 * begin_P >= hours) & (begin_P > 0)))
        used = cells[kept_P[cells["patient"]]]
        hours_V += np.bincount(used["place"] % variables, minlength=variables)
        pairs = np.unique(used["patient"].astype(np.int64) * variables + used["place"] % variables)
        patients_V += np.bincount(pairs % variables, minlength=variables)
        seen.update(_hashes(used))
    for code, places in (("no_measurement", empty), ("few_measurements", few), ("late_start", late)):
        counts.add_rows(code, np.concatenate(places))
    counts.add("same_values", sum(number - 1 for number in seen.values()))
    return Tally(kept_P=kept_P, patients_V=patients_V, hours_V=hours_V)


def _hashes(cells: np.ndarray) -> Iterator[bytes]:
    """Yield a short hash of each patient's cells."""
    for own in np.split(cells, 1 + np.flatnonzero(cells["patient"][1:] != cells["patient"][:-1])):
        if len(own):
            yield hashlib.sha256(own["place"].tobytes() + own["value"].tobytes()).digest()[:8]


def _rows(parts: Parts, grid: Grid, kept_P: np.ndarray) -> Iterator[np.ndarray]:
    for first, end, cells in parts.replaced(CELL):
        yield from rows_of(cells, first, end, kept_P, grid)


def _quality(site: RecordsSite, data: RecordsData, counts: Counts, label_R: np.ndarray, patients: int) -> Quality:
    classes = {}
    for index, name in enumerate(data.labels):
        number = int((label_R == index).sum())
        classes[name] = {"stays": number, "patients": number}
    unlabelled = int((label_R == NO_LABEL).sum())
    counts.add("few_of_class", sum(figures["patients"] < FEW_PATIENTS for figures in classes.values()))
    counts.add("one_outcome", int(sum(figures["patients"] > 0 for figures in classes.values()) < 2))
    counts.add("no_label", unlabelled)
    counts.add("skipped", site.skipped)
    reasons = sorted(counts.of_reason.items())
    return Quality(
        site=site.name,
        files=site.files,
        rows=len(label_R),
        patients=len(label_R),
        classes=classes,
        unlabelled=unlabelled,
        quarantined={code: count for code, count in reasons if REASONS[code].fault},
        remarks={code: count for code, count in reasons if not REASONS[code].fault},
        notes=tuple(note[0].upper() + note[1:] + "." for note in site.assumptions),
        row="stay",
        accounted={"used": len(label_R), "put_aside": patients - len(label_R), "left_out": 0},
    )


def _refuse_wrong_export(site: RecordsSite, counts: Counts, read: int, folder: Path) -> None:
    """Raise `DataError` if more measurements are lost by faults of the export than can be used."""
    lost = Counter({code: counts.of_reason[code] for code in OF_THE_EXPORT if counts.of_reason[code]})
    impossible = lost["impossible"]
    if lost.total() > read - impossible:
        reason = REASONS[lost.most_common(1)[0][0]]
        raise DataError(
            f"{site.root}: {lost.total():,} values or rows of {site.name} cannot be used, and only "
            f"{max(read - impossible, 0):,} can. Most of them: {reason.title}. {reason.advice} The report is "
            f"{folder / REPORT_PAGE}; the cohort was not changed"
        )
