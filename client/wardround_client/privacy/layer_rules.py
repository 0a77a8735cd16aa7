"""What each kind of layer knows about its units' gradients: their squared norms, and any weighted sum of them.

A rule sees a layer's input a, output y and output gradient g, once, in the backward pass. For each parameter it returns
`Contribution`s by group of units, in one of two ways:

direct: form every unit's gradient now. It costs the arithmetic of the ordinary weight gradient and memory for each
    unit; the norm is the norm of what is kept, exactly.
ghost:  keep a and g. With all positions of all images of a unit as rows, the gradient is G^T A, so its squared norm is
    <A A^T, G G^T>, and the weighted sum is one ordinary weight gradient with g scaled row by row (Goodfellow,
    arXiv:1510.01799; Bu et al., arXiv:2210.00038). Cheaper where maps are small and filters many.

Guarantee: for finite a and g, `squared_norm_U` is that of the gradient that `weighted_sum` adds, up to the rounding of
the precision they come in. A unit of weight 0 does not enter, whatever it holds (0 x NaN would be NaN).
Shapes: N rows (images), U units, k images a unit, C channels, O outputs, T positions, D inputs of one output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.models.standardisation import FILTER_EPS, WSConv2d

DOT_LENGTH = 4096  # of float32 numbers; a dot product of 60,000 is off by 1e-5, one of millions by 1e-4
WIDE = 8  # input channels from which the library's grouped weight gradient is fast (measured: 1 slow, 16 fast)
GRAM_RATE = 40  # multiply-adds of a Gram matrix in the time of moving one weight to memory and back (measured)
CANCELLATION = 1e-6  # least share of the parts that a difference of them counts: what float32 cannot resolve


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """Units of equally many images, side by side: rows `rows` of the batch are units `units` of `images` rows each."""

    units: slice
    rows: slice
    images: int

    def seen(self, views: int) -> UnitGroup:
        """The same units in a layer that sees each image `views` times, its rows side by side."""
        rows = slice(self.rows.start * views, self.rows.stop * views)
        return UnitGroup(units=self.units, rows=rows, images=self.images * views)

    def by_unit(self, values_N: Tensor) -> Tensor:
        """(N, ...) -> (U, k, ...) of this group."""
        return values_N[self.rows].unflatten(0, (-1, self.images))


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The gradients of some units for one parameter: float64 squared norms, and sum_u weight_u x gradient_u."""

    parameter: str
    units: slice
    squared_norm_U: Tensor
    weighted_sum: Callable[[Tensor], Tensor]


Rule = Callable[[nn.Module, Tensor, Tensor | None, Tensor, UnitGroup, Collection[str]], Iterator[Contribution]]


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule for a layer's own parameters, or None where there is none. Types are compared exactly: a subclass may
    compute something else.
    """
    if type(layer) in (nn.Conv2d, WSConv2d):
        return _convolution if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    return {nn.Linear: _linear, nn.GroupNorm: _group_norm}.get(type(layer))


def reads_output(layer: nn.Module) -> bool:
    """Whether the layer's rule needs its output y; others get None in its place."""
    return isinstance(layer, WSConv2d)


def _convolution(
    layer: nn.Conv2d, a_NCHW: Tensor, y_NOHW: Tensor | None, g_NOHW: Tensor, group: UnitGroup, wanted: Collection[str]
) -> Iterator[Contribution]:
    if "bias" in wanted:
        yield _stored("bias", group, group.by_unit(g_NOHW.float().sum((2, 3))).sum(1))
    if "weight" not in wanted:
        return
    a, g = a_NCHW[group.rows].to(g_NOHW.dtype), g_NOHW[group.rows]
    standard = standardisation(layer) if isinstance(layer, WSConv2d) else None
    finish = (lambda total: total) if standard is None else standard.pull_back
    if not ghost_is_cheaper(layer, g[0, 0].numel() * group.images):
        gradient_U = _unit_gradients(layer, a, g, group.images)
        square_UO = _square(gradient_U.flatten(2))
        if standard is not None:
            square_UO = standard.squares(square_UO, *standard.projections(gradient_U.flatten(2)))
        yield _stored("weight", group, gradient_U, square_UO.sum(1), finish)
        return

    def weighted(weight_U: Tensor) -> Tensor:
        return finish(_weight_gradient(layer, *_weigh_rows(a, g, weight_U, group.images)).float())

    A_UPD, G_UPO = _patches(layer, a, group.images), _positions(g.flatten(2), group.images)
    if standard is None:
        square_U = _gram_sum(A_UPD, G_UPO)
    else:
        # sum G: over positions, g times the sum of what it reads; sum (G v): g times the output without its bias
        Y_UPO = _positions(y_NOHW[group.rows].flatten(2), group.images)
        Y_UPO = Y_UPO if layer.bias is None else Y_UPO - layer.bias.detach()
        sum_UO = torch.bmm(G_UPO.transpose(1, 2), A_UPD.sum(2, keepdim=True))[:, :, 0]
        scaled_U1 = _gram_sum(A_UPD, G_UPO * standard.r_O)[:, None]
        square_U = standard.squares(scaled_U1, sum_UO, (G_UPO * Y_UPO).sum(1), scaled=True)[:, 0]
    yield Contribution(parameter="weight", units=group.units, squared_norm_U=square_U, weighted_sum=weighted)


def _linear(
    layer: nn.Linear, a_ND: Tensor, y_NO: None, g_NO: Tensor, group: UnitGroup, wanted: Collection[str]
) -> Iterator[Contribution]:
    """Inputs (N, D), or (N, ..., D) with more positions a row."""
    a = group.by_unit(a_ND.to(g_NO.dtype)).flatten(1, -2)  # (U, kT, D)
    g = group.by_unit(g_NO).flatten(1, -2)
    if "bias" in wanted:
        yield _stored("bias", group, g.float().sum(1))
    if "weight" not in wanted:
        return
    positions = a.shape[1]
    if 2 * positions**2 >= layer.weight.numel():
        yield _stored("weight", group, torch.bmm(g.transpose(1, 2).float(), a.float()))
        return

    def weighted(weight_U: Tensor) -> Tensor:
        a_kept, g_kept = _weigh_rows(a, g, weight_U, 1)
        return (g_kept.flatten(0, 1).t() @ a_kept.flatten(0, 1)).float()

    yield Contribution(parameter="weight", units=group.units, squared_norm_U=_gram_sum(a, g), weighted_sum=weighted)


def _group_norm(
    layer: nn.GroupNorm, a_NCHW: Tensor, y_NCHW: None, g_NCHW: Tensor, group: UnitGroup, wanted: Collection[str]
) -> Iterator[Contribution]:
    """Scale: the sum over positions of g times the normalised input; shift: that of g."""
    g = g_NCHW[group.rows].float()
    if "weight" in wanted:
        normal = functional.group_norm(a_NCHW[group.rows].float(), layer.num_groups, eps=layer.eps)
        yield _stored("weight", group, _sum_by_unit(normal.mul_(g), group))
    if "bias" in wanted:
        yield _stored("bias", group, _sum_by_unit(g, group))


def _sum_by_unit(values_NCT: Tensor, group: UnitGroup) -> Tensor:
    """(N, C, ...) of this group's rows -> (U, C): over positions and the unit's images."""
    values_NC = values_NCT.sum(tuple(range(2, values_NCT.dim()))) if values_NCT.dim() > 2 else values_NCT
    return values_NC.unflatten(0, (-1, group.images)).sum(1)


def _stored(
    parameter: str,
    group: UnitGroup,
    gradient_U: Tensor,
    square_U: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] = lambda total: total,
) -> Contribution:
    """A parameter whose unit gradients (U, ...) are at hand; `finish` is linear, and applied to their sum."""

    def weighted(weight_U: Tensor) -> Tensor:
        kept = weight_U != 0
        whole = bool(kept.all())
        weight, gradient = (weight_U, gradient_U) if whole else (weight_U[kept], gradient_U[kept])
        return finish((weight @ gradient.flatten(1)).view(gradient_U.shape[1:]))

    square_U = gradient_U.flatten(1).double().square().sum(1) if square_U is None else square_U
    return Contribution(parameter=parameter, units=group.units, squared_norm_U=square_U, weighted_sum=weighted)


