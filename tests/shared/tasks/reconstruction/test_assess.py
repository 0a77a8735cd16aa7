"""Assessment and folds of a reconstruction, over two small hospitals of phantoms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.figures import InProcessFigures

from wardround.errors import ModelError
from wardround.networks.build import build_model, initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import load_weights, trained_parameters
from wardround.phantoms.scenes import generate_scenes
from wardround.study.load import Study, parse_study
from wardround.tasks.assessment import AtEnd
from wardround.tasks.reconstruction.assess import RestorationAssessment, assessment_of, methods_rows, methods_table
from wardround.tasks.reconstruction.degradations import Degradation
from wardround.tasks.reconstruction.measures.quality import (
    CLASSICAL,
    by_classical,
    by_network,
    compared,
    mean_over,
    quality_of,
    spoil,
    tuned,
)
from wardround.tasks.reconstruction.objective import joint_loss
from wardround.tasks.reconstruction.restorer import Restorer, load_phantom_restorer
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_server.rounds.evaluation import federated_test
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, sites_of, sites_of_fold
from wardround_simulation.phantoms.pretrain_restorer import pretrain_restorer
from wardround_simulation.report.task_plots import round_picture
from wardround_simulation.run.hospitals import SIMULATION_KEY

PATIENTS, LABELS = 8, ("benign", "malignant")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two hospitals of eight patients with two phantom pictures each."""
    root, scenes = tmp_path_factory.mktemp("hospitals"), iter(generate_scenes(4 * PATIENTS, 5).numpy())
    folders = {}
    for site in ("east", "west"):
        names = [pseudonym(SIMULATION_KEY, f"{site}-{number}") for number in range(PATIENTS)]
        rows, images = [], []
        for number, name in enumerate(names):
            for _ in range(2):
                rows.append(CohortRow(pseudonym=name, label=number % 2))
                images.append(next(scenes)[None])
        write_cohort(
            root / site / "cohort",
            rows,
            iter(images),
            row_shape=(1, 64, 64),
            label_names=LABELS,
            site_key=SIMULATION_KEY,
        )
        folders[site] = root / site
    return folders


def assessed(study: Study, opened: list[in_process.Hospital], out: Path) -> RestorationAssessment:
    """The assessment of a run, as `run` makes it."""
    return assessment_of(study, sites_of(study, opened), out, InProcessTrainer(opened))


def study_of(**reconstruction) -> Study:
    return parse_study({
        "study": {"name": "restore", "task": "reconstruction", "rounds": 2, "spare_rounds": 0},
        "data": {"labels": list(LABELS), "image_size": 64},
        "model": {"name": "restorer", "init": "random", "trainable": "head"},
        "training": {"learning_rate": 0.01},
        "privacy": {"epsilon": 8, "delta": 1e-3, "max_grad_norm": 0.1, "nominal_patients": 6,
                    "images_per_patient": 1},
        "aggregation": {"nominal_sites": 2, "min_sites": 1},
        "evaluation": {"holdout": 0.4, "epsilon": 4, "logit_scale": 0.1},
        "reconstruction": {"crop_px": 32, **reconstruction},
    })  # fmt: skip


def test_a_run_is_assessed_and_releases_what_the_accept_test_says(hospitals, tmp_path) -> None:
    study = study_of()
    opened = in_process.open_hospitals(hospitals, study)
    assessment = assessed(study, opened, tmp_path)
    start = in_process.start_weights(study)
    worse = {name: value + 0.05 for name, value in start.items()}
    assert "+0.000 on the start" in assessment.after_round(0, start)
    assessment.after_round(1, worse)
    refused = {"accept_test": {"accepted": False, "reason": "it may be worse, so the public start stays"}}
    end = AtEnd(
        weights=worse, released=refused, others=(), baselines=False, show_images=True, stage=lambda _: None
    )  # fmt: skip
    found = assessment.at_end(end)
    assert found.result["released"] == "start"
    for name in start:
        assert np.array_equal(found.weights[name], start[name])
    methods = found.result["restoration"]["methods"]
    assert set(methods) == {"bicubic", "total variation", "public start", "trained"}
    assert methods["trained"]["gain_db"] < 0 == methods["public start"]["gain_db"]
    assert methods["public start"]["psnr_db"] == pytest.approx(methods["bicubic"]["psnr_db"], abs=0.01)  # adds nothing
    assert found.samples[1].shape == (128, 320) and found.sections[0].sheets
    assert set(assessed(study, opened, tmp_path)._notes) == {1}  # a resumed run knows it
    hidden = assessment.at_end(
        AtEnd(weights=worse, released=None, others=(), baselines=False, show_images=False, stage=lambda _: None)
    )
    assert hidden.result["released"] == "trained" and not hidden.result["accept"]["accepted"]
    assert "no accept test was paid for" in hidden.result["accept"]["reason"]
    assert not hidden.samples and not hidden.sections[0].sheets  # no image where nobody asked for one


def test_the_terms_of_the_loss_are_shown_round_by_round_and_add_up_to_what_is_trained(hospitals, tmp_path) -> None:
    study = study_of(adversarial_weight=0.5, ssim_weight=0.25)
    assessment = assessed(study, in_process.open_hospitals(hospitals, study), tmp_path)
    start = in_process.start_weights(study)
    moved = {name: value + 0.02 for name, value in start.items()}
    assessment.after_round(0, start)
    assessment.after_round(1, moved)
    end = AtEnd(weights=moved, released=None, others=(), baselines=False, show_images=False, stage=lambda _: None)
    found = assessment.at_end(end)
    (section,) = found.sections
    (plot,) = section.plots
    assert plot.name == "balance" and plot.rounds == [0, 1]
    assert "discriminator" in round_picture(plot).svg
    table = section.tables[1]
    network = initial_network(study)
    load_weights(trained_parameters(network, study), moved)
    few = assessment._few
    losses_N1 = joint_loss(network, study)(torch.cat([few.inputs_N3HW, few.true_N1HW], 1).float())
    assert sum(float(row[-1]) for row in table.rows) == pytest.approx(losses_N1.mean().item(), abs=1e-4)
    assert [row[1] for row in table.rows] != [row[2] for row in table.rows]
    assert table.columns[1:3] == ["before training", "after round 1"]
    for name in ("error", "dissimilarity", "fooled", "told_apart"):
        assert set(found.series[f"loss/{name}"]) == {0, 1}


