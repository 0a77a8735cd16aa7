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

DOT_LENGTH = 1 << 14  # a float32 dot product of millions of numbers under-states by up to 1e-4
GRAM_RATE = 40  # multiply-adds of a Gram matrix in the time of moving one weight to memory and back (measured)
CANCELLATION = 1e-6  # least share of the parts that a difference of them counts: what float32 cannot resolve


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """Units of equally many images, side by side: rows `rows` of the batch are units `units` of `images` rows each."""

    units: slice
    rows: slice
    images: int

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


Rule = Callable[[nn.Module, Tensor, Tensor, Tensor, UnitGroup, Collection[str]], Iterator[Contribution]]


def rule_for(layer: nn.Module) -> Rule | None:
    """The rule for a layer's own parameters, or None where there is none. Types are compared exactly: a subclass may
    compute something else.
    """
    if type(layer) in (nn.Conv2d, WSConv2d):
        return _convolution if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    return {nn.Linear: _linear, nn.GroupNorm: _group_norm}.get(type(layer))


def _convolution(
    layer: nn.Conv2d, a_NCHW: Tensor, y_NOHW: Tensor, g_NOHW: Tensor, group: UnitGroup, wanted: Collection[str]
) -> Iterator[Contribution]:
    if "bias" in wanted:
        yield _stored("bias", group, group.by_unit(g_NOHW.float().sum((2, 3))).sum(1))
    if "weight" not in wanted:
        return
    a, g = a_NCHW[group.rows].to(g_NOHW.dtype), g_NOHW[group.rows]
    # only the shape and layout of this tensor matter to the library's weight gradient
    like = layer.weight.detach().to(g.dtype)
    if not g.is_contiguous() and g.is_contiguous(memory_format=torch.channels_last):
        like = like.contiguous(memory_format=torch.channels_last)
    standardised = isinstance(layer, WSConv2d)
    if ghost_is_cheaper(layer, g[0, 0].numel() * group.images):
        bias = None if layer.bias is None else layer.bias.detach()
        norm = _ghost_standardised(layer, a, y_NOHW[group.rows], g, bias, group) if standardised else None
        norm = _ghost_convolution(layer, a, g, group) if norm is None else norm

        def weighted(weight_U: Tensor) -> Tensor:
            a_kept, g_kept = _weigh_rows(a, g, weight_U, group.images)
            total = _weight_gradient(layer, a_kept, g_kept, like).float()
            return pull_back(layer, total) if standardised else total

        yield Contribution(parameter="weight", units=group.units, squared_norm_U=norm, weighted_sum=weighted)
        return
    k = group.images
    gradient_U, square_U = [], []
    for row in range(0, len(a), k):
        gradient = _weight_gradient(layer, a[row : row + k], g[row : row + k], like).float().contiguous()
        gradient_U.append(gradient)  # its norm while it is in the cache
        square_U.append(_standardised_square(layer, gradient) if standardised else squared_norm(gradient))

    def weighted_stored(weight_U: Tensor) -> Tensor:
        total = torch.zeros_like(gradient_U[0])
        for weight, gradient in zip(weight_U.tolist(), gradient_U, strict=True):
            if weight != 0:
                total.add_(gradient, alpha=weight)
        return pull_back(layer, total) if standardised else total

    squares = torch.stack(square_U)
    yield Contribution(parameter="weight", units=group.units, squared_norm_U=squares, weighted_sum=weighted_stored)


