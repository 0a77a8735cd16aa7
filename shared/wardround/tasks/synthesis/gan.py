"""The generative adversarial network of a study: a generator and a discriminator, and the one contrast both speak.

Every image is brought to one window by itself (Otsu's split: lung at one grey, tissue at another), so that the
generator need not learn what scanners and windows do, and no statistic of a data set is involved.
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
WIDTH = {64: 128, 128: 256}  # channels at 4 x 4: noise grows with the number of weights
LATENT = 64
MIDDLE, SCALE = 0.2, 0.8  # normalised lung (-0.3) comes to -0.4, tissue (0.7) to 0.4; what lies beyond 1 is cut off


class SharedGAN(nn.Module):
    """Generator and discriminator. `forward` is the discriminator's logits (N, K) for grey values 0..255."""

    def __init__(self, image_size: int, channels: int, labels: int) -> None:
        super().__init__()
        width = WIDTH.get(image_size, WIDTH[PHANTOM_PX])  # another size is refused within
        self.normalise = OtsuNormalise()
        self.generator = Generator(image_size, channels, labels, width, LATENT)
        self.discriminator = Discriminator(image_size, channels, labels, width)

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255, uint8 or float -> one contrast, in [-1, 1]."""
        return ((self.normalise(images_NCHW) - MIDDLE) * SCALE).clamp(-1, 1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K), one a label."""
        return self.discriminator(self.prepare(images_NCHW))

    def label_logits(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 -> how much more the image looks like the second label than like the first, (N, 1)."""
        logits_NK = self(images_NCHW)
        return logits_NK[:, 1:2] - logits_NK[:, :1]

    def travelling(self, trainable: str) -> tuple[str, ...]:
        """The generator's weights, and of the discriminator its head, with `norm+head` its normalisation too, or all:
        the only part that patients move."""
        layers = dict(self.named_modules())
        names = []
        for name, _ in self.named_parameters():
            ours = trainable == "all" or name.startswith(("generator.", "discriminator.head."))
            if ours or (trainable == "norm+head" and isinstance(layers[name.rpartition(".")[0]], nn.GroupNorm)):
                names.append(name)
        return tuple(sorted(names))


def phantom_gan(image_size: int, channels: int, labels: tuple[str, ...], path: str | None = None) -> SharedGAN:
    """The GAN as `wardround-sim pretrain --network gan` trained it on phantoms: the shipped file, or the one in `path`.

    The phantoms' two labels are benign and malignant; the start is turned around where the study's first label is
    `malignant`. Raises `ModelError` for a study that the file does not fit, or for a file that is missing or altered.
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
    """Exchange the two labels."""
    head, first = network.discriminator.head, cast(Tensor, network.generator.trunk[0].weight)
    head.weight.copy_(head.weight.flip(0))
    head.bias.copy_(head.bias.flip(0))
    first[-PHANTOM_LABELS:] = first[-PHANTOM_LABELS:].flip(0)