def test_sites_release_noised_gains_once_and_the_server_decides(hospitals) -> None:
    study = study_of()
    opened, admitted = in_process.open_hospitals(hospitals, study), {}
    held_out = {h.name: h.rows_of_patients(h.cohort.holdout_rank_P < study.evaluation.holdout) for h in opened}
    sites = [in_process.temporary_site(study, h.name, [(h, ~held_out[h.name])], admitted) for h in opened]
    weights = in_process.start_weights(study)
    asked = federated_test(study, "run", architecture_sha256(initial_network(study)), weights, InProcessFigures(sites))
    assert asked["sites"] == ["east", "west"] and asked["missing"] == []
    assert set(asked["accept_test"]) == {"accepted", "gain_db", "low_db", "patients_noised", "reason"}
    assert all(len(site.ledger.events()) == 1 for site in sites)  # charged once at each


def test_a_fold_is_restored_by_every_method_and_the_start_gains_nothing_on_itself(hospitals) -> None:
    study = study_of()
    opened = in_process.open_hospitals(hospitals, study)
    names = [name for hospital in opened for name in hospital.cohort.pseudonyms]
    fold_of = {name: number // 2 % 2 for number, name in enumerate(names)}
    sites = sites_of_fold(study, opened, fold_of, 0)
    rows = methods_rows(study, sites, (8.0, math.inf), InProcessTrainer(opened))
    by_method = {row["method"]: row for row in rows}
    assert set(by_method) == {
        "bicubic", "total variation", "public start", "trained, ε = 8", "trained, no privacy",
    }  # fmt: skip
    assert by_method["public start"]["gain_db"] == 0
    assert by_method["bicubic"]["patients"] == 8 and by_method["bicubic"]["images"] == 16
    assert all(0 <= row["auc"] <= 1 for row in rows)
    assert "PSNR" in methods_table(rows).columns[1]


def test_tuning_takes_the_strength_that_restores_best() -> None:
    images = generate_scenes(3, 9).numpy()[:, None]
    training = spoil(images, Degradation(kind="low-dose"))
    method = next(one for one in CLASSICAL["low-dose"] if one.name == "non-local means")
    best = tuned(method, training)
    figures = {
        s: quality_of(by_classical(method, s, training), training.true_N1HW).psnr_N.mean() for s in method.strengths
    }
    assert figures[best] == max(figures.values())
    quality, pictures, _ = compared(training, training, {"start": Restorer()})
    assert set(quality) == set(pictures) == {"as observed", "total variation", "non-local means", "start"}


def test_an_interval_over_patients_is_wider_than_one_over_images_where_a_patient_s_images_agree() -> None:
    rng = np.random.default_rng(0)
    of_patient = rng.normal(size=40)
    values, patients = np.repeat(of_patient, 5), np.repeat(np.arange(40), 5)
    clustered, alone = mean_over(values, patients), mean_over(values, np.arange(200))
    assert clustered.value == pytest.approx(alone.value)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    covered = sum(
        (m := mean_over(np.repeat(rng.normal(size=40), 2), np.repeat(np.arange(40), 2))).low <= 0 <= m.high
        for _ in range(300)
    )
    assert 270 <= covered <= 300


def test_pre_training_writes_a_file_that_a_study_loads_and_the_same_seed_gives_the_same_weights(tmp_path) -> None:
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    metadata = pretrain_restorer(first, "missing", seed=3, crops=48, epochs=1)
    repeated = pretrain_restorer(again, "missing", seed=3, crops=48, epochs=1)
    assert repeated["tensors_sha256"] == metadata["tensors_sha256"]  # the header's order is not the writer's to choose
    other = pretrain_restorer(tmp_path / "other.safetensors", "missing", seed=4, crops=48, epochs=1)
    assert other["tensors_sha256"] != metadata["tensors_sha256"]
    assert "--network restorer --degradation missing --seed 3 --crops 48 --epochs 1" in metadata["command"]
    assert len(first.read_bytes()) < 1_000_000
    loaded = load_phantom_restorer("missing", str(first))
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    with pytest.raises(ModelError, match="a different degradation"):
        load_phantom_restorer("blur", str(first))
    altered = bytearray(first.read_bytes())
    altered[-2] ^= 1
    again.write_bytes(altered)
    with pytest.raises(ModelError, match="altered or damaged"):
        load_phantom_restorer("missing", str(again))


@pytest.mark.parametrize("kind", CLASSICAL)
def test_the_shipped_restorer_beats_the_classical_start_on_phantoms_it_never_saw(kind) -> None:
    study = study_of(degradation=kind).model_copy()
    model = study.model.model_copy(update={"init": "phantom"})
    network = build_model(model, study.data, 0, ReconstructionSection(degradation=kind))
    spoiled = spoil(generate_scenes(24, 991).numpy()[:, None], Degradation(kind=kind))
    restored = quality_of(by_network(network, spoiled), spoiled.true_N1HW)
    start = quality_of(spoiled.inputs_N3HW[:, 1:2].float(), spoiled.true_N1HW)
    assert (restored.psnr_N - start.psnr_N).mean() > 0.1
