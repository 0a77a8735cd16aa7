"""Discriminator and generator of a DCGAN for 64 x 64 and 128 x 128 images, fit for per-patient clipping.

The layout of A. Radford et al. (arXiv:1511.06434): strided 4 x 4 convolutions down, transposed ones up. BatchNorm,
which mixes patients, is replaced by GroupNorm in the discriminator (where patients' images go) and, so that an image
depends on its own latent alone, in the generator too. No activation is in place: clipping reads what goes through them.
Shapes: N images, C channels (1 grey, 3 colour), H rows, W columns, Z latent numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wardround.errors import ModelError

IMAGE_SIZES = (64, 128)
CHANNELS = (1, 3)
LATENT = 128
WIDEST = 512  # channels at 4 x 4; each step to twice the side has half of them, so both sizes weigh about the same
GROUPS = 8
LEAK = 0.2
SMALLEST_MAP = 4
FIRST_DEVIATION = 0.02  # of the first weights, as in the paper


class Discriminator(nn.Module):
    """Image in [-1, 1] -> one logit, high for an image that looks real. 2.8 million weights at either size.

    Each image's logit depends on that image alone. The first and the last convolution have no normalisation, as in the
    paper. Raises `ModelError` for another size or number of channels.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        widths = _widths(image_size, channels)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        for before, width in zip(widths[:-1], widths[1:], strict=True):
            layers += [
                nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.LeakyReLU(LEAK),
            ]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(WIDEST, 1, SMALLEST_MAP)
        _first_weights(self)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] (N, C, H, W) -> maps (N, 512, 4, 4)."""
        return self.trunk(images_NCHW)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] (N, C, H, W) -> logits (N, 1)."""
        return self.head(self.features(images_NCHW)).flatten(1)


class Generator(nn.Module):
    """Latent of standard normal numbers -> image in [-1, 1]. It never sees a patient: it learns from the discriminator.

    Raises `ModelError` for another size or number of channels.
    """

    def __init__(self, image_size: int, channels: int, latent: int = LATENT) -> None:
        super().__init__()
        self.latent = latent
        widths = _widths(image_size, channels)[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent, widths[0], SMALLEST_MAP, bias=False),
            nn.GroupNorm(GROUPS, widths[0]),
            nn.ReLU(),
        ]
        for before, width in zip(widths[:-1], widths[1:], strict=True):
            layers += [
                nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.trunk = nn.Sequential(*layers)
        _first_weights(self)

    def forward(self, latents_NZ: Tensor) -> Tensor:
        """Latents (N, Z) -> images in [-1, 1] (N, C, H, W)."""
        return self.trunk(latents_NZ[:, :, None, None])


def to_signed(images_NCHW: Tensor) -> Tensor:
    """Grey values 0..255, uint8 or float -> [-1, 1] float32, the range both networks speak."""
    return images_NCHW.float() / 127.5 - 1


def to_grey(images_NCHW: Tensor) -> Tensor:
    """[-1, 1] -> grey values 0..255, uint8."""
    return ((images_NCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _widths(image_size: int, channels: int) -> list[int]:
    """Channels after each halving of the side, from the image down to 4 x 4: 64, 128, 256, 512 at 64 pixels."""
    if image_size not in IMAGE_SIZES:
        raise ModelError(f"data.image_size: a DCGAN is built for {' or '.join(map(str, IMAGE_SIZES))} pixels a side")
    if channels not in CHANNELS:
        raise ModelError(f"data.channels: a DCGAN has 1 channel (grey) or 3 (colour), not {channels}")
    steps = int(math.log2(image_size // SMALLEST_MAP))
    return [WIDEST >> (steps - 1 - step) for step in range(steps)]


def _first_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, FIRST_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
