"""The book-keeping engine: every unit's clipped gradient from one backward pass.

Ordinary training computes, for each layer, the gradient of its output and from that the sum of all weight gradients.
Clipping needs them apart, but only their norms, and then one weighted sum. So the forward pass runs on weights that ask
for no gradient, autograd computes output gradients alone, and a tap at each layer's output hands g to the layer's rule
(`layer_rules.py`), which keeps what is needed for a norm and a weighted sum. After the pass the clip factors are known,
and one weighted sum a layer ends it (Bu et al., arXiv:2210.00038, with direct rules for large maps).

Guarantee: as in `clipping.py`. The norms that decide the factors are those of what is summed, up to the rounding of the
precision; factors are made for C / (1 + margin), so that the sum moves by at most C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wardround.errors import WardroundError
from wardround_client.privacy.clipping import IMAGES_AT_ONCE, ClippedSum, LossPerImage, PatientBatch, clip_by_loop
from wardround_client.privacy.layer_rules import Contribution, Rule, UnitGroup, reads_output, rule_for

Precision = Literal["float32", "bfloat16"]

FULL_MARGIN = 2e-6  # float32 rounding
REDUCED_MARGIN = 0.01  # bfloat16, or TF32 convolutions: ghost norms were seen to miss the sum by up to 0.4 %


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How the arithmetic is done. Nothing here affects privacy: whatever is set, the sum moves by at most C."""

    channels_last: bool = False
    precision: Precision = "float32"  # bfloat16: autocast, about a hundredth of relative error
    images_at_once: int = IMAGES_AT_ONCE  # of a patient that comes alone because it has many


class UnknownLayerError(WardroundError):
    """The engine has no rule for a layer, or its parameter is not one layer's alone. The loop can do it."""


@dataclass(frozen=True, kw_only=True)
class TrainedLayer:
    """A layer with its rule; `names` maps its own parameters' names to those of the sum."""

    path: str
    layer: nn.Module
    rule: Rule
    names: dict[str, str]


def trained_layers(network: nn.Module, parameters: dict[str, nn.Parameter]) -> list[TrainedLayer]:
    """The layers that own `parameters`. Raises `UnknownLayerError`, one line, for what the engine cannot do: a layer
    without a rule, one with buffers, a parameter that two layers share or no layer has.
    """
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    found: list[TrainedLayer] = []
    seen: set[int] = set()
    for path, layer in network.named_modules():
        own = {name: p for name, p in layer.named_parameters(recurse=False) if id(p) in name_of}
        if not own:
            continue
        place = f"{path or 'the network'}: {type(layer).__name__}"
        rule = rule_for(layer)
        if rule is None:
            raise UnknownLayerError(f"{place} has no rule for clipping")
        if next(layer.buffers(recurse=False), None) is not None:
            raise UnknownLayerError(f"{place} has buffers")
        if seen & {id(p) for p in own.values()}:
            raise UnknownLayerError(f"{place} shares a parameter with another layer")
        seen |= {id(p) for p in own.values()}
        names = {name: name_of[id(p)] for name, p in own.items()}
        found.append(TrainedLayer(path=path, layer=layer, rule=rule, names=names))
    missing = [name for name, parameter in parameters.items() if id(parameter) not in seen]
    if missing:
        raise UnknownLayerError(f"{missing[0]} belongs to no layer of the network")
    return found


class _Tap(torch.autograd.Function):
    """Identity that hands the gradient of a layer's output to `take`. `root` makes autograd come here though no weight
    asks for a gradient, and gets none itself.
    """

    @staticmethod
    def forward(ctx, output, root, take):
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        ctx.take(gradient)
        ctx.take = None
        return (gradient if ctx.needs_input_grad[0] else None), None, None


def clip_by_bookkeeping(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_image: LossPerImage,
    max_grad_norm: float,
    *,
    speed: SpeedSettings = SpeedSettings(),  # noqa: B008 (frozen)
) -> ClippedSum:
    """All units in one backward pass; units may be uneven. Equal to `clip_by_loop` up to rounding.

    A unit whose gradient is not finite, or longer than 1e19, counts as zero. A batch of one unit goes through the loop,
    which splits a patient of many images. Raises `UnknownLayerError` for layers without a rule and `WardroundError`
    where a layer's input is changed in place or a layer is used twice in a pass, or not at all.
    """
    if batch.units == 0:
        zeros = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return ClippedSum(gradients=zeros, sensitivity=max_grad_norm)
    layers = trained_layers(network, parameters)
    if batch.units == 1:
        return clip_by_loop(
            network, parameters, batch, loss_per_image, max_grad_norm, images_at_once=speed.images_at_once
        )
    batch, groups = _by_size(batch)
    contributions = _one_pass(network, layers, batch, groups, loss_per_image, speed)
    square_U = torch.zeros(batch.units, dtype=torch.float64, device=batch.inputs_N.device)
    for _, contribution in contributions:
        square_U[contribution.units] += contribution.squared_norm_U
    norm_U = square_U.sqrt()
    bound = max_grad_norm / (1 + margin(speed, batch.inputs_N.device))
    factor_U = torch.where(norm_U.isfinite(), (bound / norm_U.clamp(min=1e-30)).clamp(max=1.0), 0.0).float()
    total: dict[str, Tensor] = {}
    contributions.reverse()
    while contributions:  # what is summed is freed
        name, contribution = contributions.pop()
        part = contribution.weighted_sum(factor_U[contribution.units]).to(parameters[name].dtype)
        total[name] = part.contiguous() if name not in total else total[name] + part
    return ClippedSum(gradients={name: total[name] for name in parameters}, sensitivity=max_grad_norm)


