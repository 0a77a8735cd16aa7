"""The report of a run: it loads, invents and hides nothing, and states epsilon correctly."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from wardround import text
from wardround.metrics import classification
from wardround.study.load import Study, parse_study
from wardround_simulation.cli.result_table import result_table
from wardround_simulation.report.report import (
    CurvePoint,
    RunEvidence,
    ScoredSet,
    SiteQuality,
    write_report,
)
from wardround_simulation.report.tensorboard import write_tensorboard

SITES = ("north", "south")
HOSTILE = ("<script>alert(1)</script>", 'a$b$_^{x"><img src=x>', "[red]S & V[/red]")


def study(epsilon: Any = 8, labels: tuple[str, ...] = ("round", "spiky"), rounds: int = 4) -> Study:
    return parse_study({
        "study": {"name": "shapes", "rounds": rounds, "seed": 4711},
        "data": {"labels": list(labels), "modality": "any"},
        "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 50},
        "aggregation": {"nominal_sites": 2},
    })  # fmt: skip


def evidence(
    sites: tuple[str, ...] = SITES, epsilon: Any = 8, one_class: str | None = None, **changes: Any
) -> RunEvidence:
    """Two images a patient, 12 patients a site; the federated model is better than the one alone."""
    generator = np.random.default_rng(11)
    patients_N = np.repeat(np.arange(12 * len(sites)), 2)
    sites_N = np.array(sites, dtype=object)[patients_N % len(sites)]
    labels_N = (patients_N // len(sites)) % 2
    labels_N[sites_N == one_class] = 1

    def scored(setting: str, gap: float, site: str | None = None) -> ScoredSet:
        scores_N = classification.probabilities(gap * (labels_N - 0.5) + generator.normal(size=len(labels_N)))
        return ScoredSet(
            setting=setting, site=site, scores_N=scores_N, labels_N=labels_N, patients_N=patients_N, sites_N=sites_N
        )

    predictions = [scored("federated", 2.5), scored("pooled", 2.6), scored("start", 1.2)]
    predictions += [scored("alone", 1.5, site) for site in sites]
    told = "inf" if epsilon == "inf" else epsilon - 0.7659
    result = {
        "status": "finished",
        "rounds_completed": 4,
        "missing": [{"round": 3, "site": sites[0], "code": "late"}],
        "privacy": {
            "unit": "patient",
            "epsilon": told,
            "delta": 1e-4,
            "accountant": "RDP",
            "noise_multiplier": 2.90625,
        },
        "sites": {site: {"epsilon": told, "steps": 4, "patients": 40 + i} for i, site in enumerate(sites)},
        "test": classification.summary(predictions[0].scores_N, labels_N, patients_N, "slice").to_json(),
        "bytes": {"up": 1234, "down": 2000},
        "seconds": {"training": 12.0},
    }
    rows = [{"round": r, "site": s, "seconds": 0.25, "bytes_up": 150, "code": None} for r in range(1, 5) for s in sites]
    rows = [{**row, "code": "late"} if (row["round"], row["site"]) == (3, sites[0]) else row for row in rows]
    whole = RunEvidence(
        study=study(epsilon),
        result=result,
        curve=[CurvePoint(round=r, auc=0.8 + r / 100, auc_low=0.7, auc_high=0.9) for r in range(5)],
        predictions=predictions,
        metrics=rows,
        quality={site: SiteQuality(accepted=24, quarantined={"not axial": 3}) for site in sites},
        versions={"opacus": "1.6.0"},
        command="wardround-sim run studies/shapes.toml",
        architecture_sha256="ab" * 32,
        notes=("one image is one patient",),
    )
    return replace(whole, **changes)


def written(folder: Path, made_from: RunEvidence) -> str:
    return write_report(folder, made_from).read_text(encoding="utf-8")


def bare(**changes: Any) -> RunEvidence:
    """The same run without scores: quick to write, for what does not depend on them."""
    return evidence(**{"predictions": (), "curve": (), **changes})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of `evidence()`."""
    return written(tmp_path_factory.mktemp("report"), evidence())


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(
        html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)).replace("\xa0", " ").split()
    )


