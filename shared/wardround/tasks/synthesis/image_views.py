"""Random views of images in [-1, 1] that a gradient passes through.

With few images a discriminator learns them by heart. Shown only views, of both sides, it cannot, and the generator does
not learn the views themselves (S. Zhao et al., "Differentiable augmentation", arXiv:2006.10738). Flips and quarter
turns are for real images alone: they make more of them, and a generator shall learn to make every one. Each image has
its own draw, so that no image meets another. Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

DRAWS = 8  # uniform numbers an image
LARGEST_SHIFT = 1 / 8
BRIGHTNESS = 0.2
CONTRAST = 0.3
HOLE = 1 / 4  # side of the square that is blotted out, of the image's
Views = Literal["none", "flips", "light"]


def seen(images_NCHW: Tensor, draws_N8: Tensor, kind: Views, *, real: bool) -> Tensor:
    """A view of each image: `none`, the image itself; `flips`, of a real one a flip and a quarter turn; `light`, these
    and, of both sides, a shift by up to an eighth, brightness and contrast, and a grey square over a sixteenth of it.

    `draws_N8` are uniform in [0, 1).
    """
    if kind == "none" or len(images_NCHW) == 0:
        return images_NCHW
    draws_N8 = draws_N8.to(images_NCHW)
    turned = _turned(images_NCHW, (draws_N8[:, 0] * 8).long()) if real else images_NCHW
    if kind == "flips":
        return turned
    return _blotted(_shifted(_toned(turned, draws_N8[:, 1:3]), draws_N8[:, 3:5]), draws_N8[:, 5:7])


def _turned(images_NCHW: Tensor, code_N: Tensor) -> Tensor:
    out = images_NCHW
    for bit, dims in ((1, (2,)), (2, (3,))):
        out = torch.where(((code_N & bit) > 0)[:, None, None, None], out.flip(dims), out)
    return torch.where(((code_N & 4) > 0)[:, None, None, None], out.transpose(2, 3), out)


def _toned(images_NCHW: Tensor, draws_N2: Tensor) -> Tensor:
    brightness, contrast = ((2 * draws_N2 - 1) * draws_N2.new_tensor([BRIGHTNESS, CONTRAST])).unbind(1)
    mean = images_NCHW.mean((1, 2, 3), keepdim=True)
    return (images_NCHW - mean) * (1 + contrast[:, None, None, None]) + mean + brightness[:, None, None, None]


def _shifted(images_NCHW: Tensor, draws_N2: Tensor) -> Tensor:
    """Whole pixels; the border is repeated."""
    count, _, height, width = images_NCHW.shape
    most = int(width * LARGEST_SHIFT)
    down, right = (draws_N2 * (2 * most + 1)).long().unbind(1)
    padded = functional.pad(images_NCHW, (most,) * 4, mode="replicate").permute(0, 2, 3, 1)
    rows = down[:, None] + torch.arange(height, device=down.device)
    columns = right[:, None] + torch.arange(width, device=down.device)
    picture = torch.arange(count, device=down.device)[:, None, None]
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _blotted(images_NCHW: Tensor, draws_N2: Tensor) -> Tensor:
    size = images_NCHW.shape[-1]
    first = draws_N2 * size * (1 + HOLE) - size * HOLE
    places = torch.arange(size, device=draws_N2.device)
    inside = (places >= first[:, :, None]) & (places < first[:, :, None] + size * HOLE)  # (N, 2, size)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return images_NCHW.masked_fill(hole[:, None], 0.0)
