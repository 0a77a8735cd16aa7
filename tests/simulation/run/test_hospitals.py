"""Prepared hospitals against their study: the need for labels, and a patient who is at two sites."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wardround.errors import DataError
from wardround.study.load import load_study
from wardround.study.ready_studies import ready_study
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_simulation.run.hospitals import Prepared, check_federation, not_used

KEY = b"k" * 32
NAMES = ("benign", "malignant")


def hospital(folder: Path, name: str, labels: list[int], patients: str = "") -> Prepared:
    rows = [
        CohortRow(pseudonym=pseudonym(KEY, f"{patients or name}-{n}"), label=label) for n, label in enumerate(labels)
    ]
    images = (np.zeros((1, 32, 32), np.uint8) for _ in rows)
    write_cohort(folder / name / "cohort", rows, images, row_shape=(1, 32, 32), label_names=NAMES, site_key=KEY)
    return Prepared(name=name, folder=folder / name, report=SimpleNamespace())


@pytest.mark.parametrize(("labels", "named"), [([-1, -1, -1], "none"), ([0, 0, -1], "benign")])
def test_a_reconstruction_takes_images_without_labels_and_the_other_tasks_do_not(
    tmp_path: Path, labels: list[int], named: str
) -> None:
    hospitals = [hospital(tmp_path, name, labels) for name in ("north", "west")]
    check_federation(load_study(ready_study("reconstruction")), tmp_path, hospitals)
    for study, task in (("lidc", "classification"), ("synthesis", "synthesis")):
        with pytest.raises(DataError, match=f"a {task} study needs images of two labels, .* have: {named}$"):
            check_federation(load_study(ready_study(study)), tmp_path, hospitals)


def test_a_patient_at_two_sites_is_refused_by_the_sites_names(tmp_path: Path) -> None:
    hospitals = [hospital(tmp_path, name, [0, 1], patients="same") for name in ("north", "west")]
    with pytest.raises(DataError, match="at both north and west"):
        check_federation(load_study(ready_study("lidc")), tmp_path, hospitals)


def test_what_is_not_used_is_one_line_with_its_reasons() -> None:
    def prepared(**counts: dict[str, int]) -> Prepared:
        quality = SimpleNamespace(rows=28, row="image", unlabelled=0, **{"quarantined": {}, "remarks": {}, **counts})
        return Prepared(name="north", folder=Path(), report=SimpleNamespace(quality=quality))

    study = load_study(ready_study("lidc"))
    line = not_used(prepared(quarantined={"unreadable": 3}, remarks={"label_left_out": 14, "few_of_class": 1}), study)
    assert line == (
        "north: 28 images used; 3 put aside: the file cannot be read as an image; 14 left out: rows whose label is not "
        "in the study"
    )
    assert not_used(prepared(remarks={"skipped": 2, "not_marked": 9, "few_of_class": 1}), study) is None
