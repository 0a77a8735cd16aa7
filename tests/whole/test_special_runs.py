"""Whole runs by the command itself, of special kinds: refusals, released figures, DICOM, comparisons."""

import csv
import json
import math
import signal
import subprocess
import time
from collections import Counter

import pytest
from builders.whole_runs import COMMAND, STUDY, command, ledger_of, sites_of, write_pictures
from paths import STUDIES

from wardround.accounting import GaussianEvent, PureEvent
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import load_study
from wardround_simulation.compare.compare import compare, read_folds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("e2e")
    (root / "tiny.toml").write_text(STUDY)
    write_pictures(root / "pictures")
    return root


@pytest.mark.slow
def test_figures_leave_once_through_the_ledger_and_a_site_that_releases_none_is_named(place, tmp_path):
    out, sets = tmp_path / "out", ("--set", "evaluation.epsilon=3", "--set", "study.rounds=1", "--no-baselines")
    words = ("run", place / "tiny.toml", "--data", place / "pictures", "--out", out, *sets)
    command(*words)
    first = json.loads((out / "result.json").read_text())["federated_test"]
    assert first["epsilon"] == 3.0 and first["sites"] == ["site-0", "site-1"] and first["per_site"] == {}
    assert "Released figures" in (out / "report.html").read_text()
    for folder in sites_of(out).values():
        assert {type(event): event.releases for event in ledger_of(folder)[0]} == {GaussianEvent: 1, PureEvent: 1}

    rules = {"site-0": ("per_site = false\nminimum_patients = 50", "per_site = true\nminimum_patients = 1")}
    rules["site-1"] = ('evaluation = "noised"', 'evaluation = "off"')
    for site, (before, after) in rules.items():
        path = out / "sites" / site / "site.toml"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    (out / "result.json").unlink()  # as if the run had been ended before it was written
    command(*words)
    again = json.loads((out / "result.json").read_text())["federated_test"]
    assert again["missing"] == [{"site": "site-1", "code": "refused:evaluation_off"}]
    assert [len(ledger_of(folder)[1]) for folder in sites_of(out).values()] == [2, 2]  # a round, and figures once
    (kept,) = (out / "sites" / "site-0" / "replies").glob("reply-*2.safetensors")
    counts = load_checkpoint(kept)[0]["counts"]
    assert again["per_site"]["site-0"]["patients_noised"] == again["patients_noised"] == counts.sum()


def test_dicom_goes_the_whole_way_to_an_explained_decision(tmp_path):
    from wardround_client.sources.images.folder.layout import discover
    from wardround_simulation.phantoms.dicom import write_phantom_hospitals
    from wardround_simulation.run.example import write_example

    write_phantom_hospitals(tmp_path / "hospitals", 2, 6, 3)
    demo, out = STUDIES / "demo.toml", tmp_path / "out"
    sets = ("study.rounds=2", "aggregation.nominal_sites=2", "aggregation.min_sites=2", "evaluation.holdout=0.5")
    words = [word for value in sets for word in ("--set", value)]
    command("run", demo, "--data", tmp_path / "hospitals", "--out", out, "--no-baselines", *words)
    result = json.loads((out / "result.json").read_text())
    assert list(result["sites"]) == ["hospital-1", "hospital-2"] and result["rounds_completed"] == 2
    for folder in sites_of(out).values():
        quality = json.loads((folder / "cohort" / "quality.json").read_text())
        assert quality["images"] >= 6 and quality["quarantined"] == {}
    assert not (out / "example").exists()  # these data may be patients'; a run on its own phantoms makes the example
    study = load_study(demo, sets)
    (section,) = write_example(out, study, result, discover(tmp_path / "hospitals", study.data)[0])
    assert section.sheets[0].images_NCHW.shape[:2] == (2, 3) and "malignant" in section.lines[0]
    written = {path.name for path in (out / "example").iterdir()}
    assert {"predictions.json", "explanation-1.html", "evidence-1.png", "explanations.json"} <= written
    (patient,) = json.loads((out / "example/predictions.json").read_text())["patients"]
    assert patient["images"] == 1 and 0 < patient["probabilities"]["malignant"] < 1
    assert not list(out.glob(".example-*"))


