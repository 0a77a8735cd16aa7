"""Standardisation of images and of filters to zero mean and unit variance, without statistics of a data set.

Shapes: N images, C channels, H rows, W columns; a filter bank is OIHW (outputs, inputs, rows, columns).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_DEVIATION = 1.0  # one grey level: an image below it is flat, and its noise must not be amplified
FILTER_EPS = 1e-5  # small against the variance of filters in He's initialisation, 2 / fan-in: 4e-4 and more here


class ImageStandardise(nn.Module):
    """Standardises each image to mean 0 and variance 1, jointly over its channels.

    The channels are standardised jointly because the relation between them (a colour, lung window against soft tissue,
    the slice above against the slice below) is a finding. Otsu's split (`preprocessing.OtsuNormalise`) is not used: it
    is specific to lung and tissue, and these networks are for any modality.
    """

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW, grey 0..255, uint8 or float -> float32 of the same shape."""
        images_NCHW = images_NCHW.float()
        variance_N, mean_N = torch.var_mean(images_NCHW, dim=(1, 2, 3), keepdim=True, correction=0)
        return (images_NCHW - mean_N) * torch.rsqrt(variance_N + SMALLEST_DEVIATION**2)


class WSConv2d(nn.Conv2d):
    """Convolution whose filters are standardised before use (S. Qiao et al., arXiv:1903.10520).

    Each filter is applied with mean 0 and variance 1 over its inputs, rows and columns, so that noise on the weights
    cannot change its scale. Together with GroupNorm it compensates for the missing BatchNorm under differential privacy
    (S. De et al., arXiv:2204.13650). The gradient flows through the standardisation: a clipping engine that computes
    weight gradients itself must backpropagate them through `standardised_weight`.
    """

    def standardised_weight(self) -> Tensor:
        """The filters as they are applied, OIHW."""
        variance_O, mean_O = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean_O) * torch.rsqrt(variance_O + FILTER_EPS)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW float32 -> maps of the shape that `nn.Conv2d` returns."""
        weight = self.standardised_weight()
        return F.conv2d(images_NCHW, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