def assert_self_contained(page: str) -> None:
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|https?://", page, flags=re.I)
    for target in re.findall(r"(?:src|href)=[\"']([^\"']*)", page) + re.findall(r"url\(([^)]*)\)", page):
        assert target.startswith(("#", "data:image/png;base64,")), target


def test_a_report_loads_nothing_from_anywhere(tmp_path: Path, page: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    assert_self_contained(page)
    assert_self_contained(written(tmp_path, bare(montages={"north": images})))


def test_the_headline_is_result_json_to_the_digit(page: str) -> None:
    made_from = evidence()
    test = made_from.result["test"]
    low, high = test["auc_ci95"]
    seen = text_of(page)
    assert f"On 24 held-out patients the federated model reaches an AUC of {test['auc']:.3f}" in seen
    assert f"(95 % interval {low:.3f}–{high:.3f}), counted per slice." in seen


def test_every_cell_of_a_site_is_that_model_on_that_sites_own_patients(page: str) -> None:
    made_from = evidence()
    seen = text_of(page)
    for site in SITES:
        row = re.search(rf"{site} 12 (.*?)(?:not significant|is better|is worse)", seen)
        assert row is not None
        for scored in made_from.predictions:
            if scored.site in (None, site):
                own_N = scored.sites_N == site
                one = classification.auc_interval(
                    scored.scores_N[own_N], scored.labels_N[own_N], scored.patients_N[own_N]
                )
                assert one is not None and f"{one.value:.3f} {one.low:.3f}–{one.high:.3f}" in row.group(1)


def test_the_report_leads_with_all_models_at_each_hospital(page: str) -> None:
    """Before the first section there are the counts and one picture: a row for all hospitals and one for each site."""
    head = page[: page.index("<h2")]
    picture = re.search(r'<figure class="leading".*?</figure>', head, flags=re.S)
    assert picture is not None and page.count('class="leading"') == 1
    seen = text_of(picture.group())
    assert all(name in seen for name in ("all hospitals", *SITES, "start", "alone", "federated", "pooled"))
    assert "higher AUC than the start at 2 of 2 sites" in text_of(head)
    assert re.search(r"higher AUC than the site's own model at \d of 2 sites", text_of(head))


def test_a_run_with_one_site_or_without_scores_has_no_row_for_all_hospitals(tmp_path: Path) -> None:
    alone = written(tmp_path, evidence(sites=("only",), curve=()))
    assert "all hospitals" not in text_of(alone) and 'class="leading"' in alone
    assert 'class="leading"' not in written(tmp_path, bare())


def test_a_site_that_federation_makes_worse_is_called_worse(tmp_path: Path) -> None:
    made_from = evidence()
    perfect, coin = (
        replace(made_from.predictions[0], scores_N=scores_N)
        for scores_N in (
            made_from.predictions[0].labels_N * 0.8 + 0.1,
            np.tile([0.4, 0.6], len(made_from.predictions[0].labels_N) // 2),
        )
    )
    alone = [replace(perfect, setting="alone", site="north")]
    seen = text_of(written(tmp_path, replace(made_from, predictions=[coin, *alone])))
    assert "federated is worse" in seen and "and a lower one at 1: north (−" in seen


def test_figures_that_disagree_with_result_json_are_announced(tmp_path: Path, page: str) -> None:
    made_from = evidence(predictions=evidence().predictions[:1])
    assert "FIGURES DISAGREE" not in page
    wrong = {**made_from.result, "test": {**made_from.result["test"], "auc": made_from.result["test"]["auc"] - 0.01}}
    assert "FIGURES DISAGREE" in written(tmp_path, replace(made_from, result=wrong))


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    made_from = evidence(sites=HOSTILE, command='run "><script>x</script>', notes=("<b>bold</b>",))
    images = np.zeros((1, 1, 16, 16), dtype=np.uint8)
    page = written(tmp_path, replace(made_from, montages={HOSTILE[1]: images}))
    assert_self_contained(page)
    assert "<b>" not in page and "<img src=x" not in page
    assert all(name in text_of(page) for name in ("<script>alert(1)</script>", "[red]S & V[/red]", "<b>bold</b>"))


def test_no_image_is_shown_unless_given(tmp_path: Path, page: str) -> None:
    assert "<img" not in page and "data:image" not in page
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20), dtype=np.uint8)
    assert written(tmp_path, bare(montages={"south": images})).count("<img") == 1


