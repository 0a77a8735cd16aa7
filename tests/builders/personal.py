"""A study with a personalisation, a site on disk that approved it, and weights as a run releases them."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from builders.broadcasts import broadcast_of

from wardround.study.load import Study, parse_study
from wardround.wire.evaluation import evaluation_round
from wardround.wire.packets import Broadcast
from wardround_client.ledger.ledger import cap_of
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.studies.store import store_approved

KEY = b"k" * 32
LABELS = ("benign", "malignant")
HEAD = {"study": {"rounds": 2, "spare_rounds": 0}}
NETWORK = HEAD | {"model": {"name": "resnet-small", "init": "random", "trainable": "all"}}


@functools.cache
def _study(text: str) -> Study:
    return parse_study(json.loads(text))


def study_of(changes: dict | None = None, *, personal: bool = True, **settings) -> Study:
    content: dict = {
        "study": {"name": "t"},
        "data": {"labels": list(LABELS), "image_size": 64, "modality": "any"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 6.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
        "evaluation": {"holdout": 0.4},
        **({"personalisation": {"epsilon": 3.0, "steps": 2, **settings}} if personal else {}),
    }
    for name, section in (changes or HEAD).items():
        content[name] = content.get(name, {}) | section
    return _study(json.dumps(content))


def approved_site(folder: Path, study: Study, epsilon_cap: float | None = None) -> Path:
    """A site without data, which approved the study under a cap that holds it."""
    cap = cap_of(study).epsilon if epsilon_cap is None else epsilon_cap
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.toml").write_text(
        f'name = "north"\n[privacy]\nepsilon_cap = {cap}\ndelta_cap = 1e-4\n[release]\nevaluation = "noised"\n'
        '[compute]\ndevice = "cpu"\nthreads = 1\n'
    )
    store_approved(folder, study)
    return folder


def site_folder(folder: Path, study: Study, epsilon_cap: float | None = None) -> Path:
    """A site with 24 patients of two noise images each, which approved the study."""
    approved_site(folder, study, epsilon_cap)
    generator, size = np.random.default_rng(0), study.data.image_size
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"{n // 2}"), label=n // 2 % 2) for n in range(48)]
    images = (generator.integers(0, 256, (1, size, size), dtype=np.uint8) for _ in rows)
    write_cohort(folder / "cohort", rows, images, row_shape=(1, size, size), label_names=LABELS, site_key=KEY)
    return folder


def released(study: Study, **changes) -> Broadcast:
    """Weights as a run releases them: not the initial ones."""
    question = broadcast_of(study, evaluation_round(study))
    moved = {name: array + np.float32(0.01) for name, array in question.weights.items()}
    return dataclasses.replace(question, weights=moved, **changes)
