"""Discriminator and generator of a conditional DCGAN for 64 x 64 and 128 x 128 images.

The layout is that of A. Radford et al. (arXiv:1511.06434): strided 4 x 4 convolutions down, transposed ones up. Two
changes make it suitable for per-patient clipping. BatchNorm, which mixes patients, is replaced by GroupNorm, in the
discriminator because it processes patients' images, and in the generator so that an image depends only on its own
latent. No activation is in place, because clipping reads the activations.

Both networks are conditional on the label. The generator reads it together with its latent. The discriminator has one
logit per label, each a linear function of shared features, which is the projection of T. Miyato and M. Koyama
(arXiv:1802.05637).

Shapes: N images, C channels (1 grey, 3 colour), H rows, W columns, Z latent numbers, K labels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.errors import ModelError

IMAGE_SIZES = (64, 128)
CHANNELS = (1, 3)
LATENT = 128
WIDEST = 512  # channels at 4 x 4; they halve with each doubling of the side, so both sizes have about as many weights
GROUPS = 8
LEAK = 0.2
SMALLEST_MAP = 4
FIRST_DEVIATION = 0.02  # standard deviation of the initial weights, as in the paper


class Discriminator(nn.Module):
    """Image in [-1, 1] -> one logit per label, high for an image that looks like a real one of that label.

    Has 2.8 million weights at either size with one label and the paper's width. Each image's logits depend only on that
    image. The first convolution has no normalisation, as in the paper.

    Raises:
        ModelError: For an unsupported size, number of channels or width.
    """

    def __init__(self, image_size: int, channels: int, labels: int = 1, widest: int = WIDEST) -> None:
        super().__init__()
        widths = _widths(image_size, channels, widest)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        for before, width in zip(widths[:-1], widths[1:], strict=True):
            layers += [
                nn.Conv2d(before, width, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.LeakyReLU(LEAK),
            ]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(widest * SMALLEST_MAP**2, labels)
        _first_weights(self)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] (N, C, H, W) -> (N, 16 x widest)."""
        return self.trunk(images_NCHW).flatten(1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1] (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))


class Generator(nn.Module):
    """Latent of standard normal numbers and a label -> image in [-1, 1].

    The generator is never trained on patients' images, only on the discriminator's logits.

    Raises:
        ModelError: For an unsupported size, number of channels or width.
    """

    def __init__(
        self, image_size: int, channels: int, labels: int = 1, widest: int = WIDEST, latent: int = LATENT
    ) -> None:
        super().__init__()
        self.latent = latent
        self.labels = labels
        widths = _widths(image_size, channels, widest)[::-1]
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + labels, widths[0], SMALLEST_MAP, bias=False),
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

    def forward(self, latents_NZ: Tensor, labels_N: Tensor) -> Tensor:
        """Latents (N, Z) and labels (N,), int64 -> images in [-1, 1] (N, C, H, W)."""
        said_NK = functional.one_hot(labels_N, self.labels).to(latents_NZ)
        return self.trunk(torch.cat([latents_NZ, said_NK], 1)[:, :, None, None])


def hinge_of_real(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the discriminator's loss (N,) for real images: 0 if the logit of the image's own label is at least 1."""
    return functional.relu(1 - of_label(logits_NK, labels_N))


def hinge_of_fake(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return the discriminator's loss (N,) for fakes: 0 if the logit of the requested label is at most -1."""
    return functional.relu(1 + of_label(logits_NK, labels_N))


def of_label(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return each image's logit for its label, (N,)."""
    return logits_NK.gather(1, labels_N[:, None])[:, 0]


def to_grey(images_NCHW: Tensor) -> Tensor:
    """Convert images in [-1, 1] to grey values 0..255, uint8."""
    return ((images_NCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _widths(image_size: int, channels: int, widest: int) -> list[int]:
    """Return the channels after each halving of the side, down to 4 x 4: 64, 128, 256, 512 at 64 pixels."""
    if image_size not in IMAGE_SIZES:
        raise ModelError(f"data.image_size: a DCGAN is built for {' or '.join(map(str, IMAGE_SIZES))} pixels a side")
    if channels not in CHANNELS:
        raise ModelError(f"data.channels: a DCGAN has 1 channel (grey) or 3 (colour), not {channels}")
    steps = int(math.log2(image_size // SMALLEST_MAP))
    widths = [widest >> (steps - 1 - step) for step in range(steps)]
    if widest % (GROUPS << (steps - 1)):
        raise ModelError(f"a DCGAN of {image_size} pixels has a multiple of {GROUPS << (steps - 1)} channels at 4 x 4")
    return widths


def _first_weights(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, FIRST_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
