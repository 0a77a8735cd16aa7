"""Measurements as arrays, whatever they were read from: tables or FHIR.

Names of arrays: N rows. Times are whole seconds since the patient's admission.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from wardround.sources.records.vocabulary import Vocabulary
from wardround.storage.table import same_text
from wardround_client.sources.records.units import plain_unit

UNKNOWN = -1  # no variable, or no patient
WHOLE = re.compile(r"-?\d+(\.0*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Events:
    """Measurements of some patients, in any order."""

    patient_N: np.ndarray  # int32, index into the stays
    second_N: np.ndarray  # int64, since admission; 0 for what has no time
    variable_N: np.ndarray  # int16, index into the vocabulary
    name_rank_N: np.ndarray  # int16; 0: the first name or code of the variable in the vocabulary, which is preferred
    value_N: np.ndarray  # float64

    def __len__(self) -> int:
        return len(self.patient_N)

    def where(self, keep_N: np.ndarray) -> Events:
        """Return the rows for which `keep_N` is true, or those with these indices."""
        return Events(
            patient_N=self.patient_N[keep_N],
            second_N=self.second_N[keep_N],
            variable_N=self.variable_N[keep_N],
            name_rank_N=self.name_rank_N[keep_N],
            value_N=self.value_N[keep_N],
        )


def joined(parts: list[Events]) -> Events:
    """Return all measurements of the parts in order."""
    return Events(
        patient_N=np.concatenate([np.empty(0, np.int32), *(part.patient_N for part in parts)]),
        second_N=np.concatenate([np.empty(0, np.int64), *(part.second_N for part in parts)]),
        variable_N=np.concatenate([np.empty(0, np.int16), *(part.variable_N for part in parts)]),
        name_rank_N=np.concatenate([np.empty(0, np.int16), *(part.name_rank_N for part in parts)]),
        value_N=np.concatenate([np.empty(0, np.float64), *(part.value_N for part in parts)]),
    )


class Names:
    """Finds a variable of the vocabulary by any of its names, a conversion by its unit, and a category by its code."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._found: dict[str, tuple[int, int]] = {}
        for index, variable in enumerate(vocabulary.variables):
            for rank, name in enumerate((variable.name, *variable.also)):
                self._found.setdefault(same_text(name), (index, rank))
            for rank, code in enumerate(variable.loinc):
                self._found.setdefault(code, (index, rank))

    def find(self, name: str) -> tuple[int, int]:
        """Return the index and the rank of a name; (UNKNOWN, 0) if no variable has it."""
        return self._found.get(same_text(name), (UNKNOWN, 0))

    def conversion(self, variable: int, unit: str) -> tuple[float, float] | None:
        """Return factor and offset from a unit to the variable's own; None if the unit is not known for it.

        Without a unit the value is taken to be in the variable's own. UCUM units are case-sensitive (`mL`, `Cel`).
        """
        known = self.vocabulary.variables[variable]
        unit = plain_unit(unit)
        if unit in ("", plain_unit(known.unit)):
            return 1.0, 0.0
        return next(((one.factor, one.offset) for one in known.units if plain_unit(one.unit) == unit), None)

    def category(self, variable: int, text: str) -> float | None:
        """Return the place of a category among those of its variable, else None.

        It is found by its code in files, by its name, or by the first letter of its name if no other has it: F and M.
        """
        known = self.vocabulary.variables[variable]
        number = text.split(".", 1)[0] if WHOLE.fullmatch(text) else text
        codes = known.codes or tuple(map(str, range(len(known.categories))))
        for names in (codes, known.categories):
            place = {same_text(name): index for index, name in enumerate(names)}
            if same_text(number) in place:
                return float(place[same_text(number)])
        initials = [name[:1].casefold() for name in known.categories]
        return float(initials.index(text.casefold())) if initials.count(text.casefold()) == 1 else None
