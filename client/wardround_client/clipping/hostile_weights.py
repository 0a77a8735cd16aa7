"""Adversarial weights and images for clipping engines, and the check that an engine withstands them.

The theorem: |S(D + p) - S(D)| <= C (1 + 10^-5). Whatever the weights, patient p moves the clipped sum by at most C. A
site tries the weights in `FEW` when it opens a study, before it reads any patient's data; the tests and `attack` try
all of them. The images are synthetic.

The weights exploit the following weaknesses:

- norms that are formed as a difference of large numbers (constant and cancelling weights, images of one colour);
- filters whose standardisation divides by almost zero (constant, equal and large weights);
- overflow and underflow (huge and tiny weights, largest activations);
- one layer that dominates all others;
- rounding: a head amplifies the last bit of an activation into a whole gradient, so that one patient's presence would
  change another's part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround_client.clipping.engines import (
    ClippingEngine,
    LossPerRow,
    PatientBatch,
    length_of,
    synthetic_units,
)

TOLERANCE = 1e-5
EVEN_UNITS = 4  # of D and p together, where every unit has the same number of images
UNEVEN_UNITS = (2, 1, 3, 1)
LARGE = 1e4

Values = Callable[[Tensor, torch.Generator], Tensor]  # current parameter, generator -> new value of the parameter


def _random(parameter: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator)


def _cancelling(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return weights whose outputs come in pairs of w and -w, each almost constant over its inputs."""
    values = torch.full(parameter.shape, LARGE) + 1e-3 * _random(parameter, generator)
    values[1::2] = -values[: len(values) // 2 * 2 : 2][: len(values[1::2])]
    return values


EVERYWHERE: dict[str, Values] = {
    "as they are": lambda parameter, _: parameter.detach().cpu().clone(),
    "constant": lambda parameter, _: torch.full(parameter.shape, 0.5),
    "constant, large": lambda parameter, _: torch.full(parameter.shape, LARGE),
    "zero": lambda parameter, _: torch.zeros(parameter.shape),
    "huge": lambda parameter, generator: 1e15 * _random(parameter, generator),
    "tiny": lambda parameter, generator: 1e-20 * _random(parameter, generator),
    "signs": lambda parameter, generator: _random(parameter, generator).sign(),
    "cancelling": _cancelling,
    "random": lambda parameter, generator: 0.1 * _random(parameter, generator),
    "ten times": lambda parameter, _: 10 * parameter.detach().cpu(),
}
ROUNDING = "rounding"  # the last layer amplifies last bits into whole residuals
ONE_LAYER = "one layer large"
LARGE_HEAD = "large head"  # all gradients below the head are 10^12 times as long, and so are their rounding errors
OFFSET = "offset"  # a patient's images differ in the last bits of large activations, and their gradients cancel
LARGEST = "largest activations"  # a unit's clip factor is then too small for float32
WEIGHTS = (*EVERYWHERE, ROUNDING, ONE_LAYER, LARGE_HEAD, OFFSET, LARGEST)
FEW = (ROUNDING, LARGE_HEAD, OFFSET, LARGEST)
IMAGES = ("random", "equal", "one colour", "almost one colour")


def set_weights(
    kind: str, network: nn.Module, parameters: dict[str, nn.Parameter], inputs_N: Tensor, seed: int = 0
) -> None:
    """Overwrite `parameters` in place with weights of one of the kinds in `WEIGHTS`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if kind == ROUNDING:
            _amplify_rounding(network, parameters, inputs_N, generator)
            return
        if kind == ONE_LAYER:
            name = list(parameters)[int(torch.randint(len(parameters), (), generator=generator))]
            parameters[name].mul_(LARGE)
            return
        if kind in (OFFSET, LARGEST):
            (_offset if kind == OFFSET else _largest)(network, parameters)
            return
        if kind == LARGE_HEAD:
            last = last_layer(network, parameters)
            if last is not None:
                last.weight.copy_(1e12 * _random(last.weight, generator))
            return
        for parameter in parameters.values():
            parameter.copy_(EVERYWHERE[kind](parameter, generator))


def last_layer(network: nn.Module, parameters: dict[str, nn.Parameter]) -> nn.Linear | nn.Conv2d | None:
    """Return the last linear or convolutional layer whose weights are among `parameters`."""
    trained = {id(parameter) for parameter in parameters.values()}
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and id(getattr(layer, "weight", None)) in trained
    ]
    return layers[-1] if layers else None


def _offset(network: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Set every shift to 10^7 and every scale to 10^3, with a last layer that cancels the shift.

    The last layer weights its inputs by 10^3 and -10^3 in turn, so that the shift drops out of its output: images of
    both labels then have opposite gradients over nearly equal activations.
    """
    for name, parameter in parameters.items():
        if parameter.dim() == 1:
            parameter.fill_(1e7 if name.endswith("bias") else 1e3)
    last = last_layer(network, parameters)
    if last is not None:
        rows = last.weight.flatten(1)
        rows.fill_(1e3)
        rows[:, 1::2] = -1e3
        if last.bias is not None:
            last.bias.zero_()


def _largest(network: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Set weights to 0 and shifts to 3.4e38, about the largest float32 number.

    The shifts of the last layer before the head are 1, and the head's weights are 1. The network's input then has no
    effect, and the head's input layer reads the largest numbers that float32 can represent.
    """
    last = last_layer(network, parameters)
    shifts = [p for p in parameters.values() if p.dim() == 1 and (last is None or p is not last.bias)]
    for parameter in parameters.values():
        parameter.zero_()
    for parameter in shifts:
        parameter.fill_(3.4e38)
    if shifts:
        shifts[-1].fill_(1.0)
    if last is not None:
        last.weight.fill_(1.0)


def _amplify_rounding(
    network: nn.Module, parameters: dict[str, nn.Parameter], inputs_N: Tensor, generator: torch.Generator
) -> None:
    """Set the last layer's weights orthogonal to the inputs that it reads, times 10^9.

    The output of the layer, and with it the sign of a residual, is then determined by rounding.
    """
    layer, read = last_layer(network, parameters), []
    if layer is None:
        return
    hook = layer.register_forward_hook(lambda _, arguments, output: read.append(arguments[0].detach()))
    try:
        network(inputs_N)
    finally:
        hook.remove()
    if isinstance(layer, nn.Linear):
        rows = read[0].reshape(-1, layer.in_features).double().cpu()
    else:
        rows = read[0].double().cpu().mean((2, 3)).repeat_interleave(layer.kernel_size[0] * layer.kernel_size[1], 1)
    weight = torch.randn(layer.weight.flatten(1).shape, generator=generator, dtype=torch.float64)
    few = rows[: max(1, min(len(rows), rows.shape[1] - 1))]
    if few.shape[1] == weight.shape[1] and bool(few.isfinite().all()):
        weight = weight - (weight @ torch.linalg.pinv(few)) @ few
    layer.weight.copy_((1e9 * weight).view_as(layer.weight))
    if layer.bias is not None and any(layer.bias is parameter for parameter in parameters.values()):
        layer.bias.zero_()


def images_of(kind: str, inputs_N: Tensor) -> Tensor:
    """Return inputs like `inputs_N`, of one of the kinds in `IMAGES`; one colour is one number everywhere."""
    if kind == "random":
        return inputs_N
    if kind == "equal":
        return inputs_N[:1].expand_as(inputs_N).contiguous()
    there = inputs_N[~inputs_N.isnan()]
    flat = torch.full_like(inputs_N, float(there.float().mean()))
    if kind == "almost one colour":
        flat.view(len(flat), -1)[:, 0] = there.max()
    return flat


@contextmanager
def weights_restored(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Restore the parameters' values when the block ends."""
    before = [parameter.detach().clone() for parameter in parameters.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters.values(), before, strict=True):
                parameter.copy_(values)


def largest_move(
    engine: ClippingEngine,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    batch: PatientBatch,
    max_grad_norm: float,
    units: tuple[int, ...] = (0,),
) -> float:
    """Return how far removing one of `units` moves the sum at most, in units of C.

    Returns inf if a sum is not finite.
    """
    whole = engine(network, parameters, batch, loss_per_row, max_grad_norm).gradients
    largest = 0.0
    for unit in units:
        rest = engine(network, parameters, without_unit(batch, unit), loss_per_row, max_grad_norm).gradients
        moved = length_of({name: whole[name].double() - rest[name].double() for name in whole}) / max_grad_norm
        largest = max(largest, moved) if moved == moved else float("inf")
    return largest


def without_unit(batch: PatientBatch, unit: int) -> PatientBatch:
    """Return the batch as it would be if this unit had not been drawn."""
    begin, end = int(batch.start_U1[unit]), int(batch.start_U1[unit + 1])
    start_U1 = torch.cat([batch.start_U1[: unit + 1], batch.start_U1[unit + 2 :] - (end - begin)])
    return PatientBatch(
        inputs_N=torch.cat([batch.inputs_N[:begin], batch.inputs_N[end:]]),
        labels_N=torch.cat([batch.labels_N[:begin], batch.labels_N[end:]]),
        start_U1=start_U1,
    )


def check_hostile_weights(
    engine: ClippingEngine,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    inputs_N: Tensor,
    outputs: int,
    max_grad_norm: float,
    images_per_unit: int | None = None,
    kinds: tuple[str, ...] = FEW,
) -> None:
    """Check that one unit moves the sum by at most C under weights of each of `kinds`.

    The parameters are restored afterwards.

    Raises:
        WardroundError: One unit moves the sum by more than C (1 + `TOLERANCE`).
    """
    sizes = UNEVEN_UNITS if images_per_unit is None else (images_per_unit,) * EVEN_UNITS
    batch = synthetic_units(inputs_N, outputs, sizes)
    for kind in kinds:
        with weights_restored(parameters):
            set_weights(kind, network, parameters, batch.inputs_N)
            moved = largest_move(engine, network, parameters, loss_per_row, batch, max_grad_norm)
        if not moved <= 1 + TOLERANCE:
            raise WardroundError(
                f"with weights of the kind '{kind}' one patient moves the clipped sum by {moved:.3g} C"
            )
