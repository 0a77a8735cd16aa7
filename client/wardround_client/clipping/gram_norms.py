"""Norms of gradients that are never formed, float64 and never too small.

They come from a layer's input A and the gradient G of its output. The theorem and its rounding argument are in
`layer_rules.py`. Shapes: U units, P rows (positions of all images of a unit), D inputs of one output, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-8  # share of B^2 that is added to a Gram sum


def gram_sum(A_UPD: Tensor, G_UPO: Tensor) -> Tensor:
    """Return the squared norm of G^T A for each unit, float64, never too small: <A A^T, G G^T> + FLOOR B^2."""
    exact = torch.bmm(A_UPD, A_UPD.transpose(1, 2)).mul_(torch.bmm(G_UPO, G_UPO.transpose(1, 2))).sum((1, 2))
    return exact.clamp(min=0) + FLOOR * filter_bounds(A_UPD, G_UPO).square().sum(1)


def filter_bounds(A_UPD: Tensor, G_UPO: Tensor) -> Tensor:
    """Return sum_t |g_to| |a_t|, (U, O), an upper bound on the length of each filter's gradient."""
    return torch.bmm(torch.linalg.vector_norm(A_UPD, dim=2)[:, None, :], G_UPO.abs())[:, 0]