def test_infinite_epsilon_is_a_banner_and_a_finite_one_is_none(tmp_path: Path, page: str) -> None:
    assert "NO PRIVACY" not in page and "differs by at most" in page
    unprotected = written(tmp_path, bare(epsilon="inf"))
    assert re.search(r'class="banner"[^>]*><strong>NO PRIVACY', unprotected)
    assert "differs by at most" not in unprotected


@pytest.mark.parametrize("gap", ["run", "site", "one site infinite"])
def test_a_run_that_does_not_say_its_epsilon_is_not_called_private(tmp_path: Path, gap: str) -> None:
    result = dict(evidence().result)
    if gap == "run":
        result["privacy"] = {"delta": 1e-4}
    else:
        site = {"steps": 4} if gap == "site" else {"epsilon": "inf", "steps": 4}
        result["sites"] = {**result["sites"], "north": site}
    assert "NO PRIVACY" in written(tmp_path, replace(bare(), result=result))


def test_an_epsilon_is_shown_rounded_up_with_unit_delta_and_accountant(tmp_path: Path) -> None:
    seen = text_of(written(tmp_path, bare(epsilon=2)))  # 1.2341 was spent
    assert "north 1.24 4 40" in seen and "ε = 1.24" in seen and "1.23 " not in seen
    assert "Unit: one patient." in seen and "adding or removing one" in seen and "δ = 0.0001" in seen
    assert "Accountant: RDP, opacus 1.6.0." in seen and "promises at most ε = 2" in seen


@given(epsilon=st.floats(0.01, 60), delta=st.floats(1e-9, 1e-2))
def test_the_promise_in_words_never_claims_more_than_the_theorem(epsilon: float, delta: float) -> None:
    bound, guess = text.promise(epsilon, delta)
    factor = re.search(r"e\^ε = ([\d.,^]+) ", bound)
    percent = re.search(r"at most ([\d.]+) %", guess)
    assert factor is not None and percent is not None
    power = factor.group(1).replace(",", "")
    shown = 10.0 ** int(power[3:]) if power.startswith("10^") else float(power)
    assert shown >= math.exp(epsilon) * (1 - 1e-6)
    assert float(percent.group(1)) >= 100 * (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1) - 1e-5


def test_there_is_no_promise_for_an_infinite_epsilon() -> None:
    with pytest.raises(ValueError):
        text.promise(math.inf, 1e-4)


def test_a_missing_site_is_named_with_its_round_and_reason(page: str) -> None:
    seen = text_of(page)
    assert "1 reply is missing, in 1 round" in seen
    assert re.search(r"north 3 of 4 .*? round 3: answered after the deadline, or not at all", seen)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    made_from = bare()
    short = {**made_from.result, "rounds_completed": 2, "status": "interrupted"}
    assert "2 of 4 rounds were completed (status: interrupted)" in text_of(
        written(tmp_path, replace(made_from, result=short))
    )


def test_a_site_with_one_label_has_dashes_and_no_figure(tmp_path: Path) -> None:
    seen = text_of(written(tmp_path, evidence(one_class="south")))
    assert "south 12 – – – – – cannot be compared" in seen


def test_a_test_set_with_one_label_has_no_auc(tmp_path: Path) -> None:
    made_from = evidence(sites=("only",), one_class="only", curve=())
    assert "have only one label: no AUC can be computed" in text_of(written(tmp_path, made_from))


def test_a_run_without_a_test_still_has_its_report(tmp_path: Path) -> None:
    bare = RunEvidence(study=study(), result={k: v for k, v in evidence().result.items() if k != "test"})
    seen = text_of(written(tmp_path, bare))
    assert "does not measure how good the model is" in seen and "Privacy guarantee" in seen


