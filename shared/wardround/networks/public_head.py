"""The phantom encoder as the two networks a study can train: a head over frozen public features, or the encoder itself.

Shapes: N images, C channels, H rows, W columns, D features, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.networks.phantom_encoder import PhantomEncoder, PublicFeatures, initial_head
from wardround.networks.preprocessing import DihedralViews

POSITIVE_PHANTOM = "malignant"  # the phantom logit says how much a nodule looks like this label


class PhantomHead(nn.Module):
    """33 public features that nothing trains, and a linear head that starts as the phantom model.

    With two labels the score is for the second; the start is turned around where the first of them is `malignant`.
    """

    def __init__(self, public: PublicFeatures, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.public = public
        self.head = initial_head(1 if len(labels) == 2 else len(labels))
        if len(labels) == 2 and labels[0] == POSITIVE_PHANTOM:
            with torch.no_grad():
                self.head.weight.neg_()

    @torch.no_grad()
    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float -> (N, 33), without a gradient."""
        return self.public(images_NCHW)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))


class PhantomNetwork(PhantomEncoder):
    """The encoder with its own head, every weight trainable.

    It trains on an image as it comes, and scores it by the mean over its eight flips and quarter turns, for how a slice
    lies means nothing.
    """

    def __init__(self, outputs: int = 1) -> None:
        super().__init__(outputs)
        self.views = DihedralViews()

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float -> (N, 128)."""
        prepared_NCHW = self.prepare(images_NCHW)
        if self.training:
            return self.pool(prepared_NCHW)
        return DihedralViews.average(self.pool(self.views(prepared_NCHW)))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))


def phantom_network(pretrained: PhantomEncoder, labels: tuple[str, ...]) -> PhantomNetwork:
    """The trunk pre-trained on phantoms. With two labels the head is the phantom model's too, turned around where the
    first label is `malignant`; with more there is none, and the head starts at zero."""
    network = PhantomNetwork(1 if len(labels) == 2 else len(labels))
    network.trunk.load_state_dict(pretrained.trunk.state_dict(), strict=True)
    with torch.no_grad():
        if len(labels) == 2:
            sign = -1.0 if labels[0] == POSITIVE_PHANTOM else 1.0
            network.head.weight.copy_(sign * pretrained.head.weight)
            network.head.bias.copy_(sign * pretrained.head.bias)
        else:
            network.head.weight.zero_()
            network.head.bias.zero_()
    return network
