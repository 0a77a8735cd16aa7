"""The report of a comparison: all folds, correct intervals, paired differences, and unchanged figures of every row."""

from __future__ import annotations

import html
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wardround.study.load import Study, parse_study
from wardround_simulation.compare.by_hospital import hospital_table
from wardround_simulation.compare.report import comparison_table, write_comparison
from wardround_simulation.compare.statistics import by_fold, mean_over_folds, minus, patients_tested

SITES = ("north", "<i>south</i>")


def study() -> Study:
    return parse_study({
        "study": {"name": "shapes", "rounds": 4},
        "data": {"labels": ["round", "spiky"]},
        "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 50},
        "aggregation": {"nominal_sites": 2},
    })  # fmt: skip


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    shown = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S))
    return " ".join(shown.replace("\xa0", " ").split())


def rows(splits: int = 2, folds: int = 3, draws: int = 2) -> list[dict[str, Any]]:
    """AUCs known by heart: federated .9 at inf, .8 at 1, plus a hundredth a fold; alone a tenth less; start .7."""
    out = []
    for split in range(splits):
        for fold in range(folds):
            for epsilon, auc in (("inf", 0.9), (1, 0.8)):
                for draw in range(draws):
                    wobble = 0.01 * fold + (0.005 if draw % 2 else -0.005) * (epsilon == 1)
                    for setting, site, less in (
                        ("federated", None, 0),
                        ("pooled", None, 0),
                        *(("alone", s, 0.1) for s in SITES),
                    ):
                        by_site = {s: {"auc": auc - less + wobble, "patients": 5, "start_auc": 0.7} for s in SITES}
                        if fold == 2:
                            by_site[SITES[1]] = {"auc": None, "patients": 5, "start_auc": None}
                        row = {
                            "setting": setting,
                            "epsilon": epsilon,
                            "split": f"s{split}",
                            "fold": fold,
                            "draw": draw,
                            "unit": "slice",
                        }
                        row |= {"auc": auc - less + wobble, "patients": 10, "start_auc": 0.7, "sites": by_site}
                        out.append(row | ({"site": site} if site else {}))
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of `rows()`."""
    return written(tmp_path_factory.mktemp("comparison"), rows())


def written(folder: Path, made_from: list[dict[str, Any]]) -> str:
    return write_comparison(folder, made_from, study(), ["8-bit images ignore window_hu"]).read_text(encoding="utf-8")


def test_a_comparison_loads_nothing_and_escapes_its_names(page: str) -> None:
    assert not re.search(r"<(script|link|iframe|img)\b|@import|https?://|src=", page)
    assert all(target.startswith("#") for target in re.findall(r"(?:href=\"|url\()([^\")]*)", page))
    assert "<i>" not in page and "<i>south</i>" in text_of(page)


def test_the_table_holds_the_means_of_all_folds_and_draws(page: str) -> None:
    seen = text_of(page)
    assert re.search(r"federated 0\.910 \S+ 0\.810 ", seen) and re.search(
        r"alone, mean of the sites 0\.810 \S+ 0\.710 ", seen
    )
    assert "start 0.700" in seen and "over 6 folds of 2 splits (30 patients tested per split)" in seen
    assert study().sha256() in seen and "8-bit images ignore window_hu" in seen


def test_every_fold_is_shown(page: str) -> None:
    seen = text_of(page)
    for split in ("s0", "s1"):
        for fold in range(3):
            assert f"{split} {fold} {0.9 + fold / 100:.3f} {0.8 + fold / 100:.3f}" in seen


def test_the_gain_is_paired_with_the_start_on_the_same_patients(page: str) -> None:
    seen = text_of(page)
    gains = seen[seen.index("Against the public start") :]
    assert re.search(r"federated \+0\.210 .*? \+0\.110 ", gains) and re.search(
        r"alone, mean of the sites \+0\.110 ", gains
    )


def test_a_site_is_compared_on_the_folds_where_both_labels_are_there(page: str) -> None:
    seen = text_of(page)
    assert re.search(r"<i>south</i> 4 0\.805 .*?0\.905 .*?0\.700 .*?\+0\.100", seen)
    assert re.search(r"north 6 0\.810 ", seen)


def test_no_privacy_is_announced_only_where_it_is_shown(tmp_path: Path, page: str) -> None:
    assert "ε = ∞ IS NO PRIVACY" in page
    assert "ε = ∞ IS NO PRIVACY" not in written(tmp_path, [row for row in rows() if row["epsilon"] == 1])


def test_an_external_test_set_has_its_own_table(tmp_path: Path, page: str) -> None:
    outside = [{**row, "external_auc": 0.654, "external_start_auc": 0.6, "external_patients": 61} for row in rows()]
    seen = text_of(written(tmp_path, outside))
    assert "External test patients" in seen and "61 other patients" in seen and "federated 0.654 0.654–0.654" in seen
    assert "External test patients" not in text_of(page)


def test_a_single_fold_has_no_interval_and_no_row_is_no_report(tmp_path: Path) -> None:
    seen = text_of(written(tmp_path, rows(splits=1, folds=1, draws=1)))
    assert "federated 0.900 0.795" in seen
    with pytest.raises(ValueError):
        write_comparison(tmp_path, [], study())


def test_two_units_are_two_tables_and_never_mixed(tmp_path: Path) -> None:
    both = rows() + [{**row, "unit": "patient", "auc": 0.5} for row in rows()]
    seen = text_of(written(tmp_path, both))
    assert "Mean AUC per slice" in seen and "Mean AUC per patient" in seen
    assert re.search(r"federated 0\.910 \S+ 0\.810 ", seen) and "federated 0.500 0.500–0.500 0.500" in seen


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, page: str) -> None:
    assert written(tmp_path, rows()) == page


def test_the_terminal_table_agrees_with_the_page() -> None:
    out = StringIO()
    Console(file=out, width=110).print(comparison_table(rows()))
    assert re.search(r"federated +0\.910 ±0\.\d{3} +0\.810 ±0\.\d{3}", out.getvalue())
    assert re.search(r"start +0\.700 ±0\.000", out.getvalue())


def test_hospitals_are_shown_one_by_one_with_their_mean(tmp_path: Path) -> None:
    own = [
        {**row, "sites": {name: {**one, "accuracy": 0.75 if name == "north" else 0.85} for name, one in sites.items()}}
        for row in rows()
        if (sites := row["sites"])
    ]
    out = StringIO()
    Console(file=out, width=110).print(hospital_table(own))
    seen = out.getvalue()
    assert re.search(r"north +0\.910 / 0\.750 +0\.810 / 0\.750", seen)
    assert re.search(r"<i>south</i> +0\.905 / 0\.850", seen), "folds with both labels only"
    assert re.search(r"mean +0\.907 / 0\.800|mean +0\.908 / 0\.800", seen)
    assert re.search(r"mean, own models +0\.80[78] / 0\.800", seen) and "AUC / accuracy" in seen
    page = text_of(written(tmp_path, own))
    assert "Hospital by hospital" in page and "Accuracy on each hospital" in page
    without = StringIO()
    Console(file=without, width=110).print(hospital_table(rows()))
    assert "accuracy" not in without.getvalue() and re.search(r"north +0\.910 +0\.810", without.getvalue())
    assert "Accuracy on" not in text_of(written(tmp_path, rows()))


def test_the_interval_covers_as_often_as_it_says_and_half_of_it_does_not() -> None:
    generator, covered, half = np.random.default_rng(5), 0, 0
    runs = 3000
    for values in generator.normal(0.9, 0.03, (runs, 5)):
        mean = mean_over_folds({("s", str(i)): float(value) for i, value in enumerate(values)})
        assert mean is not None and mean.high is not None
        reach, distance = mean.high - mean.value, abs(mean.value - 0.9)
        covered += distance <= reach
        half += distance <= reach / 2
    assert 0.935 < covered / runs < 0.965
    assert half / runs < 0.85


def test_repeating_a_split_does_not_pretend_to_have_more_patients() -> None:
    once = {("a", str(i)): value for i, value in enumerate((0.8, 0.85, 0.9, 0.95, 0.87))}
    often = {(split, fold): value for split in "abcdefghijkl" for (_, fold), value in once.items()}
    one, many = mean_over_folds(once), mean_over_folds(often)
    assert one and many and one.high and many.high and many.value == pytest.approx(one.value)
    spread = np.std(list(once.values())) * np.sqrt(60 / 48)  # each split's spread, with one mean a split
    assert many.high - many.value == pytest.approx(2.0106 * spread / np.sqrt(5), rel=1e-3)


def test_draws_of_a_fold_are_averaged_before_folds_are() -> None:
    many_draws = [{"split": "a", "fold": 0, "auc": 0.8}] * 9 + [{"split": "a", "fold": 1, "auc": 0.9}]
    mean = mean_over_folds(by_fold(many_draws, lambda row: row["auc"]))
    assert mean is not None and mean.value == pytest.approx(0.85) and mean.folds == 2


def test_a_difference_takes_the_folds_that_both_have() -> None:
    assert minus({("a", "0"): 0.75, ("a", "1"): 0.5}, {("a", "0"): 0.5, ("a", "2"): 0.5}) == {("a", "0"): 0.25}


def test_patients_are_counted_once_per_split() -> None:
    assert patients_tested(rows(splits=3, folds=4)) == 40
