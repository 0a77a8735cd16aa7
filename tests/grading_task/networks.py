"""The network that grades images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from wardround.networks.fingerprint import load_strictly
from wardround.networks.model_file import read_model_file
from wardround.sources.images.study import ImageData
from wardround.study.schema import ModelSection, Section


class GradeNet(nn.Module):
    """One convolution, a normalisation of each image by itself, and a linear head with one output."""

    def __init__(self, data: ImageData, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(data.channel_count, channels, 5, stride=4),
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            nn.AvgPool2d((data.image_size - 5) // 4 + 1),
            nn.Flatten(),
        )
        self.head = nn.Linear(channels, 1)

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> (N, channels)."""
        return self.body(images_NCHW.float() / 255)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> grades (N, 1)."""
        return self.head(self.features(images_NCHW))


def first_weights(model: ModelSection, data: ImageData, section: Section | None) -> nn.Module:
    """The network with random weights, or with those of a file."""
    network = GradeNet(data, section.channels if section is not None else 8)
    if model.init != "random":
        path = Path(model.init)
        tensors, metadata = read_model_file(path, model.init_sha256)
        load_strictly(network, tensors, metadata, f"{path}: not a {model.name} for this study:")
    return network