def margin(speed: SpeedSettings, device: torch.device) -> float:
    """By how much a unit's share of the sum may be longer than its computed norm, relatively."""
    reduced = speed.precision != "float32" or (device.type == "cuda" and torch.backends.cudnn.allow_tf32)
    return REDUCED_MARGIN if reduced else FULL_MARGIN


def _by_size(batch: PatientBatch) -> tuple[PatientBatch, list[UnitGroup]]:
    """The batch with its units in the order of their sizes, so that units of equal size are one slice: a group."""
    start_U1, size_U = batch.start_U1, batch.start_U1.diff()
    order_U = torch.argsort(size_U, stable=True)
    if not torch.equal(order_U, torch.arange(batch.units)):
        spans = [torch.arange(int(start_U1[u]), int(start_U1[u + 1])) for u in order_U.tolist()]
        rows = torch.cat(spans).to(batch.inputs_N.device)
        size_U = size_U[order_U]
        start_U1 = torch.cat([size_U.new_zeros(1), size_U.cumsum(0)])
        batch = PatientBatch(inputs_N=batch.inputs_N[rows], labels_N=batch.labels_N[rows], start_U1=start_U1)
    sizes, counts = torch.unique_consecutive(size_U, return_counts=True)
    groups, unit, row = [], 0, 0
    for images, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        units, rows = slice(unit, unit + count), slice(row, row + count * images)
        groups.append(UnitGroup(units=units, rows=rows, images=images))
        unit, row = units.stop, rows.stop
    return batch, groups


def _one_pass(
    network: nn.Module,
    layers: list[TrainedLayer],
    batch: PatientBatch,
    groups: list[UnitGroup],
    loss_per_image: LossPerImage,
    speed: SpeedSettings,
) -> list[tuple[str, Contribution]]:
    """Forward and backward; (parameter's name, contribution) of every layer and group."""
    inputs_N = batch.inputs_N
    root = torch.zeros((), device=inputs_N.device, requires_grad=True)
    layout = torch.channels_last if speed.channels_last else torch.contiguous_format
    contributions: list[tuple[str, Contribution]] = []
    tapped: set[str] = set()

    def tap(trained: TrainedLayer, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if trained.path in tapped:
            raise UnknownLayerError(f"{trained.path}: used twice in one pass")
        tapped.add(trained.path)
        a_N = arguments[0].detach()
        y_N = output.detach() if reads_output(trained.layer) else None  # a map less to keep
        version = a_N._version
        # A discriminator may see each image several times side by side: more rows of the same unit.
        views, odd = divmod(len(a_N), len(inputs_N))
        if odd or views < 1:
            raise UnknownLayerError(f"{trained.path}: its rows are not the images of the batch")

        def take(g_N: Tensor) -> None:
            if a_N._version != version:
                raise WardroundError(f"{trained.path}: its input is changed in place")
            for group in (group.seen(views) for group in groups):
                for contribution in trained.rule(trained.layer, a_N, y_N, g_N, group, trained.names):
                    contributions.append((trained.names[contribution.parameter], contribution))

        return _Tap.apply(output, root, take)

    hooks = [
        trained.layer.register_forward_hook(
            lambda _, arguments, output, trained=trained: tap(trained, arguments, output)
        )
        for trained in layers
    ]
    frozen = {name: _lay_out(parameter.detach(), layout) for name, parameter in network.named_parameters()}
    size_U = batch.start_U1.diff()
    share_N = (1.0 / size_U).repeat_interleave(size_U).to(inputs_N.device)
    try:
        with torch.enable_grad():
            with torch.autocast(inputs_N.device.type, torch.bfloat16, enabled=speed.precision == "bfloat16"):
                outputs = functional_call(network, frozen, (_lay_out(inputs_N, layout),))
            loss = (loss_per_image(outputs.float(), batch.labels_N) * share_N).sum()
    finally:
        for hook in hooks:
            hook.remove()
    unused = [trained.path for trained in layers if trained.path not in tapped]
    if unused:
        raise UnknownLayerError(f"{unused[0]}: not used in the forward pass")
    loss.backward()
    if {name for name, _ in contributions} != {name for trained in layers for name in trained.names.values()}:
        raise WardroundError("a layer's output does not reach the loss")
    return contributions


def _lay_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor
