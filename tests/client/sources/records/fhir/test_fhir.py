"""FHIR R4 from an export to a cohort: patients, stays, outcomes, codes, units, and resources that cannot be right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from builders.fhir import LOINC, bundle, coded, condition, encounter, ndjson, observation, patient
from builders.records import ICU, KEY, cohort_of, hours_of, prepared, quarantine_of, reasons_of, table
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import DataError
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.records import source
from wardround_client.sources.records.events import Names
from wardround_client.sources.records.fhir import files, observations, stays
from wardround_client.sources.records.fhir.elements import patient_of
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.tables.long_table import Owners

DEATH = ICU.model_copy(update={"outcome": "in_hospital_death"})
DAY = "2026-01-01"
STAYS = [
    patient("a"),
    encounter("a", f"{DAY}T08:00:00+01:00", "2026-01-09T10:00:00+01:00"),
    patient("b", gender="male", birthDate="1931", deceasedDateTime="2026-01-02T07:30:00Z"),
    encounter("b", f"{DAY}T07:00:00Z", "2026-01-02T08:00:00Z", disposition="exp"),
]
HR = [
    observation("a", "8867-4", 80, "/min", f"{DAY}T09:30:00+01:00"),
    observation("b", "8867-4", 90, "/min", f"{DAY}T07:10:00Z"),
]


@pytest.mark.parametrize("form", ["ndjson", "packed", "bundle", "bundles"])
def test_every_form_of_an_export_gives_the_same_cohort(tmp_path: Path, form: str) -> None:
    if form == "bundle":
        bundle(tmp_path / "data" / "all.json", [*STAYS, *HR])
    elif form == "bundles":
        for name in "ab":
            own = [one for one in [*STAYS, *HR] if f'"{name}"' in json.dumps(one) or f'/{name}"' in json.dumps(one)]
            bundle(tmp_path / "data" / f"{name}.json", own)
    else:
        ndjson(tmp_path / "data", [*STAYS, *HR], packed=form == "packed")
    cohort = cohort_of(tmp_path / "data", tmp_path / "out", DEATH)
    assert cohort.pseudonyms == (pseudonym(KEY, "a"), pseudonym(KEY, "b")) and cohort.labels_N.tolist() == [0, 1]
    assert hours_of(cohort, 0, "HR") == {1: 80} and hours_of(cohort, 1, "HR") == {0: 90}
    assert cohort.extra == {"sex": ("female", "male"), "age": ("70 to 79", "90 or older")}
    assert reasons_of(tmp_path / "out") == {"early_outcome": 1, "few_measurements": 2, "few_of_class": 2}


def test_codes_units_and_components_follow_the_vocabulary(tmp_path: Path) -> None:
    at = f"{DAY}T10:30:00+01:00"
    pressure = {
        "resourceType": "Observation", "status": "final", "subject": {"reference": "https://ehr.example/fhir/Patient/a"},
        "code": coded("85354-9"), "effectivePeriod": {"start": at},
        "component": [
            {"code": coded("8480-6"), "valueQuantity": {"value": 130, "code": "mm[Hg]"}},
            {"code": coded("8462-4"), "valueQuantity": {"value": 10, "code": "kPa"}},
        ],
    }  # fmt: skip
    more = [
        pressure,
        observation("a", "8310-5", 98.6, "[degF]", at),
        observation("a", "6690-2", 9.5, "10*9/L", at),
        observation("a", "2345-7", 5, "mmol/L", at),
        observation("a", "2345-7", 5, "stone", at),
        observation("a", "9269-2", 15, "{score}", at),
        observation("a", "8302-2", 1.7, "m", DAY),  # a height needs no time
        observation("a", "9999-9", 1, "1", at),
        observation("a", "2823-3", 4, "mmol/L", at, status="entered-in-error"),
        observation("a", "2823-3", 4, "mmol/L", DAY),
        observation("a", "2823-3", 4, "mmol/L", f"{DAY}T10:30:00"),
        observation("a", "2823-3", 4, "mmol/L", "2025-12-31T10:30:00Z"),
        observation("a", "2823-3", 4, "mmol/L", "0001-12-31T10:30:00Z"),  # no patient is two thousand years old
        observation("nobody", "2823-3", 4, "mmol/L", at),
        {
            **observation("a", "2823-3", 4, "mmol/L", at),
            "valueQuantity": {"value": 3, "comparator": "<", "code": "mmol/L"},
        },
        {**observation("a", "2823-3", 4, "mmol/L", at), "valueQuantity": {"unit": "mmol/L"}},
    ]
    ndjson(tmp_path / "data", [*STAYS, *HR, *more])
    cohort = cohort_of(tmp_path / "data", tmp_path / "out", DEATH)
    found = {name: hours_of(cohort, 0, name) for name in ("SysABP", "DiasABP", "Temp", "WBC", "Glucose", "GCS", "K")}
    assert found == {
        "SysABP": {2: 130}, "DiasABP": {2: pytest.approx(75, abs=0.1)}, "Temp": {2: pytest.approx(37, abs=1e-3)},
        "WBC": {2: 9.5}, "Glucose": {2: pytest.approx(90.08, abs=0.01)}, "GCS": {2: 15}, "K": {},
    }  # fmt: skip
    assert hours_of(cohort, 0, "Height") == {0: pytest.approx(170)}
    expected = {
        "unknown_unit": 1, "unknown_variable": 1, "not_final": 1, "day_only": 1, "mixed_zones": 1, "not_a_number": 1,
        "before_admission": 1, "no_time": 1, "unknown_patient": 1, "no_value": 1, "unit_converted": 4,
        "early_outcome": 1,
    }  # fmt: skip
    assert expected.items() <= reasons_of(tmp_path / "out").items()
    assert ("a", "unknown_unit", "Glucose") in quarantine_of(tmp_path / "out")


def test_the_first_stay_in_hospital_is_taken(tmp_path: Path) -> None:
    visits = [
        encounter("a", "2025-01-01T08:00:00Z", "2025-01-01T09:00:00Z", **{"class": {"code": "AMB"}}),
        encounter("a", "2025-06-01T08:00:00Z", status="cancelled"),
        encounter("a", "2026-02-01T08:00:00Z", "2026-02-02T08:00:00Z", disposition="exp"),
    ]
    ndjson(tmp_path / "data", [*STAYS, *visits, *HR])
    cohort = cohort_of(tmp_path / "data", tmp_path / "out", DEATH)
    assert cohort.labels_N.tolist() == [0, 1] and hours_of(cohort, 0, "HR") == {1: 80}
    assert reasons_of(tmp_path / "out")["later_stay"] == 1


def test_a_condition_or_a_table_may_be_the_outcome(tmp_path: Path) -> None:
    onsets = [
        condition("a", "A41.9", "2026-01-04T00:00:00Z"),
        condition("b", "A41.9", "2026-01-04T00:00:00Z", "refuted"),
    ]
    ndjson(tmp_path / "data", [*STAYS, *HR, *onsets])
    sepsis = ICU.model_copy(update={"outcome": "A41.9", "horizon_hours": 48.0})
    assert cohort_of(tmp_path / "data", tmp_path / "out", sepsis).labels_N.tolist() == [1, 0]
    sooner = sepsis.model_copy(update={"horizon_hours": 12.0})
    with pytest.raises(DataError, match="every outcome is survived"):
        source.discover(tmp_path / "data", sooner)
    with pytest.raises(DataError, match="give a table outcomes.csv"):
        source.discover(tmp_path / "data", ICU)
    table(tmp_path / "data" / "outcomes.csv", ("patient_id", "died"), [("a", "died"), ("b", "survived")])
    assert cohort_of(tmp_path / "data", tmp_path / "out").labels_N.tolist() == [1, 0]


def test_folders_are_sites_and_a_pool_is_split(tmp_path: Path) -> None:
    ndjson(tmp_path / "pool", [*STAYS, *HR])
    assert [len(site.chosen) for site in source.discover(tmp_path / "pool", DEATH, 2)] == [1, 1]
    ndjson(tmp_path / "sites" / "north", [*STAYS[:2], HR[0]])
    ndjson(tmp_path / "sites" / "south", [*STAYS[2:], HR[1]])
    found = source.discover(tmp_path / "sites", DEATH)
    assert [site.name for site in found] == ["north", "south"]
    for site in found:
        source.ingest(site, DEATH, tmp_path / site.name, KEY, workers=1)
    assert open_cohort(tmp_path / "south").labels_N.tolist() == [1]


def test_lines_that_are_no_resources_are_counted(tmp_path: Path) -> None:
    more = [observation("a", "8867-4", 80, "/min", f"{DAY}T{hour}:30:00Z") for hour in range(10, 20)]
    folder = ndjson(tmp_path / "data", [*STAYS, *HR, *more])
    with open(folder / "Observation.000.ndjson", "ab") as file:
        file.write(b'{"resourceType":\n[1]\n{}\n\xff\xfe\n' + b"[" * 5000 + b"\n\n   \n")
    with open(folder / "Patient.000.ndjson", "ab") as file:
        file.write(b'{"resourceType":"Patient"}\n{"resourceType":"Patient","id":7}\nnull\n')
    prepared(folder, tmp_path / "out", DEATH)
    assert reasons_of(tmp_path / "out")["unreadable_resource"] == 6 and reasons_of(tmp_path / "out")["no_patient"] == 2


def test_a_damaged_export_is_one_line(tmp_path: Path) -> None:
    folder = ndjson(tmp_path / "data", [*STAYS, *HR], packed=True)
    whole = (folder / "Observation.000.ndjson.gz").read_bytes()
    (folder / "Observation.000.ndjson.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="damaged or cut short") as error:
        prepared(folder, tmp_path / "out", DEATH)
    assert "Observation.000.ndjson.gz" in str(error.value)
    bundle(tmp_path / "named" / "CANARY_Name.json", STAYS)
    (tmp_path / "named" / "CANARY_Other.json").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="a FHIR file in it: cannot be read") as error:
        source.discover(tmp_path / "named", DEATH)
    assert "CANARY" not in str(error.value)
    ndjson(tmp_path / "empty", HR)
    with pytest.raises(DataError, match="hold no Patient"):
        source.discover(tmp_path / "empty", DEATH)


def test_a_line_or_a_bundle_that_unpacks_into_too_much_is_not_parsed(tmp_path: Path) -> None:
    long = b'{"resourceType":"Observation","x":[' + b"{}," * 400_000 + b"{}]}\n"
    path, counts = tmp_path / "Observation.ndjson.gz", Counts()
    path.write_bytes(gzip.compress(long + json.dumps(HR[0]).encode(), 1))
    assert list(files.resources(path, counts)) == HR[:1] and counts.of_reason == {"unreadable_resource": 1}
    for entry in (b"{},", b"[],"):
        path = tmp_path / "all.json.gz"
        path.write_bytes(gzip.compress(b'{"resourceType":"Bundle","entry":[' + entry * 2_000_000 + b"{}]}", 1))
        with pytest.raises(DataError, match="more than 2,000,000 elements"):
            next(files.resources(path, counts))
    path.write_bytes(gzip.compress(b'{"resourceType":"Bundle"}' + b" " * files.LARGEST_BUNDLE, 1))
    with pytest.raises(DataError, match="larger than 32 MB"):
        next(files.resources(path, counts))


def test_what_is_kept_of_an_export_is_short(tmp_path: Path) -> None:
    long, counts, found = "x" * 129, Counts(), stays.Found()
    for one in (patient("a", gender="f" * 1000, birthDate="1" * 1000), patient(long), encounter(long, DAY)):
        stays._collect(found, one, DEATH, counts)
    assert found.patients == {"a": {"gender": "f" * 40, "birthDate": "1" * 40, "deceasedDateTime": ""}}
    assert list(found.encounters) == [""] and counts.of_reason == {"no_patient": 1}
    reader = observations._Reader(Owners(index={"a": 0}, others=()), Names(load_vocabulary("icu")), counts)
    for number in range(observations.MOST_CACHED + 100):
        reader.read(observation("a", f"{number}-x", 80, "/min", DAY))
        reader.read(observation("a", "8867-4", 80, f"unit {number}", DAY))
        reader.read(observation("a", " " * number + "8867-4", 80, " " * number + "/min", DAY))
    assert len(reader._places) == 1 and len(reader._conversions) == 1


@pytest.mark.parametrize(
    "reference, name",
    [
        ("Patient/a", "a"), ("https://ehr.example/r4/Patient/a", "a"), ("Patient/a/_history/3", "a"),
        ("urn:uuid:0c-1", "0c-1"), ("a", "a"), ("Group/a", ""), (None, ""), (["Patient/a"], ""),
        ("Patient/" + "a" * 129, ""), ("urn:uuid:" + "a" * 129, ""),
    ],
)  # fmt: skip
def test_a_reference_names_a_patient(reference: Any, name: str) -> None:
    assert patient_of({"subject": {"reference": reference}}) == name


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["8867-4", LOINC, DAY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    *("id", "subject", "period", "class", "hospitalization", "code", "valueQuantity", "component", "effectiveDateTime"),
    *("status", "birthDate", "gender", "deceasedDateTime", "verificationStatus", "onsetDateTime", "valueBoolean"),
)


@given(
    resource=st.sampled_from([*STAYS, *HR, condition("a", "A41.9", DAY)]), field=st.sampled_from(FIELDS), value=ANYTHING
)
def test_whatever_stands_in_an_element_is_no_error(resource: dict, field: str, value: Any) -> None:
    changed, counts, names = {**resource, field: value}, Counts(), Names(load_vocabulary("icu"))
    found = stays.Found()
    for one in (*STAYS, changed):
        stays._collect(found, one, DEATH, counts)
    rows = [(name, stay) for name in found.patients for stay in stays._stays(found.encounters.get(name, []))]
    for name, stay in rows:
        stays._outcome(found, name, stay, DEATH)
    stays._of_the_stay(found, rows, names)
    reader = observations._Reader(Owners(index={"a": 0, "b": 1}, others=()), names, counts)
    if changed["resourceType"] == "Observation":
        reader.read(changed)
    reader.taken()
