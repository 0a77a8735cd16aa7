"""Book-keeping engine: clips every unit's gradient in one backward pass per group of units.

Ordinary training computes, for each layer, the gradient of its output and from that the sum of all weight gradients.
Clipping needs the units' gradients separately, but only for their norms and then for one weighted sum. The forward pass
therefore runs on weights that do not require a gradient, autograd computes output gradients only, and a tap at each
layer's output passes the gradient g to the layer's rule (`layer_rules.py`), which keeps the data needed for a norm and
a weighted sum. After the pass the clip factors are known, and one weighted sum per layer completes the result (Bu et
al., arXiv:2210.00038, with direct rules for large maps).

Guarantee: as in `engines.py`. A library's result for an image can differ in its last bit with the size of the batch and
with the image's place in it, and crafted weights can amplify that bit into a different gradient. The batch is therefore
passed through the network in groups of one fixed shape, `group_images` rows; free rows of a group are padded with black
images. Which instructions a library uses depends on shapes, not on values, and a difference between them shows in some
percent of random numbers. `places_agree` therefore compares the places of a group on random images and random outputs,
at the study's shapes, on the machine that trains, before any patient's data are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wardround.errors import WardroundError
from wardround_client.clipping.engines import (
    IMAGES_AT_ONCE,
    ClippedSum,
    LossPerRow,
    PatientBatch,
    clip_by_loop,
    clip_factors,
    zero_sum,
)
from wardround_client.clipping.layer_rules import (
    Contribution,
    PreparedLayer,
    Rule,
    Units,
    may_repeat,
    prepared,
    rule_for,
)

Precision = Literal["float32", "bfloat16"]

GROUP_IMAGES = 16  # measured: an image is hardly faster in a larger group, and much slower alone


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How the arithmetic is done, in public numbers. Whatever the settings, one unit moves the sum by at most C.

    Attributes:
        images_per_unit: Number of images of every unit, for a study with k images per patient; None if patients
            contribute all of their images.
        group_images: Rows of one pass: the rows of the units that fit, and padding.
    """

    channels_last: bool = False
    precision: Precision = "float32"  # bfloat16: autocast, a relative error of about a hundredth
    images_at_once: int = IMAGES_AT_ONCE  # for a patient whose images do not fit into a group
    group_images: int = GROUP_IMAGES
    images_per_unit: int | None = None


class UnknownLayerError(WardroundError):
    """The engine does not support a layer; the loop does.

    For example, the layer has no rule, or one of its parameters belongs to another layer as well.
    """


@dataclass(frozen=True, kw_only=True)
class TrainedLayer:
    """A layer with its rule; `names` maps the names of its own parameters to their names in the sum."""

    path: str
    layer: nn.Module
    rule: Rule
    names: dict[str, str]
    may_repeat: bool = False  # several uses of it in a pass are further positions for its rule


