"""Zero mean and unit variance, for an image and for a filter, without any statistic of a data set.

Shapes: N images, C channels, H rows, W columns; a filter bank is OIHW (outputs, inputs, rows, columns).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_DEVIATION = 1.0  # one grey level: below that an image is flat, and its noise must not be blown up
FILTER_EPS = 1e-5  # against filters of He's initialisation, whose variance is 2 / fan-in: 4e-4 and more here


class ImageStandardise(nn.Module):
    """Brings each image, all its channels together, to mean 0 and variance 1.

    Jointly over the channels, because the relation between them (a colour, lung window against soft tissue, the slice
    above against the one below) is a finding. This and not Otsu's split: that knows lung and tissue, and these networks
    are for any modality.
    """

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW, grey 0..255, uint8 or float -> float32 of the same shape."""
        images_NCHW = images_NCHW.float()
        variance_N, mean_N = torch.var_mean(images_NCHW, dim=(1, 2, 3), keepdim=True, correction=0)
        return (images_NCHW - mean_N) * torch.rsqrt(variance_N + SMALLEST_DEVIATION**2)


class WSConv2d(nn.Conv2d):
    """Convolution whose filters are standardised before use (S. Qiao et al., arXiv:1903.10520).

    Each filter, over its inputs, rows and columns, has mean 0 and variance 1 when it meets the image, so noise on the
    weights cannot change its scale. Beside GroupNorm it makes up for the missing BatchNorm under differential privacy
    (S. De et al., arXiv:2204.13650). The gradient flows through the standardisation: a clipping engine that forms
    weight gradients itself must pull them back through `standardised_weight`.
    """

    def standardised_weight(self) -> Tensor:
        """The filters as they are applied, OIHW."""
        variance_O, mean_O = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean_O) * torch.rsqrt(variance_O + FILTER_EPS)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """images_NCHW float32 -> maps, as `nn.Conv2d` gives them."""
        weight = self.standardised_weight()
        return F.conv2d(images_NCHW, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
