"""The restorer: a conditional GAN whose generator corrects a classical restoration.

The generator is a small U-Net (O. Ronneberger et al., MICCAI 2015) of residual blocks over space-to-depth. Its inputs
are the observed image, the classical start and a map of the strength, and it adds a residual to the start; with a
residual of zero it equals the classical method. The discriminator classifies patches (P. Isola et al., CVPR 2017) of a
restored or true image, together with its start. In the generator GroupNorm is in residual branches only, so that the
grey values themselves pass unchanged. The networks are suitable for per-patient clipping: they use neither batch
statistics nor in-place operations.

Shapes: N images, H rows, W columns, multiples of 4; grey values 0..255.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wardround.errors import ModelError, required
from wardround.networks.model_file import read_shipped
from wardround.tasks.reconstruction.classical import classical_start, to_full_size
from wardround.tasks.reconstruction.degradations import Degradation, Degraded, Kind

INPUTS = 3  # observed, start, map of the strength
FINE, COARSE, LAST = 32, 64, 16  # channels at half, a quarter and the full size
COARSE_BLOCKS = 3
GROUPS = 8
PATCH_WIDTHS = (16, 32, 64)
LEAK = 0.2
VIEWS = 4  # unchanged, rotated by 180 degrees, and both transposed: the orientation of an image carries no meaning
GREY_SCALE = 64.0  # grey levels per unit of the network


class ResidualBlock(nn.Module):
    """x + convolution(relu(norm(convolution(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, width)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(required(self.second.bias, "bias"))

    def forward(self, maps_NDHW: Tensor) -> Tensor:
        """Accepts maps of any size and keeps their shape."""
        return maps_NDHW + self.second(self.relu(self.norm(self.first(maps_NDHW))))


class Generator(nn.Module):
    """Inputs (N, 3, H, W) in grey values -> restored image (N, 1, H, W) in grey values: the start plus a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * INPUTS, FINE, 3, padding=1)
        self.fine_down = ResidualBlock(FINE)
        self.down = nn.Conv2d(FINE, COARSE, 2, stride=2)
        self.coarse = nn.Sequential(*(ResidualBlock(COARSE) for _ in range(COARSE_BLOCKS)))
        self.up = nn.Conv2d(COARSE, 4 * FINE, 1)
        self.fine_up = ResidualBlock(FINE)
        self.tail = nn.Conv2d(FINE, 4 * LAST, 3, padding=1)
        self.leaky = nn.LeakyReLU(LEAK)  # a plain ReLU died where the start is hard to improve
        self.head = nn.Conv2d(LAST, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(required(self.head.bias, "bias"))

    def features(self, inputs_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) -> the head's input maps (N, 16, H, W)."""
        centred = inputs_N3HW / GREY_SCALE - 2
        half = self.fine_down(self.stem(F.pixel_unshuffle(centred, 2)))
        quarter = self.coarse(self.down(half))
        half = self.fine_up(half + F.pixel_shuffle(self.up(quarter), 2))
        return self.leaky(F.pixel_shuffle(self.tail(half), 2))

    def forward(self, inputs_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) -> restored grey values (N, 1, H, W), not yet rounded."""
        return inputs_N3HW[:, 1:2] + GREY_SCALE * self.head(self.features(inputs_N3HW))


class PatchDiscriminator(nn.Module):
    """An image and its start (M, 2, H, W) in grey values -> one logit per patch (M, 1, H / 8, W / 8).

    The image is true or restored. Logits are high for patches that look true.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for index, width in enumerate(PATCH_WIDTHS):
            layers.append(nn.Conv2d(before, width, 4, stride=2, padding=1))
            layers += [nn.GroupNorm(GROUPS, width)] if index else []
            layers.append(nn.LeakyReLU(LEAK))
            before = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(before, 1, 3, padding=1)

    def forward(self, pairs_M2HW: Tensor) -> Tensor:
        """(M, 2, H, W) -> logits (M, 1, H / 8, W / 8)."""
        return self.head(self.trunk(pairs_M2HW / GREY_SCALE - 2))

    def frozen(self, pairs_M2HW: Tensor) -> Tensor:
        """Return the same logits with a gradient for the pairs and none for the weights, for the generator's loss.

        The layers themselves are not called, so a book-keeping engine with hooks on them records only the
        discriminator's own loss.
        """
        maps = pairs_M2HW / GREY_SCALE - 2
        for layer in (*self.trunk, self.head):
            if isinstance(layer, nn.Conv2d):
                weight, bias = layer.weight.detach(), required(layer.bias, "bias").detach()
                maps = F.conv2d(maps, weight, bias, layer.stride, layer.padding)
            elif isinstance(layer, nn.GroupNorm):
                maps = F.group_norm(maps, layer.num_groups, layer.weight.detach(), layer.bias.detach(), layer.eps)
            else:
                maps = F.leaky_relu(maps, LEAK)
        return maps


class Restorer(nn.Module):
    """Generator and discriminator for one kind of degradation; both train and travel. About 390,000 weights.

    `travelling` returns the parameters that do. `head`, the last convolution of each network (722 weights in total), is
    the small part for private training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator()
        self.discriminator = PatchDiscriminator()

    def forward(self, inputs_N3HW: Tensor) -> Tensor:
        """Inputs of `inputs_of_degraded` (N, 3, H, W) -> restored grey values (N, 1, H, W).

        In training mode this is the generator's output, otherwise the mean over four views, turned back.
        """
        if self.training:
            return self.generator(inputs_N3HW)
        restored = self.generator(inputs_N3HW) + self.generator(inputs_N3HW.flip(2, 3)).flip(2, 3)
        across = inputs_N3HW.transpose(2, 3)
        turned = self.generator(across) + self.generator(across.flip(2, 3)).flip(2, 3)
        return (restored + turned.transpose(2, 3)) / VIEWS

    def travelling(self, trainable: str) -> tuple[str, ...]:
        """Return the sorted names of the parameters that train and travel, for `head`, `norm+head` or `all`."""
        names = [name for name, _ in self.named_parameters()]
        if trainable == "all":
            return tuple(sorted(names))
        heads = {name for name in names if ".head." in name}
        return tuple(sorted(heads | set(self._norms()) if trainable == "norm+head" else heads))

    def _norms(self) -> Iterator[str]:
        for path, layer in self.named_modules():
            if isinstance(layer, nn.GroupNorm):
                yield from (f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False))


def inputs_of_degraded(degraded: Degraded, degradation: Degradation) -> Tensor:
    """Return the generator's inputs, (N, 3, H, W).

    The channels are the observed image at full size, the classical start, and a map of the strength that is 0 where
    data are missing.
    """
    known = degraded.known_N1HW
    strength = known * (255 * degradation.strength) if degradation.kind != "missing" else 255 * known
    return torch.cat([to_full_size(degraded), classical_start(degraded, degradation), strength], 1)


def load_phantom_restorer(degradation: Kind | None, path: str | None = None) -> Restorer:
    """Load the shipped restorer for a kind of degradation, or the one in `path`, in float32.

    `path` names a file that `wardround-sim pretrain` wrote.

    Raises:
        ModelError: If the file is missing, altered, or of a different architecture or degradation, or `degradation` is
            None.
    """
    if degradation is None:
        raise ModelError(
            "model.init: the phantom weights of a restorer belong to one degradation, but the study names none"
        )
    shipped = f"phantom_restorer_{degradation.replace('-', '_')}.safetensors"
    stored = read_shipped("wardround.tasks.reconstruction", shipped, path)
    tensors, name = stored.tensors, stored.name
    restorer = Restorer()
    if {key: t.shape for key, t in tensors.items()} != {key: t.shape for key, t in restorer.state_dict().items()}:
        raise ModelError(f"{name}: not a restorer of this version (names or shapes differ); pretrain again")
    if stored.metadata.get("degradation") != degradation:
        raise ModelError(f"{name}: was trained for a different degradation, not for {degradation}")
    stored.check_hash()
    restorer.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True)
    return restorer