def test_a_site_that_refuses_is_named_and_costs_its_part_only(place, tmp_path):
    """Between two calls of the command a hospital lowers its delta: the run goes on with the other one."""
    out, sets = tmp_path / "out", ("--set", "study.rounds=20", "--no-baselines")
    words = [*COMMAND, "run", place / "tiny.toml", "--data", place / "pictures", "--out", out, *sets]
    first = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "checkpoints" / "round-000002.safetensors").exists(), first)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 130 and said.splitlines()[-1].startswith("wardround-sim: stopped; "), said
    rules = out / "sites" / "site-1" / "site.toml"
    rules.write_text(rules.read_text().replace("delta_cap = 0.001", "delta_cap = 1e-09"))
    command(*words[len(COMMAND) :])
    result = json.loads((out / "result.json").read_text())
    assert result["rounds_completed"] == 20
    missing = {(entry["site"], entry["code"]) for entry in result["missing"]}
    assert ("site-1", "refused:delta") in missing and {site for site, _ in missing} == {"site-1"}
    trained = {name: ledger_of(folder)[1] for name, folder in sites_of(out).items()}
    assert {attempt.round for attempt in trained["site-0"]} == set(range(1, 21))
    refused = {entry["round"] for entry in result["missing"]}
    assert {attempt.round for attempt in trained["site-1"] if attempt.reply_sha256} >= set(range(1, 21)) - refused
    assert len(trained["site-1"]) + len(refused) <= 21 and rules.read_text().count("1e-09") == 1


def wait_for(condition, process, limit_s=90):
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends and process.poll() is None
        time.sleep(0.01)


# compare


@pytest.mark.slow
def test_compare_is_complete_and_resumes_where_it_was_ended(place, tmp_path):
    folds = tmp_path / "folds.csv"
    rows = [(f"p{n}", n // 4 % 2) for n in range(24)]
    with folds.open("w", newline="") as file:
        csv.writer(file).writerows([("patient_id", "split0"), *rows])
    out = tmp_path / "out"
    words = ("--data", place / "pictures", "--folds", folds, "--epsilon", "inf,8", "--draws", "2", "--out", out)
    printed = json.loads(command("compare", place / "tiny.toml", *words, "--json").stdout)
    assert json.loads((out / "comparison.json").read_text()) == printed and (out / "comparison.html").is_file()
    asked = {
        (setting, site, epsilon, "split0", fold, draw, unit)
        for setting, site in (("federated", None), ("pooled", None), ("alone", "site-0"), ("alone", "site-1"))
        for epsilon, draws in (("inf", 1), (8.0, 2))
        for draw in range(draws)
        for fold in (0, 1)
        for unit in ("slice", "patient")
    }
    keys = ("setting", "epsilon", "split", "fold", "draw", "unit")
    got = Counter((row["setting"], row.get("site"), *(row[key] for key in keys[1:])) for row in printed)
    assert got == dict.fromkeys(asked, 1)
    assert all(0 <= row["auc"] <= 1 and row["patients"] == 12 for row in printed)

    log = out / "comparison.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:40])  # ended while the fourth was written
    study = load_study(place / "tiny.toml")
    seen = []
    again = compare(
        study,
        sites_of(out),
        {},
        read_folds(folds),
        [math.inf, 8.0],
        2,
        out,
        2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(number, 6) for number in range(3, 7)]
    kept = [json.loads(line)["work"] for line in lines[:3]]
    for before, after in zip(printed, again, strict=True):
        work = f"{before['split']}/{before['fold']}/{before['epsilon']}/{before['draw']}"
        assert (before == after) or work not in kept
        assert before == after or before["epsilon"] != "inf"  # without noise a piece is the same when made again
    assert len(log.read_text().splitlines()) == 6
