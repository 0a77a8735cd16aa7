"""A comparison is fair: every model starts from the study's own start, and from nothing that was trained before."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from wardround.errors import DataError
from wardround.networks.build import initial_network
from wardround.study.load import Study, parse_study
from wardround.tasks.labelled.scores import score
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.training.batches import material_of
from wardround_simulation.compare import compare
from wardround_simulation.engine import in_process
from wardround_simulation.run.hospitals import SIMULATION_KEY

SITES = {"north": 8, "south": 12}


def study_of(epsilon: float = math.inf, **training) -> Study:
    return parse_study(
        {
            "study": {"name": "t", "rounds": 4, "spare_rounds": 0},
            "data": {"labels": ["benign", "malignant"], "image_size": 64},
            "training": training,
            "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 2},
        }
    )


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two hospitals whose malignant images hold a larger bright disc."""
    root = tmp_path_factory.mktemp("hospitals")
    generator = np.random.default_rng(5)
    y, x = np.mgrid[:64, :64] - 31.5
    for site, patients in SITES.items():
        rows, images = [], []
        for number in range(2 * patients):
            label = (number // 2) % 2
            rows.append(CohortRow(pseudonym=pseudonym(SIMULATION_KEY, f"{site}{number // 2}"), label=label))
            disc = np.hypot(x, y) < 4 + 5 * label + generator.normal() * 2
            images.append((60 + 120 * disc + generator.normal(0, 12, (64, 64))).clip(0, 255).astype(np.uint8)[None])
        names = ("benign", "malignant")
        write_cohort(
            root / site / "cohort",
            rows,
            iter(images),
            row_shape=(1, 64, 64),
            label_names=names,
            site_key=SIMULATION_KEY,
        )
    return {site: root / site for site in SITES}


def folds_of() -> compare.Folds:
    by_patient = {
        pseudonym(SIMULATION_KEY, f"{site}{number}"): (number // 2) % 2
        for site, patients in SITES.items()
        for number in range(patients)
    }
    return compare.Folds(fold_by_split={"split0": by_patient})


def rows_of(hospitals, study: Study, settings=compare.SETTINGS, epsilon: float = math.inf) -> list[dict]:
    work = compare.Work(split="split0", fold=0, epsilon=epsilon, draw=0)
    return compare.run_work(work, study.to_json(), compare._frozen(hospitals), (), folds_of(), settings)


def aucs(rows, setting: str) -> dict:
    return {(row.get("site"), row["unit"]): row["auc"] for row in rows if row["setting"] == setting}


def weights_of(hospitals, study: Study, pool: bool) -> dict:
    opened = in_process.open_hospitals(hospitals, study)
    parts = [(hospital, hospital.labelled_N) for hospital in opened]
    if pool:
        study = in_process.pooled_study(study)
        sites = [in_process.temporary_site(study, "pooled", parts, {})]
    else:
        sites = [in_process.temporary_site(study, h.name, [(h, rows)], {}) for h, rows in parts]
    return in_process.train_together(study, sites)


def test_without_noise_one_step_a_round_federated_is_pooled(hospitals) -> None:
    """The mean of the sites' steps is the step on all patients: the same model, however uneven the sites are."""
    federated, pooled = (weights_of(hospitals, study_of(), pool) for pool in (False, True))
    start = in_process.start_weights(study_of())
    for name in start:
        assert np.abs(federated[name] - start[name]).max() > 1e-2
        np.testing.assert_allclose(federated[name], pooled[name], atol=1e-5)


def test_no_setting_learns_from_what_was_trained_before_it(hospitals) -> None:
    everything = rows_of(hospitals, study_of())
    for setting in compare.SETTINGS:
        assert aucs(everything, setting) == aucs(rows_of(hospitals, study_of(), (setting,)), setting)


def test_every_row_says_what_the_contract_asks_for(hospitals) -> None:
    rows = rows_of(hospitals, study_of(8.0), epsilon=8.0)
    assert len(rows) == 2 * (1 + 1 + 2)
    for row in rows:
        assert {
            "setting",
            "epsilon",
            "split",
            "fold",
            "draw",
            "unit",
            "auc",
            "patients",
            "start_auc",
            "sites",
        } <= row.keys()
        assert ("site" in row) == (row["setting"] == "alone")
        assert row["patients"] == 10 and row["epsilon"] == 8.0


def test_shuffled_labels_teach_nothing(hospitals) -> None:
    """With labels dealt anew by patient the AUC on other patients is that of a coin, over many deals."""
    study = study_of(learning_rate=1.0)
    opened = in_process.open_hospitals(hospitals, study)
    generator = np.random.default_rng(0)
    network = initial_network(study)
    found = []
    from wardround.metrics.classification import auc

    for _ in range(30):
        sites, tests = [], []
        for hospital in opened:
            cohort = hospital.cohort
            labels_N = generator.permutation(np.arange(cohort.patient_count) % 2)[cohort.patient_N].astype(np.int16)
            train_N = cohort.patient_N % 2 == 0
            material = material_of(hospital.inputs_N, labels_N, cohort.patient_N, train_N)
            site = in_process.temporary_site(study, hospital.name, [(hospital, train_N)], {})
            site.material_of = lambda _, material=material: material
            sites.append(site)
            tests.append((hospital.inputs_N[~train_N], labels_N[~train_N]))
        weights = in_process.train_together(study, sites)
        scores = score(network, study, weights, np.concatenate([inputs for inputs, _ in tests]))
        found.append(auc(scores, np.concatenate([labels for _, labels in tests])))
    assert abs(np.mean(found) - 0.5) < 4.5 * np.std(found) / math.sqrt(len(found))
    assert 0.03 < np.std(found) < 0.3


def test_an_id_without_the_zeros_that_a_spreadsheet_took_is_an_error_with_its_row(tmp_path) -> None:
    rows = [CohortRow(pseudonym=pseudonym(SIMULATION_KEY, f"00{n}"), label=n % 2) for n in range(1, 5)]
    images = [np.full((1, 8, 8), n, np.uint8) for n in range(4)]
    settings = {"row_shape": (1, 8, 8), "label_names": ("a", "b"), "site_key": SIMULATION_KEY}
    write_cohort(tmp_path / "north/cohort", rows, images, **settings)
    path = tmp_path / "folds.csv"
    for ids, found in ((("001", "002", "003", "004"), None), (("001", "2", "003", "004"), "row 3: no patient has")):
        path.write_text("\ufeffpatient_id;Split0\n" + "".join(f"{one};{n % 2}\n" for n, one in enumerate(ids)))
        folds = compare.read_folds(path)
        assert list(folds.fold_by_split) == ["Split0"]
        if found is None:
            compare.check_folds(folds, path, {"north": tmp_path / "north"})
        else:
            with pytest.raises(DataError, match=found):
                compare.check_folds(folds, path, {"north": tmp_path / "north"})
    path.write_text("patient_id,split0\n1.0E+17,0\n2,1\n")
    with pytest.raises(DataError, match="row 2: patient_id: looks like a number"):
        compare.read_folds(path)
