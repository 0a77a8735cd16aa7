"""One held-out image of a phantom hospital, predicted and explained by the finished model as a site does it.

The model is exported to a temporary folder, as `wardround-sim export --force-unsafe` does, and the site's own `predict`
and `explain` read the image's file. So a first run ends with a decision that a person can look at.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wardround.handover.export import export_model
from wardround.handover.package import open_package
from wardround.handover.record import RunFacts
from wardround.sources.images.study import image_data
from wardround.storage.folders import make_folder
from wardround.study.load import Study
from wardround.tasks.assessment import ReportSection, Sheet
from wardround.tasks.classification.explain.pictures import grey_picture, overlay
from wardround_client.explain.explain import Explained, explain
from wardround_client.explain.results import write_explanations
from wardround_client.predict.reading import read_images
from wardround_client.predict.results import write_results
from wardround_client.site.paths import COHORT
from wardround_client.sources.cohort import Cohort, open_cohort, pseudonym
from wardround_client.sources.images.decoding.identify import patients_of_files
from wardround_client.sources.images.folder.files import LABELS
from wardround_client.sources.images.folder.layout import SiteSource
from wardround_server.runs.metrics_log import read_lines
from wardround_server.runs.paths import METRICS_FILE, MODEL_FILE
from wardround_simulation.run.hospitals import SIMULATION_KEY
from wardround_simulation.run.paths import EXAMPLE, EXAMPLE_PAGE

MOST_TRIED = 12  # held-out patients; the model knows almost every phantom of its study


def write_example(out: Path, study: Study, result: dict[str, Any], source: SiteSource) -> Sequence[ReportSection]:
    """Predict and explain one held-out image, write `example/` in the run's folder, and return the report's section.

    Args:
        out: The run's folder, with its model.
        study: The run's study.
        result: The content of result.json.
        source: The phantom hospital to take the image from; the run prepared its cohort.

    Returns:
        The section; nothing if the model knows none of the images that were tried.
    """
    facts = RunFacts(
        run=str(result["run_id"]),
        kind="simulation",
        study=study,
        result=result,
        metrics=read_lines(out / METRICS_FILE),
        created=str(result["finished_at"]),
    )
    site = out / "sites" / source.name
    with tempfile.TemporaryDirectory(dir=out, prefix=".example-") as temporary:
        exported = Path(temporary) / "model"
        export_model(facts, out / MODEL_FILE, exported, attack=None, force=True)
        package = open_package(exported)
        for folder in _held_out_folders(source, open_cohort(site / COHORT), study)[:MOST_TRIED]:
            marked = read_images(folder, image_data(study), source.root / LABELS).images
            if not marked:
                continue
            explained = explain(package, marked[0].path, source.root / LABELS, site)
            if any(one.explanation is not None for one in explained.images):
                break
        else:
            return []
    shutil.rmtree(out / EXAMPLE, ignore_errors=True)  # of a run that was killed while it wrote its report
    make_folder(out / EXAMPLE)
    write_results(out / EXAMPLE, explained.found)
    write_explanations(out / EXAMPLE, explained)
    return [_section(explained, source.name)]


def _held_out_folders(source: SiteSource, cohort: Cohort, study: Study) -> list[Path]:
    """Return the folders of held-out patients, those with the last label first. A phantom patient is a folder."""
    first = {file.path.parent: source.root / file.path for file in reversed(source.files)}
    patients = patients_of_files(source.root, list(first.values()))
    label_of = dict(zip(cohort.patient_N.tolist(), cohort.labels_N.tolist(), strict=True))
    held_out = {
        name: label_of[patient]
        for patient, name in enumerate(cohort.pseudonyms)
        if cohort.holdout_rank_P[patient] < study.evaluation.holdout
    }
    found = [
        (-held_out[name], folder)
        for folder, patient in zip(first, patients, strict=True)
        if patient is not None and (name := pseudonym(SIMULATION_KEY, patient)) in held_out
    ]
    return [source.root / folder for _, folder in sorted(found)]


def _section(explained: Explained, hospital: str) -> ReportSection:
    one = next(one.explanation for one in explained.images if one.explanation is not None)
    pictures = [grey_picture(one.image_HW), overlay(one.image_HW, one.maps.evidence_HW, one.maps.reads_px)]
    images = np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])
    return ReportSection(
        anchor="example",
        title="One decision, explained",
        lines=[
            f"A held-out image of {hospital}, read from its DICOM file as at a hospital. {' '.join(one.statement)}",
            f"The whole explanation is in {EXAMPLE_PAGE} beside this page; docs/clinic.md says how to read it.",
        ],
        sheets=[
            Sheet(
                title="The image, and the places that raise or lower its score",
                images_NCHW=images,
                columns=2,
                caption=f"Red raises the score of {one.label}, blue lowers it; the ring is at the strongest place.",
                tile_px=256,
            )
        ],
    )
