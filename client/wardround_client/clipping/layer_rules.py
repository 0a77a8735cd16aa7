"""Clipping rules for each kind of layer: the squared norms of units' gradients, and any weighted sum of them.

A rule receives a layer's input a and the gradient g of its output, once, in the backward pass. For each parameter it
returns a `Contribution` in one of two ways:

direct: form every unit's gradient, in float32. The norm is that of the numbers that are kept, and those are summed, in
    float64.
ghost:  keep a and g. With all positions of all images of a unit as rows, the gradient is G^T A, so its squared norm is
    <A A^T, G G^T>, and the weighted sum is one ordinary weight gradient with g scaled row by row (Goodfellow,
    arXiv:1510.01799; Bu et al., arXiv:2210.00038). It is cheaper where maps are small and filters many. All of its
    arithmetic is in float64.

Guarantee, for any finite a and g: the share of unit u in `weighted_sum(w)` is w_u v_u for a vector v_u that depends on
the unit's own a and g and on the layer's weights alone, and |v_u|^2 <= `squared_norm_U[u]` (1 + 2^-12).

- direct: v_u consists of the float32 numbers kept, however they were rounded. Their squares are added in float32 over
  `BLOCK` numbers at most, so that the sum is too small by a factor of 1 - 2^-16 at most, and in float64 beyond.
- ghost: v_u is the exact G^T A, and the float32 numbers in A and G multiply without rounding in float64. Where
  positions cancel, the Gram sum is a difference of large numbers: with B^2 = sum over filters o of (sum_t |g_to|
  |a_t|)^2, it is off by at most n 2^-53 B^2, where n < 2^20 terms are added. Therefore `FLOOR` B^2, which is 50 times
  larger, is added to it. `FLOOR` B^2 is 10^-8 B^2, and B is at most about 30 times an honest unit's norm, so that an
  honest norm grows by a factor of 1 + 10^-5 at most. B w_u is then at most 10^4 C: the float64 sum of U units is off by
  U n 2^-53 10^4 C, below 10^-6 C.

A unit of weight 0 is left out of a sum, whatever its values are (0 x NaN would be NaN).

Shapes: N rows (images), U units, k images a unit, C channels, O outputs, T positions, D inputs of one output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.networks.weight_standardisation import WSConv2d
from wardround_client.clipping.gram_norms import gram_sum
from wardround_client.clipping.standardisation import Standardisation, standardisation

BLOCK = 256  # float32 numbers whose squares are added in float32
WIDE = 8  # input channels from which the library's grouped weight gradient is fast (measured: 1 slow, 16 fast)
# Measured on one core, in multiply-adds or numbers per nanosecond; these affect speed only.
FLOAT64_RATE, FLOAT32_RATE = 20, 15  # of a matrix product, and of the library's weight gradient of one unit
MOVE_RATE, PULL_BACK_RATE, PATCH_RATE = 0.7, 1.0, 0.5  # unit weights moved to memory and back; pulled back; patches
COLUMNS_AT_ONCE, MANY_COLUMNS = 4096, 1 << 22  # of unit gradients in float64, so that they stay in a processor's cache
IMAGES_OF_A_UNIT = 4  # assumed for uneven units when direct or ghost is chosen for a layer


@dataclass(frozen=True, kw_only=True)
class Units:
    """The rows of each unit in a layer's input and output: unit u owns `rows[u]`.

    If `images` is given, every unit has that many rows and the units lie side by side from row 0 on: one call computes
    all units. Otherwise the units are uneven, and each is computed in a call of its own, on a copy in memory of its
    own, so that neither its place nor the other units can change how it is computed.
    """

    rows: tuple[slice, ...]
    images: int | None = None

    def seen(self, views: int) -> Units:
        """Return the same units for a layer that receives each image `views` times, its rows side by side."""
        rows = tuple(slice(one.start * views, one.stop * views) for one in self.rows)
        return Units(rows=rows, images=None if self.images is None else self.images * views)

    def each(self, function: Callable[..., Tensor], *tensors_N: Tensor) -> Tensor:
        """Compute `function(*rows of units, images of each)` -> (U, ...), for all units."""
        if self.images is not None:
            return function(*(t[: self.rows[-1].stop] for t in tensors_N), self.images)
        return torch.cat([function(*(t[one].clone() for t in tensors_N), one.stop - one.start) for one in self.rows])

    def by_row(self, weight_U: Tensor, tensor_N: Tensor) -> Tensor:
        """Return the weight of each row's unit, float64 (N,); 0 for rows of no unit."""
        weight_N = torch.zeros(len(tensor_N), dtype=torch.float64, device=tensor_N.device)
        for weight, one in zip(weight_U.tolist(), self.rows, strict=True):
            weight_N[one] = weight
        return weight_N


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The gradients of some units for one parameter: float64 squared norms, and sum_u weight_u x v_u.

    `finish` is a linear map that turns the sum over all units of all batches into the gradient; the norms are those
    after this map. `share(u)` returns the tensors from which unit u's norm and part of a sum are computed, for
    comparing bits.
    """

    parameter: str
    squared_norm_U: Tensor
    weighted_sum: Callable[[Tensor], Tensor]
    share: Callable[[int], list[Tensor]]
    finish: Callable[[Tensor], Tensor] | None = field(default=None)


Rule = Callable[["PreparedLayer", Tensor, Tensor, Units, Collection[str]], Iterator[Contribution]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLayer:
    """A layer and the standardisation of its filters, if any, which is the same for all units of a batch."""

    layer: nn.Module
    standard: Standardisation | None


def prepared(layer: nn.Module) -> PreparedLayer:
    """Prepare a layer with its current weights."""
    return PreparedLayer(layer=layer, standard=standardisation(layer) if isinstance(layer, WSConv2d) else None)


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule for a layer's own parameters, or None if the layer has no rule.

    Types are compared exactly, because a subclass may compute something else.
    """
    if type(layer) in (nn.Conv2d, WSConv2d):
        return _convolution if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else None
    return {nn.Linear: _linear, nn.GroupNorm: _group_norm}.get(type(layer))


