"""Synthetic images: the choice of phantoms, the measures of images, and the files with their labels and markings."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from paths import STUDIES
from PIL import Image
from typer.testing import CliRunner

from wardround.errors import ModelError, StudyError
from wardround.networks.build import build_model, initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import Study, load_study, parse_study
from wardround.study.schema import DataSection, ModelSection
from wardround.tasks.synthesis.phantom_sampler import BANK_PHANTOMS, phantom_sampler
from wardround_simulation.assess.synthesis_measures import copies, frechet, frechet_interval, told_apart
from wardround_simulation.cli.main import app
from wardround_simulation.generate import generation

LABELS = ("benign", "malignant")


def gan_study(**model) -> Study:
    return parse_study({
        "study": {"name": "made", "task": "synthesis", "rounds": 1},
        "data": {"labels": list(LABELS), "image_size": 64},
        "model": {"name": "dcgan", "init": "random", "trainable": "all"} | model,
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
    })  # fmt: skip


def test_the_shipped_study_is_the_samplers() -> None:
    study = load_study(STUDIES / "synthesis.toml")
    assert (study.study.task, study.model.name) == ("synthesis", "phantom-sampler")
    network = initial_network(study)
    assert network.bank_MD.shape == (BANK_PHANTOMS, 33)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 67


def test_the_samplers_start_keeps_all_phantoms_alike_and_is_turned_around_with_the_labels() -> None:
    network, turned = phantom_sampler(LABELS), phantom_sampler(LABELS[::-1])
    outputs = network.head(network.bank_MD[:50])
    assert not outputs[:, 1].any()
    torch.testing.assert_close(turned.head(network.bank_MD[:50])[:, 0], -outputs[:, 0])
    tilted = network.head.tilted(network.bank_MD)
    assert abs(float(tilted.square().sum(1).mean()) - 1) < 0.01 and tilted.mean(0).abs().max() < 1e-4


def test_the_bank_and_its_centre_are_part_of_what_a_site_approves() -> None:
    network = build_model(ModelSection(name="phantom-sampler"), DataSection(labels=LABELS), seed=0)
    before = architecture_sha256(network)
    with torch.no_grad():
        network.head.realness.weight += 1  # what trains does not count
    assert architecture_sha256(network) == before
    network.bank_MD[0, 0] += 1
    assert architecture_sha256(network) != before


def test_three_labels_or_a_trainable_trunk_are_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="two labels|2 labels"):
        phantom_sampler(("a", "b", "c"))
    study = load_study(STUDIES / "synthesis.toml", ("model.trainable=all",))
    with pytest.raises(ModelError, match="heads only"):
        build_model(study.model, study.data, 0)
    with pytest.raises(StudyError, match="no network for"):
        load_study(STUDIES / "synthesis.toml", ("study.task=classification",))


def pool_of(count: int = 4000) -> generation.PhantomPool:
    """The bank's own features as if just painted: what is kept can then be compared with the odds."""
    network = phantom_sampler(LABELS)
    dice = torch.Generator().manual_seed(3)
    return generation.PhantomPool(
        images_NCHW=np.zeros((count, 1, 64, 64), dtype=np.uint8),
        malignant_N=np.arange(count) % 2 == 1,
        pooled_ND=torch.zeros(count, 128),
        features_ND=network.bank_MD[:count],
        draws_N2=torch.rand(count, 2, generator=dice),
    )


def test_kept_phantoms_have_the_mean_features_that_training_saw() -> None:
    network, pool = phantom_sampler(LABELS), pool_of()
    with torch.no_grad():
        network.head.realness.weight[0, :3] = torch.tensor([8.0, -4.0, 4.0])
        tilted = network.head.tilted(pool.features_ND)
        kept = generation.kept_of(network, pool)
        assert 100 < kept.sum() < 2000
        wanted = network.mean_of_kept()[0]
        error = 5 * tilted[kept].std(0) / math.sqrt(kept.sum()) + 0.02
        assert ((tilted[kept].mean(0) - wanted).abs() < error).all()
        assert not ((tilted.mean(0) - wanted).abs() < error).all()  # all phantoms alike would be noticed


def test_labels_are_drawn_as_sure_as_the_label_head_is() -> None:
    network, pool = phantom_sampler(LABELS), pool_of()
    made = generation.chosen_from(network, pool)
    with torch.no_grad():
        sure = torch.sigmoid(network.head(pool.features_ND)[:, 0]).numpy()[generation.kept_of(network, pool)]
    assert abs(made.labels_N.mean() - sure.mean()) < 4 * 0.5 / math.sqrt(len(sure))
    assert made.labels_N[sure > 0.9].mean() > 0.85 and made.labels_N[sure < 0.1].mean() < 0.15


