"""Which parameters of a network train and travel."""

from __future__ import annotations

from torch import nn

from wardround.errors import ModelError
from wardround.networks.public_head import PhantomHead

TRAINABLE = ("head", "norm+head", "all")  # of `model.trainable`


def exchanged_names(network: nn.Module, trainable: str) -> tuple[str, ...]:
    """Names of the parameters that train and travel, sorted: `head`, `norm+head` (the scales and shifts of the
    normalisation layers too) or `all`. Buffers never travel, nor does what a network keeps frozen: the public features.
    A network of several parts says itself what travels, with a method `travelling(trainable)`.

    Raises `ModelError` for `norm+head` on a network without normalisation layers.
    """
    if hasattr(network, "travelling"):
        return tuple(sorted(network.travelling(trainable)))
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