def _weigh_rows(a_N: Tensor, g_N: Tensor, weight_U: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """a, and g scaled by the weight of each row's unit; rows of units without weight are taken out."""
    weight_N = weight_U.repeat_interleave(images)
    if bool((weight_N == 0).any()):
        kept = weight_N != 0
        a_N, g_N, weight_N = a_N[kept], g_N[kept], weight_N[kept]
    return a_N, g_N * weight_N.to(g_N.dtype).view(-1, *[1] * (g_N.dim() - 1))


def _square(rows: Tensor) -> Tensor:
    """Sums of squares over the last dimension, float32 parts of `DOT_LENGTH` added in float64. (Long dot products and
    `torch.norm` under-state on a CPU.)
    """
    return sum(torch.linalg.vecdot(part, part).double() for part in rows.split(DOT_LENGTH, -1))


def ghost_is_cheaper(layer: nn.Conv2d, positions: int) -> bool:
    """Whether Gram matrices of a unit's positions cost less than moving its weight gradient to memory and back."""
    if layer.groups != 1:
        return False
    weights = layer.weight.numel()
    inputs = weights // layer.out_channels
    patches = 0 if layer.kernel_size == (1, 1) else positions * inputs  # taking them out of the map
    return positions**2 * (inputs + layer.out_channels) / GRAM_RATE + patches < weights


def _library_gradient(layer: nn.Conv2d, a: Tensor, g: Tensor, like: Tensor, groups: int) -> Tensor:
    """The library's weight gradient, summed over rows; of `like` only shape and layout matter."""
    arguments = (None, layer.stride, layer.padding, layer.dilation, False, (0, 0), groups, (False, True, False))
    return torch.ops.aten.convolution_backward(g, a, like, *arguments)[1]


def _weight_gradient(layer: nn.Conv2d, a: Tensor, g: Tensor) -> Tensor:
    like = layer.weight.detach().to(g.dtype)
    if len(a) == 0:
        return torch.zeros_like(like)
    if not g.is_contiguous() and g.is_contiguous(memory_format=torch.channels_last):
        like = like.contiguous(memory_format=torch.channels_last)
    return _library_gradient(layer, a, g, like, layer.groups)


def _unit_gradients(layer: nn.Conv2d, a: Tensor, g: Tensor, images: int) -> Tensor:
    """(U, O, I, H, W), float32: the units side by side as groups of one wide convolution, a unit's images as its batch.

    Few input channels a group make the library slow; then it is called unit by unit.
    """
    units = len(a) // images
    if layer.in_channels // layer.groups < WIDE:
        parts = [_weight_gradient(layer, a[u : u + images], g[u : u + images]) for u in range(0, len(a), images)]
        return torch.stack(parts).float().contiguous()

    def side_by_side(values: Tensor) -> Tensor:  # (U k, C, H, W) -> (k, U C, H, W)
        return values.unflatten(0, (units, images)).transpose(0, 1).flatten(1, 2).contiguous()

    like = g.new_empty((units * layer.out_channels, *layer.weight.shape[1:]))
    wide = _library_gradient(layer, side_by_side(a), side_by_side(g), like, units * layer.groups)
    return wide.float().unflatten(0, (units, -1)).contiguous()


def _patches(layer: nn.Conv2d, a: Tensor, images: int) -> Tensor:
    """What each output position reads, all images of a unit together: (U, kT, D), float32."""
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        u_NDT = a[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    else:
        u_NDT = functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return _positions(u_NDT, images)


def _positions(values_NCT: Tensor, images: int) -> Tensor:
    """(N, C, T) -> (U, kT, C), float32."""
    return values_NCT.transpose(1, 2).float().unflatten(0, (-1, images)).flatten(1, 2)


def _gram_sum(A_UPD: Tensor, G_UPO: Tensor) -> Tensor:
    """Squared norm of G^T A for each unit, float64: the sum over the product of the two Gram matrices."""
    A, G = _gram(A_UPD), _gram(G_UPO)
    return A.mul_(G).sum((1, 2)).double().clamp(min=0)


def _gram(rows_UPD: Tensor) -> Tensor:
    return sum(torch.bmm(part, part.transpose(1, 2)) for part in rows_UPD.float().split(DOT_LENGTH, -1))


@dataclass(frozen=True, kw_only=True)
class Standardisation:
    """Of a layer's filters, D numbers each: v = (w - mean w) r is applied, with r = (var w + eps)^(-1/2).

    With G the gradient for v, m = mean G and c = mean(G v), the gradient for w is r (G - m - c v). As mean v = 0 and
    mean v^2 = q, its squared norm is r^2 (|G|^2 - D m^2 - (2 - q) D c^2): known without forming it.
    """

    v_OD: Tensor
    r_O: Tensor
    q_O: Tensor

    def pull_back(self, gradient_OIHW: Tensor) -> Tensor:
        G_OD = gradient_OIHW.flatten(1)
        m_O1, c_O1 = G_OD.mean(1, keepdim=True), (G_OD * self.v_OD).mean(1, keepdim=True)
        return (self.r_O[:, None] * (G_OD - m_O1 - self.v_OD * c_O1)).view_as(gradient_OIHW)

    def projections(self, gradient_UOD: Tensor) -> tuple[Tensor, Tensor]:
        """Sum G and sum (G v), (U, O)."""
        return gradient_UOD.sum(2), torch.linalg.vecdot(gradient_UOD, self.v_OD)

    def squares(self, square_UO: Tensor, sum_UO: Tensor, along_UO: Tensor, scaled: bool = False) -> Tensor:
        """Squared norms after the pull-back by filter, from |G|^2, sum G and sum (G v); or, `scaled`, summed over
        filters, (U, 1), from the sum of r^2 |G|^2.
        """
        size, r2_O, q_O = self.v_OD.shape[1], self.r_O.double().square(), self.q_O.double()
        m_UO, c_UO = sum_UO.double() / size, along_UO.double() / size
        taken_UO = r2_O * size * (m_UO.square() + c_UO.square() * (2 - q_O))
        whole = square_UO if scaled else square_UO * r2_O
        rest = whole - (taken_UO.sum(1, keepdim=True) if scaled else taken_UO)
        return torch.maximum(rest, CANCELLATION * whole)


def standardisation(layer: WSConv2d) -> Standardisation:
    weight_OD = layer.weight.detach().float().flatten(1)
    centred_OD = weight_OD - weight_OD.mean(1, keepdim=True)
    variance_O = centred_OD.square().mean(1)
    r_O = torch.rsqrt(variance_O + FILTER_EPS)
    return Standardisation(v_OD=centred_OD * r_O[:, None], r_O=r_O, q_O=variance_O * r_O.square())
