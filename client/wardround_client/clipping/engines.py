"""Per-patient clipping: from a drawn batch to the sum of clipped patient gradients, with its sensitivity.

Every engine has the same signature and the same guarantee: the result is the sum over units of clip(g_u, C), where g_u
is the gradient of the mean loss over the unit's images and clip scales a vector down to L2 norm C. Adding or removing
one unit moves the sum by at most C: |S(D + p) - S(D)| <= C. This holds for any weights, images and labels, because the
server chooses the weights. A unit whose gradient is not finite counts as zero, whatever the rest of the batch is.

Why rounding cannot break the guarantee:

1. The vector that is added for a unit, v_u, is a function of that unit's rows and the weights alone, bit for bit. So no
   weights that a malicious server crafts can make one patient's presence change another patient's part. Each engine
   states how it ensures this: by one call per unit on rows copied to memory of their own, by groups of a fixed shape
   whose places are proved to give equal bits, or by element-wise arithmetic.
2. The norm is that of the numbers that are added, or an upper bound on it, and never a float32 difference.
3. The remaining error is the rounding of sums whose terms are at most C long, all in float64: for U units U^2 2^-53 C
   at most, 10^-6 C for a hundred thousand. Units are clipped to C (1 - `ROUNDING_ROOM`), which leaves room for that and
   for a norm that is too small by one part in 2^17.

Engines:

- `clip_by_loop`: one unit at a time; the reference that the other engines are compared with.
- `clip_linear_head`: closed form for a linear head over frozen features.
- `sum_unclipped`: for C = inf, which is plain training.
- `clip_by_bookkeeping` (`bookkeeping.py`): a group of units in one backward pass.

`select.py` chooses an engine; `check_engine` and `hostile_weights.py` prove the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround.tasks.objective import LossPerRow
from wardround_client.clipping.layer_rules import squared_lengths

IMAGES_AT_ONCE = 64
ROUNDING_ROOM = 2.0**-14  # share of C reserved for rounding in norms and sums, see above
KINKS = 0.02  # largest relative difference explained by rounding that flips a ReLU


@dataclass(frozen=True, kw_only=True)
class PatientBatch:
    """A physical batch of whole units.

    Unit u owns rows start_U1[u] : start_U1[u + 1] of `inputs_N` and `labels_N`.
    """

    inputs_N: Tensor
    labels_N: Tensor
    start_U1: Tensor  # int64, on the CPU

    @property
    def units(self) -> int:
        return len(self.start_U1) - 1

    def each(self) -> Iterator[PatientBatch]:
        """Yield each unit as a batch of its own."""
        for begin, end in zip(self.start_U1[:-1].tolist(), self.start_U1[1:].tolist(), strict=True):
            yield PatientBatch(
                inputs_N=self.inputs_N[begin:end],
                labels_N=self.labels_N[begin:end],
                start_U1=torch.tensor([0, end - begin]),
            )


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Sum of clipped unit gradients by parameter, float64, with its sensitivity.

    `sensitivity` is the most that one unit can move the sum (L2 over all parameters together). The gradients of
    `sum_unclipped` have the parameters' dtype instead.
    """

    gradients: dict[str, Tensor]
    sensitivity: float


ClippingEngine = Callable[[nn.Module, dict[str, nn.Parameter], PatientBatch, LossPerRow, float], ClippedSum]


def clip_factors(squared_norm_U: Tensor, max_grad_norm: float) -> Tensor:
    """Return the factor of each unit's gradient, float64 (U,), from squared norms; 0 where a norm is not finite."""
    norm_U = squared_norm_U.double().sqrt()
    bound = max_grad_norm * (1 - ROUNDING_ROOM)
    return torch.where(norm_U.isfinite(), (bound / norm_U.clamp(min=1e-300)).clamp(max=1.0), 0.0)