def test_a_seed_gives_the_same_images_and_a_label_only_its_own() -> None:
    network = initial_network(gan_study()).eval()
    one, again = (generation.make_images(network, 5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.images_NCHW, again.images_NCHW)
    assert (one.images_NCHW != generation.make_images(network, 5, seed=5).images_NCHW).any()
    assert set(generation.make_images(network, 4, seed=4, label=1).labels_N) == {1}
    chosen = generation.make_images(phantom_sampler(LABELS), 3, seed=4, label=1)
    assert chosen.images_NCHW.shape == (3, 1, 64, 64) and set(chosen.labels_N) == {1}


# Measures: each on data whose answer is known


def normal(seed: int, rows: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (rows, 6))


def test_frechet_distance_is_that_of_normal_distributions() -> None:
    """Equal covariances: the squared distance of means; equal means: sum of (s - t)^2 over independent coordinates."""
    assert frechet(normal(0, 20_000), normal(1, 20_000, shift=2.0)) == pytest.approx(6 * 4, rel=0.03)
    assert frechet(normal(0, 20_000), normal(1, 20_000, scale=3.0)) == pytest.approx(6 * 4, rel=0.03)
    assert frechet(normal(0, 20_000), normal(1, 20_000)) < 0.01
    found = frechet_interval(normal(0, 500), normal(1, 400, shift=1.0), np.repeat(np.arange(100), 4))
    assert found.low < found.value < found.high and found.low > 2


def test_told_apart_is_a_half_for_equal_sources_and_one_for_distant_ones() -> None:
    patients = np.repeat(np.arange(100), 4)
    assert told_apart(normal(0, 400), normal(1, 400), patients).value == pytest.approx(0.5, abs=0.06)
    assert told_apart(normal(0, 400, shift=3.0), normal(1, 400), patients).value > 0.99


def test_copies_are_found_and_none_where_there_are_none() -> None:
    patients = np.repeat(np.arange(120), 3)
    trained = patients % 3 > 0
    real = normal(0, 360)
    near = real[trained][:150] + np.random.default_rng(2).normal(0, 0.1, (150, 6))
    copied = copies(near, real, patients, trained)
    assert not copied.passed and copied.share > 0.95 and copied.by_chance == pytest.approx(2 / 3, abs=0.01)
    p_values = [copies(normal(seed, 150), real, patients, trained).p_value for seed in range(10, 30)]
    assert sum(p < 0.05 for p in p_values) <= 4 and np.mean(p_values) > 0.2


# Files


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run leaves of its model."""
    study, folder = gan_study(), tmp_path / "run"
    folder.mkdir()
    (folder / "study.json").write_text(study.to_json(), encoding="utf-8")
    tensors = {name: tensor.numpy() for name, tensor in initial_network(study).state_dict().items()}
    privacy = {"epsilon": 7.9, "delta": 1e-4}
    save_checkpoint(folder / "model.safetensors", tensors, {"study_sha256": study.sha256(), "privacy": privacy})
    return folder


def generate(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    return done.exit_code, str(done.exception) if done.exception else done.output


def test_a_grid_names_model_study_and_epsilon_and_is_never_overwritten(run: Path) -> None:
    assert generate(run, "--count", 10, "--json")[0] == 0
    with Image.open(run / "synthetic.png") as picture:
        assert picture.size == (8 * 66 - 2, 2 * 66 - 2)
        said = json.loads(picture.text["Wardround"])
    assert (said["epsilon"], said["model"], said["study"], said["unit"]) == ("7.9", "dcgan", "made", "patient")
    before = (run / "synthetic.png").read_bytes()
    code, error = generate(run, "--count", 3)
    assert code != 0 and "exists already" in error
    assert (run / "synthetic.png").read_bytes() == before


def test_a_folder_holds_each_image_once_with_its_label(run: Path, tmp_path: Path) -> None:
    code, _ = generate(run, "--count", 5, "--label", "malignant", "--format", "folder", "--out", tmp_path / "made")
    assert code == 0
    with open(tmp_path / "made" / "manifest.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == ["malignant"] * 5 and {row["epsilon"] for row in rows} == {"7.9"}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["manifest.csv", *(r["file"] for r in rows)]
    assert len({(tmp_path / "made" / row["file"]).read_bytes() for row in rows}) == 5
    assert generate(run, "--count", 5, "--format", "folder", "--out", tmp_path / "made")[0] != 0


def test_dicom_files_are_marked_as_derived_and_synthetic_and_name_nobody(run: Path, tmp_path: Path) -> None:
    assert generate(run, "--count", 2, "--format", "dicom", "--out", tmp_path / "made")[0] == 0
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "made").glob("*.dcm"))]
    assert len({image.SOPInstanceUID for image in images}) == 2 and len({i.SeriesInstanceUID for i in images}) == 1
    for image in images:
        assert image.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
        assert list(image.ImageType[:2]) == ["DERIVED", "SECONDARY"] and "SYNTHETIC" in image.ImageType
        assert (image.ConversionType, image.SyntheticData) == ("SYN", "YES")
        assert "epsilon 7.9" in image.DerivationDescription and "made" in image.DerivationDescription
        assert str(image.PatientID).startswith("SYNTHETIC") and image.PatientBirthDate == ""
        assert image.pixel_array.shape == (64, 64)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--label", "other"], "the study has benign, malignant"),
        (["--format", "tiff"], "is none of grid, folder, dicom"),
        (["--out", "nowhere/x.png"], "no such folder"),
        (["--out", "grid.jpg"], "must end in .png"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run: Path, arguments: list[str], says: str) -> None:
    before = sorted(run.iterdir())
    code, error = generate(run, *arguments)
    assert code != 0 and says in error
    assert sorted(run.iterdir()) == before


def test_a_model_that_is_not_the_studys_is_refused(run: Path) -> None:
    (run / "study.json").write_text(gan_study(trainable="head").to_json(), encoding="utf-8")
    code, error = generate(run)
    assert code != 0 and "is not the model of the study" in error