def trained_layers(network: nn.Module, parameters: dict[str, nn.Parameter]) -> list[TrainedLayer]:
    """Return the layers that own `parameters`.

    Raises:
        UnknownLayerError: The engine does not support the network: a layer has no rule or has buffers, or a parameter
            is shared by two layers or belongs to no layer. The message is one line.
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
            raise UnknownLayerError(f"{place} has no clipping rule")
        if next(layer.buffers(recurse=False), None) is not None:
            raise UnknownLayerError(f"{place} has buffers")
        if seen & {id(p) for p in own.values()}:
            raise UnknownLayerError(f"{place} shares a parameter with another layer")
        seen |= {id(p) for p in own.values()}
        names = {name: name_of[id(p)] for name, p in own.items()}
        repeats = may_repeat(layer)
        found.append(TrainedLayer(path=path, layer=layer, rule=rule, names=names, may_repeat=repeats))
    missing = [name for name, parameter in parameters.items() if id(parameter) not in seen]
    if missing:
        raise UnknownLayerError(f"{missing[0]} belongs to no layer of the network")
    return found


class _Uses:
    """What a layer read and the gradients of its outputs in one pass, of one use or of several.

    The hidden layer of a recurrent network is used once an hour. The gradient of its weights is the sum over the uses,
    and so the uses of a linear layer are further positions of the same unit.
    """

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: dict[int, Tensor] = {}

    def complete(self) -> bool:
        """Whether the gradient of every use has arrived. The forward pass is over when the first one does."""
        return len(self.gradients) == len(self.inputs)

    def taken(self) -> tuple[Tensor, Tensor]:
        """Inputs and gradients, which are kept here no longer; those of several uses side by side, (N, uses, ...)."""
        inputs, gradients = self.inputs, [self.gradients[use] for use in range(len(self.inputs))]
        self.inputs, self.gradients = [], {}
        if len(inputs) == 1:
            return inputs[0], gradients[0]
        return torch.stack(inputs).transpose(0, 1), torch.stack(gradients).transpose(0, 1)


class _Tap(torch.autograd.Function):
    """Identity that passes the gradient of a layer's output to `take`.

    `root` makes autograd call `backward` although no weight requires a gradient; `root` itself receives none.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, root: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.take(gradient)
        ctx.take = None
        return (gradient if ctx.needs_input_grad[0] else None), None, None


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows of one pass, always the same number; rows that belong to no unit are padding."""

    inputs_N: Tensor
    labels_N: Tensor
    units: Units
    filled: int  # number of real units: if all units have the same size, the last ones may be padding


def clip_by_bookkeeping(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    batch: PatientBatch,
    loss_per_row: LossPerRow,
    max_grad_norm: float,
    *,
    speed: SpeedSettings = SpeedSettings(),  # noqa: B008 (frozen)
) -> ClippedSum:
    """Clip all units, one backward pass per group. Equal to `clip_by_loop` up to rounding.

    A unit whose gradient is not finite, or longer than 1e19, counts as zero. A unit with more images than a group holds
    is clipped by the loop.

    Raises:
        UnknownLayerError: A layer has no rule, is not used in a pass, or is used twice though its rule is for one use.
        WardroundError: A layer's input is changed in place, or a unit has a different number of images from
            `speed.images_per_unit`.
    """
    layers = [(trained, prepared(trained.layer)) for trained in trained_layers(network, parameters)]
    total: dict[str, Tensor] = {}
    unfinished: dict[str, Tensor] = {}
    finish_of = {}
    for group in _groups(batch, speed):
        if isinstance(group, PatientBatch):
            alone = clip_by_loop(
                network, parameters, group, loss_per_row, max_grad_norm, images_at_once=speed.images_at_once
            )
            for name, part in alone.gradients.items():
                _add(total, name, part)
            continue
        contributions = one_pass(network, layers, group, loss_per_row, speed)
        squared_U = cast(Tensor, sum(one.squared_norm_U for _, one in contributions))
        factor_U = clip_factors(squared_U, max_grad_norm)
        factor_U[group.filled :] = 0.0
        contributions.reverse()
        while contributions:  # popping frees the memory of a contribution once it is summed
            name, one = contributions.pop()
            if one.finish is not None:
                finish_of[name] = one.finish
            _add(total if one.finish is None else unfinished, name, one.weighted_sum(factor_U))
    for name in list(unfinished):
        _add(total, name, finish_of[name](unfinished.pop(name)))
    nothing = zero_sum({name: parameter for name, parameter in parameters.items() if name not in total})
    return ClippedSum(gradients={name: (total | nothing)[name] for name in parameters}, sensitivity=max_grad_norm)


def _add(total: dict[str, Tensor], name: str, part: Tensor) -> None:
    """Add `part` to the float64 sum of a parameter; the first part becomes the sum."""
    if name in total:
        total[name].add_(part)
    else:
        total[name] = part.double()


def _groups(batch: PatientBatch, speed: SpeedSettings) -> Iterator[Group | PatientBatch]:
    """Split the batch into groups of one shape, in the order of its units.

    A unit too large for a group is yielded as a batch of its own.
    """
    starts, k = batch.start_U1.tolist(), speed.images_per_unit
    if k is not None and starts != list(range(0, k * batch.units + 1, k)):
        raise WardroundError(f"this engine needs {k} images in every unit, but a unit has a different number")
    first = 0
    while first < batch.units:
        begin, last = starts[first], first + 1
        while last < batch.units and starts[last + 1] - begin <= speed.group_images:
            last += 1
        rows = slice(begin, starts[last])
        if starts[last] - begin > speed.group_images:
            alone = torch.tensor([0, starts[last] - begin])
            yield PatientBatch(inputs_N=batch.inputs_N[rows], labels_N=batch.labels_N[rows], start_U1=alone)
        else:
            owned = [slice(starts[u] - begin, starts[u + 1] - begin) for u in range(first, last)]
            if k is not None:
                owned = places_of(speed)
            yield Group(
                inputs_N=filled_up(batch.inputs_N[rows], speed.group_images),
                labels_N=filled_up(batch.labels_N[rows], speed.group_images),
                units=Units(rows=tuple(owned), images=k),
                filled=last - first,
            )
        first = last


def places_of(speed: SpeedSettings) -> list[slice]:
    """Return the rows of a group that each unit of `images_per_unit` images (1 if None) takes."""
    k = speed.images_per_unit or 1
    return [slice(place, place + k) for place in range(0, speed.group_images - k + 1, k)]


def filled_up(rows_N: Tensor, count: int) -> Tensor:
    """Return a copy padded with zeros to `count` rows, in memory of its own."""
    whole = rows_N.new_zeros(count, *rows_N.shape[1:])
    whole[: len(rows_N)] = rows_N
    return whole


def one_pass(
    network: nn.Module,
    layers: list[tuple[TrainedLayer, PreparedLayer]],
    group: Group,
    loss_per_row: LossPerRow,
    speed: SpeedSettings,
) -> list[tuple[str, Contribution]]:
    """Run forward and backward; return (parameter's name, contribution of the group's units) of every parameter."""
    inputs_N = group.inputs_N
    root = torch.zeros((), device=inputs_N.device, requires_grad=True)
    layout = torch.channels_last if speed.channels_last else torch.contiguous_format
    contributions: list[tuple[str, Contribution]] = []
    uses_of: dict[str, _Uses] = {}

    def tap(trained: TrainedLayer, ready: PreparedLayer, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        uses = uses_of.setdefault(trained.path, _Uses())
        if uses.inputs and not trained.may_repeat:
            raise UnknownLayerError(f"{trained.path}: used twice in one pass")
        a_N, use = arguments[0].detach(), len(uses.inputs)
        version = a_N._version
        # A discriminator may receive each image several times, side by side: more rows of the same unit.
        views, odd = divmod(len(a_N), len(inputs_N))
        if odd or views < 1:
            raise UnknownLayerError(f"{trained.path}: its rows are not the images of the batch")
        if uses.inputs and uses.inputs[0].shape != a_N.shape:
            raise UnknownLayerError(f"{trained.path}: used with inputs of different shapes in one pass")
        uses.inputs.append(a_N)

        def take(g_N: Tensor) -> None:
            if a_N._version != version:
                raise WardroundError(f"{trained.path}: its input is changed in place")
            uses.gradients[use] = g_N
            if uses.complete():
                a, g = uses.taken()
                for contribution in trained.rule(ready, a, g, group.units.seen(views), trained.names):
                    contributions.append((trained.names[contribution.parameter], contribution))

        return _Tap.apply(output, root, take)

    hooks = [
        trained.layer.register_forward_hook(
            lambda _, arguments, output, trained=trained, ready=ready: tap(trained, ready, arguments, output)
        )
        for trained, ready in layers
    ]
    frozen = {name: _lay_out(parameter.detach(), layout) for name, parameter in network.named_parameters()}
    share_N = torch.zeros(len(inputs_N))
    for one in group.units.rows:
        share_N[one] = 1 / (one.stop - one.start)
    try:
        with torch.enable_grad():
            with torch.autocast(inputs_N.device.type, torch.bfloat16, enabled=speed.precision == "bfloat16"):
                outputs = functional_call(network, frozen, (_lay_out(inputs_N, layout),))
            loss = (loss_per_row(outputs.float(), group.labels_N) * share_N.to(inputs_N.device)).sum()
    finally:
        for hook in hooks:
            hook.remove()
    unused = [trained.path for trained, _ in layers if trained.path not in uses_of]
    if unused:
        raise UnknownLayerError(f"{unused[0]}: not used in the forward pass")
    loss.backward()
    if {name for name, _ in contributions} != {name for trained, _ in layers for name in trained.names.values()}:
        raise WardroundError("a layer's output does not reach the loss")
    return contributions


def _lay_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor
