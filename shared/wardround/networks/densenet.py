"""DenseNet121 with GroupNorm, in which every layer of a block receives the maps of all earlier layers.

The architecture is that of G. Huang et al. (arXiv:1608.06993, table 1) with BatchNorm replaced by GroupNorm. It kept an
AUC of 0.94 on chest radiographs at epsilon 6 (Ziegler 2022). Shapes: N images, C channels, H rows, W columns, D
features, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.networks.weight_standardisation import ImageStandardise

GROWTH = 32
BOTTLENECK = 4 * GROWTH
LAYERS_PER_BLOCK = (6, 12, 24, 16)
STEM_WIDTH = 64
GROUPS = 32  # every width here is a multiple of 32


class DenseLayer(nn.Module):
    """Norm, ReLU, 1 x 1 to the bottleneck; norm, ReLU, 3 x 3 to `GROWTH` maps, which are appended to the input."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, before),
            nn.ReLU(),
            nn.Conv2d(before, BOTTLENECK, 1, bias=False),
            nn.GroupNorm(GROUPS, BOTTLENECK),
            nn.ReLU(),
            nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, before + GROWTH, H, W)."""
        return torch.cat([maps_NCHW, self.body(maps_NCHW)], 1)


class DenseNet121(nn.Module):
    """121 weighted layers: the stem, 58 dense layers of two each, 3 transitions and the head, which starts at zero."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.normalise = ImageStandardise()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, STEM_WIDTH, 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(GROUPS, STEM_WIDTH),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        layers: list[nn.Module] = []
        width = STEM_WIDTH
        for block, count in enumerate(LAYERS_PER_BLOCK):
            if block > 0:
                layers.append(transition(width))
                width //= 2
            for _ in range(count):
                layers.append(DenseLayer(width))
                width += GROWTH
        self.trunk = nn.Sequential(*layers, nn.GroupNorm(GROUPS, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float, at least 32 pixels a side -> (N, 1024)."""
        return self.trunk(self.stem(self.normalise(images_NCHW))).mean((2, 3))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))


def transition(before: int) -> nn.Sequential:
    """Build the transition between two blocks, which halves the number of maps and their height and width."""
    return nn.Sequential(
        nn.GroupNorm(GROUPS, before),
        nn.ReLU(),
        nn.Conv2d(before, before // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )
