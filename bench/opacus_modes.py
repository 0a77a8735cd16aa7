"""Opacus' methods for a clipped sum, for comparison: its hooks, its ghost clipping and its functorch mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping, register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from wardround.networks.weight_standardisation import WSConv2d
from wardround.tasks.labelled.objective import loss_per_row
from wardround_client.clipping.engines import PatientBatch

Step = Callable[[], dict[str, Tensor]]


class NotPossibleError(Exception):
    """A mode cannot run a network; the message is the reason."""


def opacus_step(
    mode: str,
    network: nn.Module,
    batch: PatientBatch,
    k: int,
    max_grad_norm: float,
    context: Callable[[], AbstractContextManager],
) -> Step:
    """Return a step of the mode `hooks`, `ghost` or `functorch`.

    Each call of the step returns the clipped sum over `batch`, which has k images per patient, without noise. The
    forward pass runs within `context()`.

    Raises:
        NotPossibleError: With the reason, if the mode cannot run the network.
    """
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # expected for a first layer
    give_opacus_standardised_filters()
    if mode == "ghost" and k > 1:
        raise NotPossibleError("ghost clipping has no gradient of a sample from which to form a patient's mean")
    try:
        if mode == "ghost":
            module = GradSampleModuleFastGradientClipping(
                network, max_grad_norm=max_grad_norm, use_ghost_clipping=True, loss_reduction="sum"
            )
        else:
            module = GradSampleModule(network, loss_reduction="sum", force_functorch=mode == "functorch")
    except (NotImplementedError, ValueError) as error:
        raise NotPossibleError(" ".join(str(error).split())) from None
    parameters = dict(network.named_parameters())
    kind = DPOptimizerFastGradientClipping if mode == "ghost" else DPOptimizer
    optimizer = kind(
        torch.optim.SGD(network.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    def ghost() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with context():
            losses_N = loss_per_row(module(batch.inputs_N), batch.labels_N)
        DPTensorFastGradientClipping(module, optimizer, losses_N, "sum").backward()
        return {name: parameter.grad for name, parameter in parameters.items()}

    def per_sample() -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with context():
            losses_N = loss_per_row(module(batch.inputs_N), batch.labels_N)
        losses_N.sum().backward()
        if k > 1:
            for parameter in parameters.values():
                parameter.grad_sample = parameter.grad_sample.unflatten(0, (-1, k)).mean(1)
        optimizer.clip_and_accumulate()
        return {name: parameter.summed_grad for name, parameter in parameters.items()}

    return ghost if mode == "ghost" else per_sample


def give_opacus_standardised_filters() -> None:
    """Register a grad sampler for weight-standardised convolutions.

    It uses Opacus' own sampler for the filters as applied, and pulls the result back through the standardisation.
    Without it the hooks fall back to functorch for these layers, which is slower.
    """

    @register_grad_sampler(WSConv2d)
    def compute_standardised_grad_sample(layer: WSConv2d, activations: list[Tensor], backprops: Tensor):
        plain = nn.Conv2d.__new__(nn.Conv2d)  # the same layer without its standardisation
        plain.__dict__.update(layer.__dict__)
        samples = compute_conv_grad_sample(plain, activations, backprops)
        _, pull_back = torch.func.vjp(
            lambda weight: WSConv2d.standardised_weight(SimpleNamespace(weight=weight)), layer.weight.detach()
        )
        samples[layer.weight] = torch.func.vmap(lambda one: pull_back(one)[0])(samples[layer.weight])
        return samples
