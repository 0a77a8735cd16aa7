"""What a cohort keeps about patients and scanners: bands of a fixed vocabulary, and never what a header says."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

import pydicom
import pytest
from builders.dicom_files import KEY, ct_study, ingest_ct, slice_hu, write_ct
from hypothesis import given
from hypothesis import strategies as st

from wardround_client.sources.cohort import CohortRow, open_cohort, pseudonym, write_cohort
from wardround_client.sources.images.attributes import (
    AGES,
    VALUES,
    Attributes,
    age_of,
    known_values,
    lesion_size_of,
    scanner_of,
    sex_of,
    thickness_of,
)
from wardround_client.sources.images.decoding.dicom_header import scan_dicom
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_simulation.phantoms.dicom import write_phantom_hospitals

anything = st.text() | st.floats() | st.integers() | st.none() | st.binary() | st.lists(st.text())


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as pool:
        yield pool


@given(anything, anything, anything)
def test_whatever_a_header_has_a_band_or_nothing_comes_out(one, two, three) -> None:
    Attributes(
        sex=sex_of(one),
        age=age_of(one, two, three),
        scanner=scanner_of(one),
        slice_thickness=thickness_of(one),
        lesion_size=lesion_size_of(one),
    )


@pytest.mark.parametrize("name", [field.name for field in fields(Attributes)])
def test_the_type_holds_no_text_but_its_vocabulary_and_quotes_none(name: str) -> None:
    for value in VALUES[name]:
        Attributes(**{name: value})
    for text in ("CANARY^Jane", "1.2.840.113", "45", " ", VALUES[name][0].upper()):
        with pytest.raises(ValueError, match=name) as error:
            Attributes(**{name: text})
        assert text.strip() == "" or text not in str(error.value)


@pytest.mark.parametrize(
    "age, born, examined, band",
    [
        ("045Y", "", "", "40 to 49"), ("089Y", "", "", "80 to 89"), ("090Y", "", "", "90 or older"),
        ("107Y", "", "", "90 or older"), ("018M", "", "", "0 to 9"), ("300D", "", "", "0 to 9"),
        ("", "19800615", "20200614", "30 to 39"), ("", "19800615", "20200615", "40 to 49"),
        ("050Y", "19000101", "20200101", "50 to 59"), ("", "20300101", "20200101", ""), ("", "1980", "20200101", ""),
        ("45", "", "", ""), ("999Y", "", "", ""), ("", "18000101", "20200101", ""), (None, None, None, ""),
    ],
)  # fmt: skip
def test_an_age_is_a_band_of_ten_years_on_the_day_of_the_examination(age, born, examined, band) -> None:
    assert age_of(age, born, examined) == band and band in ("", *AGES)


@pytest.mark.parametrize(
    "text, name",
    [
        ("SIEMENS", "Siemens"), ("Siemens Healthineers", "Siemens"), ("GE MEDICAL SYSTEMS", "GE"), ("GE", "GE"),
        ("GEORGE'S OWN", "other"), ("  philips ", "Philips"), ("TOSHIBA", "Canon"), ("Dr. Jane CANARY", "other"),
        ("AURORA IMAGING", "Aurora (phantom)"), ("", ""), (None, ""),
    ],
)  # fmt: skip
def test_a_manufacturer_is_one_of_a_short_list_or_other(text, name) -> None:
    assert scanner_of(text) == name


def test_sizes_have_bands_with_the_limit_in_the_upper_one() -> None:
    assert [thickness_of(mm) for mm in ("0.6", "1.5", 2.5, "5", "1e9")] == [
        "under 1.5 mm", "1.5 to 2.5 mm", "2.5 to 5 mm", "5 mm or more", "5 mm or more",
    ]  # fmt: skip
    assert [lesion_size_of(mm) for mm in (5.99, 6, 8, 15)] == ["under 6 mm", "6 to 8 mm", "8 to 15 mm", "15 mm or more"]
    assert [thickness_of(mm) for mm in ("", None, "0", "-2", "nan", "inf", "thick")] == [""] * 7


pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom, about the headers made here


def headers(folder: Path) -> None:
    tags = {
        "PatientSex": "F", "PatientAge": "061Y", "PatientBirthDate": "19590314", "StudyDate": "20200601",
        "Manufacturer": "SIEMENS", "SliceThickness": "1.25", "InstitutionName": "CANARY Hospital",
    }  # fmt: skip
    write_ct(folder / "one" / "a.dcm", slice_hu(1), PatientID="1", SeriesInstanceUID="1.1", **tags)
    other = {"Manufacturer": "CANARY Clinic", "PatientSex": "CANARY", "PatientAge": "CANARY", "PatientBirthDate": "19"}
    write_ct(folder / "one" / "b.dcm", slice_hu(2), PatientID="2", SeriesInstanceUID="1.2", **other)
    (folder / "one" / "labels.csv").write_text(
        "PatientID,label,diameter_mm\n1,benign,7.2\n2,malignant,\n", encoding="utf-8"
    )


def test_an_ingest_keeps_the_bands_and_nothing_else_of_the_header(tmp_path: Path, pool) -> None:
    headers(tmp_path / "data")
    ingest_ct(tmp_path / "data", tmp_path / "cohort", pool)
    cohort = open_cohort(tmp_path / "cohort")
    assert {name: cohort.extra[name] for name in VALUES} == {
        "sex": ("female", ""), "age": ("60 to 69", ""), "scanner": ("Siemens", "other"),
        "slice_thickness": ("under 1.5 mm", ""), "lesion_size": ("6 to 8 mm", ""),
    }  # fmt: skip
    for path in (tmp_path / "cohort").iterdir():
        assert not any(word in path.read_bytes() for word in (b"CANARY", b"19590314", b"20200601", b"061Y"))


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_an_enhanced_object_gives_its_thickness_in_its_functional_groups(tmp_path: Path, groups: str) -> None:
    measures, group = pydicom.Dataset(), pydicom.Dataset()
    measures.SliceThickness, measures.PixelSpacing = "3.0", [0.9, 0.9]
    group.PixelMeasuresSequence = pydicom.Sequence([measures])
    path = write_ct(tmp_path / "a.dcm", slice_hu(1)[None], PixelSpacing=None, **{groups: pydicom.Sequence([group])})
    assert scan_dicom(path, "0" * 64, ct_study(), KEY).attributes.slice_thickness == "2.5 to 5 mm"


def test_a_diameter_that_is_no_number_is_refused_by_row_and_column(tmp_path: Path, pool) -> None:
    headers(tmp_path / "data")
    table = tmp_path / "data" / "one" / "labels.csv"
    table.write_text("PatientID,label,diameter_mm\n1,benign,CANARY\n", encoding="utf-8")
    with pytest.raises(Exception, match="row 2: diameter_mm is not a number") as error:
        ingest_ct(tmp_path / "data", tmp_path / "cohort", pool)
    assert "CANARY" not in str(error.value)


def test_an_earlier_cohort_still_opens_and_a_new_ingest_fills_the_columns_without_decoding(
    tmp_path: Path, pool
) -> None:
    headers(tmp_path / "data")
    folder, data = tmp_path / "cohort", ct_study()
    (source,) = discover(tmp_path / "data", data, 1)
    before = ingest(source, data, folder, KEY, workers=1, pool=pool)
    cohort = open_cohort(folder)
    rows = [CohortRow(pseudonym=pseudonym(KEY, str(n + 1)), label=n, extra={"hu": "1"}) for n in range(2)]
    write_cohort(
        folder, rows, [cohort.values_N[n] for n in range(2)], row_shape=(1, 24, 24), label_names=data.labels,
        site_key=KEY, prepared_by=cohort.prepared_by,
    )  # fmt: skip
    assert set(open_cohort(folder).extra) == {"hu"} and open_cohort(folder).key == before.key
    again = ingest(source, data, folder, KEY, workers=1, pool=pool)
    assert again.decoded == 0 and again.key == before.key, "nothing that trains has changed"
    assert open_cohort(folder).extra["sex"] == ("female", "")


def test_other_attributes_of_the_same_pixels_give_the_same_cohort_for_training(tmp_path: Path, pool) -> None:
    keys = set()
    for name, sex in (("a", "F"), ("b", "M")):
        write_ct(tmp_path / name / "one" / "a.dcm", slice_hu(1), PatientSex=sex)
        keys.add(ingest_ct(tmp_path / name, tmp_path / f"cohort-{name}", pool).key)
    assert len(keys) == 1


def test_a_cell_of_a_table_that_is_no_band_is_read_as_unknown() -> None:
    assert known_values("sex", ["male", "CANARY", "", "Male"]) == ["male", "", "", ""]


def test_the_phantoms_sexes_and_labels_are_independent(tmp_path: Path) -> None:
    write_phantom_hospitals(tmp_path / "phantoms", 1, 5, seed=3)
    first = {}
    for path in sorted((tmp_path / "phantoms").rglob("IM0001.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        first[header.SeriesInstanceUID] = header.PatientSex
    with open(tmp_path / "phantoms" / "hospital-1" / "labels.csv", newline="", encoding="utf-8") as file:
        pairs = {(first[row["SeriesInstanceUID"]], row["label"]) for row in csv.DictReader(file)}
    assert len(pairs) == 4