def _linear(
    layer: nn.Linear, a_ND: Tensor, y_NO: Tensor, g_NO: Tensor, group: UnitGroup, wanted: Collection[str]
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

    norm = _gram(a, g).sum((1, 2)).double().clamp(min=0)
    yield Contribution(parameter="weight", units=group.units, squared_norm_U=norm, weighted_sum=weighted)


def _group_norm(
    layer: nn.GroupNorm, a_NCHW: Tensor, y_NCHW: Tensor, g_NCHW: Tensor, group: UnitGroup, wanted: Collection[str]
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


def _stored(parameter: str, group: UnitGroup, gradient_U: Tensor) -> Contribution:
    """A parameter whose unit gradients (U, ...) are at hand."""

    def weighted(weight_U: Tensor) -> Tensor:
        kept = weight_U != 0
        total = weight_U[kept] @ gradient_U[kept].flatten(1)
        return total.view(gradient_U.shape[1:])

    square_U = gradient_U.flatten(1).double().square().sum(1)
    return Contribution(parameter=parameter, units=group.units, squared_norm_U=square_U, weighted_sum=weighted)


def _weigh_rows(a_N: Tensor, g_N: Tensor, weight_U: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """a, and g scaled by the weight of each row's unit; rows of units without weight are taken out."""
    weight_N = weight_U.repeat_interleave(images)
    if bool((weight_N == 0).any()):
        kept = weight_N != 0
        a_N, g_N, weight_N = a_N[kept], g_N[kept], weight_N[kept]
    return a_N, g_N * weight_N.to(g_N.dtype).view(-1, *[1] * (g_N.dim() - 1))


def squared_norm(values: Tensor) -> Tensor:
    """Sum of squares of a contiguous float32 tensor, float64: short dot products in float32, added in float64."""
    flat = values.view(-1)
    return torch.stack([torch.dot(part, part) for part in flat.split(DOT_LENGTH)]).double().sum()


def ghost_is_cheaper(layer: nn.Conv2d, positions: int) -> bool:
    """Whether Gram matrices of a unit's positions cost less than moving its weight gradient to memory and back."""
    if layer.groups != 1:
        return False
    weights = layer.weight.numel()
    inputs = weights // layer.out_channels
    patches = 0 if layer.kernel_size == (1, 1) else positions * inputs  # taking them out of the map
    return positions**2 * (inputs + layer.out_channels) / GRAM_RATE + patches < weights


def _weight_gradient(layer: nn.Conv2d, a: Tensor, g: Tensor, like: Tensor) -> Tensor:
    """The library's weight gradient, summed over rows."""
    if len(a) == 0:
        return torch.zeros_like(like)
    mask = (False, True, False)
    arguments = (None, layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups, mask)
    return torch.ops.aten.convolution_backward(g, a, like, *arguments)[1]


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


def _gram(A_UPD: Tensor, G_UPO: Tensor) -> Tensor:
    """Elementwise product of the two Gram matrices, (U, P, P); its sum is the squared norm of G^T A."""
    A, G = A_UPD.float(), G_UPO.float()
    return torch.bmm(A, A.transpose(1, 2)).mul_(torch.bmm(G, G.transpose(1, 2)))


def _ghost_convolution(layer: nn.Conv2d, a: Tensor, g: Tensor, group: UnitGroup) -> Tensor:
    gram = _gram(_patches(layer, a, group.images), _positions(g.flatten(2), group.images))
    return gram.sum((1, 2)).double().clamp(min=0)


# Weight standardisation: y = conv(a, v) with v = (w - mean w) r and r = (var w + eps)^(-1/2) for each filter, D numbers.
# With G the gradient for v, m = mean G and c = mean(G v), the gradient for w is r (G - m - c v). As mean v = 0 and
# mean v^2 = q, its squared norm is r^2 (|G|^2 - D m^2 - 2 D c^2 + D c^2 q).


def _standardisation(layer: WSConv2d) -> tuple[Tensor, Tensor, Tensor]:
    """v (O, D), r and q (O), float32."""
    weight_OD = layer.weight.detach().float().flatten(1)
    variance_O, mean_O = torch.var_mean(weight_OD, dim=1, correction=0)
    r_O = torch.rsqrt(variance_O + FILTER_EPS)
    return (weight_OD - mean_O[:, None]) * r_O[:, None], r_O, variance_O * r_O.square()


def pull_back(layer: WSConv2d, gradient_OIHW: Tensor) -> Tensor:
    """The gradient for the stored filters from that for the standardised ones."""
    v_OD, r_O, _ = _standardisation(layer)
    G_OD = gradient_OIHW.flatten(1)
    m_O1, c_O1 = G_OD.mean(1, keepdim=True), (G_OD * v_OD).mean(1, keepdim=True)
    return (r_O[:, None] * (G_OD - m_O1 - v_OD * c_O1)).view_as(gradient_OIHW)


def _pulled_square(layer: WSConv2d, square: Tensor, sum_O: Tensor, along_O: Tensor) -> Tensor:
    """Squared norm of the pulled-back gradient from r^2 |G|^2 (summed over filters), sum G and sum(G v) by filter."""
    _, r_O, q_O = (value.double() for value in _standardisation(layer))
    size = layer.weight[0].numel()
    square, m_O, c_O = square.double(), sum_O.double() / size, along_O.double() / size
    taken = (r_O.square() * size * (m_O.square() + c_O.square() * (2 - q_O))).sum(-1)
    return torch.maximum(square - taken, CANCELLATION * square)


def _standardised_square(layer: WSConv2d, gradient_OIHW: Tensor) -> Tensor:
    v_OD, r_O, _ = _standardisation(layer)
    G_OD = gradient_OIHW.flatten(1)
    square = (torch.linalg.vecdot(G_OD, G_OD).double() * r_O.double().square()).sum()
    return _pulled_square(layer, square, G_OD.sum(1), torch.linalg.vecdot(G_OD, v_OD))


def _ghost_standardised(
    layer: WSConv2d, a: Tensor, y: Tensor, g: Tensor, bias_O: Tensor | None, group: UnitGroup
) -> Tensor:
    """Sum G is the sum over positions of g times the patch's sum; sum(G v) that of g times the output without bias."""
    _, r_O, _ = _standardisation(layer)
    A_UPD, G_UPO = _patches(layer, a, group.images), _positions(g.flatten(2), group.images)
    Y_UPO = _positions(y.flatten(2), group.images)
    Y_UPO = Y_UPO if bias_O is None else Y_UPO - bias_O
    sum_UO = torch.bmm(G_UPO.transpose(1, 2), A_UPD.sum(2, keepdim=True))[:, :, 0]
    return _pulled_square(layer, _gram(A_UPD, G_UPO * r_O).sum((1, 2)), sum_UO, (G_UPO * Y_UPO).sum(1))
