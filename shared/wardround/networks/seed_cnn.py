"""The seed CNN: the classic small network for images in two folders, with two convolutions and a dense layer.

Shapes: N images, C channels, H rows, W columns, D features, K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from wardround.errors import required

FEATURES = 128
BRIGHTEST = 255.0


class SeedCNN(nn.Module):
    """conv 32 - pool - conv 64 - pool - dense 128 - head, on grey values divided by 255.

    The filters are 3 x 3 without padding, every layer but the head is followed by a ReLU, and the initialisation is the
    usual one for this network (Glorot uniform, biases zero). Nearly all of its weights are in the dense layer: 7.4 of
    7.4 million at 128 x 128.
    """

    def __init__(self, channels: int, image_size: int, outputs: int) -> None:
        super().__init__()
        side = ((image_size - 2) // 2 - 2) // 2
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * side * side, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, outputs)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(required(layer.bias, "bias"))

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float, of the size given at construction -> (N, 128)."""
        return self.trunk(images_NCHW.float() / BRIGHTEST)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))
