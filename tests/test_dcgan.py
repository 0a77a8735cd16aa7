"""The two networks of a DCGAN: their shapes, and that no image meets another in them."""

from __future__ import annotations

import pytest
import torch

from wardround.errors import ModelError
from wardround.models.dcgan import Discriminator, Generator, to_grey, to_signed
from wardround.models.registry import architecture_sha256, refuse_batch_statistics


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [64, 128])
def test_latents_become_images_and_images_logits_each_by_itself(size: int, channels: int) -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(size, channels), Discriminator(size, channels)
    latents = torch.randn(3, generator.latent)
    images = generator(latents)
    assert images.shape == (3, channels, size, size) and images.abs().max() <= 1
    assert discriminator(images).shape == (3, 1) and discriminator.features(images).shape == (3, 512, 4, 4)
    torch.testing.assert_close(generator(latents[1:2]), images[1:2])
    torch.testing.assert_close(discriminator(images[1:2]), discriminator(images)[1:2])
    for network in (generator, discriminator):
        refuse_batch_statistics(network)
        assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    assert 2.7e6 < sum(p.numel() for p in discriminator.parameters()) < 2.9e6


def test_every_weight_of_both_learns() -> None:
    generator, discriminator = Generator(64, 1), Discriminator(64, 1)
    discriminator(generator(torch.randn(2, generator.latent))).sum().backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_sizes_channels_and_leak_are_part_of_what_a_site_approves() -> None:
    hashes = {architecture_sha256(kind(s, c)) for kind in (Discriminator, Generator) for s in (64, 128) for c in (1, 3)}
    assert len(hashes) == 8
    network = Discriminator(64, 1)
    before = architecture_sha256(network)
    network.trunk[1].negative_slope = 0.3
    assert architecture_sha256(network) != before


@pytest.mark.parametrize("size, channels, says", [(96, 1, "64 or 128"), (64, 2, "1 channel")])
def test_another_size_is_refused_in_one_line(size: int, channels: int, says: str) -> None:
    for kind in (Discriminator, Generator):
        with pytest.raises(ModelError, match=says):
            kind(size, channels)


def test_grey_values_and_signed_values_are_each_others_inverse() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_grey(to_signed(grey)), grey)
    assert to_signed(grey).min() == -1 and to_signed(grey).max() == 1
