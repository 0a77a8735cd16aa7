"""A new task is one folder and one line: the task of tests/grading_task, which docs/extending.md shows, is put into a
copy of the sources and trained through the simulation by Flower and Ray.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT, TESTS
from PIL import Image

TASK = TESTS / "grading_task"
LINE = '    "grading": "wardround.tasks.grading",\n'
STUDY = """
[study]
name = "grades"
task = "grading"
rounds = 8
spare_rounds = 0
[data]
modality = "any"
image_size = 32
labels = ["none", "mild", "severe"]
[model]
name = "grade-net"
init = "random"
trainable = "all"
[training]
learning_rate = 0.5
[privacy]
epsilon = 8.0
delta = 1e-3
max_grad_norm = 1.0
nominal_patients = 30
[aggregation]
nominal_sites = 2
min_sites = 1
[evaluation]
holdout = 0.3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of shared/ with the new task, and pictures at two sites: the brighter, the higher the grade."""
    place = tmp_path_factory.mktemp("new-task")
    shutil.copytree(ROOT / "shared", place / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TASK, place / "shared/wardround/tasks/grading", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = place / "shared/wardround/tasks/__init__.py"
    before = tasks.read_text(encoding="utf-8")
    tasks.write_text(re.sub(r"(?m)^}\n", LINE + "}\n", before), encoding="utf-8")
    assert tasks.read_text(encoding="utf-8").replace(LINE, "") == before
    (place / "grades.toml").write_text(STUDY)
    (place / "data").mkdir()
    dice, rows = np.random.default_rng(0), [("file", "patient_id", "site", "label")]
    for patient in range(60):
        grade, name = patient // 2 % 3, f"{patient}.png"
        Image.fromarray((dice.integers(0, 60, (32, 32)) + 70 * grade).astype(np.uint8)).save(place / "data" / name)
        rows.append((name, f"p{patient}", f"site-{patient % 2}", ("none", "mild", "severe")[grade]))
    with (place / "data" / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return place


def command(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    rooms = [place / "shared", *(ROOT / room for room in ("client", "server", "simulation"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, rooms))}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=place, env=environment, capture_output=True, text=True, timeout=240
    )


def test_a_task_of_one_folder_and_one_line_trains_through_the_simulation(place: Path) -> None:
    done = command(
        place, "wardround_simulation.cli.main", "run", "grades.toml", "--data", "data", "--out", "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "finished" and result["privacy"]["epsilon"] <= 8.0
    assert result["mean_absolute_error"] < result["mean_absolute_error_at_start"]
    assert "mean absolute error" in (place / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("grading.channels=3", "grading.channels: Input should be greater than or equal to 4"),
        ("evaluation.epsilon=1", "evaluation.epsilon: grading releases no figures"),
        ("model.name=seed-cnn", "model.name: seed-cnn is not a network for grading"),
    ],
)
def test_its_section_and_rules_are_checked_like_those_of_any_task(place: Path, change: str, message: str) -> None:
    done = command(place, "wardround_simulation.cli.main", "run", "grades.toml", "--data", "data", "--set", change)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_commands_that_it_does_not_have_are_refused_in_one_line(place: Path) -> None:
    done = command(place, "wardround_simulation.cli.main", "compare", "grades.toml", "--data", "data")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
