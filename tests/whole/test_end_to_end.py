"""Whole runs by the command itself: from files on a disk through Flower and Ray to a report."""

import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from builders.figures import InProcessFigures
from builders.whole_runs import COMMAND, FREE, LABELS, STUDY, command, ledger_of, picture, sites_of, write_pictures
from PIL import Image

from wardround.metrics.classification import auc
from wardround.networks.build import initial_network
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import load_study, study_from_json
from wardround.tasks.labelled.scores import score
from wardround_client.site.config import load_site_config
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.training.rows import training_rows
from wardround_server.rounds.evaluation import federated_test
from wardround_simulation.engine import in_process


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("e2e")
    (root / "tiny.toml").write_text(STUDY)
    write_pictures(root / "pictures")
    return root


@pytest.fixture(scope="module")
def private_run(place):
    """One run under differential privacy with its baselines: (folder, what --json printed)."""
    out = place / "private"
    done = command("run", place / "tiny.toml", "--data", place / "pictures", "--out", out, "--json")
    assert done.stderr == ""
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def free_run(place):
    """One run with epsilon = inf and everyone in every step, on folders of classes split over two sites."""
    generator = np.random.default_rng(2)
    for label, name in enumerate(LABELS):
        (place / "classes" / name).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(picture(generator, label)).save(place / "classes" / name / f"{number}.png")
    words = ("run", place / "tiny.toml", "--data", place / "classes", "--sites", "2", "--out", place / "free", *FREE)
    words += ("--set", "evaluation.epsilon=inf")
    command(*words)
    return place / "free"


def test_the_result_keeps_its_contract(private_run):
    out, result = private_run
    assert json.loads((out / "result.json").read_text()) == result
    study = study_from_json((out / "study.json").read_text())
    assert result["schema"] == 1 and result["status"] == "finished" and result["study"] == "tiny"
    assert result["study_sha256"] == study.sha256() and result["rounds_completed"] == 3 and result["missing"] == []
    privacy = result["privacy"]
    assert privacy["unit"] == "patient" and privacy["delta"] == 1e-3 and privacy["steps"] == 3
    assert 0 < privacy["epsilon"] < 8.0 and privacy["noise_multiplier"] > 0 and privacy["sampling_rate"] == 1.0
    assert privacy["accountant"]
    assert set(result["sites"]) == {"site-0", "site-1"}
    for site in result["sites"].values():
        assert site["steps"] == 3 and site["epsilon"] == pytest.approx(privacy["epsilon"]) and site["patients"] > 0
    assert 0 <= result["test"]["auc"] <= 1 and len(result["test"]["auc_ci95"]) == 2
    assert result["test"]["unit"] == "slice" and result["test"]["patients"] > 0 and "ece" in result["test"]
    assert (
        result["bytes"]["up"] == result["bytes"]["down"] == 2 * 3 * 4 * 34
    )  # sites, rounds, float32, a head of 33 + 1
    assert set(result["seconds"]) >= {"ingest", "training", "whole"}


def test_every_round_is_one_event_at_every_site(private_run):
    out, result = private_run
    for name, folder in sites_of(out).items():
        events, attempts, spent = ledger_of(folder)
        assert [event.steps for event in events] == [3]
        assert Counter(attempt.round for attempt in attempts) == {1: 1, 2: 1, 3: 1}
        assert all(attempt.reply_sha256 for attempt in attempts)
        assert spent.value == pytest.approx(result["sites"][name]["epsilon"]) and spent.value <= 8.0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert Counter((line["round"], line["site"]) for line in lines) == {
        (number, site): 1 for number in (1, 2, 3) for site in ("site-0", "site-1")
    }


def test_what_a_run_leaves_is_whole_and_names_nobody(private_run):
    out, _ = private_run
    report = (out / "report.html").read_text()
    assert "site-0" in report and "http://" not in report.replace("http://www.w3.org", "")
    assert list((out / "tensorboard").iterdir()) and len((out / "curve.jsonl").read_text().splitlines()) == 3
    weights, manifest = load_checkpoint(out / "model.safetensors")
    assert weights["head.weight"].shape == (1, 33) and manifest["privacy"]["epsilon"] < 8.0
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b'"p7"' not in content and b"\np7," not in content and b"7-0.png" not in content, path


def test_the_same_command_again_shows_the_finished_run_at_once(private_run, place):
    out, result = private_run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    words = ("run", place / "tiny.toml", "--data", place / "pictures", "--out", out)
    code = f"import sys, atexit; sys.argv = ['wardround-sim', *{tuple(map(str, words))!r}]\n"
    code += "from wardround_simulation.cli.main import main\n"
    code += "atexit.register(lambda: print('heavy:', sorted({'torch', 'ray', 'flwr'} & set(sys.modules))))\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "already finished" in done.stdout and "report.html" in done.stdout
    assert "heavy: []" in done.stdout  # so it takes a second
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = subprocess.run(
        [*COMMAND, *map(str, words[:3]), str(place), "--out", str(out)], capture_output=True, text=True, timeout=60
    )
    assert other.returncode == 2 and "Traceback" not in other.stderr  # a finished run on other data is not shown


def in_one_process(run, study):
    """The same federation by function calls: (weights, ledgers by site)."""
    folders = sites_of(run)
    hospitals = in_process.open_hospitals(folders, study)
    torch.set_num_threads(load_site_config(next(iter(folders.values())) / "site.toml").compute.threads)
    sites = [in_process.temporary_site(study, h.name, [(h, training_rows(study, h.cohort))], {}) for h in hospitals]
    weights = in_process.train_together(study, sites)
    return weights, {site.name: site.ledger for site in sites}


