"""Measurements from FHIR: Observation, with LOINC codes and UCUM units, alone or as components of a panel."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wardround_client.sources.records.events import UNKNOWN, Events, Names
from wardround_client.sources.records.fhir.elements import LOINC, codings, inside, number, patient_of, text, time
from wardround_client.sources.records.fhir.files import resources
from wardround_client.sources.records.quality.counts import Counts
from wardround_client.sources.records.stays import Stays, times_in_stay
from wardround_client.sources.records.tables.long_table import Owners

BATCH = 50_000  # measurements
MOST_CACHED = 1_000  # codes, and units; others are looked up each time
NOT_FINAL = frozenset({"registered", "cancelled", "entered-in-error", "unknown"})
PASSED_OVER = ("Patient", "Encounter", "Condition")  # files of a bulk export, by the beginning of their names
Row = tuple[int, float, bool, bool, int, int, float]  # patient, time, zone, day only, variable, rank, value


def observed(paths: Iterable[Path], owners: Owners, stays: Stays, names: Names, counts: Counts) -> Iterator[Events]:
    """Yield the measurements of this site's patients, batch by batch. What cannot be used is counted."""
    reader = _Reader(owners, names, counts)
    nowhere = Counts()  # the resources that are not observations were counted with the stays
    for path in paths:
        if path.name.startswith(PASSED_OVER):
            continue
        own = counts if path.name.startswith("Observation") and owners.count_strays else nowhere
        for resource in resources(path, own):
            if resource["resourceType"] == "Observation":
                reader.read(resource)
            if len(reader.rows) >= BATCH:
                yield _events(reader.taken(), stays, names, counts)
    yield _events(reader.taken(), stays, names, counts)


class _Reader:
    """Collects the measurements of observations."""

    def __init__(self, owners: Owners, names: Names, counts: Counts) -> None:
        self.rows: list[Row] = []
        self._owners, self._names, self._counts = owners, names, counts
        self._conversions: dict[tuple[int, str], tuple[float, float]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._reasons: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)  # code -> (patient, variable)

    def taken(self) -> list[Row]:
        """Return the measurements so far, and begin again."""
        for code, found in self._reasons.items():
            pairs = np.array([pair for pair, count in found.items() for _ in range(count)]).reshape(-1, 2)
            self._counts.add_rows(code, pairs[:, 0], pairs[:, 1])
        self._reasons.clear()
        rows, self.rows = self.rows, []
        return rows

    def read(self, resource: dict[str, Any]) -> None:
        """Take the measurements of one observation."""
        name = patient_of(resource)
        patient = self._owners.index.get(name, UNKNOWN)
        if patient == UNKNOWN:
            if self._owners.count_strays and name not in self._owners.others:
                self._counts.add("unknown_patient" if name else "no_patient")
            return
        if text(resource.get("status")) in NOT_FINAL:
            self._reasons["not_final"][patient, UNKNOWN] += 1
            return
        when = time(
            resource.get("effectiveDateTime")
            or resource.get("effectiveInstant")
            or inside(resource, "effectivePeriod", "start")
        )
        components = resource.get("component")
        for part in (resource, *(components if isinstance(components, list) else ())):
            if part is resource and components and not any(key.startswith("value") for key in resource):
                continue  # a panel: its values are in the components
            self._take(part, patient, when)

    def _take(self, part: Any, patient: int, when: tuple[float, bool, bool]) -> None:
        variable, rank = self._variable(inside(part, "code"))
        if variable == UNKNOWN:
            return
        value, reason = self._value(part, variable)
        if reason:
            self._reasons[reason][patient, variable] += 1
        if value is not None:
            self.rows.append((patient, *when, variable, rank, value))

    def _variable(self, concept: Any) -> tuple[int, int]:
        """Return the variable of a code: of its LOINC codings, the first that the vocabulary has."""
        codes = [code for system, code in codings(concept) if system == LOINC]
        for code in codes:
            place = self._places.get(code)
            if place is None:
                place = self._names.find(code)
                if place[0] != UNKNOWN and len(self._places) < MOST_CACHED:  # a file may hold any number of other codes
                    self._places[code] = place
            if place[0] != UNKNOWN:
                return place
        self._counts.add_unknown(codes[0] if codes else "no LOINC code", 1)
        return UNKNOWN, 0

    def _value(self, part: Any, variable: int) -> tuple[float | None, str]:
        """Return the value in the vocabulary's unit, and the reason why there is none or what was done to it."""
        known = self._names.vocabulary.variables[variable]
        quantity = inside(part, "valueQuantity")
        if isinstance(quantity, dict) and known.kind != "category":
            value = number(quantity.get("value"))
            if value is None or text(quantity.get("comparator")):
                return None, "no_value" if quantity.get("value") is None else "not_a_number"
            unit = text(quantity.get("code")) or text(quantity.get("unit"))
            conversion = self._conversions.get((variable, unit)) or self._names.conversion(variable, unit)
            if conversion is None:
                return None, "unknown_unit"
            if len(self._conversions) < MOST_CACHED:
                self._conversions[variable, unit] = conversion
            changed = conversion != (1.0, 0.0)
            return value * conversion[0] + conversion[1], "unit_converted" if changed else ""
        for key in ("valueInteger", "valueBoolean"):
            found = inside(part, key)
            if isinstance(found, (bool, int)) and known.kind != "category":
                value = number(int(found))
                return value, "" if value is not None else "not_a_number"
        concept = inside(part, "valueCodeableConcept")
        texts = [code for _, code in codings(concept)] + [
            text(inside(concept, "text")),
            text(inside(part, "valueString")),
        ]
        if known.kind == "category":
            places = (self._names.category(variable, one) for one in texts if one)
            found = next((place for place in places if place is not None), None)
            return found, "" if found is not None else "not_a_number"
        return None, "not_a_number" if any(texts) else "no_value"


def _events(rows: list[Row], stays: Stays, names: Names, counts: Counts) -> Events:
    """Return measurements with their time since admission; count those whose time cannot be used."""
    patient_N = np.array([row[0] for row in rows], np.int32)
    time_N = np.array([row[1] for row in rows], np.float64)
    zoned_N = np.array([row[2] for row in rows], dtype=bool)
    day_only_N = np.array([row[3] for row in rows], dtype=bool)
    variable_N = np.array([row[4] for row in rows], np.int16)
    found = times_in_stay(stays, patient_N, time_N, zoned_N, day_only_N)
    of_stay_V = np.array([variable.of_the_stay for variable in names.vocabulary.variables])
    lost_N = np.isnan(found.seconds_N) & ~of_stay_V[variable_N]  # what holds for the whole stay needs no time
    for code, rows_N in found.unknown.items():
        counts.add_rows(code, patient_N[lost_N & rows_N], variable_N[lost_N & rows_N])
    events = Events(
        patient_N=patient_N,
        second_N=np.rint(np.nan_to_num(found.seconds_N)).astype(np.int64),
        variable_N=variable_N,
        name_rank_N=np.array([row[5] for row in rows], np.int16),
        value_N=np.array([row[6] for row in rows], np.float64),
    )
    return events.where(~lost_N)
