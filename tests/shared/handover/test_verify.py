"""An exported model is written completely or not at all, and `verify` finds each change to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders.handover import attack_report, export_in_process, write_report
from builders.networks import records_study
from builders.packages import edit_record
from builders.runs import study_of
from paths import ROOT

from wardround.errors import ModelError, UsageError, WardroundError
from wardround.handover import export
from wardround.handover.export import export_model
from wardround.handover.package import file_entry, open_package
from wardround.handover.record import RunFacts
from wardround.handover.verify import verify
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import Study, parse_study
from wardround.tasks.classification.familiarity import familiarity_of

RUN = "20261129-025118-ef82ad"
CHECKS = ["record", "files", "architecture", "onnx", "cards", "bundle"]


def marked() -> Study:
    """A study of marked regions on CT, for which there is a score of familiarity."""
    content = study_of().model_dump()
    content["data"].update(region="marked", spacing_mm=0.7)
    return parse_study(content)


def finished_run(folder: Path, study: Study) -> tuple[RunFacts, Path]:
    """The facts and the model file of a run that released its initial weights."""
    network = initial_network(study)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    architecture = architecture_sha256(network)
    manifest = {"kind": "model", "study_sha256": study.sha256(), "architecture_sha256": architecture}
    path = folder / "model.safetensors"
    save_checkpoint(path, tensors, manifest)
    result = {
        "study_sha256": study.sha256(), "architecture_sha256": architecture, "rounds_completed": 2, "missing": [],
        "privacy": {"unit": "patient", "relation": "add or remove one", "epsilon_promised": 8.0, "delta": 1e-5},
        "sites": {"east": {"ledger": None}}, "test": {"auc": 0.9, "patients": 1},
    }  # fmt: skip
    metrics = [{"round": number, "site": "east", "code": None} for number in (1, 2)]
    facts = RunFacts(
        run=RUN, kind="federation", study=study, result=result, metrics=metrics, created="2026-11-24T22:01:05Z"
    )
    return facts, path


def exported(folder: Path, study: Study, **options) -> Path:
    facts, model = finished_run(folder, study)
    attack = write_report(folder / "attack.json", attack_report(study, "another-run"))
    export_model(facts, model, folder / "out", attack=attack, **{"force": False, **options})
    return folder / "out"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, made once."""
    with pytest.MonkeyPatch.context() as patch:
        export_in_process(patch)
        return exported(tmp_path_factory.mktemp("export"), marked())


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", made, copy], check=True)
    return copy


def failed(folder: Path) -> dict[str, str]:
    findings = verify(folder)
    assert all("\n" not in finding.detail for finding in findings)
    return {finding.name: finding.detail for finding in findings if not finding.passed}


def test_an_exported_model_passes_every_check(folder: Path) -> None:
    findings = verify(folder)
    assert [finding.name for finding in findings if finding.passed] == CHECKS
    package = open_package(folder)
    assert (
        package.content["onnx"]["images_compared"] == 60
        and package.content["familiarity"]["threshold"] == familiarity_of(marked())[1]
    )
    assert package.content["simulated_test"] is None  # exact figures about patients do not leave
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "model.onnx", "model.json", "model-card.md", "model-card.html", "model-card.json",
        "bundle",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *("model.onnx", "bundle/scripts/onnx_network.py"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("model.safetensors", "bundle/models/model.onnx", "bundle/configs/inference.json"),
                *("bundle/configs/metadata.json", "bundle/docs/README.md", "bundle/LICENSE"),
            )
        ),
    ],
)
def test_a_changed_file_is_found(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    faults = failed(folder)
    assert faults and any(name in fault and "altered" in fault for fault in faults.values())
    path.unlink()
    assert any(name in fault and "is missing" in fault for fault in failed(folder).values())


@pytest.mark.parametrize("name", ["model-card.md", "model-card.html", "model-card.json"])
def test_a_card_that_says_something_else_is_found(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b"not for diagnosis", b"made for diagnosis"))
    assert failed(folder).keys() == {"cards"}


def test_code_in_the_bundle_is_found_even_with_a_new_hash(folder: Path) -> None:
    path = folder / "bundle" / "scripts" / "__init__.py"
    path.write_text("import os")
    record = json.loads((folder / "model.json").read_text())
    edit_record(folder, files={**record["files"], "bundle/scripts/__init__.py": file_entry(path)})
    assert "differs from what model.json gives" in failed(folder)["bundle"]


def test_a_file_that_does_not_belong_to_the_model_is_found(folder: Path) -> None:
    (folder / "bundle" / "configs" / "logging.conf").write_text("[loggers]")
    assert "not part of the exported model" in failed(folder)["files"]


def test_another_network_under_the_right_hashes_is_found(folder: Path) -> None:
    """model.onnx and model.safetensors each have their hash, but are not the same model."""
    study = marked()
    network = initial_network(study)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    tensors["head.bias"] = tensors["head.bias"] + np.float32(0.01)
    manifest = {"study_sha256": study.sha256(), "architecture_sha256": architecture_sha256(network)}
    save_checkpoint(folder / "model.safetensors", tensors, manifest)
    record = json.loads((folder / "model.json").read_text())
    edit_record(folder, files={**record["files"], "model.safetensors": file_entry(folder / "model.safetensors")})
    faults = failed(folder)
    assert "differs from the network" in faults["onnx"] and "architecture" not in faults


