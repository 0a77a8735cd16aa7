"""Sex and band of age of a row, from the vocabulary's own variables: columns of the cohort's table.

They serve to test a model by group, as for images (`sources/images/attributes.py`). Nothing trains on them, and a
vocabulary without these variables has no such columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from wardround.sources.records.vocabulary import Vocabulary
from wardround_client.sources.bands import SEXES, age_band


def columns_of_rows(rows: Iterable[np.ndarray], vocabulary: Vocabulary) -> Iterator[dict[str, str]]:
    """Yield the columns of each row (hours, variables); "" where the row does not give it."""
    place = {variable.name.casefold(): index for index, variable in enumerate(vocabulary.variables)}
    sex, age = place.get("sex"), place.get("age")
    known: dict[tuple[str, ...], dict[str, str]] = {}  # rows with the same values share one mapping
    for row in rows:
        columns = {}
        if sex is not None:
            code = float(row[0, sex])
            name = "" if math.isnan(code) else vocabulary.variables[sex].categories[int(code)]
            columns["sex"] = name if name in SEXES else ""
        if age is not None:
            years = float(row[0, age])
            columns["age"] = "" if math.isnan(years) else age_band(years)
        yield known.setdefault(tuple(columns.values()), columns)