def may_repeat(layer: nn.Module) -> bool:
    """Return whether the rule of a layer applies to several uses in one pass, stacked as positions (N, uses, ...).

    The weights' gradient is then the sum over uses and positions of the same products.
    """
    return type(layer) is nn.Linear


def _convolution(
    trained: PreparedLayer, a_NCHW: Tensor, g_NOHW: Tensor, units: Units, wanted: Collection[str]
) -> Iterator[Contribution]:
    if "bias" in wanted:
        yield _direct("bias", units.each(_sum_by_unit, g_NOHW))
    if "weight" not in wanted:
        return
    layer, standard = cast(nn.Conv2d, trained.layer), trained.standard
    a, g = a_NCHW.to(g_NOHW.dtype), g_NOHW
    if not ghost_is_cheaper(layer, g[0, 0].numel() * (units.images or IMAGES_OF_A_UNIT), g.device):
        gradient_U = units.each(lambda a, g, images: _unit_gradients(layer, a, g, images), a, g)
        if standard is not None:
            gradient_U = standard.pull_back_each(gradient_U)
        yield _direct("weight", gradient_U)
        return

    def squares(a: Tensor, g: Tensor, images: int) -> Tensor:
        A_UPD, G_UPO = _patches(layer, a, images), _positions(g, images)
        return gram_sum(A_UPD, G_UPO) if standard is None else standard.gram_sum(A_UPD, G_UPO)

    def weighted(weight_U: Tensor) -> Tensor:
        a_kept, g_kept = _weighted_rows(a, g, units, weight_U)
        A_PD, G_PO = _patches(layer, a_kept, 1).flatten(0, 1), _positions(g_kept, 1).flatten(0, 1)
        return (G_PO.t() @ A_PD).view(layer.weight.shape)

    finish = None if standard is None else standard.pull_back
    yield _ghost("weight", units, units.each(squares, a, g), weighted, a, g, finish)


