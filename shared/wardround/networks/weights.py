"""Which weights of a network train and travel; loading them and copying them out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.public_head import PhantomHead
from wardround.study.load import Study

TRAINABLE = ("head", "norm+head", "all")  # of `model.trainable`


def exchanged_names(network: nn.Module, trainable: str) -> tuple[str, ...]:
    """Names of the parameters that train and travel, sorted: `head`, `norm+head` (the scales and shifts of the
    normalisation layers too) or `all`. Buffers never travel, nor does what a network keeps frozen: the public features.
    A network of several parts says itself what travels, with a method `travelling(trainable)`.

    Raises `ModelError` for `norm+head` on a network without normalisation layers.
    """
    if callable(travelling := getattr(network, "travelling", None)):
        return tuple(sorted(travelling(trainable)))
    names = {name for name, _ in network.named_parameters()}
    head = {name for name in names if name.startswith("head.")}
    if trainable == "head" or isinstance(network, PhantomHead):
        return tuple(sorted(head))
    if trainable == "all":
        return tuple(sorted(names))
    if trainable != "norm+head":
        raise ModelError(f"model.trainable: {trainable} is none of {', '.join(TRAINABLE)}")
    norms = {
        f"{path}.{name}"
        for path, layer in network.named_modules()
        if isinstance(layer, nn.GroupNorm)
        for name, _ in layer.named_parameters(recurse=False)
    }
    if not norms:
        raise ModelError("model.trainable: this network has no normalisation layers; use head or all")
    return tuple(sorted(norms | head))


def not_exchanged(network: nn.Module, trainable: str) -> frozenset[str]:
    """All that each site must have already: parameters and buffers that do not travel."""
    return frozenset(network.state_dict()) - set(exchanged_names(network, trainable))


def trained_parameters(network: nn.Module, study: Study) -> dict[str, nn.Parameter]:
    """The parameters that move and travel, by their names in the whole network, in the order of their names.

    All others are frozen, so that autograd builds nothing for them.
    """
    names = exchanged_names(network, study.model.trainable)
    found = dict(network.named_parameters())
    for parameter in found.values():
        parameter.requires_grad_(False)
    for name in names:
        found[name].requires_grad_(True)
    return {name: found[name] for name in names}


def load_weights(parameters: dict[str, nn.Parameter], weights: dict[str, np.ndarray]) -> list[Tensor]:
    """Copy received weights into the parameters; names and shapes were checked at the border. Returns copies, in
    order.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])).view_as(parameter))
    return [parameter.detach().clone() for parameter in parameters.values()]


def weights_of(parameters: dict[str, nn.Parameter]) -> dict[str, np.ndarray]:
    """Copies of the parameters as they leave: float32 on the CPU."""
    return {name: p.detach().to("cpu", torch.float32).numpy().copy() for name, p in parameters.items()}
