"""The weights of a network that are trained and exchanged: their names, and copying them in and out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.public_head import PhantomHead
from wardround.study.load import Study

TRAINABLE = ("head", "norm+head", "all")  # the values of `model.trainable`


def exchanged_names(network: nn.Module, trainable: str) -> tuple[str, ...]:
    """Return the sorted names of the parameters that are trained and exchanged.

    `trainable` is `head`, `norm+head` (the head and the scales and shifts of the normalisation layers) or `all`.
    Buffers and frozen public features are never exchanged. A network of several parts defines the names itself, with a
    method `travelling(trainable)`. Raises `ModelError` for `norm+head` on a network without normalisation layers, and
    for an unknown value.
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
        raise ModelError(f"model.trainable: {trainable} is not one of {', '.join(TRAINABLE)}")
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
    """Return the names of the parameters and buffers that are not exchanged, which each site must have already."""
    return frozenset(network.state_dict()) - set(exchanged_names(network, trainable))


def check_personalisation(network: nn.Module, study: Study) -> None:
    """Raise `ModelError` if the network lacks the parameters that the study's `[personalisation]` trains."""
    if study.personalisation is not None:
        try:
            exchanged_names(network, study.personalisation.trainable)
        except ModelError as error:
            raise ModelError(str(error).replace("model.trainable", "personalisation.trainable")) from None


def trained_parameters(network: nn.Module, study: Study) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained and exchanged, by their names in the whole network, sorted by name.

    All other parameters are frozen, so that autograd records nothing for them.
    """
    names = exchanged_names(network, study.model.trainable)
    found = dict(network.named_parameters())
    for parameter in found.values():
        parameter.requires_grad_(False)
    for name in names:
        found[name].requires_grad_(True)
    return {name: found[name] for name in names}


def load_weights(parameters: dict[str, nn.Parameter], weights: dict[str, np.ndarray]) -> list[Tensor]:
    """Copy received weights into the parameters; return copies of the parameters, in their order.

    Names and shapes were validated when the weights were received.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])).view_as(parameter))
    return [parameter.detach().clone() for parameter in parameters.values()]


def weights_of(parameters: dict[str, nn.Parameter]) -> dict[str, np.ndarray]:
    """Return copies of the parameters in the form in which they are sent: float32 on the CPU."""
    return {name: p.detach().to("cpu", torch.float32).numpy().copy() for name, p in parameters.items()}
