"""Augmentation: random views of the drawn images, from the site's secret randomness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wardround.study.load import Study
from wardround.tasks.objective import Augmentation, Draws


def augmentation(study: Study, draws: Draws) -> Augmentation:
    """Return the study's augmentation, a function of the drawn images, (N, C, H, W).

    `none` changes nothing. `flips` flips and quarter-turns each image at random. `light` also rotates it by any angle,
    shifts it by up to 3 % of its side, scales it by up to 15 %, and changes its grey values by up to 10 %.
    """
    kind = study.training.augmentation
    if kind == "none":
        return lambda images_NCHW: images_NCHW

    def turn(images_NCHW: Tensor) -> Tensor:
        code_N = torch.from_numpy((draws.words(len(images_NCHW)) >> np.uint64(61)).astype(np.int64))
        out = torch.empty_like(images_NCHW)
        for code in range(8):
            chosen = (code_N == code).to(images_NCHW.device)
            turned = torch.rot90(images_NCHW[chosen], code // 2, (2, 3))
            out[chosen] = turned.flip(3) if code % 2 else turned
        return out

    def light(images_NCHW: Tensor) -> Tensor:
        uniform_N6 = torch.from_numpy(draws.uniform(6 * len(images_NCHW)).reshape(-1, 6) * 2 - 1)
        angle, zoom, right, down, gain, shift = uniform_N6.float().to(images_NCHW.device).unbind(1)
        scale, cosine, sine = torch.exp(0.15 * zoom), torch.cos(torch.pi * angle), torch.sin(torch.pi * angle)
        rows = [scale * cosine, -scale * sine, 0.06 * right, scale * sine, scale * cosine, 0.06 * down]
        grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(images_NCHW.shape), align_corners=False)
        moved = functional.grid_sample(turn(images_NCHW).float(), grid, padding_mode="reflection", align_corners=False)
        return (moved * (1 + 0.1 * gain)[:, None, None, None] + 25.5 * shift[:, None, None, None]).clamp(0, 255)

    return turn if kind == "flips" else light
