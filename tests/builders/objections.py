"""A hospital at which some patients object to the use of their data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from builders.broadcasts import broadcast_of
from PIL import Image

from wardround.study.load import Study, parse_study
from wardround_client.rounds.training import answer
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_client.sources.opt_out import opted_out
from wardround_client.studies.store import store_approved

KEY = b"site key of the tests, 32 bytes."


PATIENTS, IMAGES_EACH = 8, 3


GONE = "p3"


def study_of() -> Study:
    return parse_study(
        {
            "study": {"name": "t", "rounds": 3},
            "data": {"labels": ["benign", "malignant"], "image_size": 64, "modality": "any"},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 1},
            "evaluation": {"holdout": 0.0},
        }
    )


def sources(root: Path) -> Path:
    folder, generator = root / "source", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file,patient_id,site,label"]
    for patient in range(PATIENTS):
        for number in range(IMAGES_EACH):
            Image.fromarray(generator.integers(0, 256, (64, 64), dtype=np.uint8)).save(
                folder / f"{patient}{number}.png"
            )
            lines.append(f"{patient}{number}.png,p{patient},north,{('benign', 'malignant')[patient % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def prepare(root: Path, study: Study):
    (source,) = discover(root / "source", study.data)
    site = root / "site"
    return ingest(source, study.data, site / "cohort", KEY, workers=1, objectors=opted_out(site))


def ask(site, study: Study, round_: int) -> None:
    answer(broadcast_of(study, round_, run_id="r"), site)


def prepared_site(root: Path) -> Path:
    """Return a site's folder with ingested images, ready for training."""
    sources(root)
    site, study = root / "site", study_of()
    site.mkdir()
    prepare(root, study)
    (site / "site.toml").write_text('name = "north"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    store_approved(site, study)
    return site
