"""The shipped encoder and its public features: which effects a window, a turn or another image may have."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from wardround.errors import ModelError
from wardround.networks.model_file import tensors_sha256
from wardround.networks.phantom_encoder import (
    LARGEST_LOGIT_FEATURE,
    LARGEST_ROW_NORM,
    PUBLIC_FEATURES,
    SHIPPED_FILE,
    PhantomEncoder,
    initial_head,
    load_phantom_encoder,
)
from wardround.networks.preprocessing import VIEWS, CentreCrop, DihedralViews, OtsuNormalise
from wardround.networks.public_head import PhantomNetwork
from wardround.phantoms.crops import generate_crops
from wardround_simulation.phantoms.pretrain_encoder import pretrain

DATA = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data")) / "lidc_nodules"
SHIPPED = ROOT / "shared/wardround/networks" / SHIPPED_FILE


@pytest.fixture(scope="module")
def shipped():
    return load_phantom_encoder()


@pytest.fixture(scope="module")
def phantoms():
    return generate_crops(300, seed=77)


def auc(scores_N, labels_N):
    positive, negative = scores_N[labels_N == 1], scores_N[labels_N == 0]
    above = (positive[:, None] > negative[None]).float() + 0.5 * (positive[:, None] == negative[None]).float()
    return float(above.mean())


def test_the_normalisation_does_not_change_with_the_window():
    hu = torch.full((1, 1, 64, 64), -850.0) + 40 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    hu[:, :, 20:40, 20:40] += 850
    narrow, wide = ((hu - low) / (high - low) * 255 for low, high in ((-1100, 300), (-1500, 900)))
    difference = (OtsuNormalise()(narrow) - OtsuNormalise()(wide)).abs()
    assert difference.max() < 0.05
    assert abs(float(OtsuNormalise()(narrow)[:, :, 25:35, 25:35].mean()) - 0.7) < 0.05


def test_the_normalisation_ignores_padding_and_survives_flat_images():
    image = torch.full((1, 1, 64, 64), 60.0)
    image[:, :, 24:40, 24:40] = 180.0
    padded = image.clone()
    padded[:, :, :8] = 0
    inside = (OtsuNormalise()(image) - OtsuNormalise()(padded))[:, :, 8:]
    assert inside.abs().max() < 1e-5
    for flat in (0.0, 7.0, 255.0):
        assert torch.isfinite(OtsuNormalise()(torch.full((2, 3, 8, 8), flat))).all()


def test_each_image_and_channel_is_normalised_by_itself(phantoms):
    images = phantoms.images_NHW[:6].reshape(2, 3, 64, 64)
    together = OtsuNormalise()(images)
    for image in range(2):
        for channel in range(3):
            alone = OtsuNormalise()(images[image, channel][None, None])
            assert torch.allclose(together[image, channel], alone[0, 0], atol=1e-6)


def test_the_crop_is_central_and_pads_what_is_too_small():
    image = torch.arange(100).reshape(1, 1, 10, 10)
    assert torch.equal(CentreCrop(4)(image), image[:, :, 3:7, 3:7])
    grown = CentreCrop(12)(image.float())
    assert grown.shape == (1, 1, 12, 12)
    assert torch.equal(grown[:, :, 1:11, 1:11], image.float()) and grown[0, 0, 0, 0] == 0 and grown[0, 0, -1, -1] == 99


def test_the_views_are_eight_different_pictures_of_the_same_pixels():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    views = DihedralViews()(image)
    assert len({tuple(view.flatten().tolist()) for view in views}) == VIEWS
    assert all(torch.equal(view.flatten().sort().values, image.flatten()) for view in views)
    values = torch.arange(16.0).reshape(16, 1)
    assert torch.equal(DihedralViews.average(values), torch.tensor([[7.0], [8.0]]))


def test_public_features_do_not_change_when_the_image_is_turned_or_flipped(shipped, phantoms):
    _, features = shipped
    images = phantoms.images_NHW[:8, None]
    straight = features(images)
    for other in (images.flip(3), images.transpose(2, 3), torch.rot90(images, 1, (2, 3))):
        assert torch.allclose(straight, features(other), atol=1e-4)


def test_a_trained_network_scores_a_turned_image_alike_and_trains_on_it_as_it_lies(phantoms):
    torch.manual_seed(0)
    network, images = PhantomNetwork(1), phantoms.images_NHW[:6, None]
    turned = torch.rot90(images, 1, (2, 3)).flip(3)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), network(turned), atol=1e-5)
        assert not torch.allclose(network.train()(images), network(turned), atol=1e-3)


def test_public_features_are_bounded_and_do_not_depend_on_the_batch(shipped, phantoms):
    _, features = shipped
    odd = torch.cat([phantoms.images_NHW[:20, None], torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), 255)]).byte()
    values = features(odd)
    assert values.shape == (22, PUBLIC_FEATURES) and torch.isfinite(values).all()
    assert values[:, 0].abs().max() <= LARGEST_LOGIT_FEATURE
    assert values[:, 1:].norm(dim=1).max() <= LARGEST_ROW_NORM + 1e-5
    assert torch.allclose(values[3:4], features(odd[3:4]), atol=1e-5)


def test_any_size_channels_and_dtype_are_taken(shipped, phantoms):
    encoder, features = shipped
    image = phantoms.images_NHW[:2, None]
    around = torch.nn.functional.pad(image.float(), (32, 32, 16, 16), mode="replicate")
    assert torch.allclose(features(image), features(around), atol=1e-5)
    assert torch.allclose(encoder(image), encoder(image.float().expand(-1, 3, -1, -1)), atol=1e-5)
    assert features(image[:, :, 10:50, 12:50]).shape == (2, PUBLIC_FEATURES)


def test_the_initial_head_is_the_phantom_model_and_starts_at_zero_for_other_tasks(shipped, phantoms):
    _, features = shipped
    images = phantoms.images_NHW[:30, None]
    logits = features.encoder.head(features.pooled(images))
    score = initial_head()(features(images))
    inside = logits.abs() < 2.9
    assert inside.any() and torch.allclose(score[inside], logits[inside], atol=1e-5)
    assert not initial_head(3).weight.any()


def test_the_shipped_encoder_tells_phantoms_apart_and_nothing_of_its_features_trains(shipped, phantoms):
    encoder, features = shipped
    assert auc(features(phantoms.images_NHW[:, None])[:, 0], phantoms.labels_N) > 0.85
    assert auc(encoder(phantoms.images_NHW[:, None]).detach()[:, 0], phantoms.labels_N) > 0.85
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 25_000


def test_training_the_encoder_leaves_the_public_features_alone(phantoms):
    encoder, features = load_phantom_encoder()
    before = features(phantoms.images_NHW[:2, None])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(before, features(phantoms.images_NHW[:2, None]))


def test_one_image_changes_only_its_own_gradient(phantoms):
    encoder = PhantomEncoder()
    images, labels = phantoms.images_NHW[:3, None], phantoms.labels_N[:3, None].float()

    def gradient(rows):
        encoder.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            encoder(images[rows]), labels[rows], reduction="sum"
        ).backward()
        return torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])

    assert torch.allclose(gradient([0, 1, 2]), gradient([0]) + gradient([1]) + gradient([2]), atol=1e-4)


def test_the_public_features_export_as_one_graph(shipped, phantoms):
    _, features = shipped
    images = phantoms.images_NHW[:2, None].float()
    exported = torch.export.export(features, (images,)).module()
    assert torch.allclose(exported(images), features(images), atol=1e-5)


def test_a_damaged_or_foreign_model_file_is_refused_in_one_line(tmp_path):
    tensors = load_file(SHIPPED)
    altered = {**tensors, "mean_D": tensors["mean_D"] + 1}
    files = {
        "altered.safetensors": (altered, {"tensors_sha256": tensors_sha256(tensors)}),
        "other.safetensors": ({"weight": torch.zeros(3)}, {}),
        "half.safetensors": ({k: v for k, v in tensors.items() if k != "mean_D"}, {}),
    }
    for name, (content, metadata) in files.items():
        save_file(content, tmp_path / name, metadata=metadata)
    (tmp_path / "text.safetensors").write_text("not a model")
    for name in [*files, "text.safetensors", "missing.safetensors"]:
        with pytest.raises(ModelError) as caught:
            load_phantom_encoder(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_pretraining_repeats_itself_and_what_it_writes_loads(tmp_path):
    state = torch.get_rng_state()
    seen = []
    for name in ("one", "two"):
        metadata = pretrain(
            tmp_path / name, seed=3, crops=256, epochs=1, threads=1, progress=lambda *now: seen.append(now)
        )
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert metadata["seed"] == "3" and metadata["threads"] == "1"
    assert metadata["command"] == "wardround-sim pretrain --seed 3 --crops 256 --epochs 1", "options that exist"
    assert torch.equal(state, torch.get_rng_state())
    load_phantom_encoder(str(tmp_path / "one"))
    assert {stage for stage, _, _ in seen} == {"phantoms", "training"}


@pytest.mark.skipif(not DATA.exists(), reason="the LIDC pack is not here (WARDROUND_TEST_DATA)")
def test_the_shipped_encoder_ranks_real_nodules_without_any_real_training(shipped):
    _, features = shipped
    with open(DATA / "manifest.csv", newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["label"] in ("malignant", "benign")][::4]
    pictures = np.stack([np.asarray(Image.open(DATA / row["file"]).convert("L")) for row in rows])
    images, labels = (
        torch.from_numpy(pictures)[:, None],
        torch.tensor([row["label"] == "malignant" for row in rows]).long(),
    )
    scores = torch.cat([features(chunk)[:, 0] for chunk in images.split(200)])
    assert auc(scores, labels) > 0.84
