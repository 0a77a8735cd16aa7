"""For whom it works, in a simulated run: groups over all hospitals, from the cohorts' own attributes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from builders.personal import KEY, LABELS, study_of

from wardround.study.load import Study
from wardround.tasks.assessment import ScoredSet
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_simulation.engine.assessment import sites_of
from wardround_simulation.engine.in_process import Hospital, open_hospitals
from wardround_simulation.run.subgroups import group_sections, group_tables, tables_to_json


def hospital(folder: Path, prefix: str, patients: int = 60, **columns: str) -> None:
    rows = [
        CohortRow(
            pseudonym=pseudonym(KEY, f"{prefix}{n}"),
            label=n // 2 % 2,
            extra={"hu": "0", "sex": "male" if n % 2 else "female", **columns},
        )
        for n in range(patients)
    ]
    images = [np.zeros((1, 64, 64), np.uint8) for _ in rows]
    write_cohort(folder / "cohort", rows, images, row_shape=(1, 64, 64), label_names=LABELS, site_key=KEY)


def scored(study: Study, hospitals: list[Hospital], useful_at: str) -> ScoredSet:
    """Scores that are right at one hospital and random at the others."""
    dice, labels, patients, names = np.random.default_rng(0), [], [], []
    for number, site in enumerate(sites_of(study, hospitals)):
        rows = np.flatnonzero(site.held_out_N)
        labels += site.labels_N[rows].tolist()
        patients += (site.patient_N[rows] + 1000 * number).tolist()
        names += [site.name] * len(rows)
    right = np.array(names) == useful_at
    scores_N = np.where(right, 0.2 + 0.6 * np.array(labels), dice.random(len(labels)))
    return ScoredSet(
        setting="federated",
        scores_N=scores_N,
        labels_N=np.array(labels),
        patients_N=np.array(patients),
        sites_N=np.array(names),
    )


def test_the_report_shows_at_which_scanner_the_model_fails(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2}, "evaluation": {"holdout": 0.5}})
    hospital(tmp_path / "east", "e", scanner="GE")
    hospital(tmp_path / "west", "w", scanner="Philips")
    hospitals = open_hospitals({name: tmp_path / name for name in ("east", "west")}, study)
    tables = group_tables(study, hospitals, [scored(study, hospitals, "east")])
    found = tables_to_json(tables)
    assert set(found) == {"sex", "scanner"}
    assert found["scanner"]["GE"]["auc"] == 1.0 and found["scanner"]["Philips"]["auc"] < 0.8
    assert found["sex"]["female"]["patients"] + found["sex"]["male"]["patients"] == sum(
        one["patients"] for one in found["scanner"].values()
    )
    (section,) = group_sections(tables)
    assert {len(row) for table in section.tables for row in table.rows} == {len(section.tables[0].columns)}


def test_each_patients_own_hospital_alone_is_shown_beside(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2}, "evaluation": {"holdout": 0.5}})
    hospital(tmp_path / "east", "e", scanner="GE")
    hospital(tmp_path / "west", "w", scanner="Philips")
    hospitals = open_hospitals({name: tmp_path / name for name in ("east", "west")}, study)
    federated = scored(study, hospitals, "east")
    own = [dataclasses.replace(scored(study, hospitals, site), setting="alone", site=site) for site in ("east", "west")]
    found = tables_to_json(group_tables(study, hospitals, [federated, *own]))["scanner"]
    assert found["GE"]["alone"]["auc"] == found["Philips"]["alone"]["auc"] == 1.0, "each by its own model"
    assert found["GE"]["alone"]["difference"]["value"] == 0 > found["Philips"]["alone"]["difference"]["high"]
    (section,) = group_sections(group_tables(study, hospitals, [federated, *own]))
    assert {len(row) for table in section.tables for row in table.rows} == {len(section.tables[0].columns)}
    assert "alone" not in tables_to_json(group_tables(study, hospitals, [federated, own[0]]))["scanner"]["GE"]


def test_a_small_scanner_is_suppressed_with_the_other_one(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2}, "evaluation": {"holdout": 0.5}})
    hospital(tmp_path / "east", "e", scanner="GE")
    hospital(tmp_path / "west", "w", patients=8, scanner="Philips")
    hospitals = open_hospitals({name: tmp_path / name for name in ("east", "west")}, study)
    tables = group_tables(study, hospitals, [scored(study, hospitals, "east")])
    assert tables_to_json(tables)["scanner"] == {"GE": None, "Philips": None}
    (section,) = group_sections(tables)
    assert section.tables[-1].rows[0][1] == "suppressed"


def test_cohorts_without_attributes_and_runs_without_scores_have_no_section(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2}, "evaluation": {"holdout": 0.5}})
    hospital(tmp_path / "east", "e", sex="")
    hospitals = open_hospitals({"east": tmp_path / "east"}, study)
    one = scored(study, hospitals, "east")
    assert group_tables(study, hospitals, [one]) == [] == group_tables(study, hospitals, [])
    assert group_sections([]) == []


def test_scores_of_other_images_are_an_error(tmp_path: Path) -> None:
    study = study_of({"study": {"rounds": 2}, "evaluation": {"holdout": 0.5}})
    hospital(tmp_path / "east", "e")
    hospital(tmp_path / "west", "w")
    both = open_hospitals({name: tmp_path / name for name in ("east", "west")}, study)
    with pytest.raises(ValueError, match="are not those"):
        group_tables(study, both[:1], [scored(study, both, "east")])