def _linear(
    trained: PreparedLayer, a_ND: Tensor, g_NO: Tensor, units: Units, wanted: Collection[str]
) -> Iterator[Contribution]:
    """Yield a linear layer's contributions; inputs are (N, D), or (N, ..., D) with several positions a row."""

    def rows(values_N: Tensor, images: int) -> Tensor:  # (U, kT, D)
        return values_N.unflatten(0, (-1, images)).flatten(1, -2)

    a, g = a_ND.to(g_NO.dtype), g_NO
    weights = cast(nn.Linear, trained.layer).weight.numel()
    if "bias" in wanted:
        yield _direct("bias", units.each(lambda g, images: rows(g.float(), images).sum(1), g))
    if "weight" not in wanted:
        return
    positions = g[0, ..., 0].numel() * (units.images or IMAGES_OF_A_UNIT)
    if g.is_cuda or g.dim() > 2 or 2 * positions**2 >= weights:  # measured: direct is faster for the hours of a stay

        def unit_gradients(a: Tensor, g: Tensor, images: int) -> Tensor:
            return torch.bmm(rows(g, images).transpose(1, 2).float(), rows(a, images).float())

        yield _direct("weight", units.each(unit_gradients, a, g))
        return

    def squares(a: Tensor, g: Tensor, images: int) -> Tensor:
        return gram_sum(rows(a, images).double(), rows(g, images).double())

    def weighted(weight_U: Tensor) -> Tensor:
        a_kept, g_kept = _weighted_rows(a, g, units, weight_U)
        return g_kept.flatten(0, -2).t() @ a_kept.flatten(0, -2).double()

    yield _ghost("weight", units, units.each(squares, a, g), weighted, a, g)


def _group_norm(
    trained: PreparedLayer, a_NCHW: Tensor, g_NCHW: Tensor, units: Units, wanted: Collection[str]
) -> Iterator[Contribution]:
    """Yield a group norm's contributions.

    Scale: the sum over positions of g times the normalised input. Shift: the sum over positions of g.
    """

    layer = cast(nn.GroupNorm, trained.layer)

    def scales(a: Tensor, g: Tensor, images: int) -> Tensor:
        normal = functional.group_norm(a.float(), layer.num_groups, eps=layer.eps)
        return _sum_by_unit(normal.mul_(g), images)

    if "weight" in wanted:
        yield _direct("weight", units.each(scales, a_NCHW, g_NCHW))
    if "bias" in wanted:
        yield _direct("bias", units.each(_sum_by_unit, g_NCHW))


def _sum_by_unit(values_NCT: Tensor, images: int) -> Tensor:
    """Sum over positions and the unit's images: (N, C, ...) -> (U, C), float32."""
    values = values_NCT.float()
    values_NC = values.sum(tuple(range(2, values.dim()))) if values.dim() > 2 else values
    return values_NC.unflatten(0, (-1, images)).sum(1)


def _direct(parameter: str, gradient_U: Tensor) -> Contribution:
    """Return the contribution of a parameter whose unit gradients (U, ...), float32, are given."""

    def weighted(weight_U: Tensor) -> Tensor:
        kept = weight_U != 0
        weight, gradient = (weight_U, gradient_U) if bool(kept.all()) else (weight_U[kept], gradient_U[kept])
        columns = gradient.flatten(1).split(COLUMNS_AT_ONCE if gradient.device.type == "cpu" else MANY_COLUMNS, 1)
        return torch.cat([weight @ part.double() for part in columns]).view(gradient_U.shape[1:])

    return Contribution(
        parameter=parameter,
        squared_norm_U=squared_lengths(gradient_U),
        weighted_sum=weighted,
        share=lambda unit: [gradient_U[unit]],
    )


def _ghost(
    parameter: str,
    units: Units,
    square_U: Tensor,
    weighted: Callable[[Tensor], Tensor],
    a_N: Tensor,
    g_N: Tensor,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Contribution:
    return Contribution(
        parameter=parameter,
        squared_norm_U=square_U,
        weighted_sum=weighted,
        share=lambda unit: [square_U[unit], a_N[units.rows[unit]], g_N[units.rows[unit]]],
        finish=finish,
    )


def squared_lengths(values_U: Tensor) -> Tensor:
    """Return the sum of the squares of each row (U, ...) of float32 numbers, float64 (U,).

    The sum is too small by 1 part in 2^16 at most, or by what underflows, a length of 1e-15 in all. (Long float32 sums
    are too small by up to one part in a thousand.)
    """
    rows = values_U.detach().flatten(1)
    whole = rows.shape[1] // BLOCK * BLOCK
    blocks = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, BLOCK)), dim=2) if whole else rows[:, :0]
    return blocks.double().square().sum(1) + rows[:, whole:].double().square().sum(1)


