"""Residual networks for differentially private training: GroupNorm and standardised filters, no batch statistics.

Shapes: N images, C channels, H rows, W columns, D features, K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from wardround.networks.weight_standardisation import ImageStandardise, WSConv2d

SMALL_WIDTHS = (32, 48, 96, 160)
LARGE_WIDTHS = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2
CHANNELS_PER_GROUP = 16  # the best fixed size in Y. Wu and K. He, arXiv:1803.08494, table 3


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut connection (K. He et al., arXiv:1512.03385, figure 2)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            WSConv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(width // CHANNELS_PER_GROUP, width),
            nn.ReLU(),
            WSConv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(width // CHANNELS_PER_GROUP, width),
        )
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.around = nn.Sequential(
                WSConv2d(before, width, 1, stride=stride, bias=False),
                nn.GroupNorm(width // CHANNELS_PER_GROUP, width),
            )
        self.activation = nn.ReLU()

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, width, H / stride, W / stride)."""
        return self.activation(self.body(maps_NCHW) + self.around(maps_NCHW))


class ResNet(nn.Module):
    """ResNet18's layout at any widths: a 7 x 7 stem, four stages of two blocks, the mean over the map, a head.

    The head starts at zero, so that the first prediction is 0.5 for every patient and the first clipped steps are not
    spent on undoing random predictions.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.normalise = ImageStandardise()
        self.stem = nn.Sequential(
            WSConv2d(channels, widths[0], 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(widths[0] // CHANNELS_PER_GROUP, widths[0]),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(BLOCKS_PER_STAGE):
                blocks.append(ResidualBlock(before, width, stride=2 if stage > 0 and block == 0 else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], outputs)
        for layer in self.modules():
            if isinstance(layer, WSConv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float, at least 16 pixels a side -> (N, D)."""
        return self.blocks(self.stem(self.normalise(images_NCHW))).mean((2, 3))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))
