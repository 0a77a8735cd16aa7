"""Per-patient clipping: from a drawn batch to the sum of clipped patient gradients, with its sensitivity.

Every engine has the same signature and the same guarantee: the result is sum over units of clip(g_u, C), where g_u
is the gradient of the mean loss over the unit's images and clip scales a vector down to L2 norm C. Adding or
removing one unit moves the sum by at most C. A unit whose gradient is not finite counts as zero, whatever else the
batch holds.

Engines: `clip_by_loop`, one unit at a time, the oracle; `clip_linear_head`, closed form for a linear head over frozen
features; `sum_unclipped` for C = inf, which is plain training; `clip_by_bookkeeping` of `bookkeeping.py`, all units in
one backward pass. `engine_choice.py` chooses, `check_engine` proves the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError

IMAGES_AT_ONCE = 64
KINKS = 0.02  # what rounding alone may do, through activations that it carries across zero
LossPerImage = Callable[[Tensor, Tensor], Tensor]  # (logits_NK, labels_N) -> loss_N


@dataclass(frozen=True, kw_only=True)
class PatientBatch:
    """A physical batch: whole units only. Unit u owns rows start_U1[u] : start_U1[u + 1] of `inputs_N` and
    `labels_N`.
    """

    inputs_N: Tensor
    labels_N: Tensor
    start_U1: Tensor  # int64, on the CPU

    @property
    def units(self) -> int:
        return len(self.start_U1) - 1


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Sum of clipped unit gradients by parameter, and how far one unit can move it (L2 over all parameters
    together).
    """

    gradients: dict[str, Tensor]
    sensitivity: float


ClippingEngine = Callable[[nn.Module, dict[str, nn.Parameter], PatientBatch, LossPerImage, float], ClippedSum]


def clip_by_loop(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_image: LossPerImage,
    max_grad_norm: float,
    *,
    images_at_once: int = IMAGES_AT_ONCE,
) -> ClippedSum:
    """The oracle: one unit at a time, `images_at_once` of its images in a pass. Any layer, any norm, inf too."""
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    starts = batch.start_U1.tolist()
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        gradients = _mean_gradient(
            network, parameters, batch.inputs_N[begin:end], batch.labels_N[begin:end], loss_per_image, images_at_once
        )
        _add_clipped(total, gradients, max_grad_norm)
    return ClippedSum(gradients=total, sensitivity=max_grad_norm)


def _mean_gradient(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    inputs_N: Tensor,
    labels_N: Tensor,
    loss_per_image: LossPerImage,
    images_at_once: int,
) -> list[Tensor]:
    """Gradient of the mean loss over a unit's images, summed over passes so that a patient of many images fits."""
    total: list[Tensor] = []
    for begin in range(0, len(inputs_N), images_at_once):
        part = slice(begin, begin + images_at_once)
        loss = loss_per_image(network(inputs_N[part]), labels_N[part]).sum() / len(inputs_N)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        total = [a + b for a, b in zip(total, gradients, strict=True)] if total else list(gradients)
    return total


def clip_linear_head(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_image: LossPerImage,
    max_grad_norm: float,
) -> ClippedSum:
    """All units at once for `network = nn.Linear(D, K)` over features: the gradient of a row is residual x feature.

    inputs_N is (N, D). Equal to `clip_by_loop` up to rounding.
    """
    if not isinstance(network, nn.Linear):
        raise WardroundError("the closed form is for a linear head over features")
    features_ND, units = batch.inputs_N, batch.units
    if units == 0:
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return ClippedSum(gradients=zeros, sensitivity=max_grad_norm)
    with torch.enable_grad():
        logits_NK = network(features_ND).detach().requires_grad_()
        (residual_NK,) = torch.autograd.grad(loss_per_image(logits_NK, batch.labels_N).sum(), logits_NK)
    rows_U = batch.start_U1.diff()
    unit_N = torch.repeat_interleave(torch.arange(units), rows_U).to(features_ND.device)
    residual_NK = residual_NK / rows_U.to(features_ND.device)[unit_N][:, None]
    with_bias_ND1 = torch.cat([features_ND, features_ND.new_ones(len(features_ND), 1)], 1)
    gradient_UKD1 = features_ND.new_zeros(units, residual_NK.shape[1], with_bias_ND1.shape[1])
    gradient_UKD1.index_add_(0, unit_N, residual_NK[:, :, None] * with_bias_ND1[:, None, :])
    norm_U = gradient_UKD1.flatten(1).double().square().sum(1).sqrt()
    finite_U = norm_U.isfinite()
    factor_U = torch.where(finite_U, (max_grad_norm / norm_U.clamp(min=1e-30)).clamp(max=1.0), 0.0).to(
        features_ND.dtype
    )
    gradient_UKD1 = torch.where(finite_U[:, None, None], gradient_UKD1, 0.0)  # 0 x NaN would be NaN
    total_KD1 = torch.einsum("u,ukd->kd", factor_U, gradient_UKD1)
    gradients = {}
    for name, parameter in parameters.items():
        gradients[name] = (total_KD1[:, :-1] if parameter.dim() == 2 else total_KD1[:, -1]).contiguous()
    return ClippedSum(gradients=gradients, sensitivity=max_grad_norm)


