"""The weights of a study's network that train and travel: found, loaded and copied out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.exchanged import exchanged_names
from wardround.study.load import Study


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