def zero_sum(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return float64 zeros of the parameters' shapes, to which clipped gradients are added."""
    return {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in parameters.items()}


def clip_by_loop(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_row: LossPerRow,
    max_grad_norm: float,
    *,
    images_at_once: int = IMAGES_AT_ONCE,
) -> ClippedSum:
    """Clip one unit at a time: the reference for the other engines.

    Processes `images_at_once` of a unit's images in a pass. Supports any layer and any norm, including inf.

    A unit's rows are copied because their place in the batch would determine which instructions the library uses.
    """
    total = zero_sum(parameters)
    starts = batch.start_U1.tolist()
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        inputs_N, labels_N = batch.inputs_N[begin:end], batch.labels_N[begin:end]
        gradients = _mean_gradient(network, parameters, inputs_N, labels_N, loss_per_row, images_at_once)
        _add_clipped(total, gradients, max_grad_norm)
    return ClippedSum(gradients=total, sensitivity=max_grad_norm)


def _mean_gradient(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    inputs_N: Tensor,
    labels_N: Tensor,
    loss_per_row: LossPerRow,
    images_at_once: int,
) -> list[Tensor]:
    """Return the gradient of the mean loss over a unit's images.

    It is summed over passes, so that a patient with many images fits into memory.
    """
    total: list[Tensor] = []
    for begin in range(0, len(inputs_N), images_at_once):
        part = slice(begin, begin + images_at_once)
        loss = loss_per_row(network(inputs_N[part].clone()), labels_N[part].clone()).sum() / len(inputs_N)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
    return total


def clip_linear_head(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_row: LossPerRow,
    max_grad_norm: float,
) -> ClippedSum:
    """Clip all units at once for `network = nn.Linear(D, K)` over features.

    inputs_N is (N, D). The gradient of a row is residual x feature. Equal to `clip_by_loop` up to rounding.

    A row's part does not depend on the other rows: its logits are sums of float64 products, formed element by element
    in the order of the features and never by a matrix product, so that they have the same bits in every batch. All
    further results are smooth functions of the logits with derivatives of the size of the features, in float64: they
    may differ by 10^-15 of that, and no weights amplify the difference.
    """
    if not isinstance(network, nn.Linear):
        raise WardroundError("the closed form applies only to a linear head on features")
    if batch.units == 0:
        return ClippedSum(gradients=zero_sum(parameters), sensitivity=max_grad_norm)
    features_ND = batch.inputs_N.double()
    logits_NK = _logits(features_ND, network.weight.detach().double())
    if network.bias is not None:
        logits_NK = logits_NK + network.bias.detach().double()
    with torch.enable_grad():
        logits_NK = logits_NK.requires_grad_()
        (residual_NK,) = torch.autograd.grad(loss_per_row(logits_NK, batch.labels_N).sum(), logits_NK)
    rows_U = batch.start_U1.diff()
    unit_N = torch.repeat_interleave(torch.arange(batch.units), rows_U).to(features_ND.device)
    residual_NK = residual_NK / rows_U.to(features_ND.device)[unit_N][:, None]
    with_bias_ND1 = torch.cat([features_ND, features_ND.new_ones(len(features_ND), 1)], 1)
    gradient_UKD1 = features_ND.new_zeros(batch.units, residual_NK.shape[1], with_bias_ND1.shape[1])
    gradient_UKD1.index_add_(0, unit_N, residual_NK[:, :, None] * with_bias_ND1[:, None, :])
    if network.bias is None:
        gradient_UKD1[..., -1] = 0.0
    factor_U = clip_factors(gradient_UKD1.flatten(1).square().sum(1), max_grad_norm)
    gradient_UKD1 = torch.where(factor_U[:, None, None] > 0, gradient_UKD1, 0.0)  # 0 x NaN would be NaN
    total_KD1 = torch.einsum("u,ukd->kd", factor_U, gradient_UKD1)
    gradients = {}
    for name, parameter in parameters.items():
        gradients[name] = (total_KD1[:, :-1] if parameter.dim() == 2 else total_KD1[:, -1]).contiguous()
    return ClippedSum(gradients=gradients, sensitivity=max_grad_norm)


def _logits(features_ND: Tensor, weight_KD: Tensor) -> Tensor:
    """Return the logits (N, K): products added in pairs, then pairs of pairs.

    The arithmetic is element-wise, so that each row is added in the same order in every batch.
    """
    terms_DNK = features_ND.t()[:, :, None] * weight_KD.t()[:, None, :]
    while len(terms_DNK) > 1:
        half = len(terms_DNK) // 2
        pairs = terms_DNK[:half] + terms_DNK[half : 2 * half]
        terms_DNK = torch.cat([pairs, terms_DNK[2 * half :]])
    return terms_DNK[0]


def sum_unclipped(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_row: LossPerRow,
    max_grad_norm: float,
) -> ClippedSum:
    """Compute the plain gradient for C = inf: the sum over units of the unit's mean loss, in one backward pass.

    The sum has no sensitivity bound.
    """
    if math.isfinite(max_grad_norm):
        raise WardroundError("the unclipped sum has no bound; it is allowed only for max_grad_norm = inf")
    if batch.units == 0:
        return ClippedSum(gradients=zero_sum(parameters), sensitivity=math.inf)
    rows_U = batch.start_U1.diff()
    weight_N = (1.0 / torch.repeat_interleave(rows_U, rows_U)).to(batch.inputs_N.device)
    loss = (loss_per_row(network(batch.inputs_N), batch.labels_N) * weight_N).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return ClippedSum(gradients=dict(zip(parameters, gradients, strict=True)), sensitivity=math.inf)


def clip_over_one_pass(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_row: LossPerRow,
    max_grad_norm: float,
) -> ClippedSum:
    """Clip as the loop does, but over one forward pass of the whole batch, with one backward pass per unit.

    Used for comparison only. Libraries round an image differently in batches of different sizes. Where this carries an
    activation across zero, the gradients of two correct engines differ by a thousandth; gradients over equal batches
    agree.
    """
    total = zero_sum(parameters)
    losses_N = loss_per_row(network(batch.inputs_N), batch.labels_N)
    starts = batch.start_U1.tolist()
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        gradients = torch.autograd.grad(losses_N[begin:end].mean(), list(parameters.values()), retain_graph=True)
        _add_clipped(total, gradients, max_grad_norm)
    return ClippedSum(gradients=total, sensitivity=max_grad_norm)


def _add_clipped(total: dict[str, Tensor], gradients: Sequence[Tensor], max_grad_norm: float) -> None:
    """Add one unit's clipped gradient; add nothing if it is not finite."""
    square = cast(Tensor, sum(squared_lengths(gradient[None]) for gradient in gradients))
    factor = float(clip_factors(square, max_grad_norm))
    if factor > 0:
        for name, gradient in zip(total, gradients, strict=True):
            total[name].add_(gradient, alpha=factor)


def synthetic_units(inputs_N: Tensor, outputs: int, sizes: Sequence[int]) -> PatientBatch:
    """Build units of the given sizes from `inputs_N` in turn, with every label, for checks and timings."""
    rows = torch.arange(sum(sizes), device=inputs_N.device)
    start_U1 = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(sizes).cumsum(0)])
    return PatientBatch(inputs_N=inputs_N[rows % len(inputs_N)], labels_N=rows % max(2, outputs), start_U1=start_U1)


