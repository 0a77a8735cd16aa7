"""Long tables from folder to cohort: hours, names of variables, units, times, and what is counted."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest
from builders.records import (
    ICU,
    cohort_of,
    hours_of,
    icu_folder,
    prepared,
    quarantine_of,
    reasons_of,
    table,
)
from paths import ROOT

from wardround.errors import DataError
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.records import source
from wardround_client.sources.records.grid import parts
from wardround_client.sources.records.tables import reader

HR = [("a", 0.1, "HR", 80), ("b", 0.1, "HR", 90)]  # something of both patients


def test_an_hour_has_the_mean_and_a_sum_is_capped(tmp_path: Path) -> None:
    events = [*HR, ("a", 0.9, "HR", 90), ("a", 1.0, "HR", 70), ("a", 2.2, "Urine", 40), ("a", 2.7, "Urine", 60)]
    events += [("b", 3.5, "Urine", 3000), ("b", 3.6, "Urine", 4000), ("b", 4.4, "MechVent", 1)]
    cohort = cohort_of(icu_folder(tmp_path / "data", events), tmp_path / "out")
    assert cohort.values_N.shape == (2, *ICU.row_shape) and cohort.values_N.dtype == np.float32
    assert hours_of(cohort, 0, "HR") == {0: 85, 1: 70}
    assert hours_of(cohort, 0, "Urine") == {2: 100}
    assert hours_of(cohort, 1, "Urine") == {3: 5000}
    assert hours_of(cohort, 1, "MechVent") == {4: 1}
    assert cohort.labels_N.tolist() == [0, 1] and cohort.label_names == ("survived", "died")


def test_the_stronger_name_wins_within_an_hour_only(tmp_path: Path) -> None:
    events = [*HR, ("a", 0.2, "NISysABP", 90), ("a", 0.4, "SysABP", 120), ("a", 1.4, "NISysABP", 100)]
    events += [("a", 2.0, "8480-6", 130)]  # LOINC
    cohort = cohort_of(icu_folder(tmp_path / "data", events), tmp_path / "out")
    assert hours_of(cohort, 0, "SysABP") == {0: 120, 1: 100, 2: 130}


def test_known_mistakes_are_repaired_and_counted(tmp_path: Path) -> None:
    events = [*HR, ("a", 1, "Temp", 98.6), ("a", 1, "pH", 734), ("a", 2, "pH", 73.4), ("a", 1, "FiO2", 50)]
    folder = icu_folder(tmp_path / "data", events, extra={"height": [1.8, 431.8], "age": [90, 17]})
    cohort = cohort_of(folder, tmp_path / "out")
    assert hours_of(cohort, 0, "Temp") == {1: pytest.approx(37, abs=1e-3)}
    assert hours_of(cohort, 0, "pH") == {1: 7.34, 2: 7.34}
    assert hours_of(cohort, 0, "FiO2") == {1: 0.5}
    assert hours_of(cohort, 0, "Height") == {0: 180}
    assert hours_of(cohort, 1, "Height") == {0: pytest.approx(170, abs=1e-3)}
    counted = reasons_of(tmp_path / "out")
    assert {"fahrenheit", "factor_100", "factor_10", "percent", "metres", "inches_twice", "age_cut"} <= set(counted)
    assert cohort.extra["age"] == ("90 or older", "10 to 19")


def test_units_are_converted_and_unknown_ones_are_not_guessed(tmp_path: Path) -> None:
    header = ("patient_id", "hours", "variable", "value", "unit")
    events = [("a", 0, "HR", 80, "/min"), ("b", 0, "HR", 80, ""), ("a", 1, "Glucose", 5, "mmol/L")]
    events += [("a", 2, "Glucose", 5, "furlong"), ("a", 1, "Temp", 98.6, "[degF]"), ("a", 1, "PaO2", 10, "kPa")]
    cohort = cohort_of(icu_folder(tmp_path / "data", events, header=header), tmp_path / "out")
    assert hours_of(cohort, 0, "Glucose") == {1: pytest.approx(90.08, abs=0.01)}
    assert hours_of(cohort, 0, "Temp") == {1: pytest.approx(37, abs=1e-3)}
    assert hours_of(cohort, 0, "PaO2") == {1: pytest.approx(75, abs=0.01)}
    assert reasons_of(tmp_path / "out") == {
        "few_of_class": 2,
        "few_measurements": 1,
        "unit_converted": 3,
        "unknown_unit": 1,
    }


def test_times_need_the_admission(tmp_path: Path) -> None:
    header = ("patient_id", "time", "variable", "value")
    times = ["2026-01-01T09:10", "2026-01-01 07:59:59", "2026-01-01", "yesterday", "2026-01-01T09:10:00Z", ""]
    events = [("a", time, "HR", 80 + at) for at, time in enumerate(times)] + [("b", "2026-01-02T00:30", "HR", 70)]
    events += [("c", "2026-01-02T00:30", "HR", 70), ("a", "2026-01-03T08:00", "K", 4)]
    folder = icu_folder(
        tmp_path / "data", events, {"a": 0, "b": 1, "c": 1}, header,
        {"admission_time": ["2026-01-01T08:00", "2026-01-02 00:00", ""]},
    )  # fmt: skip
    with pytest.raises(DataError, match="Most of them: Measurements without a time"):
        prepared(folder, tmp_path / "out")
    events += [("b", f"2026-01-02T{hour:02d}:30", "HR", 70) for hour in range(1, 12)]
    folder = icu_folder(
        tmp_path / "data", events, {"a": 0, "b": 1, "c": 1}, header,
        {"admission_time": ["2026-01-01T08:00", "2026-01-02 00:00", ""]},
    )  # fmt: skip
    cohort = cohort_of(folder, tmp_path / "out")
    assert hours_of(cohort, 0, "HR") == {1: 80} and hours_of(cohort, 0, "K") == {47: 4}
    counted = reasons_of(tmp_path / "out")
    expected = {"before_admission": 1, "day_only": 1, "no_time": 2, "mixed_zones": 1, "no_admission": 1}
    assert expected.items() <= counted.items()
    assert counted["no_measurement"] == 1 and counted["at_end_of_window"] == 1


def test_times_with_zones_are_compared_as_instants(tmp_path: Path) -> None:
    header = ("patient_id", "time", "variable", "value")
    events = [("a", "2026-01-01T09:10:00+02:00", "HR", 80), ("b", "2026-01-01T09:10:00Z", "HR", 80)]
    folder = icu_folder(
        tmp_path / "data", events, header=header, extra={"admission_time": ["2026-01-01T06:00:00Z"] * 2}
    )
    cohort = cohort_of(folder, tmp_path / "out")
    assert hours_of(cohort, 0, "HR") == {1: 80} and hours_of(cohort, 1, "HR") == {3: 80}


def test_what_cannot_be_used_is_counted_and_found_in_quarantine(tmp_path: Path) -> None:
    events = [
        *HR,
        ("a", -1, "HR", 80),
        ("a", 50, "HR", 80),
        ("a", 1, "HR", 999),
        ("a", 1, "HR", "<5"),
        ("", 1, "HR", 1),
    ]
    events += [("z", 1, "HR", 80), ("a", 1, "Hair", 80), ("a", 2, "HR", ""), ("a", 3, "K", 4), ("a", 3, "K", 4)]
    events += [("a", 4, "K", 4), ("a", 4, "K", 5), ("b", 1, "SysABP", 60), ("b", 1, "DiasABP", 80), ("b", 2, "K", 4)]
    cohort = cohort_of(icu_folder(tmp_path / "data", events), tmp_path / "out")
    assert reasons_of(tmp_path / "out") == {
        "before_admission": 1, "after_window": 1, "impossible": 1, "not_a_number": 1, "no_patient": 1,
        "unknown_patient": 1, "unknown_variable": 1, "no_value": 1, "duplicate": 1, "two_values": 1,
        "contradiction": 2, "few_of_class": 2, "few_measurements": 1,
    }  # fmt: skip
    assert hours_of(cohort, 0, "K") == {3: 4, 4: 4.5} and hours_of(cohort, 1, "SysABP") == {}
    found = quarantine_of(tmp_path / "out")
    assert {("a", "impossible", "HR"), ("b", "contradiction", "SysABP"), ("", "unknown_variable", "Hair")} <= found


def test_no_name_in_the_quarantine_is_a_formula_for_a_spreadsheet(tmp_path: Path) -> None:
    cohort_of(icu_folder(tmp_path / "data", [*HR, ("a", 1, "=1+2", 1)]), tmp_path / "out")
    assert ("", "unknown_variable", "'=1+2") in quarantine_of(tmp_path / "out")
    for name in ("quality.json", "quality.html"):
        assert "Hair" not in (tmp_path / "out" / name).read_text()
    files = [path for path in (tmp_path / "out").iterdir()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_measurements_after_the_outcome_do_not_reach_the_cohort(tmp_path: Path) -> None:
    events = [*HR, ("b", 5.5, "HR", 90), ("b", 6.5, "HR", 0.1), ("b", 6.5, "Weight", 80), ("a", 20, "HR", 80)]
    folder = icu_folder(tmp_path / "data", events, extra={"outcome_hours": [10, 6]})
    cohort = cohort_of(folder, tmp_path / "out")
    assert hours_of(cohort, 1, "HR") == {0: 90, 5: 90} and hours_of(cohort, 1, "Weight") == {}
    assert hours_of(cohort, 0, "HR") == {0: 80, 20: 80}, "the outcome of patient a did not happen"
    assert {"after_outcome": 2, "early_outcome": 1}.items() <= reasons_of(tmp_path / "out").items()


def test_a_horizon_decides_which_outcomes_count(tmp_path: Path) -> None:
    events = [(name, 0.5, "HR", 80) for name in "abcde"]
    hours = {"a": "", "b": 60, "c": 100, "d": 40, "e": ""}
    folder = icu_folder(
        tmp_path / "data", events, {"a": 0, "b": 1, "c": 1, "d": 1, "e": 1}, extra={"outcome_hours": [*hours.values()]}
    )
    cohort = cohort_of(folder, tmp_path / "out", ICU.model_copy(update={"horizon_hours": 24.0}))
    assert cohort.labels_N.tolist() == [0, 1, 0, -1], "d died within the window; when e died is unknown"
    assert {"outcome_in_window": 1, "no_outcome_time": 1, "no_label": 1}.items() <= reasons_of(tmp_path / "out").items()


def test_a_table_of_outcomes_may_name_the_labels(tmp_path: Path) -> None:
    table(tmp_path / "data" / "events.csv", ("patient_id", "hours", "variable", "value"), [*HR, ("c", 1, "HR", 70)])
    rows = [("a", "Survived"), ("b", "died"), ("c", "transferred"), ("x", "died"), ("b", "died")]
    table(tmp_path / "data" / "outcomes.csv", ("patient_id", "died"), rows)
    cohort = cohort_of(tmp_path / "data", tmp_path / "out")
    assert cohort.labels_N.tolist() == [0, 1, -1]
    assert {"no_measurement": 1, "unknown_outcome": 1, "later_stay": 1}.items() <= reasons_of(tmp_path / "out").items()


def test_a_patient_has_one_row_of_the_first_stay(tmp_path: Path) -> None:
    rows = [("a", 1, "2026-03-01T00:00", 60), ("a", 0, "2026-01-01T00:00", 59), ("b", 1, "2026-01-01T00:00", 50)]
    table(tmp_path / "data" / "patients.csv", ("patient_id", "died", "admission_time", "age"), rows)
    events = [
        ("a", "2026-01-01T01:30", "HR", 80),
        ("a", "2026-03-01T01:30", "HR", 99),
        ("b", "2026-01-01T01:30", "HR", 1),
    ]
    events += [("b", "2026-01-01T01:40", "HR", 80)]
    table(tmp_path / "data" / "events.csv", ("patient_id", "time", "variable", "value"), events)
    cohort = cohort_of(tmp_path / "data", tmp_path / "out")
    assert cohort.labels_N.tolist() == [0, 1]
    assert hours_of(cohort, 0, "HR") == {1: 80} and hours_of(cohort, 0, "Age") == {0: 59}
    assert {"later_stay": 1, "after_window": 1}.items() <= reasons_of(tmp_path / "out").items()


def test_the_same_records_give_the_same_cohort_in_every_format_and_order(tmp_path: Path) -> None:
    values = [(name, hour / 7, "HR", 80 + hour) for name in "ab" for hour in range(90)]
    folder = icu_folder(tmp_path / "plain", values)
    keys = {prepared(folder, tmp_path / "out-plain").key}
    for name, lines in (("turned", values[::-1]), ("packed", values)):
        icu_folder(tmp_path / name, lines)
        if name == "packed":
            for path in (tmp_path / name).glob("*.csv"):
                path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
        keys.add(prepared(tmp_path / name, tmp_path / f"out-{name}").key)
    (tmp_path / "parquet").mkdir()
    for path in folder.glob("*.csv"):
        pa_parquet.write_table(pa_csv.read_csv(path), tmp_path / "parquet" / f"{path.stem}.parquet")
    keys.add(prepared(tmp_path / "parquet", tmp_path / "out-parquet").key)
    text = (folder / "events.csv").read_text()
    german = [line.replace(".", ",") for line in text.replace(",", ";").splitlines()]
    (tmp_path / "german").mkdir()
    (tmp_path / "german" / "events.csv").write_bytes(("\ufeffsep=;\r\n" + "\r\n".join(german) + "\r\n").encode())
    (tmp_path / "german" / "patients.csv").write_text((folder / "patients.csv").read_text())
    keys.add(prepared(tmp_path / "german", tmp_path / "out-german").key)
    assert len(keys) == 1


def test_neither_batches_nor_parts_change_the_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"p{number}" for number in range(70)]
    values = [(name, hour + at / 60, "HR", 60 + at) for hour in range(9) for at in (0, 7, 7, 31) for name in names]
    folder = icu_folder(tmp_path / "data", values, {name: at % 2 for at, name in enumerate(names)})
    whole = prepared(folder, tmp_path / "whole").key
    monkeypatch.setattr(reader, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(parts, "LEAST_PATIENTS", 1)
    monkeypatch.setattr(parts, "MOST_PARTS", 16)
    assert prepared(folder, tmp_path / "pieces").key == whole
    assert reasons_of(tmp_path / "pieces") == reasons_of(tmp_path / "whole") == {"duplicate": 630, "same_values": 69}


def test_a_table_may_lie_in_parts(tmp_path: Path) -> None:
    values = [(name, hour, "HR", 80 + hour) for name in "ab" for hour in range(20)]
    whole = prepared(icu_folder(tmp_path / "whole", values), tmp_path / "out-whole").key
    icu_folder(tmp_path / "parts", [])
    (tmp_path / "parts" / "events.csv").unlink()
    for number in (0, 1):
        columns = dict(
            zip(("patient_id", "hours", "variable", "value"), zip(*values[number::2], strict=True), strict=True)
        )
        (tmp_path / "parts" / "events.parquet").mkdir(exist_ok=True)
        pa_parquet.write_table(pa.table(columns), tmp_path / "parts" / "events.parquet" / f"part-{number}.parquet")
    (tmp_path / "parts" / "events.parquet" / "_SUCCESS").write_text("")
    assert prepared(tmp_path / "parts", tmp_path / "out-parts").key == whole


def test_parquet_may_have_types(tmp_path: Path) -> None:
    icu_folder(tmp_path / "data", [], {"1": 0, "2": 1}, extra={"admission_time": ["2026-01-01T00:00:00"] * 2})
    (tmp_path / "data" / "events.csv").unlink()
    columns = {
        "patient_id": pa.array([1.0, 2.0, None], pa.float64()),
        "time": pa.array(["2026-01-01T01:30"] * 3).cast(pa.timestamp("us")),
        "variable": pa.array(["HR", "HR", "HR"]).dictionary_encode(),
        "value": pa.array([80, 90, 100], pa.int32()),
    }
    pa_parquet.write_table(pa.table(columns), tmp_path / "data" / "events.parquet")
    cohort = cohort_of(tmp_path / "data", tmp_path / "out")
    assert hours_of(cohort, 0, "HR") == {1: 80} and hours_of(cohort, 1, "HR") == {1: 90}
    assert reasons_of(tmp_path / "out")["no_patient"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "patients.csv").unlink(), "no table of patients"),
        (lambda folder: table(folder / "patients.csv", ("patient_id", "age"), [("a", 1)]), "has no column died"),
        (lambda folder: table(folder / "patients.csv", ("patient_id", "died"), []), "has a header but no rows"),
        (
            lambda folder: table(folder / "patients.csv", ("patient_id", "died"), [("a", 0)]),
            "every outcome is survived",
        ),
        (
            lambda folder: table(folder / "patients.csv", ("patient_id", "died"), [("a", "")]),
            "no patient has an outcome",
        ),
        (lambda folder: table(folder / "patients.csv", ("patient_id", "died"), [("1E+17", 0)]), "has shortened"),
        (lambda folder: table(folder / "events.csv", ("hours", "variable", "value"), []), "needs the columns"),
        (lambda folder: (folder / "events.csv").write_bytes(b""), "is empty"),
        (lambda folder: (folder / "events.csv").write_bytes(b"PK\3\4 a workbook"), "spreadsheet"),
        (lambda folder: (folder / "events.csv").write_bytes("a,b".encode("utf-16")), "UTF-16"),
        (lambda folder: (folder / "events.csv").write_bytes(b"\x1f\x8b\x08 broken"), "damaged or cut short"),
        (lambda folder: (folder / "events.csv").write_bytes(b"PAR1 broken PAR1"), "damaged or cut short"),
        (lambda folder: (folder / "events.csv").write_bytes(b"a," * 40_000), "first row is longer than"),
        (lambda folder: (folder / "link.csv").symlink_to("/etc/passwd"), "link that leads out"),
    ],
)
def test_a_folder_that_cannot_be_right_is_one_line(tmp_path: Path, change, message: str) -> None:
    folder = icu_folder(tmp_path / "data", HR)
    change(folder)
    with pytest.raises(DataError, match=message) as error:
        source.discover(folder, ICU)
    assert "\n" not in str(error.value)


def test_a_cut_off_gzip_ends_the_ingest_and_keeps_the_cohort(tmp_path: Path) -> None:
    folder = icu_folder(tmp_path / "data", [(name, at / 100, "HR", 80) for name in "ab" for at in range(4000)])
    key = prepared(folder, tmp_path / "out").key
    packed = gzip.compress((folder / "events.csv").read_bytes())
    (folder / "events.csv").unlink()
    (folder / "events.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="events.csv.gz: is damaged or cut short"):
        prepared(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "cohort.json").read_text())["key"] == key
    assert not (tmp_path / "out" / ".parts").exists()


def test_an_ingest_that_dies_leaves_the_cohort_and_the_next_one_begins_anew(tmp_path: Path) -> None:
    folder = icu_folder(tmp_path / "data", [(name, at / 100, "HR", 80 + at % 9) for name in "ab" for at in range(4000)])
    key = prepared(folder, tmp_path / "out").key
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from builders.records import prepared\n"
        "from wardround_client.sources.records.grid import hours\n"
        "from wardround_client.sources.records import ingest\n"
        "ingest.cells_of = lambda *_: os._exit(9)\n"
        "prepared(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    places = os.pathsep.join(str(ROOT / name) for name in ("tests", "shared", "client"))
    died = subprocess.run(words, env={**os.environ, "PYTHONPATH": places}, timeout=60)
    assert died.returncode == 9 and any((tmp_path / "out" / ".parts").iterdir())
    assert (tmp_path / "out" / ".parts").stat().st_mode & 0o077 == 0
    assert open_cohort(tmp_path / "out").key == key
    assert prepared(folder, tmp_path / "out").key == key and not (tmp_path / "out" / ".parts").exists()
