"""Version, lineage and stage of the models of a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.runs import Sites, study_of, trained

from wardround.errors import ModelError
from wardround.study.schema import ModelSection
from wardround_server.runs.folder import create_run
from wardround_server.runs.handover import models, stage_of, start_of

PARENT = {"run": "lidc-20261124-220105-e0b46f", "sha256": "a" * 64}


def test_models_of_one_study_name_are_numbered_by_age(tmp_path: Path) -> None:
    for name, rounds in (("one", 1), ("other", 1), ("one", 2)):
        trained(create_run(tmp_path, study_of(name, rounds=rounds)), Sites())
    found, damaged = models(tmp_path)
    assert [(row["study"], row["version"]) for row in found] == [("one", 1), ("other", 1), ("one", 2)]
    assert damaged == [] and {row["stage"] for row in found} == {"released"}


@pytest.mark.parametrize(
    ("section", "start"),
    [
        ({"name": "phantom-encoder", "init": "phantom"}, "phantom weights"),
        ({"name": "seed-cnn", "init": "random"}, "random weights"),
        ({"name": "seed-cnn", "init": "x.safetensors", "init_sha256": "a" * 64}, PARENT["run"]),
        ({"name": "seed-cnn", "init": "x.safetensors", "init_sha256": "b" * 64}, f"file {'b' * 16}…"),
    ],
)
def test_a_model_names_what_it_started_from(section: dict, start: str) -> None:
    assert start_of(ModelSection(**section), [PARENT]) == start


@pytest.mark.parametrize(
    ("lines", "stage"),
    [
        ("", "released"),
        ('{"unsafe": false}\n', "exported"),
        ('{"unsafe": false}\n{"unsafe": true}\n{"unsafe": false}\n', "exported unsafe"),
        ("{}\n", "exported unsafe"),  # a line that does not say that the gate was open
        ('{"unsafe": false}\n{"unsa', "exported"),  # a kill cut the last line short, and the export did not happen
    ],
)
def test_the_stage_is_that_of_the_least_safe_export(tmp_path: Path, lines: str, stage: str) -> None:
    run = create_run(tmp_path, study_of())
    (run.path / "exports.jsonl").write_text(lines)
    assert stage_of(run) == stage


def test_a_damaged_list_of_exports_is_an_error(tmp_path: Path) -> None:
    run = create_run(tmp_path, study_of())
    (run.path / "exports.jsonl").write_text("nothing\n")
    with pytest.raises(ModelError, match="restore the file from a backup"):
        stage_of(run)
