"""Wide tables: one row a patient, with and without an id, and the four real hospitals of heart disease."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from builders.records import HEART, KEY, hours_of, reasons_of, table
from paths import ROOT

from wardround.errors import DataError
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.records import source

PACK = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data")) / "uci_heart_disease"
HEADER = ("patient_id", "site", "age", "sex", "chol", "thal", "num")
ROWS = [("p1", "north", 60, "male", 200, 3, 0), ("p2", "north", 50, 0, 0, 7, 2), ("p3", "south", 40, 1, 9999, "?", 1)]


def test_columns_are_variables_and_a_column_names_the_sites(tmp_path: Path) -> None:
    table(tmp_path / "data" / "all.csv", HEADER, ROWS)
    north, south = source.discover(tmp_path / "data", HEART)
    assert (north.name, south.name) == ("north", "south") and not north.patients_are_assumed
    for site in (north, south):
        source.ingest(site, HEART, tmp_path / site.name, KEY, workers=1)
    cohort = open_cohort(tmp_path / "north")
    assert cohort.pseudonyms == (pseudonym(KEY, "p1"), pseudonym(KEY, "p2")) and cohort.labels_N.tolist() == [0, 1]
    assert hours_of(cohort, 0, "sex", HEART) == {0: 1} and hours_of(cohort, 1, "thal", HEART) == {0: 2}
    assert hours_of(cohort, 1, "chol", HEART) == {}
    assert cohort.extra == {"sex": ("male", "female"), "age": ("60 to 69", "50 to 59")}
    assert reasons_of(tmp_path / "north")["missing_code"] == 1 and reasons_of(tmp_path / "south")["impossible"] == 1


def test_a_pool_is_split_by_patient(tmp_path: Path) -> None:
    rows = [(f"p{number}", 30 + number, number % 2, 200, number % 2) for number in range(40)]
    table(tmp_path / "data" / "all.csv", ("patient_id", "age", "sex", "chol", "num"), rows)
    sites = source.discover(tmp_path / "data", HEART, 3)
    assert [len(site.chosen) for site in sites] == [14, 13, 13] and source.shared_patients(sites[:1], sites[1:]) == 0
    assert sites == source.discover(tmp_path / "data", HEART, 3)
    with pytest.raises(DataError, match="need at least 41 patients"):
        source.discover(tmp_path / "data", HEART, 41)


def test_folders_are_sites_and_share_no_patient(tmp_path: Path) -> None:
    header = ("patient_id", "age", "sex", "chol", "num")
    table(tmp_path / "data" / "north" / "wide.csv", header, [("p1", 60, 1, 200, 0), ("p2", 60, 1, 200, 1)])
    table(tmp_path / "data" / "south" / "wide.csv", header, [("p3", 60, 1, 200, 0), ("p4", 60, 1, 200, 1)])
    assert [site.name for site in source.discover(tmp_path / "data", HEART)] == ["north", "south"]
    with pytest.raises(DataError, match="has 2 sites, but --sites is 3"):
        source.discover(tmp_path / "data", HEART, 3)
    with pytest.raises(DataError, match="several sites"):
        source.of_one_hospital(tmp_path / "data", HEART, "north")
    several = [("p3", "a", 60, 1, 200, 0), ("p4", "b", 60, 1, 200, 1)]
    table(tmp_path / "data" / "south" / "wide.csv", ("patient_id", "site", "age", "sex", "chol", "num"), several)
    with pytest.raises(DataError, match="several sites inside the folder of one site"):
        source.discover(tmp_path / "data", HEART)
    table(tmp_path / "data" / "south" / "wide.csv", header, [("p1", 60, 1, 200, 0), ("p4", 60, 1, 200, 1)])
    with pytest.raises(DataError, match="one patient is at two sites, north and south"):
        source.discover(tmp_path / "data", HEART)


def test_a_folder_without_records_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no records found; give a table of measurements"):
        source.discover(tmp_path, HEART)
    with pytest.raises(DataError, match="no such folder"):
        source.discover(tmp_path / "none", HEART)


def test_a_row_without_an_id_is_a_patient_and_the_report_says_so(tmp_path: Path) -> None:
    table(tmp_path / "data" / "all.csv", ("age", "sex", "chol", "num"), [(60, 1, 200, 0), (60, 1, 200, 1)])
    (site,) = source.discover(tmp_path / "data", HEART)
    assert site.patients_are_assumed
    report = source.ingest(site, HEART, tmp_path / "out", KEY, workers=1)
    assert report.quality.notes == ("Each row is treated as a different patient.",)
    assert open_cohort(tmp_path / "out").pseudonyms == (pseudonym(KEY, "all.csv:1"), pseudonym(KEY, "all.csv:2"))
    assert report.quality.remarks["same_values"] == 1
    assert report.quality.accounted == {"used": 2, "put_aside": 0, "left_out": 0}


@pytest.mark.skipif(not PACK.is_dir(), reason="the heart-disease pack is not here (WARDROUND_TEST_DATA)")
def test_the_four_hospitals_of_heart_disease_are_read_as_they_are(tmp_path: Path) -> None:
    found = {}
    for site in source.discover(PACK, HEART):
        source.ingest(site, HEART, tmp_path / site.name, KEY, workers=1)
        cohort = open_cohort(tmp_path / site.name)
        found[site.name] = (len(cohort.labels_N), int((cohort.labels_N == 1).sum()))
    assert found == {"cleveland": (303, 139), "hungarian": (294, 106), "switzerland": (123, 115), "va": (200, 149)}
    assert reasons_of(tmp_path / "switzerland")["missing_code"] == 123, "cholesterol 0 stands for missing"
    cohort = open_cohort(tmp_path / "cleveland")
    assert np.isfinite(np.asarray(cohort.values_N)).mean() == pytest.approx(1 - 6 / 303 / 13, abs=1e-6)
    assert reasons_of(tmp_path / "cleveland") == {"skipped": 1}
