"""A patient who objects leaves the cohort of records, and does not come back with the next ingest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builders.records import ICU, KEY, icu_folder, prepared, quarantine_of, reasons_of

from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.forget import forget
from wardround_client.sources.opt_out import opted_out
from wardround_client.sources.records import source


def test_forget_removes_the_row_and_the_next_ingest_leaves_it_out(tmp_path: Path) -> None:
    events = [(name, hour, "HR", 60 + hour) for name in ("007", "b", "c") for hour in range(6)]
    folder, site = icu_folder(tmp_path / "data", events, {"007": 0, "b": 1, "c": 0}), tmp_path / "site"
    site.mkdir()
    prepared(folder, site / "cohort")
    before = np.asarray(open_cohort(site / "cohort").values_N)
    (site / "cohort" / ".parts").mkdir()  # left by an ingest that was killed
    (site / "cohort" / ".parts" / "000000").write_bytes(b"values")
    assert forget(site, KEY, "7").similar == 1, "an id that differs in leading zeros only"
    done = forget(site, KEY, "007")
    cohort = open_cohort(site / "cohort")
    assert not (site / "cohort" / ".parts").exists()
    assert done.rows_removed == 1 and cohort.pseudonyms == (pseudonym(KEY, "b"), pseudonym(KEY, "c"))
    assert np.array_equal(np.asarray(cohort.values_N), before[1:], equal_nan=True)
    prepared(folder, site / "cohort", objectors=opted_out(site))
    assert open_cohort(site / "cohort").pseudonyms == cohort.pseudonyms
    assert reasons_of(site / "cohort")["opted_out"] == 1
    assert {line for line in quarantine_of(site / "cohort") if line[0] == "007"} == {("007", "opted_out", "")}


def test_a_cohort_of_another_study_does_not_fit(tmp_path: Path) -> None:
    folder = icu_folder(tmp_path / "data", [(name, 1, "HR", 80) for name in "ab"])
    prepared(folder, tmp_path / "out")
    cohort = open_cohort(tmp_path / "out")
    assert source.fits(cohort, ICU) and source.differences(cohort, ICU) == []
    for change in ({"window_hours": 24}, {"outcome": "sepsis"}, {"horizon_hours": 12.0}, {"vocabulary": "heart"}):
        other = ICU.model_copy(update=change)
        assert not source.fits(cohort, other) and len(source.differences(cohort, other)) == 1