def sum_unclipped(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_image: LossPerImage,
    max_grad_norm: float,
) -> ClippedSum:
    """C = inf: the plain gradient of sum over units of the unit's mean loss, one backward pass. No sensitivity
    bound.
    """
    if math.isfinite(max_grad_norm):
        raise WardroundError("the unclipped sum has no bound; it is for max_grad_norm = inf only")
    if batch.units == 0:
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return ClippedSum(gradients=zeros, sensitivity=math.inf)
    rows_U = batch.start_U1.diff()
    weight_N = (1.0 / torch.repeat_interleave(rows_U, rows_U)).to(batch.inputs_N.device)
    loss = (loss_per_image(network(batch.inputs_N), batch.labels_N) * weight_N).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return ClippedSum(gradients=dict(zip(parameters, gradients, strict=True)), sensitivity=math.inf)


def clip_over_one_pass(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_image: LossPerImage,
    max_grad_norm: float,
) -> ClippedSum:
    """The loop again, but over one forward pass of the whole batch, with a backward pass a unit: for comparison.

    Libraries round an image differently in batches of different sizes. Where that carries an activation across zero,
    the gradients of two right engines differ by a thousandth; those over equal batches agree.
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    losses_N = loss_per_image(network(batch.inputs_N), batch.labels_N)
    starts = batch.start_U1.tolist()
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        gradients = torch.autograd.grad(losses_N[begin:end].mean(), list(parameters.values()), retain_graph=True)
        _add_clipped(total, gradients, max_grad_norm)
    return ClippedSum(gradients=total, sensitivity=max_grad_norm)


def _add_clipped(total: dict[str, Tensor], gradients: Sequence[Tensor], max_grad_norm: float) -> None:
    """Add one unit's gradient, clipped; nothing where it is not finite."""
    # square().sum(), not torch.norm, which under-states long vectors on the CPU
    norm = math.sqrt(sum(float(g.detach().double().square().sum()) for g in gradients))
    if not math.isfinite(norm):
        return
    factor = min(1.0, max_grad_norm / norm) if norm > 0 else 1.0
    for name, gradient in zip(total, gradients, strict=True):
        total[name].add_(gradient, alpha=factor)


def check_engine(
    engine: ClippingEngine,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_image: LossPerImage,
    inputs_N: Tensor,
    outputs: int,
    max_grad_norm: float,
    tolerance: float = 1e-4,
) -> None:
    """Compare `engine` with the loop on synthetic input of 3 uneven units; raise `WardroundError` where they differ by
    more than `tolerance`, relatively, though it is forgiven up to `KINKS` where `clip_over_one_pass` agrees.

    A site runs this before it touches a patient and refuses to train when it fails. The clipping norm of the
    comparison is half of the largest unit's, so that some units are clipped whatever the network's scale.
    """
    start_U1 = torch.tensor([0, 1, len(inputs_N) // 2, len(inputs_N)])
    labels_N = torch.arange(len(inputs_N), device=inputs_N.device) % max(2, outputs)
    batch = PatientBatch(inputs_N=inputs_N, labels_N=labels_N, start_U1=start_U1)
    norm = max_grad_norm
    if math.isfinite(norm):
        largest = 0.0
        for begin, end in zip(start_U1[:-1].tolist(), start_U1[1:].tolist(), strict=True):
            unit = PatientBatch(
                inputs_N=inputs_N[begin:end], labels_N=labels_N[begin:end], start_U1=torch.tensor([0, end - begin])
            )
            alone = clip_by_loop(network, parameters, unit, loss_per_image, math.inf).gradients.values()
            largest = max(largest, math.sqrt(sum(float(g.double().square().sum()) for g in alone)))
        norm = largest / 2
    fast = engine(network, parameters, batch, loss_per_image, norm).gradients
    gap = _relative_gap(fast, clip_by_loop(network, parameters, batch, loss_per_image, norm).gradients)
    if tolerance < gap <= KINKS:
        gap = _relative_gap(fast, clip_over_one_pass(network, parameters, batch, loss_per_image, norm).gradients)
    if not gap <= tolerance:
        raise WardroundError(f"the clipping engine differs from the one-patient loop by {gap:.1e}; not training")


def _relative_gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """L2 distance over the L2 length of `other`; infinite where something is not finite."""
    scale = math.sqrt(sum(float(g.double().square().sum()) for g in other.values()))
    gap = math.sqrt(sum(float((one[name] - other[name]).double().square().sum()) for name in other))
    return max(0.0, gap - 1e-12) / max(scale, 1e-30) if math.isfinite(gap) else math.inf
