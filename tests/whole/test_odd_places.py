"""A run in the locale C, with odd letters in its paths, in a folder whose Python files have the names of modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders.pictures import manifest, many

STUDY = """
[study]
name = "tiny"
rounds = 1
[data]
modality = "any"
image_size = 32
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
learning_rate = 0.01
[privacy]
epsilon = 8
delta = 1e-4
max_grad_norm = 1.0
nominal_patients = 5
[aggregation]
nominal_sites = 2
"""
PLANTED = ("types", "numpy", "torch", "random", "ray", "secrets")


LETTERS = "[1] \u03b5 \udcff"  # markup of the terminal's library, a letter outside ASCII, a byte that is no letter


@pytest.mark.slow
def test_a_run_survives_its_place(tmp_path: Path) -> None:
    manifest(tmp_path / f"data {LETTERS}", many())
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8-sig")
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    program = str(Path(sys.executable).with_name("wardround-sim"))
    words = ["run", "study.toml", "--data", f"data {LETTERS}", "--out", f"out {LETTERS}", "--sites", "2"]
    done = subprocess.run(
        [program, *words, "--no-baselines"],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Report: out [1] " in done.stdout
    assert (tmp_path / f"out {LETTERS}" / "result.json").is_file()
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