def test_a_better_figure_in_the_record_is_found_in_the_card(folder: Path) -> None:
    edit_record(folder, rounds=3)
    assert failed(folder).keys() >= {"cards"}


@pytest.mark.parametrize("figures", [{}, {"auc": "high"}, {"epsilon": -1}, {"epsilon": 1, "sites": 3}])
def test_figures_of_no_known_form_are_a_finding_and_no_crash(folder: Path, figures: dict) -> None:
    edit_record(folder, federated_test=figures)
    assert "its figures are incomplete" in failed(folder)["cards"]


def test_a_folder_without_a_record_is_one_finding(tmp_path: Path) -> None:
    assert failed(tmp_path).keys() == {"record"} and failed(tmp_path / "nothing").keys() == {"record"}


def test_the_program_of_the_documentation_needs_onnxruntime_and_numpy_alone(folder: Path) -> None:
    page = (ROOT / "docs" / "handover.md").read_text(encoding="utf-8")
    program = page.split("```python\n")[1].split("```")[0].replace("models/demo", str(folder))
    assert len(program.strip().splitlines()) <= 16
    blocked = "import sys\nfor name in ('torch', 'onnx', 'wardround', 'monai'): sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-I", "-c", blocked + program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("refused") or 0 <= float(line) <= 1


# Writing


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_in_process(monkeypatch)

    def broken(*_: object, **__: object) -> str:
        raise ModelError("the ONNX file computes something else")

    monkeypatch.setattr(export, "run_isolated", broken)
    with pytest.raises(ModelError, match="computes something else"):
        exported(tmp_path, study_of())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack.json", "model.safetensors"]


def test_nothing_is_overwritten_and_a_killed_attempt_is_no_obstacle(tmp_path: Path, monkeypatch) -> None:
    export_in_process(monkeypatch)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_text("half")
    exported(tmp_path, study_of())
    assert not (tmp_path / ".out.partial").exists()
    for there in (tmp_path / "out", tmp_path / "link"):
        if there.name == "link":
            os.symlink("nowhere", there)
        facts, model = finished_run(tmp_path, study_of())
        with pytest.raises(UsageError, match="not overwritten"):
            export_model(facts, model, there, attack=None, force=True)


def test_a_model_of_another_study_or_a_wrong_licence_is_refused(tmp_path: Path) -> None:
    facts, model = finished_run(tmp_path, study_of())
    (tmp_path / "other").mkdir()
    other, _ = finished_run(tmp_path / "other", study_of("other"))
    with pytest.raises(ModelError, match="not the model of this run's study"):
        export_model(other, model, tmp_path / "out", attack=None, force=True)
    for license in ("", "a\nb", "x" * 65, "licence é"):
        with pytest.raises(UsageError, match="--license"):
            export_model(facts, model, tmp_path / "out", attack=None, force=True, license=license)


def test_a_generative_model_leaves_without_an_onnx_file(tmp_path: Path) -> None:
    content = study_of().model_dump()
    content["study"]["task"] = "synthesis"
    content["model"].update(name="phantom-sampler", init="phantom", trainable="head")
    content["data"].update(image_size=64)
    study = parse_study(content)
    folder = exported(tmp_path, study, force=True)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "model.json", "model-card.md", "model-card.html", "model-card.json",
    }  # fmt: skip
    assert [finding.name for finding in verify(folder) if finding.passed] == [
        "record",
        "files",
        "architecture",
        "cards",
    ]
    assert not open_package(folder).has_onnx


def test_a_risk_model_leaves_with_an_onnx_file_and_without_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_in_process(monkeypatch)
    heart = {"vocabulary": "heart", "window_hours": 1, "outcome": "num", "labels": ["healthy", "diseased"]}
    study = records_study("tabular-head", hours=1, data=heart, model={"init": "phantom"})
    folder = exported(tmp_path, study)
    assert [one.name for one in verify(folder) if one.passed] == ["record", "files", "architecture", "onnx", "cards"]
    package, card = open_package(folder), (folder / "model-card.md").read_text()
    assert package.has_onnx and not package.has_bundle and package.content["familiarity"] is None
    assert "rows, float32 (N, 1, " in card and "the logit of diseased" in card and "| chol | " in card
    assert 'pipeline_tag: "tabular-classification"' in card and "records that are unlike" in card
    (folder / "model.onnx").write_bytes(b"other")
    assert "differs from its hash" in failed(folder)["record"]


@pytest.mark.slow
def test_the_processes_of_a_server_export_and_verify_without_loading_torch_there(tmp_path: Path) -> None:
    folder = exported(tmp_path, study_of())
    code = (
        "import sys; from wardround.cli.handover import print_findings; from pathlib import Path\n"
        f"print_findings(Path({str(folder)!r}), True); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in json.loads(done.stdout) if one["passed"]] == CHECKS


def test_a_process_that_fails_gives_its_last_line(tmp_path: Path) -> None:
    from wardround.processes.isolated import run_isolated

    with pytest.raises(WardroundError) as caught:
        run_isolated("wardround.handover.onnx_export", ["a", "b", "c"], ModelError, 120)
    assert isinstance(caught.value, ModelError) and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="took longer"):
        run_isolated("wardround.handover.onnx_export", ["a", "b", "c"], ModelError, 0.01)
