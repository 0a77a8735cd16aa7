"""The generative adversarial network of a study: a generator and a discriminator on images of one common contrast.

Each image is normalised to the same window by itself (Otsu's split: lung at one grey value, tissue at another). So the
generator need not learn the effects of scanners and windows, and no statistic of a data set is involved.

Shapes: N images, C channels, H rows, W columns, K labels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped
from wardround.networks.preprocessing import OtsuNormalise
from wardround.networks.public_head import POSITIVE_PHANTOM
from wardround.tasks.synthesis.dcgan import Discriminator, Generator

SHIPPED_FILE = "phantom_gan.safetensors"
PHANTOM_PX, PHANTOM_LABELS = 64, 2
WIDTH = {64: 128, 128: 256}  # channels at 4 x 4; kept small, because the noise grows with the number of weights
LATENT = 64
MIDDLE, SCALE = 0.2, 0.8  # maps normalised lung (-0.3) to -0.4 and tissue (0.7) to 0.4; values beyond 1 are clamped


class SharedGAN(nn.Module):
    """Generator and discriminator. `forward` is the discriminator's logits (N, K) for grey values 0..255."""

    def __init__(self, image_size: int, channels: int, labels: int) -> None:
        super().__init__()
        width = WIDTH.get(image_size, WIDTH[PHANTOM_PX])  # Generator and Discriminator refuse other sizes
        self.normalise = OtsuNormalise()
        self.generator = Generator(image_size, channels, labels, width, LATENT)
        self.discriminator = Discriminator(image_size, channels, labels, width)

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255, uint8 or float -> images of the common contrast, in [-1, 1]."""
        return ((self.normalise(images_NCHW) - MIDDLE) * SCALE).clamp(-1, 1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K), one per label."""
        return self.discriminator(self.prepare(images_NCHW))

    def label_logits(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 -> the logit of the second label minus that of the first, (N, 1)."""
        logits_NK = self(images_NCHW)
        return logits_NK[:, 1:2] - logits_NK[:, :1]

    def travelling(self, trainable: str) -> tuple[str, ...]:
        """Return the sorted names of the parameters that train and travel.

        They are the generator's weights and a part of the discriminator's: its head, with `norm+head` also its
        normalisation, or all. Patients move only the discriminator's part.
        """
        layers = dict(self.named_modules())
        names = []
        for name, _ in self.named_parameters():
            ours = trainable == "all" or name.startswith(("generator.", "discriminator.head."))
            if ours or (trainable == "norm+head" and isinstance(layers[name.rpartition(".")[0]], nn.GroupNorm)):
                names.append(name)
        return tuple(sorted(names))


def phantom_gan(image_size: int, channels: int, labels: tuple[str, ...], path: str | None = None) -> SharedGAN:
    """Load the GAN that was trained on phantoms: the shipped one, or the one in `path`.

    Both are written by `wardround-sim pretrain --network gan`. The phantoms' labels are benign and malignant; they are
    exchanged if the study's first label is `malignant`.

    Raises:
        ModelError: If the file does not fit the study, or is missing or altered.
    """
    asked = (image_size, channels, len(labels))
    if asked != (PHANTOM_PX, 1, PHANTOM_LABELS):
        raise ModelError(
            f"model.init: the GAN trained on phantoms is for data.image_size = {PHANTOM_PX}, grey and {PHANTOM_LABELS} "
            f"labels, not {image_size}, {channels} channels and {len(labels)}; use these, or init = 'random'"
        )
    stored = read_shipped("wardround.tasks.synthesis", SHIPPED_FILE, path)
    stored.check_hash()
    network = SharedGAN(*asked)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in stored.tensors.items()} != wanted:
        raise ModelError(f"{stored.name}: not the GAN of this version (names or shapes differ); pretrain again")
    network.load_state_dict({name: tensor.float() for name, tensor in stored.tensors.items()}, strict=True)
    if labels[0] == POSITIVE_PHANTOM:
        _turn_around(network)
    return network


@torch.no_grad()
def _turn_around(network: SharedGAN) -> None:
    """Exchange the two labels, in place."""
    head, first = network.discriminator.head, cast(Tensor, network.generator.trunk[0].weight)
    head.weight.copy_(head.weight.flip(0))
    head.bias.copy_(head.bias.flip(0))
    first[-PHANTOM_LABELS:] = first[-PHANTOM_LABELS:].flip(0)
