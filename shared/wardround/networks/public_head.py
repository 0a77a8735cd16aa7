"""Two trainable networks from the phantom encoder: a head over frozen public features, and the encoder itself.

Shapes: N images, C channels, H rows, W columns, D features, K outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.networks.phantom_encoder import PhantomEncoder, PublicFeatures, initial_head
from wardround.networks.preprocessing import DihedralViews

POSITIVE_PHANTOM = "malignant"  # a higher phantom logit means a higher probability of this label


class PhantomHead(nn.Module):
    """33 frozen public features and a linear head that starts as the phantom model.

    With two labels the score is for the second label; the sign of the initial head is reversed if the first label is
    `malignant`.
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
        """Grey values 0..255 (N, C, H, W), uint8 or float -> features (N, 33), without a gradient."""
        return self.public(images_NCHW)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.features(images_NCHW))


class PhantomNetwork(PhantomEncoder):
    """The encoder with its own head; every weight is trainable.

    Training uses each image unchanged. Evaluation averages over its eight flips and quarter turns, because the
    orientation of a slice carries no information.
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
    """Build the network with the trunk that was pre-trained on phantoms.

    With two labels the head is that of the phantom model, with its sign reversed if the first label is `malignant`.
    With more labels there is no such head, and it starts at zero.
    """
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
