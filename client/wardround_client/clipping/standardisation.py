"""Gradients of standardised filters: the linear map from the gradient for a filter as applied to that for its weights.

Shapes: U units, P rows (positions of all images of a unit), O filters, I x H x W = D numbers in a filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.networks.weight_standardisation import FILTER_EPS, WSConv2d
from wardround_client.clipping.gram_norms import FLOOR, filter_bounds

ROWS_AT_ONCE = 64  # filters of a layer that stay in the processor's cache together


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardisation:
    """Standardisation of a layer's filters, D numbers each: v = (w - mean w) r, with r = (var w + eps)^(-1/2).

    The layer applies v in place of its weights w.

    With G the gradient for v, m = mean G and c = mean(G v), the gradient for w is L G = r (G - m - c v): linear in G.
    Its squared norm is r^2 (|G|^2 - D m^2 - (2 - q) D c^2 + 2 m c s), with q = mean v^2 and s = sum v, for any v. All
    of these are float64 numbers and treated as exact.
    """

    v_OD: Tensor
    r_O: Tensor
    q_O: Tensor
    s_O: Tensor

    def pull_back(self, gradient_OIHW: Tensor) -> Tensor:
        """Apply L to a float64 sum, in place."""
        _pull_back(gradient_OIHW.flatten(1), self.v_OD, self.r_O)
        return gradient_OIHW

    def pull_back_each(self, gradient_UOIHW: Tensor) -> Tensor:
        """Apply L to every unit's float32 gradient, in place.

        The results are the numbers that are kept, however they were rounded.
        """
        v_OD, r_O = self.v_OD.float(), self.r_O.float()
        for G_OD in gradient_UOIHW.flatten(2):
            _pull_back(G_OD, v_OD, r_O)
        return gradient_UOIHW

    def gram_sum(self, A_UPD: Tensor, G_UPO: Tensor) -> Tensor:
        """Return the squared norm of L (G^T A) for each unit, float64, never too small.

        It is computed by the formula of the class plus FLOOR B^2, with r^2 in each filter's part of B^2 (the terms
        subtracted from |G|^2 are at most a few times |G|^2).
        """
        size = self.v_OD.shape[1]
        scaled_UPO = G_UPO * self.r_O
        whole = torch.bmm(A_UPD, A_UPD.transpose(1, 2)).mul_(torch.bmm(scaled_UPO, scaled_UPO.transpose(1, 2)))
        m_UO = torch.bmm(A_UPD.sum(2)[:, None, :], scaled_UPO)[:, 0] / size
        c_UO = (A_UPD.flatten(0, 1) @ self.v_OD.t()).view_as(scaled_UPO).mul_(scaled_UPO).sum(1) / size
        taken_UO = size * (m_UO.square() + (2 - self.q_O) * c_UO.square()) - 2 * m_UO * c_UO * self.s_O
        exact_U = whole.sum((1, 2)) - taken_UO.sum(1)
        return exact_U.clamp(min=0) + FLOOR * filter_bounds(A_UPD, scaled_UPO).square().sum(1)


def _pull_back(G_OD: Tensor, v_OD: Tensor, r_O: Tensor) -> None:
    """Replace G by r (G - m - c v), some filters at a time."""
    parts = zip(G_OD.split(ROWS_AT_ONCE), v_OD.split(ROWS_AT_ONCE), r_O.split(ROWS_AT_ONCE), strict=True)
    for G, v, r in parts:
        c = (G * v).mean(1, keepdim=True)
        G.sub_(G.mean(1, keepdim=True)).addcmul_(v, c, value=-1).mul_(r[:, None])


def standardisation(layer: WSConv2d) -> Standardisation:
    """Return the standardisation of the layer's current weights.

    Centring filters of equal, large weights once leaves a constant, so they are centred twice.
    """
    v_OD = layer.weight.detach().flatten(1).to(torch.float64, copy=True)
    r_O = v_OD.new_empty(len(v_OD))
    for v, r in zip(v_OD.split(ROWS_AT_ONCE), r_O.split(ROWS_AT_ONCE), strict=True):
        v.sub_(v.mean(1, keepdim=True))
        v.sub_(v.mean(1, keepdim=True))
        r.copy_(torch.rsqrt(v.square().mean(1) + FILTER_EPS))
        v.mul_(r[:, None])
    return Standardisation(v_OD=v_OD, r_O=r_O, q_O=_mean_squares(v_OD), s_O=v_OD.sum(1))


def _mean_squares(values_OD: Tensor) -> Tensor:
    return torch.cat([part.square().mean(1) for part in values_OD.split(ROWS_AT_ONCE)])
