"""Prepare the hospitals of a simulation: one site folder for each, with the same layout as a real site's.

OUT/sites/NAME/    site.toml, studies/, cohort/, later ledger.sqlite3, replies/, cache/
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.sources.registry import of_study
from wardround.storage.atomic import write_file
from wardround.storage.folders import make_folder
from wardround.study.load import Study
from wardround.tasks.registry import objective_part
from wardround_client.ledger.ledger import cap_of
from wardround_client.site.config import ReleaseConfig, load_site_config
from wardround_client.site.paths import COHORT, CONFIG_FILE
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.quality import not_used_by_reason
from wardround_client.sources.registry import FoundSite, IngestReport, source_of
from wardround_client.studies.store import MOST_RUNS, add_decision, last_decision, store_approved

# All sites and runs share this key, and it is public: all data of a simulation are on one machine anyway. With one key
# every run holds out the same patients, and a patient who is at two sites, or in training and test, can be detected.
# A real site generates its own key and keeps it secret.
SIMULATION_KEY = hashlib.sha256(b"wardround simulation").digest()

SIMULATED_PERSON = "Simulation"  # recorded as the approver in the file of decisions

Progress = Callable[[str, int, int], None]  # (site, files done, files in total)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One prepared hospital: its folder and the report of its ingest, which includes the quality gate's counts."""

    name: str
    folder: Path
    report: IngestReport


def prepare_hospitals(
    sites: Sequence[FoundSite], study: Study, folder: Path, progress: Progress | None = None
) -> list[Prepared]:
    """Ingest every site into `folder`/NAME, incrementally, in the order given.

    Raises:
        DataError: If no cohort can be made from a site's data (a one-line message).
    """
    prepared: list[Prepared] = []
    if not sites:
        return prepared
    source = source_of(study.data)
    with source.worker_pool(os.cpu_count() or 1) as pool:
        for site in sites:
            target = folder / site.name
            make_folder(target)

            def tell(done: int, total: int, name: str = site.name) -> None:
                if progress:
                    progress(name, done, total)

            report = source.ingest(
                site, study.data, target / COHORT, SIMULATION_KEY, workers=1, progress=tell, pool=pool
            )
            prepared.append(Prepared(name=site.name, folder=target, report=report))
    return prepared


def not_used(hospital: Prepared, study: Study) -> str | None:
    """Return one line about a hospital's files that were put aside or left out, with reasons; None if there are none.

    What the source leaves out on purpose without a word does not count.
    """
    quality, source = hospital.report.quality, source_of(study.data)
    lines = [
        f"{count:,} {text}"
        for code, text, count in not_used_by_reason(quality, source.REASONS, source.LEFT_OUT)
        if code not in source.WORDLESS
    ]
    return f"{hospital.name}: {quality.rows:,} {quality.row}s used; {'; '.join(lines)}" if lines else None


def check_federation(study: Study, data: Path, hospitals: list[Prepared]) -> None:
    """Raise `DataError` if a patient is at two sites, or if the study needs labels and fewer than two occur."""
    owner: dict[str, str] = {}
    labels: set[int] = set()
    for hospital in hospitals:
        cohort = open_cohort(hospital.folder / COHORT)
        labels |= set(np.unique(cohort.labels_N[cohort.labels_N >= 0]).tolist())
        for patient in cohort.pseudonyms:
            if owner.setdefault(patient, hospital.name) != hospital.name:
                raise DataError(
                    f"{data}: a patient is at both {owner[patient]} and {hospital.name}; "
                    "assign each patient to one site"
                )
    if len(labels) < 2 and not _uses_unlabelled_images(study):
        row = of_study(study).ROW
        names = ", ".join(study.data.labels[label] for label in sorted(labels)) or "none"
        raise DataError(
            f"{data}: a {study.study.task} study needs {row}s of two labels, but the usable {row}s have: {names}"
        )


def _uses_unlabelled_images(study: Study) -> bool:
    return bool(objective_part(study.study.task).usable_rows(study, np.array([-1], dtype=np.int16)).all())


def check_disjoint(hospitals: list[Prepared], test: list[Prepared], data: Path) -> None:
    """Raise `DataError` if a patient of the external test set is also at a training site."""
    known = {patient for hospital in hospitals for patient in open_cohort(hospital.folder / COHORT).pseudonyms}
    for hospital in test:
        if known & set(open_cohort(hospital.folder / COHORT).pseudonyms):
            raise DataError(
                f"{data}: a patient of the test data is also in the training data; use other patients for the test"
            )


def release_of(study: Study) -> ReleaseConfig:
    """Return the release settings of a simulated site, which grant exactly the evaluation that the study asks for.

    By default a study asks for none.
    """
    if study.evaluation.epsilon == 0:
        return ReleaseConfig(evaluation="off")
    return ReleaseConfig(evaluation="exact" if math.isinf(study.evaluation.epsilon) else "noised")


def settle_rules(hospital: Prepared, study: Study, device: str, threads: int) -> None:
    """Write the simulated site's rules (site.toml) and its approval of the study.

    The privacy cap equals this study's cost, as the site's data-protection officer would set it, and the release
    settings are those that the study asks for. If the site already has a cap and release settings, they are kept.

    The approval allows any number of runs (`MOST_RUNS`), because no person approves in a simulation and a new run may
    start in a folder that another study left behind. The cap alone limits the runs.
    """
    path = hospital.folder / CONFIG_FILE
    if path.is_file():
        config = load_site_config(path)
        cap, release = config.privacy.cap(), config.release
    else:
        cap, release = cap_of(study), release_of(study)
    text = (
        f'name = "{hospital.name}"\n\n[privacy]\nepsilon_cap = {cap.epsilon!r}\ndelta_cap = {cap.delta!r}\n'
        f"allow_no_privacy = {str(cap.allow_no_privacy).lower()}\n\n"
        f'[release]\nevaluation = "{release.evaluation}"\nper_site = {str(release.per_site).lower()}\n'
        f"minimum_patients = {release.minimum_patients}\n\n"
        f'[compute]\ndevice = "{device}"\nthreads = {threads}\n'
    )
    write_file(path, text.encode())  # atomic, so that a kill cannot leave half of a site's limits
    sha256 = store_approved(hospital.folder, study)
    if last_decision(hospital.folder, sha256) is None:
        add_decision(hospital.folder, "approved", sha256, SIMULATED_PERSON, runs=MOST_RUNS)
