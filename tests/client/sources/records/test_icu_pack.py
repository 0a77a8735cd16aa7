"""The pack of real ICU stays: each oddity that real files hold ends repaired, or counted with its reason.

The numbers are those of the PhysioNet/CinC Challenge 2012, set-a.
"""

from __future__ import annotations

import csv
import gzip
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from builders.records import KEY, hours_of, quarantine_of, reasons_of
from paths import ROOT

from wardround.sources.records.study import RecordsData
from wardround_client.sources.cohort import Cohort, open_cohort, pseudonym
from wardround_client.sources.records import source

PACK = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data")) / "icu_2012"
STUDY = RecordsData(vocabulary="icu", outcome="in_hospital_death", labels=("survived", "died"))
STAYS = {"cardiac-surgery": (874, 43), "coronary": (577, 81), "medical": (1478, 275), "surgical": (1068, 155)}
# Record number, the reason under which it is found, and the variable.
FOUND = [
    *((number, "no_measurement", "") for number in ("140501", "140936", "141264")),
    ("139060", "few_measurements", ""),  # one row
    ("136278", "late_start", ""),  # first row after 21 hours
    ("132895", "impossible", "Temp"),  # -17.8, or 0 Fahrenheit
    ("132642", "impossible", "Temp"),  # 0
    ("140525", "factor_100", "pH"),  # 734
    ("140287", "impossible", "pH"),  # 94
    ("133588", "impossible", "Height"),  # 13 cm
    ("138546", "inches_twice", "Height"),  # 431.8 cm
    ("137500", "metres", "Height"),  # 1.8
    ("132539", "missing_code", "Height"),  # -1
    ("133888", "missing_code", "Weight"),  # 0 in the series
    ("132584", "impossible", "DiasABP"),  # pressure 0
    ("132893", "contradiction", "DiasABP"),  # above the systolic pressure
    ("135362", "impossible", "HR"),  # 300
    ("132539", "two_values", "Urine"),  # the same minute
    ("140335", "impossible", "Urine"),  # 11 litres at once
    ("135757", "missing_code", "Sex"),  # -1
    ("136499", "impossible", "K"),  # 22.9, with sodium 98
]

pytestmark = pytest.mark.skipif(not PACK.is_dir(), reason="the ICU pack is not here (WARDROUND_TEST_DATA)")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohorts of the four sites."""
    folder = tmp_path_factory.mktemp("icu")
    for site in source.discover(PACK, STUDY):
        source.ingest(site, STUDY, folder / site.name, KEY, workers=1)
    return folder


def cohorts(out: Path) -> dict[str, Cohort]:
    return {path.name: open_cohort(path) for path in sorted(out.iterdir())}


def row_of(out: Path, number: str) -> tuple[Cohort, int]:
    name = pseudonym(KEY, number)
    (cohort,) = [one for one in cohorts(out).values() if name in one.pseudonyms]
    return cohort, cohort.pseudonyms.index(name)


def test_the_sites_are_those_of_the_column(out: Path) -> None:
    found = {name: (len(one.labels_N), int((one.labels_N == 1).sum())) for name, one in cohorts(out).items()}
    assert found == STAYS


@pytest.mark.parametrize("number, code, variable", FOUND)
def test_each_oddity_is_counted_under_its_reason(out: Path, number: str, code: str, variable: str) -> None:
    lines = set().union(*(quarantine_of(path) for path in out.iterdir()))
    assert (number, code, variable) in lines


def test_what_was_repaired_is_in_the_row(out: Path) -> None:
    assert set(hours_of(*row_of(out, "140525"), "pH", STUDY).values()) <= {
        7.34,
        *np.round(np.arange(6.6, 7.9, 0.01), 4),
    }
    assert hours_of(*row_of(out, "138546"), "Height", STUDY) == {0: pytest.approx(170, abs=0.1)}
    assert hours_of(*row_of(out, "137500"), "Height", STUDY) == {0: pytest.approx(180)}
    assert hours_of(*row_of(out, "140335"), "Urine", STUDY), "the other hours are used"


def test_the_reasons_are_counted_as_often_as_known(out: Path) -> None:
    counted: dict[str, int] = defaultdict(int)
    for path in out.iterdir():
        for code, count in reasons_of(path).items():
            counted[code] += count
    assert counted["at_end_of_window"] == 455 - 45, "48:00 exactly, apart from weights, which have no hour"
    assert counted["age_cut"] == 164 and counted["no_measurement"] == 3 and counted["inches_twice"] == 7


def test_an_hour_is_the_mean_of_the_file(out: Path) -> None:
    """Computed again without the source: heart rates of one record."""
    hours: dict[int, list[float]] = defaultdict(list)
    with gzip.open(PACK / "events.csv.gz", "rt") as file:
        for line in csv.DictReader(file):
            if line["patient_id"] == "132548" and line["variable"] == "HR":
                hours[int(float(line["hours"]))].append(float(line["value"]))
            if line["patient_id"] > "132600":
                break
    expected = {hour: pytest.approx(np.mean(values), abs=1e-3) for hour, values in hours.items()}
    assert expected and hours_of(*row_of(out, "132548"), "HR", STUDY) == expected


def test_no_id_is_in_the_reports_and_the_cohort(out: Path) -> None:
    for path in out.iterdir():
        for name in ("quality.json", "quality.html", "table.csv", "cohort.json"):
            text = (path / name).read_text()
            assert not any(number in text.split('"') or f">{number}<" in text for number, _, _ in FOUND)
