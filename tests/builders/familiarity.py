"""A stand-in for the out-of-distribution score, made of the shipped public features."""

from __future__ import annotations

from torch import Tensor, nn

from wardround.networks.phantom_encoder import load_phantom_encoder


class Distance(nn.Module):
    """Mean squared standardised feature of the phantom encoder."""

    threshold = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.features = load_phantom_encoder()[1]

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N,)."""
        return self.features.standardise(self.features.pooled(images_NCHW)).square().mean(1)
