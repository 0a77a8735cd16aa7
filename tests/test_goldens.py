"""Bytes that a refactoring must not change: what sites approved, and what is stored, sent and trained.

`tests/goldens.json` contains the values. `.venv/bin/python tests/test_goldens.py` writes it anew; do so only if a
change of behaviour is intended, and give the reason in the commit. Trained weights are compared only on a machine like
the one that wrote the file, because other processors round differently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.randomness import KnownRandom
from paths import ROOT

from wardround.errors import ModelError
from wardround.networks.build import build_model, initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import exchanged_names
from wardround.records.audit_events import PatientForgotten, StudyDecided
from wardround.records.audit_log import AuditLog
from wardround.records.chain import START, linked
from wardround.sources.images.study import ImageData
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import Study, load_study, parse_study
from wardround.study.schema import ModelSection
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround.wire.evaluation import evaluation_round
from wardround.wire.packets import Answer, Broadcast, LedgerHead, Packet, pack_answer, pack_broadcast, weights_sha256
from wardround_client.rounds.evaluation import release_scores
from wardround_client.sources.cohort import Cohort
from wardround_client.training.rows import inputs_of, usable_rows
from wardround_server.rounds.loop import run_rounds
from wardround_simulation.engine.in_process import Hospital, in_process_exchange, start_weights, temporary_site

FILE = Path(__file__).with_name("goldens.json")
NETWORKS = {
    "phantom-encoder": ("phantom",), "phantom-sampler": ("phantom",), "seed-cnn": ("random",),
    "resnet-small": ("random",), "resnet-large": ("random",), "densenet121": ("random",),
    "dcgan": ("random", "phantom"), "restorer": ("random", "phantom"),
}  # fmt: skip


BLUR = ReconstructionSection(degradation="blur")


class Replayed(KnownRandom):
    """Known numbers that a site takes for secret ones: the same run twice."""

    secret = True


def study_hashes() -> dict[str, str]:
    return {path.stem: load_study(path).sha256() for path in sorted((ROOT / "studies").glob("*.toml"))}


def architectures() -> dict[str, str]:
    """Network, start and trainable -> the hash that sites and server compare, and a hash of what would travel."""
    found = {}
    data = ImageData(labels=("benign", "malignant"), image_size=64)
    for name, starts in NETWORKS.items():
        for init in starts:
            for trainable in ("head", "norm+head", "all"):
                try:
                    network = build_model(
                        ModelSection(name=name, init=init, trainable=trainable),
                        data,
                        0,
                        BLUR if name == "restorer" else None,
                    )
                    names = exchanged_names(network, trainable)
                except ModelError:
                    continue
                digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
                found[f"{name} {init} {trainable}"] = f"{architecture_sha256(network)} {digest}"
    return found


def packets() -> dict[str, str]:
    weights = {"head.bias": np.zeros(2, np.float32), "head.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    question = Broadcast(study_sha256="a" * 64, run_id="run-1", round=3, weights=weights, architecture_sha256="b" * 64)
    answer = Answer(weights=weights, head=LedgerHead(entries=57, sha256="d" * 64), recent="c" * 16)
    return {"broadcast": _packet(pack_broadcast(question)), "answer": _packet(pack_answer(question, answer))}


def _packet(packet: Packet) -> str:
    return hashlib.sha256(repr(dataclasses.astuple(packet)).encode()).hexdigest()


def chains(folder: Path) -> dict[str, str]:
    log = AuditLog(folder / "audit.jsonl", clock=lambda: 1_790_000_000.0)
    log.append(StudyDecided(decision="approved", study="ab" * 32, who="Dr. Marie Sk\u0142odowska-Curie"))
    log.append(PatientForgotten(count=2))
    return {
        "audit": hashlib.sha256((folder / "audit.jsonl").read_bytes()).hexdigest(),
        "ledger": linked(linked(START, '{"a":1}'), '{"b":"inf"}').sha256,
    }


def study_of(name: str) -> Study:
    """A small study of each kind of training."""
    model, extra = {
        "head": ({}, {"training": {"augmentation": "flips"}, "privacy": {"images_per_patient": 1}}),
        "features": ({"name": "phantom-encoder"}, {"evaluation": {"epsilon": 2.0, "bins": 8, "holdout": 0.3}}),
        "seed-cnn": (
            {"name": "seed-cnn", "init": "random", "trainable": "all"},
            {"training": {"augmentation": "light", "local_steps": 2}},
        ),
        "resnet": ({"name": "resnet-small", "init": "random", "trainable": "norm+head"}, {"study": {"rounds": 2}}),
        "restorer": (
            {"name": "restorer", "init": "phantom", "trainable": "head"},
            {
                "study": {"task": "reconstruction", "rounds": 2},
                "training": {"learning_rate": 0.04, "augmentation": "flips", "local_steps": 2},
                "evaluation": {"epsilon": 2.0, "bins": 8, "logit_scale": 0.1, "holdout": 0.3},
                "reconstruction": {"crop_px": 32},
            },
        ),
        "sampler": ({"name": "phantom-sampler", "init": "phantom"}, {"study": {"task": "synthesis", "rounds": 2}}),
        "dcgan": (
            {"name": "dcgan", "init": "random", "trainable": "all"},
            {
                "study": {"task": "synthesis", "rounds": 2},
                "training": {"learning_rate": 0.01, "local_steps": 2},
                "synthesis": {"fakes_per_step": 6, "generator_steps": 1},
            },
        ),
    }[name]
    content: dict[str, Any] = {
        "study": {"name": name, "rounds": 3, "spare_rounds": 0},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "model": model,
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 2, "strategy": "fedprox", "proximal_mu": 0.1},
    }
    for section, changes in extra.items():
        content[section] = content.get(section, {}) | changes
    return parse_study(content)


STUDIES = ("head", "features", "seed-cnn", "resnet", "restorer", "sampler", "dcgan")


def cohort_of(seed: int) -> Cohort:
    """Twelve patients with one to three smooth synthetic images each, and one image without a label."""
    dice = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(12), dice.integers(1, 4, 12))
    coarse = torch.from_numpy(dice.random((len(patient_N), 1, 8, 8), dtype=np.float32) * 255)
    images = torch.nn.functional.interpolate(coarse, 64, mode="bilinear").to(torch.uint8).numpy()
    labels_N = dice.integers(0, 2, len(patient_N)).astype(np.int16)
    labels_N[0] = -1
    return Cohort(
        values_N=images,
        labels_N=labels_N,
        patient_N=patient_N,
        label_names=("benign", "malignant"),
        pseudonyms=tuple(f"{number:032x}" for number in range(12)),
        holdout_rank_P=np.linspace(0, 1, 12),
        key=f"{seed:064x}",
        prepared_by="golden",
    )


def trained(name: str, folder: Path) -> dict[str, str]:
    """Two sites train a study under known randomness: hashes of the checkpoints' tensors and of the figures."""
    study = study_of(name)
    sites = []
    for seed in (1, 2):
        cohort = cohort_of(seed)
        inputs_N = inputs_of(study, cohort, torch.device("cpu"), None)
        hospital = Hospital(name=f"site-{seed}", cohort=cohort, inputs_N=inputs_N)
        training = usable_rows(study, cohort) & (cohort.holdout_rank_P >= 0.3)[cohort.patient_N]
        site = temporary_site(study, hospital.name, [(hospital, training)], {})
        sites.append(dataclasses.replace(site, randomness=Replayed(b"golden %d" % seed)))
    network = initial_network(study)
    exchange, architecture = in_process_exchange(sites), architecture_sha256(network)
    outcome = run_rounds(study, "golden", architecture, start_weights(study), exchange, folder)
    found = {"released": weights_sha256(outcome.weights)}
    for path in sorted(folder.rglob("*.safetensors")):
        tensors, _ = load_checkpoint(path)
        found[path.name] = weights_sha256({key: np.asarray(value) for key, value in tensors.items()})
    if study.evaluation.epsilon:
        question = Broadcast(
            study_sha256=study.sha256(), run_id="golden", round=evaluation_round(study), weights=outcome.weights,
            architecture_sha256=architecture,
        )  # fmt: skip
        found["figures"] = str([release_scores(question, site).counts_2B.tolist() for site in sites])
    return found


def machine() -> str:
    """What decides how float32 rounds: torch, the instructions that it uses, and the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {platform.machine()} {names[:1]}"


@pytest.fixture(scope="module")
def goldens() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name, found", [("studies", study_hashes), ("architectures", architectures),
                                         ("packets", packets)])  # fmt: skip
def test_what_sites_approve_and_what_travels_is_as_it_was(goldens, name: str, found: Callable[[], Any]) -> None:
    assert found() == goldens[name]


def test_the_chains_of_ledger_and_audit_log_are_as_they_were(goldens, tmp_path: Path) -> None:
    assert chains(tmp_path) == goldens["chains"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_known_run_gives_the_same_bits(goldens, tmp_path: Path, name: str) -> None:
    if machine() != goldens["machine"]:
        pytest.skip("written on another kind of machine, whose processor rounds in its own way")
    assert trained(name, tmp_path) == goldens["trained"][name]


def main() -> None:
    import tempfile

    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "studies": study_hashes(), "architectures": architectures()}
    found["packets"] = packets()
    with tempfile.TemporaryDirectory() as folder:
        found["chains"] = chains(Path(folder))
        found["trained"] = {name: trained(name, Path(folder) / name) for name in STUDIES}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
