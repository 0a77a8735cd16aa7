"""A simulated run's model is exported with its own attack report; exact figures leave for generated patients only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders.handover import attack_report, export_in_process, write_report
from builders.runs import study_of

from wardround.errors import ReleaseRefusal, UsageError
from wardround.handover.package import file_entry, open_package
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.checkpoint import save_checkpoint
from wardround_simulation.run.handover import export_folder

RUN = "20261129-025118-ef82ad"


def write_run(folder: Path, *, phantoms: bool = True) -> Path:
    """The files of a finished run that an export reads."""
    study = study_of()
    folder.mkdir()
    network = initial_network(study)
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    manifest = {"kind": "model", "study_sha256": study.sha256(), "architecture_sha256": architecture_sha256(network)}
    save_checkpoint(folder / "model.safetensors", tensors, manifest)
    result = {
        "run_id": RUN, "study_sha256": study.sha256(), "architecture_sha256": architecture_sha256(network),
        "rounds_completed": 2, "missing": [], "phantoms": phantoms, "finished_at": "2026-11-29T02:53:03Z",
        "privacy": {"unit": "patient", "relation": "add or remove one", "epsilon_promised": 8.0, "delta": 1e-5,
                    "epsilon": 7.26, "accountant": "RDP, opacus 1.6.0"},
        "sites": {"east": {"epsilon": 7.26, "patients": 41}, "north": {"epsilon": 6.1, "patients": 43}},
        "test": {"unit": "slice", "auc": 0.7887, "auc_ci95": [0.6456, 0.8801], "patients": 57},
        "test_by_patient": {"unit": "patient", "auc": 0.8091, "auc_ci95": [0.6651, 0.8962], "patients": 57},
    }  # fmt: skip
    (folder / "run.json").write_text("{}")
    (folder / "study.json").write_text(study.to_json())
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"round": number, "site": site, "code": None} for number in (1, 2) for site in ("east", "north")]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def with_attack(folder: Path) -> Path:
    model = file_entry(folder / "model.safetensors")["sha256"]
    write_report(folder / "attack.json", attack_report(study_of(), RUN, model_sha256=model))
    return folder


def test_a_run_is_exported_with_its_own_attack_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_in_process(monkeypatch)
    run, target = write_run(tmp_path / "run"), tmp_path / "out"
    with pytest.raises(ReleaseRefusal, match="no attack report"):
        export_folder(run, target, attack=None, force=False, license="other")
    export_folder(with_attack(run), target, attack=None, force=False, license="other")
    content = open_package(target).content
    assert content["created"] == "2026-11-29T02:53:03Z"
    assert content["kind"] == "simulation" and content["attack"]["same_run"] is True and content["phantoms"] is True
    assert content["sites"]["north"] == {"rounds_counted": 2, "epsilon": 6.1}
    card = (target / "model-card.md").read_text()
    for part in (
        "AUC 0.809 (95 %: 0.665–0.896), 57 patients",
        "this run, with all of its files",
        "ε 7.26 (RDP",
        "6.1 |",
    ):
        assert part in card, part


def test_no_exact_figure_about_patients_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_in_process(monkeypatch)
    target = tmp_path / "out"
    run = with_attack(write_run(tmp_path / "run", phantoms=False))
    export_folder(run, target, attack=None, force=False, license="other")
    texts = [path.read_text() for path in target.rglob("*") if path.suffix in (".md", ".html", ".json")]
    assert len(texts) == 7
    for text in texts:
        for figure in ("0.788", "0.809", "0.645", "57 patients", '"patients": 4'):
            assert figure not in text, figure
    assert "not covered by ε" in (target / "model-card.md").read_text()


@pytest.mark.parametrize("missing", ["run.json", "result.json", "study.json", "model.safetensors"])
def test_an_incomplete_run_is_refused_in_one_line(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(UsageError) as refused:
        export_folder(run, tmp_path / "out", attack=None, force=True, license="other")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for text in ("{", "[]", '{"run_id": "x", "study_sha256": "y"}'):
        (run / "result.json").write_text(text)
        with pytest.raises(UsageError):
            export_folder(run, tmp_path / "out", attack=None, force=True, license="other")