def _weighted_rows(a_N: Tensor, g_N: Tensor, units: Units, weight_U: Tensor) -> tuple[Tensor, Tensor]:
    """Return a, and g in float64 scaled by the weight of each row's unit.

    Rows without weight are removed.
    """
    weight_N = units.by_row(weight_U, g_N)
    kept = weight_N != 0
    if not bool(kept.all()):
        a_N, g_N, weight_N = a_N[kept], g_N[kept], weight_N[kept]
    return a_N, g_N.double() * weight_N.view(-1, *[1] * (g_N.dim() - 1))


def ghost_is_cheaper(layer: nn.Conv2d, positions: int, device: torch.device) -> bool:
    """Return whether the ghost method is faster than the direct one for a unit with `positions` positions.

    Ghost computes float64 products over the positions; direct forms the unit's weight gradient and moves it through
    memory. False on a GPU, whose memory is fast and whose float64 arithmetic often is not.
    """
    if layer.groups != 1 or device.type != "cpu":
        return False
    weights = layer.weight.numel()
    inputs, standardised = weights // layer.out_channels, isinstance(layer, WSConv2d)
    products = positions * weights * (1 + standardised) + positions**2 * (inputs + layer.out_channels)
    ghost_ns = products / FLOAT64_RATE + positions * inputs / PATCH_RATE
    direct_ns = positions * weights / FLOAT32_RATE + weights / MOVE_RATE + standardised * weights / PULL_BACK_RATE
    return ghost_ns < direct_ns


def _weight_gradient(layer: nn.Conv2d, a: Tensor, g: Tensor, like: Tensor, groups: int) -> Tensor:
    """Return the library's weight gradient, summed over rows; only shape and layout of `like` matter."""
    arguments = (None, layer.stride, layer.padding, layer.dilation, False, (0, 0), groups, (False, True, False))
    return torch.ops.aten.convolution_backward(g, a, like, *arguments)[1]


def _unit_gradients(layer: nn.Conv2d, a: Tensor, g: Tensor, images: int) -> Tensor:
    """Return each unit's weight gradient, float32 (U, O, I, H, W).

    The units are placed side by side as groups of one wide convolution, with a unit's images as its batch. The library
    is slow if a group has few input channels; it is then called unit by unit.
    """
    units = len(a) // images
    if units == 1 or layer.in_channels // layer.groups < WIDE:
        like = layer.weight.detach().to(g.dtype)
        if g.is_contiguous(memory_format=torch.channels_last) and not g.is_contiguous():
            like = like.contiguous(memory_format=torch.channels_last)
        parts = [
            _weight_gradient(layer, a[u : u + images].clone(), g[u : u + images].clone(), like, layer.groups)
            for u in range(0, len(a), images)
        ]
        return torch.stack(parts).float().contiguous()

    def side_by_side(values: Tensor) -> Tensor:  # (U k, C, H, W) -> (k, U C, H, W)
        return values.unflatten(0, (units, images)).transpose(0, 1).flatten(1, 2).contiguous()

    like = g.new_empty((units * layer.out_channels, *layer.weight.shape[1:]))
    wide = _weight_gradient(layer, side_by_side(a), side_by_side(g), like, units * layer.groups)
    return wide.float().unflatten(0, (units, -1)).contiguous()


def _patches(layer: nn.Conv2d, a: Tensor, images: int) -> Tensor:
    """Return the inputs of each output position, all images of a unit together: (U, kT, D), float64."""
    (down, right), (kernel_rows, kernel_columns) = cast(tuple[int, int], layer.padding), layer.kernel_size
    windows = functional.pad(a, (right, right, down, down))
    for dim, size, step, apart in zip((2, 3), layer.kernel_size, layer.stride, layer.dilation, strict=True):
        windows = windows.unfold(dim, (size - 1) * apart + 1, step)
    windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]  # (N, C, rows, columns, kernel rows, columns)
    size = windows.shape[1] * kernel_rows * kernel_columns
    rows = windows.permute(0, 2, 3, 1, 4, 5).to(torch.float64, memory_format=torch.contiguous_format)  # the one copy
    return rows.reshape(len(a) // images, images * windows.shape[2] * windows.shape[3], size)


def _positions(values_NCHW: Tensor, images: int) -> Tensor:
    """Reshape (N, C, H, W) to (U, kT, C), float64."""
    rows = values_NCHW.permute(0, 2, 3, 1).to(torch.float64, memory_format=torch.contiguous_format)
    return rows.reshape(len(rows) // images, images * rows.shape[1] * rows.shape[2], rows.shape[3])
