"""Build the network of a study from its `[model]` section, with initial weights and frozen parameters.

Every network is an `nn.Module` with `.features(images_NCHW) -> (N, D)` on grey values 0..255 (normalisation inside),
`.head`, an `nn.Linear(D, K)` with K = 1 for two labels, and `forward(x) = head(features(x))`. The networks of the
generative tasks have parts of their own and a method `travelling`. The output for an image depends only on that image,
which per-patient clipping requires: layers with batch statistics are refused.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wardround.errors import ModelError
from wardround.networks.fingerprint import INSTALLED
from wardround.networks.weights import exchanged_names, not_exchanged, trained_parameters, weights_of
from wardround.study.load import Study
from wardround.study.schema import DataSection, ModelSection, Section
from wardround.tasks import registry


def initial_network(study: Study) -> nn.Module:
    """Build the study's network with its initial weights, on the CPU. Raises `ModelError` like `build_model`."""
    return build_model(study.model, study.data, study.study.seed, study.task_section)


def start_weights(study: Study) -> dict[str, np.ndarray]:
    """The exchanged parameters of the study's initial network, float32 by name.

    Always of a network built anew: one that was trained or scored holds other weights, and a model that starts from
    another one's result has learned from that one's patients.
    """
    return weights_of(trained_parameters(initial_network(study), study))


def build_model(model: ModelSection, data: DataSection, seed: int, section: Section | None = None) -> nn.Module:
    """Build the network of a study with its initial weights, in float32 on the CPU.

    Only the parameters in `exchanged_names` have `requires_grad`. The same sections and seed give the same weights, and
    torch's global generators keep their state.

    Args:
        model: The study's section `[model]`.
        data: The study's section `[data]`.
        seed: The seed of the initial weights; used for `init = "random"` only.
        section: The task's own section of the study.

    Raises:
        ModelError: A file does not fit, the images are too small for the network, or the network would mix patients.
    """
    task = registry.networks_of_tasks()[model.name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        network = registry.networks_part(task).first_weights(model, data, section)
    refuse_batch_statistics(network)
    exchanged = set(exchanged_names(network, model.trainable))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in exchanged)
    if model.init != "random":
        setattr(network, INSTALLED, not_exchanged(network, model.trainable))
    return network


def refuse_batch_statistics(network: nn.Module) -> None:
    """Raise `ModelError` for a layer that mixes the images of a batch or keeps running statistics of them."""
    for path, layer in network.named_modules():
        running = any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False))
        if running or isinstance(layer, _BatchNorm):
            kind = type(layer).__name__
            raise ModelError(f"{path or 'the network'}: {kind} stores statistics of patients; use GroupNorm")
