"""The two networks of a DCGAN: their shapes, the independence of images, views, and the start trained on phantoms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file, save_file

from wardround.errors import ModelError
from wardround.networks.build import refuse_batch_statistics
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import exchanged_names
from wardround.tasks.synthesis.dcgan import Discriminator, Generator, hinge_of_fake, hinge_of_real, to_grey
from wardround.tasks.synthesis.gan import SHIPPED_FILE, SharedGAN, phantom_gan
from wardround.tasks.synthesis.image_views import DRAWS, seen
from wardround.tasks.synthesis.phantom_sampler import phantom_sampler
from wardround_simulation.phantoms.pretrain_gan import pretrain_gan
from wardround_simulation.phantoms.pretrain_sampler import pretrain_sampler

LABELS = ("benign", "malignant")
SHIPPED = ROOT / "shared/wardround/tasks/synthesis" / SHIPPED_FILE


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [64, 128])
def test_latents_become_images_and_images_logits_each_by_itself(size: int, channels: int) -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(size, channels, labels=2), Discriminator(size, channels, labels=2)
    latents, labels = torch.randn(3, generator.latent), torch.tensor([0, 1, 1])
    images = generator(latents, labels)
    assert images.shape == (3, channels, size, size) and images.abs().max() <= 1
    assert discriminator(images).shape == (3, 2) and discriminator.features(images).shape == (3, 512 * 16)
    torch.testing.assert_close(generator(latents[1:2], labels[1:2]), images[1:2])
    torch.testing.assert_close(discriminator(images[1:2]), discriminator(images)[1:2])
    for network in (generator, discriminator):
        refuse_batch_statistics(network)
        assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    assert 2.7e6 < sum(p.numel() for p in discriminator.parameters()) < 2.9e6


def test_the_label_changes_the_image_and_picks_the_logit() -> None:
    torch.manual_seed(0)
    generator = Generator(64, 1, labels=2)
    latent = torch.randn(1, generator.latent)
    assert not torch.equal(generator(latent, torch.tensor([0])), generator(latent, torch.tensor([1])))
    logits, labels = torch.tensor([[0.5, -2.0], [0.5, -2.0]]), torch.tensor([0, 1])
    assert hinge_of_real(logits, labels).tolist() == [0.5, 3.0]
    assert hinge_of_fake(logits, labels).tolist() == [1.5, 0.0]


def test_every_weight_of_both_learns() -> None:
    generator, discriminator = Generator(64, 1), Discriminator(64, 1)
    discriminator(generator(torch.randn(2, generator.latent), torch.zeros(2, dtype=torch.int64))).sum().backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_sizes_channels_labels_and_leak_are_part_of_what_a_site_approves() -> None:
    hashes = {
        architecture_sha256(kind(size, channels, labels))
        for kind in (Discriminator, Generator, SharedGAN)
        for size in (64, 128)
        for channels in (1, 3)
        for labels in (2, 3)
    }
    assert len(hashes) == 24
    network = Discriminator(64, 1)
    before = architecture_sha256(network)
    network.trunk[1].negative_slope = 0.3
    assert architecture_sha256(network) != before


@pytest.mark.parametrize("size, channels, says", [(96, 1, "64 or 128"), (64, 2, "1 channel")])
def test_another_size_is_refused_in_one_line(size: int, channels: int, says: str) -> None:
    for kind in (Discriminator, Generator):
        with pytest.raises(ModelError, match=says):
            kind(size, channels)
    with pytest.raises(ModelError, match=says):
        SharedGAN(size, channels, 2)


def test_every_grey_value_survives_the_way_from_the_range_of_the_networks() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_grey(grey.float() / 127.5 - 1), grey)


@pytest.mark.parametrize("kind", ["none", "flips", "light"])
def test_views_are_each_images_own_and_a_gradient_passes_through(kind: str) -> None:
    torch.manual_seed(0)
    images, draws = torch.rand(4, 1, 16, 16, requires_grad=True), torch.rand(4, DRAWS)
    views = seen(images, draws, kind, real=True)
    assert views.shape == images.shape
    torch.testing.assert_close(seen(images[2:3], draws[2:3], kind, real=True), views[2:3])
    views[1].sum().backward()
    assert images.grad[1].any() and not images.grad[[0, 2, 3]].any()


def test_flips_only_turn_and_all_eight_ways_occur() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    draws = torch.zeros(8, DRAWS)
    draws[:, 0] = (torch.arange(8) + 0.5) / 8
    views = seen(image.repeat(8, 1, 1, 1), draws, "flips", real=True)
    assert torch.equal(seen(image, draws[:1] + 0.9, "flips", real=False), image)  # a generator learns every way itself
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(view.flatten().sort().values.equal(image.flatten()) for view in views)


def test_the_shipped_gan_is_small_whole_and_turned_around_with_the_labels() -> None:
    assert SHIPPED.stat().st_size < 1.5e6
    network, turned = phantom_gan(64, 1, LABELS), phantom_gan(64, 1, LABELS[::-1])
    latent = torch.randn(2, network.generator.latent, generator=torch.Generator().manual_seed(0))
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    images = network.generator(latent, one)
    torch.testing.assert_close(turned.generator(latent, zero), images)
    torch.testing.assert_close(turned.discriminator(images), network.discriminator(images).flip(1))


def test_the_start_on_phantoms_is_refused_at_128_pixels_in_one_line() -> None:
    with pytest.raises(ModelError, match="data.image_size = 64.*init = 'random'"):
        phantom_gan(128, 1, LABELS)


def test_an_altered_file_of_weights_is_refused(tmp_path: Path) -> None:
    tensors = load_file(SHIPPED)
    tensors["generator.trunk.0.weight"][0] += 1
    save_file(tensors, tmp_path / "altered.safetensors", metadata={"tensors_sha256": "0" * 64})
    with pytest.raises(ModelError, match="altered"):
        phantom_gan(64, 1, LABELS, str(tmp_path / "altered.safetensors"))


def test_norm_and_head_travel_without_the_convolutions_of_the_discriminator() -> None:
    names = exchanged_names(SharedGAN(64, 1, 2), "norm+head")
    assert "discriminator.trunk.3.weight" in names and "discriminator.trunk.2.weight" not in names
    assert "generator.trunk.0.weight" in names


def test_pretraining_repeats_itself_and_what_it_writes_loads(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, train, small in (("gan", pretrain_gan, {"epochs": 1}), ("bank", pretrain_sampler, {})):
        files = [tmp_path / f"{name}-{number}.safetensors" for number in range(2)]
        written = [train(file, seed=3, crops=128, **small) for file in files]
        assert written[0] == written[1]  # its hash of the tensors too
        one, other = (load_file(file) for file in files)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)
    assert phantom_gan(64, 1, LABELS, str(tmp_path / "gan-0.safetensors")).generator.labels == 2
    assert phantom_sampler(LABELS, str(tmp_path / "bank-0.safetensors")).bank_MD.shape == (128, 33)