def test_the_run_through_flower_and_ray_is_the_run_in_one_process_bit_for_bit(free_run):
    study = study_from_json((free_run / "study.json").read_text())
    assert math.isinf(study.privacy.epsilon) and study.privacy.sampling_rate == 1
    weights, _ = in_one_process(free_run, study)
    through_flower, _ = load_checkpoint(free_run / "model.safetensors")
    start = in_process.start_weights(study)
    for name, array in weights.items():
        assert through_flower[name].tobytes() == array.tobytes()
    assert any((weights[name] != start[name]).any() for name in weights)


def test_a_private_run_charges_what_the_run_in_one_process_charges(private_run):
    out, _ = private_run
    study = study_from_json((out / "study.json").read_text())
    weights, ledgers = in_one_process(out, study)
    through_flower, _ = load_checkpoint(out / "model.safetensors")
    for name, array in weights.items():
        assert through_flower[name].shape == array.shape and (through_flower[name] != array).any()  # other noise
    for name, folder in sites_of(out).items():
        assert ledger_of(folder)[0] == ledgers[name].events()


def test_exact_figures_through_flower_are_those_in_one_process_and_near_the_scores_own(free_run):
    result = json.loads((free_run / "result.json").read_text())
    study = study_from_json((free_run / "study.json").read_text())
    sites = [
        in_process.temporary_site(study, h.name, [(h, training_rows(study, h.cohort))], {})
        for h in in_process.open_hospitals(sites_of(free_run), study)
    ]
    weights, _ = load_checkpoint(free_run / "model.safetensors")
    exchanged = {name: np.asarray(weights[name]) for name in in_process.start_weights(study)}
    asked = (study, "in-process", result["architecture_sha256"], exchanged, InProcessFigures(sites))
    assert federated_test(*asked) == result["federated_test"]
    exact, released = result["test_by_patient"], result["federated_test"]
    assert released["epsilon"] == "inf" and released["missing"] == []
    assert (released["patients_noised"], released["positives_noised"]) == (exact["patients"], exact["positives"])
    low, high = released["auc_ci95_these_patients"]
    assert low <= exact["auc"] <= high and abs(released["auc"] - exact["auc"]) < 0.05


def test_folders_of_classes_say_what_was_assumed_and_no_privacy_is_said(free_run):
    result = json.loads((free_run / "result.json").read_text())
    assert set(result["sites"]) == {"site-1", "site-2"} and result["privacy"]["epsilon"] == "inf"
    report = (free_run / "report.html").read_text()
    assert "ach image is treated as a different patient" in report and "no privacy" in report.lower()


def test_two_equal_hospitals_are_one_hospital(free_run):
    study = study_from_json((free_run / "study.json").read_text())
    hospital = in_process.open_hospitals(sites_of(free_run), study)[0]
    rows_N = training_rows(study, hospital.cohort)
    twins = [in_process.temporary_site(study, name, [(hospital, rows_N)], {}) for name in ("a", "b")]
    both = in_process.train_together(study, twins)
    alone = in_process.alone_study(study)
    one = in_process.train_together(alone, [in_process.temporary_site(alone, "a", [(hospital, rows_N)], {})])
    assert all(both[name].tobytes() == one[name].tobytes() for name in one)


def test_labels_without_a_meaning_give_half_and_true_ones_do_not(tmp_path):
    """Labels dealt anew by patient carry nothing, so whatever AUC a test finds then is leakage."""
    generator = np.random.default_rng(5)
    study = load_study(write(tmp_path / "s.toml", STUDY), ("privacy.nominal_patients=150", "privacy.delta=1e-3"))
    found = {}
    for name in ("true", "dealt"):
        folders = {}
        for site in ("a", "b"):
            meaning_P = np.arange(220) % 2
            label_P = meaning_P if name == "true" else generator.permutation(meaning_P)
            names = [pseudonym(b"k" * 32, f"{site}{patient}") for patient in range(220)]
            rows = [CohortRow(pseudonym=names[p], label=int(label_P[p])) for p in range(220) for _ in range(2)]
            images = (picture(generator, meaning_P[p])[None] for p in range(220) for _ in range(2))
            folders[site] = tmp_path / name / site
            place = folders[site] / "cohort"
            write_cohort(place, rows, images, row_shape=(1, 32, 32), label_names=LABELS, site_key=b"k" * 32)
        hospitals = in_process.open_hospitals(folders, study)
        network = initial_network(study)
        sites, tested = [], []
        for hospital in hospitals:
            rows_N = training_rows(study, hospital.cohort)
            sites.append(in_process.temporary_site(study, hospital.name, [(hospital, rows_N)], {}))
            tested.append((hospital.inputs_N[~rows_N], hospital.cohort.labels_N[~rows_N]))
        weights = in_process.train_together(study, sites)
        scores = score(network, study, weights, np.concatenate([inputs for inputs, _ in tested]))
        found[name] = auc(scores, np.concatenate([labels for _, labels in tested]))
    assert found["true"] > 0.9 and abs(found["dealt"] - 0.5) < 0.17  # 3.5 standard errors of about 130 patients


def write(path, text):
    path.write_text(text)
    return path
