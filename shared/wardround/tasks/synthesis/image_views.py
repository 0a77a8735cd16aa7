"""Differentiable random views of images in [-1, 1].

A discriminator memorises images if there are few of them. If it is trained only on views, of real and of generated
images, it cannot memorise them, and the generator does not learn the views themselves (S. Zhao et al., "Differentiable
augmentation", arXiv:2006.10738). Flips and quarter turns apply to real images only: they increase the number of real
images, all of which the generator should learn to make. Each image has its own draws, so the view of one image does not
depend on others.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

DRAWS = 8  # uniform random numbers per image
LARGEST_SHIFT = 1 / 8
BRIGHTNESS = 0.2
CONTRAST = 0.3
HOLE = 1 / 4  # side of the erased square, as a share of the image's
Views = Literal["none", "flips", "light"]


def seen(images_NCHW: Tensor, draws_N8: Tensor, kind: Views, *, real: bool) -> Tensor:
    """Return a view of each image.

    Args:
        draws_N8: Random numbers, uniform in [0, 1).
        kind: `none` returns the image itself. `flips` applies a flip and a quarter turn to real images. `light` applies
            these, and to real and generated images a shift by up to an eighth, a change of brightness and contrast, and
            a grey square over up to a sixteenth of the image.
        real: Whether the images are real ones.
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
    """Shift by whole pixels; the border is repeated."""
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