def test_several_labels_are_shown_each_against_the_rest(tmp_path: Path) -> None:
    labels_N = np.arange(90) % 3
    scores_NK = classification.probabilities(np.eye(3)[labels_N] + np.random.default_rng(0).normal(size=(90, 3)))
    patients_N = np.arange(90) // 3
    scored = ScoredSet(
        setting="federated", scores_N=scores_NK, labels_N=labels_N, patients_N=patients_N, sites_N=np.full(90, "north")
    )
    result = {**evidence().result, "test": classification.summary(scores_NK, labels_N, patients_N, "slice").to_json()}
    made_from = evidence(study=study(labels=("one", "two", "three")), predictions=[scored], result=result)
    seen = text_of(written(tmp_path, made_from))
    assert "each label against all others" in seen and "FIGURES DISAGREE" not in seen


def test_a_patients_score_is_the_highest_of_its_images_when_patients_are_counted(tmp_path: Path) -> None:
    made_from = evidence()
    one = made_from.predictions[0]
    by_patient = classification.summary(one.scores_N, one.labels_N, one.patients_N, "patient").to_json()
    page = written(tmp_path, replace(made_from, result={**made_from.result, "test": by_patient}))
    assert "counted per patient" in text_of(page) and "FIGURES DISAGREE" not in page


def test_settings_scored_on_different_images_are_refused(tmp_path: Path) -> None:
    made_from = evidence()
    other = replace(made_from.predictions[3], patients_N=made_from.predictions[3].patients_N[::-1])
    with pytest.raises(ValueError, match="different images"):
        write_report(tmp_path, replace(made_from, predictions=[made_from.predictions[0], other]))


def test_a_scored_set_whose_columns_do_not_fit_is_refused() -> None:
    one = evidence().predictions[0]
    for change in (
        {"labels_N": one.labels_N[1:]},
        {"setting": "alone"},
        {"scores_N": one.scores_N * np.nan},
        {"labels_N": one.labels_N - 1},
    ):
        with pytest.raises(ValueError):
            replace(one, **change)


def test_a_report_names_the_studys_labels_and_no_disease(page: str) -> None:
    seen = text_of(page)
    assert "“round” or “spiky”" in seen and "Research software, not a medical device" in seen
    assert not re.search("cancer|malignan|tumou?r|diagnos(?!is or treatment)", seen, flags=re.I)


def test_a_report_says_how_to_repeat_it(page: str) -> None:
    seen = text_of(page)
    for needed in (
        "wardround-sim run studies/shapes.toml",
        study(8).sha256(),
        "ab" * 32,
        "4711",
        "2.90625",
        "1.6.0",
        "one image is one patient",
    ):
        assert needed in seen


def test_ids_are_unique_on_the_page_and_every_reference_has_its_target(page: str) -> None:
    ids = re.findall(r"\bid=\"([^\"]+)\"", page)
    assert len(ids) == len(set(ids))
    assert {t for t in re.findall(r"(?:href=\"|url\()#([^\")]+)", page)} <= set(ids)


def test_the_same_evidence_gives_the_same_bytes(tmp_path: Path, page: str) -> None:
    assert written(tmp_path, evidence()) == page


def test_a_report_of_many_noisy_sites_stays_below_three_megabytes(tmp_path: Path) -> None:
    sites = tuple(f"site{i:02d}" for i in range(24))
    noise = np.random.default_rng(0).integers(0, 256, (12, 1, 128, 128), dtype=np.uint8)
    path = write_report(tmp_path, bare(sites=sites, montages=dict.fromkeys(sites, noise)))
    assert path.stat().st_size < 3_000_000


