"""One hospital: small studies, training material, and a site that can answer a round."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from wardround.errors import PolicyRefusal
from wardround.study.load import Study, parse_study
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.site.site import ReplyFolder, Site
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.training.batches import Material, material_of

KEY = b"k" * 32


def study_of(**privacy) -> Study:
    settings = {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8}
    content = {
        "study": {"name": "t", "rounds": 3, "spare_rounds": 1},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "privacy": settings | privacy,
        "aggregation": {"nominal_sites": 1},
    }
    return parse_study(content)


def twelve_images(study: Study, patients: int = 6) -> Material:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(2 * patients, 33)).astype(np.float32)
    labels = generator.integers(0, 2, 2 * patients).astype(np.int16)
    patient_N = np.repeat(np.arange(patients), 2)
    return material_of(features, labels, patient_N, np.ones(2 * patients, bool))


def site_in(folder: Path) -> Site:
    """Return a site with a real ledger and a real reply folder on disk."""
    studies = (study_of(), study_of(epsilon=math.inf), study_of(epsilon=9.0), study_of(epsilon=2.0))
    known = {study.sha256(): study for study in studies}

    def study(sha256: str) -> Study:
        if sha256 not in known:
            raise PolicyRefusal("not_approved", "unknown")
        return known[sha256]

    return Site(
        name="hospital",
        cap=Cap(epsilon=8.0, delta=1e-4),
        ledger=Ledger(folder / "ledger.sqlite3"),
        replies=ReplyFolder(folder / "replies"),
        study_of=study,
        material_of=twelve_images,
        randomness=SecretRandom(),
        device=torch.device("cpu"),
    )


RELEASING_SITE = 'name = "h"\n[privacy]\nepsilon_cap = 12.0\ndelta_cap = 1e-4\n[release]\nevaluation = "noised"\n'


def releasing_study(evaluation_epsilon: float = 0.0, epsilon: float = 8.0) -> Study:
    return parse_study(
        {
            "study": {"name": "t", "rounds": 3, "spare_rounds": 1},
            "data": {"labels": ["benign", "malignant"], "image_size": 64},
            "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 1},
            "evaluation": {"epsilon": evaluation_epsilon, "holdout": 0.5},
        }
    )


def write_patients(folder: Path, prefix: str) -> None:
    """Write a cohort of 12 patients with two images of noise each. Their identifiers begin with `prefix`."""
    generator = np.random.default_rng(0)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"{prefix}{n // 2}"), label=n // 2 % 2) for n in range(24)]
    images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
    names = ("benign", "malignant")
    write_cohort(folder / "cohort", rows, images, row_shape=(1, 64, 64), label_names=names, site_key=KEY)
