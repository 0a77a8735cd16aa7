"""Which commands are for a task is the task's own word: one that says nothing is refused by each of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from builders.studies import STUDY
from typer.testing import CliRunner

from wardround.errors import UsageError
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import load_study
from wardround.tasks import TASKS
from wardround.tasks.registry import Commands, commands_of
from wardround_simulation.cli.main import app

QUIET_TASK = """
NETWORKS = ("quiet-network",)
PHANTOM_WEIGHTS = ()
SECTION = None


def check(study):
    pass


def learns(study, labels):
    return "for this test"
"""


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of a task that has no `COMMANDS`."""
    package = tmp_path / "packages" / "quiet_task"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "study.py").write_text(QUIET_TASK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(TASKS, "quiet", "quiet_task")
    for name in ("quiet_task", "quiet_task.study"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = tmp_path / "quiet.toml"
    text = (
        STUDY.replace('name = "t"', 'name = "t"\ntask = "quiet"') + '[model]\nname = "quiet-network"\ninit = "random"\n'
    )
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, UsageError), done.output
    return str(done.exception)


def test_a_task_without_commands_is_refused_by_each_of_them(study_file: Path, tmp_path: Path) -> None:
    assert commands_of("quiet") == Commands()
    assert "--data is missing" in refusal("run", study_file, "--out", tmp_path / "out")
    assert (
        refusal("compare", study_file, "--data", tmp_path) == "compare does not support the task quiet of the study t"
    )
    folder, study = tmp_path / "run", load_study(study_file)
    folder.mkdir()
    (folder / "study.json").write_text(study.to_json(), encoding="utf-8")
    save_checkpoint(folder / "model.safetensors", {}, {"study_sha256": study.sha256()})
    assert "is a run of the task quiet, which generates no images" in refusal("generate", folder)
    assert not (tmp_path / "out").exists()


def test_each_shipped_task_names_its_commands() -> None:
    assert {task: commands_of(task) for task in TASKS} == {
        "classification": Commands(attack=True, compare="settings", onnx=True, explain=True, personalise=True),
        "synthesis": Commands(generate=True, phantoms=True),
        "reconstruction": Commands(compare="methods", phantoms=True),
        "early-warning": Commands(attack=True, compare="settings", phantoms=True, onnx=True, personalise=True),
    }