def test_the_terminal_table_has_a_line_a_site_and_takes_names_literally() -> None:
    out = StringIO()
    Console(file=out, width=120).print(result_table(evidence(sites=("[red]S[/red]", "north"), epsilon=2)))
    shown = out.getvalue()
    assert re.search(r"\[red\]S\[/red\] +40 +4 +1\.24 +– +1", shown) and re.search(
        r"north +41 +4 +1\.24 +– +none", shown
    )
    caption = " ".join(shown.split())
    assert "ε per patient (add or remove one), δ = 0.0001, RDP" in caption and "24 held-out patients" in caption


def with_models(made_from: RunEvidence) -> RunEvidence:
    """The same run with what a classification writes about each model, one of whose sites has one label only."""

    def figures(auc: float | None) -> dict[str, Any]:
        return {"auc": auc, "auc_ci95": None if auc is None else [auc - 0.1, auc + 0.1]}

    north = {"start": 0.7, "federated": 0.82, "pooled": 0.83, "alone": 0.85}
    south = {"start": 0.6, "federated": 0.81, "pooled": 0.83, "alone": 0.71}
    whole = {"start": 0.65, "federated": 0.80, "pooled": 0.84}
    models = {
        "all": {name: figures(auc) for name, auc in whole.items()},
        "sites": {
            "north": {name: figures(auc) for name, auc in north.items()},
            "south": {name: figures(auc) for name, auc in south.items()},
            "hospital-10": {name: figures(None) for name in north},
        },
    }
    sites = {**made_from.result["sites"], "hospital-10": {"epsilon": 7.2341, "steps": 4, "patients": 9}}
    return replace(made_from, result={**made_from.result, "sites": sites, "auc_by_model": models})


def test_the_terminal_table_shows_each_model_at_each_site_within_eighty_columns() -> None:
    out = StringIO()
    Console(file=out, width=80).print(result_table(with_models(evidence())))
    lines = out.getvalue().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("north"))
    assert lines[place].split() == ["north", "40", "7.24", "0.700", "0.850", "0.820", "0.830", "1"]
    assert lines[place + 1].split() == ["0.60–0.80", "0.75–0.95", "0.72–0.92", "0.73–0.93"]
    assert any(line.split() == ["hospital-10", "9", "7.24", "–", "–", "–", "–", "none"] for line in lines)
    assert any(line.split()[:7] == ["all", "sites", "90", "7.24", "0.650", "–", "0.800"] for line in lines)
    said = " ".join(out.getvalue().split())
    assert "above the start at 2 of 2 hospitals and above the hospital's own model at 1 of 2 hospitals" in said


def test_the_terminal_table_of_a_run_without_other_models_does_not_mention_them() -> None:
    out = StringIO()
    Console(file=out, width=120).print(result_table(evidence()))
    assert "start" not in out.getvalue() and "steps" in out.getvalue()


def test_the_terminal_table_says_no_privacy() -> None:
    out = StringIO()
    Console(file=out, width=120).print(result_table(evidence(epsilon="inf").result))
    assert "NO PRIVACY" in out.getvalue()


def test_tensorboard_holds_the_curve_once_however_often_it_is_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made_from = evidence()
    for _ in range(2):
        log = write_tensorboard(tmp_path, made_from.curve, made_from.metrics)
    events = EventAccumulator(str(log))
    events.Reload()
    curve = [(event.step, round(event.value, 6)) for event in events.Scalars("auc/all sites")]
    assert curve == [(p.round, round(p.auc, 6)) for p in made_from.curve]
    assert [event.value for event in events.Scalars("present/north")] == [1, 1, 0, 1]


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to draw the page with")
def test_a_browser_draws_the_report_at_phone_and_desk_width(tmp_path: Path, page: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    for width_px in (500, 1200):
        picture = tmp_path / f"{width_px}.png"
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            *quiet,
            f"--user-data-dir={tmp_path / 'profile'}",
        ]
        command += [f"--window-size={width_px},3000", f"--screenshot={picture}", path.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        pixels_HW = np.asarray(Image.open(picture).convert("L"))
        assert pixels_HW.shape[1] == width_px
        drawn_H = (pixels_HW < 128).any(axis=1)
        assert drawn_H[:300].any() and drawn_H[-1000:].any() and drawn_H.mean() > 0.3