def random_like(inputs_N: Tensor, count: int, seed: int = 1) -> Tensor:
    """Return `count` random rows of the kind of `inputs_N`; rows with missing values (NaN) have some missing too."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((count, *inputs_N.shape[1:]), generator=generator).to(inputs_N.device)
    if bool(inputs_N.isnan().any()):
        return inputs_N[torch.arange(count, device=inputs_N.device) % len(inputs_N)] * (0.5 + uniform.to(inputs_N))
    return (uniform * float(inputs_N.max())).to(inputs_N)


def check_engine(
    engine: ClippingEngine,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    inputs_N: Tensor,
    outputs: int,
    max_grad_norm: float,
    tolerance: float = 1e-4,
    images_per_unit: int | None = None,
) -> None:
    """Compare `engine` with the loop on synthetic input of 3 units.

    The units have `images_per_unit` images each or, if that is None, uneven numbers of images. A site runs this check
    before it reads any patient's data and refuses to train if it fails. The clipping norm of the comparison is half of
    the largest unit's norm, so that some units are clipped whatever the network's scale.

    Raises:
        WardroundError: The engine differs from the loop by more than `tolerance`, relatively. A difference of up to
            `KINKS` is accepted if the engine agrees with `clip_over_one_pass`.
    """
    half = len(inputs_N) // 2
    sizes = (1, half - 1, len(inputs_N) - half) if images_per_unit is None else (images_per_unit,) * 3
    batch = synthetic_units(inputs_N, outputs, sizes)
    norm = max_grad_norm
    if math.isfinite(norm):
        norm = max(unit_lengths(network, parameters, batch, loss_per_row)) / 2
    fast = engine(network, parameters, batch, loss_per_row, norm).gradients
    gap = _relative_gap(fast, clip_by_loop(network, parameters, batch, loss_per_row, norm).gradients)
    if tolerance < gap <= KINKS:
        gap = _relative_gap(fast, clip_over_one_pass(network, parameters, batch, loss_per_row, norm).gradients)
    if not gap <= tolerance:
        raise WardroundError(f"the clipping engine differs from the one-patient loop by {gap:.1e}")


def unit_lengths(
    network: nn.Module, parameters: dict[str, nn.Parameter], batch: PatientBatch, loss_per_row: LossPerRow
) -> list[float]:
    """Return the L2 length of each unit's gradient, computed by the loop; 0 where it is not finite."""
    return [
        length_of(clip_by_loop(network, parameters, unit, loss_per_row, math.inf).gradients) for unit in batch.each()
    ]


def length_of(gradients: dict[str, Tensor]) -> float:
    """Return the L2 length over all parameters together."""
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))


def _relative_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the L2 distance divided by the L2 length of `other`; infinity if a difference is not finite."""
    gap = length_of({name: one[name] - other[name] for name in other})
    return max(0.0, gap - 1e-12) / max(length_of(other), 1e-30) if math.isfinite(gap) else math.inf
