"""Maps point at the nodule, lie where the network reads, and depend on its weights."""

import numpy as np
import pytest
import torch
from torch import nn

from wardround.errors import ModelError
from wardround.networks.densenet import DenseNet121
from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.preprocessing import DihedralViews
from wardround.networks.public_head import PhantomHead, phantom_network
from wardround.networks.resnet import LARGE_WIDTHS, SMALL_WIDTHS, ResNet
from wardround.networks.seed_cnn import SeedCNN
from wardround.phantoms.masked import generate_masked_crops
from wardround.tasks.classification.explain import maps
from wardround.tasks.classification.explain.maps import evidence_maps, maps_of, occlusion_maps
from wardround.tasks.classification.explain.sanity import check_maps, likeness, points_at, randomised
from wardround.tasks.classification.explain.targets import from_views, target_of

LABELS = ("benign", "malignant")


@pytest.fixture(scope="module")
def head():
    return PhantomHead(load_phantom_encoder()[1], LABELS).eval()


@pytest.fixture(scope="module")
def phantoms():
    """Nodules anywhere within 8 pixels of the middle, where the middle itself is often beside the nodule."""
    return generate_masked_crops(300, seed=302, size_px=128, shift_px=8)


@pytest.fixture(scope="module")
def called_malignant(head, phantoms):
    with torch.no_grad():
        return torch.nonzero(head(phantoms.images_NHW[:, None])[:, 0] > 0)[:, 0]


def with_random_head(network):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=generator))
    return network.eval()


NETWORKS = {
    "phantom head": lambda: PhantomHead(load_phantom_encoder()[1], LABELS),
    "phantom network": lambda: phantom_network(load_phantom_encoder()[0], LABELS),
    "resnet-small": lambda: with_random_head(ResNet(1, SMALL_WIDTHS, 1)),
    "resnet-large": lambda: with_random_head(ResNet(1, LARGE_WIDTHS, 3)),
    "seed-cnn": lambda: with_random_head(SeedCNN(1, 64, 1)),
    "densenet121": lambda: with_random_head(DenseNet121(1, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_an_evidence_map_of_the_images_size(name):
    images_NCHW = generate_masked_crops(2, seed=1, size_px=64).images_NHW[:, None]
    found_NHW = evidence_maps(NETWORKS[name](), images_NCHW, 1)
    assert found_NHW.shape == (2, 64, 64) and found_NHW.isfinite().all()
    assert found_NHW.flatten(1).abs().amax(1).min() > 0


def test_other_networks_are_refused():
    with pytest.raises(ModelError, match="Linear: there are no explanations"):
        target_of(nn.Linear(2, 2))


def test_the_maximum_of_the_evidence_lies_on_the_nodule(head, phantoms, called_malignant):
    masks_NHW = phantoms.masks_NHW[called_malignant]
    hits_N = points_at(evidence_maps(head, phantoms.images_NHW[called_malignant, None], 1), masks_NHW)
    assert len(hits_N) > 80 and masks_NHW[:, 64, 64].float().mean() < 0.8
    assert hits_N.float().mean() >= 0.9


def test_the_maximum_of_the_occlusion_lies_on_the_nodule(head, phantoms, called_malignant):
    few = called_malignant[:12]
    hits_N = points_at(occlusion_maps(head, phantoms.images_NHW[few, None], 1), phantoms.masks_NHW[few])
    assert hits_N.sum() >= 10


def test_the_maps_of_views_return_to_the_images_orientation():
    images_N1HW = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(from_views(DihedralViews()(images_N1HW)[:, 0]), images_N1HW[:, 0])


def test_a_turned_image_has_a_turned_map(head, phantoms):
    images_NCHW = phantoms.images_NHW[:4, None]
    turned_NHW = evidence_maps(head, images_NCHW.transpose(2, 3).flip(3), 1)
    assert torch.allclose(turned_NHW, evidence_maps(head, images_NCHW, 1).transpose(1, 2).flip(2), atol=1e-4)


def test_the_encoder_has_no_evidence_outside_the_pixels_that_it_reads(head, phantoms):
    found = maps_of(head, phantoms.images_NHW[:1].numpy(), 1)
    for map_HW in (found.evidence_HW, found.occlusion_HW):
        border_HW = map_HW.copy()
        border_HW[32:96, 32:96] = 0
        assert not border_HW.any() and map_HW.any()


def test_a_score_beyond_the_limit_of_the_first_feature_still_has_maps(head, phantoms):
    with torch.no_grad():
        limited = head.features(phantoms.images_NHW[:, None])[:, 0].abs() >= 1.5
    assert limited.any()
    assert evidence_maps(head, phantoms.images_NHW[limited][:1, None], 1).abs().max() > 0


def test_occlusion_of_a_square_is_the_fall_of_the_score(monkeypatch, head, phantoms):
    """Where squares do not overlap and the map is not blurred, a value is a difference of two runs."""
    image_11HW = phantoms.images_NHW[:1, None, 32:96, 32:96].float()
    monkeypatch.setattr(maps, "_smooth", lambda maps_NHW, deviation_px: maps_NHW)
    found_HW = occlusion_maps(head, image_11HW, 1)[0]
    hidden = image_11HW.clone()
    hidden[:, :, :8, :8] = maps.darker_class_mean(image_11HW)
    target = target_of(head)
    with torch.no_grad():
        fall = target.score(target.prepare(image_11HW), 1) - target.score(target.prepare(hidden), 1)
    assert found_HW[0, 0] == pytest.approx(float(fall), abs=1e-4)  # only the first square covers the corner


@pytest.mark.slow
def test_random_weights_give_other_maps(head, phantoms, called_malignant):
    """Adebayo et al. 2018. A map that shows the edges of the image would stay the same, and fail here."""
    checks = []
    for number in called_malignant[:5].tolist():
        image_CHW = phantoms.images_NHW[number][None].numpy()
        checks.append(check_maps(head, image_CHW, 1, maps_of(head, image_CHW, 1)))
    for kind in ("evidence", "occlusion"):
        correlations = [getattr(check, kind).rank_correlation for check in checks]
        similarities = [getattr(check, kind).structural_similarity for check in checks]
        assert np.mean(correlations) < 0.5 and np.mean(similarities) < 0.75, kind


def test_the_sanity_check_fails_for_a_map_of_edges(monkeypatch, head, phantoms):
    def edges(network, images_NCHW, label):
        grey_NHW = images_NCHW[:, 0].float()
        return (grey_NHW - grey_NHW.roll(1, 1)).abs() + (grey_NHW - grey_NHW.roll(1, 2)).abs()

    monkeypatch.setattr(maps, "evidence_maps", edges)
    image_CHW = phantoms.images_NHW[:1].numpy()
    check = check_maps(head, image_CHW, 1, maps.maps_of(head, image_CHW, 1))
    assert check.evidence.alike and not check.passed


def test_randomising_leaves_the_network_itself_alone(head):
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    other = randomised(head).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    assert not torch.equal(other["head.weight"], before["head.weight"])
    assert not torch.equal(other["public.encoder.trunk.0.weight"], before["public.encoder.trunk.0.weight"])


def test_a_map_is_like_itself_and_a_flat_map_is_like_none():
    map_HW = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    assert likeness(map_HW, map_HW).rank_correlation == pytest.approx(1)
    assert not likeness(map_HW, np.zeros_like(map_HW)).alike
