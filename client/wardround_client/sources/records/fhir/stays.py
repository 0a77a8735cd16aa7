"""Patients and their stays from FHIR: Patient, Encounter, and for the outcome Condition.

The outcome of a study is looked for in this order: a table of outcomes beside the export; for `in_hospital_death` the
discharge disposition of the encounter and the patient's time of death; a Condition whose code is the study's outcome.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.records.study import RecordsData
from wardround.storage.table import same_text
from wardround_client.sources.records.events import UNKNOWN, Events, Names
from wardround_client.sources.records.fhir.elements import codings, id_of, inside, patient_of, text, time
from wardround_client.sources.records.fhir.files import Resource, resources
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import HOUR_S, NO_LABEL, StayRows

DIED = "in_hospital_death"
EXPIRED = "exp"  # http://terminology.hl7.org/CodeSystem/discharge-disposition
INPATIENT = frozenset({"IMP", "ACUTE", "NONAC"})  # http://terminology.hl7.org/CodeSystem/v3-ActCode
NOT_A_STAY = frozenset({"planned", "cancelled", "entered-in-error"})
NOT_SO = frozenset({"refuted", "entered-in-error"})
OF_A_PATIENT = ("gender", "birthDate", "deceasedDateTime")
LONGEST_KEPT = 40  # characters of each of them
YEAR_S = 365.2425 * 24 * HOUR_S


@dataclass(frozen=True, kw_only=True)
class Encounter:
    """One stay, as its encounter gives it."""

    start_s: float
    zoned: bool
    end_s: float = math.nan
    inpatient: bool = False
    over: bool = False
    expired: bool = False


@dataclass(kw_only=True)
class Found:
    """What was read of all patients, by their id."""

    patients: dict[str, dict[str, str]] = field(default_factory=dict)  # `OF_A_PATIENT` of each
    encounters: dict[str, list[Encounter]] = field(default_factory=lambda: defaultdict(list))
    conditions: dict[str, list[tuple[float, bool]]] = field(default_factory=lambda: defaultdict(list))
    coded: bool = False  # a Condition has the code of the study's outcome


def stay_rows(paths: Iterable[Path], data: RecordsData, names: Names | None, counts: Counts) -> StayRows:
    """Return a row for each encounter of each patient; for a patient without one, a row without admission.

    Raises:
        DataError: A file cannot be read, or there is no patient.
    """
    found = Found()
    for path in paths:
        if not path.name.startswith("Observation"):
            for resource in resources(path, counts):
                _collect(found, resource, data, counts)
    if not found.patients:
        raise DataError(f"{next(iter(paths)).parent}: the FHIR files hold no Patient; export Patient too")
    stays = [(name, stay) for name in found.patients for stay in _stays(found.encounters.get(name, []))]
    labels = [_outcome(found, name, stay, data) for name, stay in stays]
    return StayRows(
        ids=[name for name, _ in stays],
        sites=[""] * len(stays),
        has_sites=False,
        admission_s_R=np.array([stay.start_s for _, stay in stays]),
        zoned_R=np.array([stay.zoned for _, stay in stays], dtype=bool),
        label_R=np.array([label for label, _, _ in labels], np.int16),
        has_outcome=same_text(data.outcome) == DIED or found.coded,
        has_outcome_time=True,
        outcome_s_R=np.array([seconds for _, seconds, _ in labels]),
        outcome_zoned_R=np.array([zoned for _, _, zoned in labels], dtype=bool),
        outcome_is_dated=True,
        unknown_outcome_R=np.zeros(len(stays), dtype=bool),
        events=_of_the_stay(found, stays, names),
    )


def _collect(found: Found, resource: Resource, data: RecordsData, counts: Counts) -> None:
    kind = resource["resourceType"]
    if kind == "Patient":
        name = id_of(resource.get("id"))
        if name:
            kept = {field: text(resource.get(field))[:LONGEST_KEPT] for field in OF_A_PATIENT}
            found.patients.setdefault(name, kept)
        else:
            counts.add("no_patient")
    elif kind == "Encounter":
        if text(resource.get("status")) not in NOT_A_STAY:
            found.encounters[patient_of(resource)].append(_encounter(resource))
    elif kind == "Condition":
        states = {code for _, code in codings(resource.get("verificationStatus"))}
        codes = {same_text(code) for _, code in codings(resource.get("code"))}
        if same_text(data.outcome) in codes and not states & NOT_SO:
            onset = resource.get("onsetDateTime") or inside(resource, "onsetPeriod", "start")
            seconds, zoned, day_only = time(onset or resource.get("recordedDate"))
            found.coded = True
            found.conditions[patient_of(resource)].append((math.nan if day_only else seconds, zoned))


def _encounter(resource: Resource) -> Encounter:
    start_s, zoned, day_only = time(inside(resource, "period", "start"))
    end_s, _, _ = time(inside(resource, "period", "end"))
    disposition = {code for _, code in codings(inside(resource, "hospitalization", "dischargeDisposition"))}
    return Encounter(
        start_s=math.nan if day_only else start_s,
        zoned=zoned,
        end_s=end_s,
        inpatient=text(inside(resource, "class", "code")) in INPATIENT,
        over=text(resource.get("status")) == "finished" or not math.isnan(end_s),
        expired=EXPIRED in disposition,
    )


def _stays(encounters: list[Encounter]) -> list[Encounter]:
    """Return the stays in hospital of a patient: the inpatient encounters, or all if there is none of them."""
    return [one for one in encounters if one.inpatient] or encounters or [Encounter(start_s=math.nan, zoned=False)]


def _outcome(found: Found, name: str, stay: Encounter, data: RecordsData) -> tuple[int, float, bool]:
    """Return the label of a stay, the time of its outcome (seconds since 1970), and whether that names its zone."""
    if same_text(data.outcome) == DIED:
        patient = found.patients[name]
        death_s, zoned, day_only = time(patient["deceasedDateTime"])
        within = not math.isnan(death_s) and death_s >= stay.start_s - HOUR_S * 24 * day_only
        if stay.expired or (within and not math.isnan(stay.end_s) and death_s <= stay.end_s):
            known = not math.isnan(death_s) and not day_only
            return 1, death_s if known else stay.end_s, zoned if known else stay.zoned
        return (0 if stay.over else NO_LABEL), math.nan, stay.zoned
    if not found.coded:
        return NO_LABEL, math.nan, stay.zoned
    after = [one for one in found.conditions.get(name, []) if not one[0] < stay.start_s]
    return (1, *min(after)) if after else (0, math.nan, stay.zoned)


def _of_the_stay(found: Found, stays: list[tuple[str, Encounter]], names: Names | None) -> Events:
    """Return age and sex of each stay, if the vocabulary has them."""
    rows: list[tuple[int, int, int, float]] = []
    if names is not None:
        age, sex = names.find("age"), names.find("sex")
        for row, (name, stay) in enumerate(stays):
            patient = found.patients[name]
            years = _age(patient["birthDate"], stay.start_s)
            if age[0] != UNKNOWN and years is not None:
                rows.append((row, *age, years))
            code = None if sex[0] == UNKNOWN else names.category(sex[0], patient["gender"])
            if code is not None:
                rows.append((row, *sex, code))
    return Events(
        patient_N=np.array([row for row, _, _, _ in rows], np.int32),
        second_N=np.zeros(len(rows), np.int64),
        variable_N=np.array([variable for _, variable, _, _ in rows], np.int16),
        name_rank_N=np.array([rank for _, _, rank, _ in rows], np.int16),
        value_N=np.array([value for _, _, _, value in rows], np.float64),
    )


def _age(born: str, admission_s: float) -> float | None:
    """Return the age in whole years at admission. Of a year or a month alone, its middle is taken."""
    full = {4: f"{born}-07-01", 7: f"{born}-15"}.get(len(born), born)
    seconds, _, _ = time(full)
    years = (admission_s - seconds) / YEAR_S
    return None if math.isnan(years) else float(math.floor(years))
