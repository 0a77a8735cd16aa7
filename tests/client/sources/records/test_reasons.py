"""Reasons and vocabularies agree with each other and with docs/records.md."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
from paths import ROOT

from wardround.sources.records.vocabulary import SHIPPED, load_vocabulary
from wardround_client.sources.records.events import Names
from wardround_client.sources.records.quality.reasons import REASONS
from wardround_client.sources.records.source import LEFT_OUT
from wardround_client.sources.records.units import plain_unit

PAGE = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")


def test_every_reason_is_explained_in_the_documentation_and_none_suggests_removal() -> None:
    documented = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)
    assert set(REASONS) <= set(documented)
    for code, reason in REASONS.items():
        assert not re.search(r"delet|remov|exclud|discard", reason.title + reason.advice, re.IGNORECASE), code
        if not reason.fault and code not in LEFT_OUT:
            assert reason.advice, code
    assert not any(REASONS[code].fault for code in LEFT_OUT)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_vocabulary_is_unambiguous_and_its_repairs_end_in_the_possible_range(name: str) -> None:
    vocabulary = load_vocabulary(name)
    codes = Counter(code for variable in vocabulary.variables for code in variable.loinc)
    assert max(codes.values(), default=1) == 1 and all(re.fullmatch(r"\d{1,5}-\d", code) for code in codes)
    names = Names(vocabulary)
    for index, variable in enumerate(vocabulary.variables):
        assert all(names.find(text)[0] == index for text in (variable.name, *variable.also, *variable.loinc))
        for mistake in variable.mistakes:
            assert not REASONS[mistake.reason].fault
            for value in (mistake.low, mistake.high):
                repaired = value * mistake.factor + mistake.offset
                assert variable.lowest * 0.9 <= repaired <= variable.highest * 1.1, variable.name
        for unit in variable.units:
            assert plain_unit(unit.unit) != plain_unit(variable.unit) and unit.factor > 0, variable.name
            assert names.conversion(index, unit.unit) == (unit.factor, unit.offset)
        if variable.codes:
            assert len(variable.codes) == len(variable.categories)
        assert variable.of_the_stay or variable.kind == "event" or math.isfinite(variable.lowest), variable.name
    for order in vocabulary.orders:
        assert order.lower in vocabulary.names and order.upper in vocabulary.names


def test_the_page_lists_the_vocabulary_as_it_is() -> None:
    for variable in load_vocabulary("icu").variables:
        unit = "" if variable.unit == "1" else variable.unit
        span = f"{variable.lowest:g} to {variable.highest:g}" if math.isfinite(variable.lowest) else ""
        assert f"| `{variable.name}` | {variable.title} | {unit} | {span} | {', '.join(variable.loinc)} |" in PAGE


@pytest.mark.parametrize(
    "one, other",
    [
        ("mm[Hg]", "mmHg"), ("{beats}/min", "/min"), ("beats/min", "1/min"), ("°C", "Cel"), ("10*9/L", "K/uL"),
        ("mg/dl", "mg/dL"),
        ("µmol/l", "umol/L"), ("\u03bcmol/L", "umol/L"), ("ml", "mL"), ("ng/mL", "ug/L"), ("[pH]", "1"),
        ("{score}", ""),
        ("mEq/L", "meq/L"), ("IU/L", "U/L"), ("mm Hg", "mmHg"),
    ],
)  # fmt: skip
def test_spellings_of_a_unit_are_one(one: str, other: str) -> None:
    assert plain_unit(one) == plain_unit(other)


@pytest.mark.parametrize(
    "one, other", [("mg/dL", "g/dL"), ("mmol/L", "umol/L"), ("Mg", "mg"), ("mL", "L"), ("kPa", "mmHg")]
)
def test_different_units_stay_apart(one: str, other: str) -> None:
    assert plain_unit(one) != plain_unit(other)


@pytest.mark.parametrize(
    "text, place",
    [("0", 0), ("1.0", 1), ("Female", 0), ("M", 1), ("f", 0), ("2", None), ("-1", None), ("x", None), ("", None)],
)
def test_a_category_is_found_by_code_name_or_initial(text: str, place: int | None) -> None:
    vocabulary = load_vocabulary("icu")
    assert Names(vocabulary).category(vocabulary.index("Sex"), text) == place


def test_an_initial_that_two_categories_share_is_none_of_them() -> None:
    vocabulary = load_vocabulary("heart")
    assert Names(vocabulary).category(vocabulary.index("cp"), "n") is None  # non-anginal pain, no symptoms
