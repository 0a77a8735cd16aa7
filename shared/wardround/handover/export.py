"""Write a released model to a new folder, in the format of `package.py`: completely or not at all.

release gate -> model.safetensors -> model.onnx (a process of its own) -> bundle/ -> model.json -> cards -> rename
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import ModelError, UsageError
from wardround.handover import release_gate
from wardround.handover.bundle import bundle_files
from wardround.handover.card.blocks import Card
from wardround.handover.card.content import card_of_record
from wardround.handover.card.formats import to_html, to_markdown
from wardround.handover.package import (
    BUNDLE,
    CARD,
    CARD_HTML,
    CARD_JSON,
    MODEL_FILE,
    ONNX_FILE,
    RECORD_FILE,
    file_entry,
    model_files,
)
from wardround.handover.record import OnnxFacts, RunFacts, record_of
from wardround.identity import sha256_hex
from wardround.processes.isolated import run_isolated
from wardround.storage.atomic import fsync, partial_path, write_synced
from wardround.storage.checkpoint import load_checkpoint
from wardround.storage.disk_errors import writing
from wardround.storage.folders import make_folder
from wardround.storage.text_file import path_text
from wardround.study.load import Study
from wardround.tasks.registry import commands_of

EXPORT_LIMIT_S = 900.0  # DenseNet121 at 224 pixels takes 2.4 minutes on two busy cores
STUDY_FILE = ".study.json"
MOST_OF_A_LICENCE = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model: its folder and the content of its model.json."""

    folder: Path
    record: Mapping[str, Any]


def export_model(
    facts: RunFacts,
    model: Path,
    target: Path,
    *,
    attack: Path | None,
    force: bool,
    license: str = "other",
    before_release: Callable[[dict[str, Any]], object] = bool,
) -> Exported:
    """Export the model of a finished run.

    Args:
        facts: The run.
        model: Its model.safetensors.
        target: The folder to create. It must not exist.
        attack: attack.json, the evidence for the release gate.
        force: Export although the gate is closed. Card and model.json then say so.
        license: The SPDX name of the model's licence, or `other`.
        before_release: Called with model.json before the folder appears. If it raises, there is no folder.

    Raises:
        UsageError: `target` exists or cannot be written, or the attack report is of another model.
        ReleaseRefusal: The gate is closed, and `force` is False.
        ModelError: The model is damaged, of another study, or differs from torch as an ONNX file.
    """
    if os.path.lexists(target):
        raise UsageError(f"{path_text(target)}: already exists and is not overwritten; choose another name")
    if not license.isascii() or not license.isprintable() or not 0 < len(license) <= MOST_OF_A_LICENCE:
        raise UsageError("--license: give the SPDX name of a licence, for example apache-2.0")
    tensors, manifest = load_checkpoint(model)
    if manifest.get("study_sha256") != facts.study.sha256():
        raise ModelError(f"{path_text(model)}: is not the model of this run's study; restore the folder from a backup")
    evidence = None if attack is None else release_gate.read_report(attack)
    content = model.read_bytes()
    decision = release_gate.decide(facts.study, facts.run, sha256_hex(content), evidence, force=force)
    numbers = sum(int(array.size) for array in tensors.values())
    partial = partial_path(target)
    try:
        with writing(target):
            make_folder(target.absolute().parent)
            shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed
            partial.mkdir(mode=0o700)
            write_synced(partial / MODEL_FILE, content)
            onnx = _onnx(facts.study, partial) if ONNX_FILE in model_files(facts.study) else None
            record = _completed(facts, partial, decision, onnx, numbers, license)
            before_release(record)
            os.rename(partial, target)
            fsync(target.absolute().parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder=target, record=record)


def cards_of(record: Mapping[str, Any], study: Study) -> dict[str, bytes]:
    """Return the content of the three model cards by file name, made from model.json alone."""
    card: Card = card_of_record(record, study)
    return {
        CARD: to_markdown(card).encode(),
        CARD_HTML: to_html(card).encode(),
        CARD_JSON: (json.dumps(card.to_json(), indent=1, ensure_ascii=False) + "\n").encode(),
    }


def _onnx(study: Study, folder: Path) -> OnnxFacts:
    """Write model.onnx in a separate process, so that this process never imports torch."""
    source = folder / STUDY_FILE
    source.write_text(study.to_json(), encoding="utf-8")
    words = [str(source), str(folder / MODEL_FILE), str(folder / ONNX_FILE)]
    printed = run_isolated("wardround.handover.onnx_export", words, ModelError, EXPORT_LIMIT_S)
    source.unlink()
    return OnnxFacts(**json.loads(printed.strip().splitlines()[-1]))


def _completed(
    facts: RunFacts,
    folder: Path,
    decision: release_gate.Decision,
    onnx: OnnxFacts | None,
    numbers: int,
    license: str,
) -> dict[str, Any]:
    """Write bundle, record and cards to a folder that has the model's files; return the record."""
    if onnx is not None and onnx.architecture_sha256 != facts.result.get("architecture_sha256"):
        raise ModelError(f"{MODEL_FILE}: its architecture is not the one of the run; restore the folder from a backup")
    files = {name: file_entry(folder / name) for name in model_files(facts.study)}
    record = record_of(facts, decision, onnx, numbers=numbers, license=license, files=files)
    if onnx is not None and commands_of(facts.study.study.task).explain:
        for name, content in bundle_files(record, facts.study, (folder / ONNX_FILE).read_bytes()).items():
            path = folder / BUNDLE / name
            make_folder(path.parent)
            write_synced(path, content)
            files[f"{BUNDLE}/{name}"] = file_entry(path)
        record = record_of(facts, decision, onnx, numbers=numbers, license=license, files=files)
    write_synced(folder / RECORD_FILE, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    for name, content in cards_of(record, facts.study).items():
        write_synced(folder / name, content)
    return record
