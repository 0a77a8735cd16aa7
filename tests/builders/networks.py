"""Networks with synthetic images, ready for a clipping engine."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from wardround.networks.build import build_model, initial_network
from wardround.sources.images.study import ImageData
from wardround.sources.records.study import records_data
from wardround.sources.records.synthetic_rows import synthetic_rows
from wardround.study.load import Study, parse_study
from wardround.study.schema import ModelSection
from wardround.tasks.early_warning.objective import mean_over_hours
from wardround.tasks.labelled.objective import loss_per_row
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround.tasks.synthesis.dcgan import Discriminator, hinge_of_real
from wardround.tasks.synthesis.sampler_objective import loss_of
from wardround_client.clipping.engines import LossPerRow

Case = tuple[nn.Module, dict[str, nn.Parameter], LossPerRow, Tensor, int]
EARLY_WARNING = ("gru", "severity-head")
PHANTOM_ONLY = ("phantom-sampler", "restorer")


@functools.cache
def hostile_case(name: str) -> Case:
    """Return the case `NETWORK TRAINABLE`.

    Returns:
        The network, the parameters that train, the loss per row, 9 synthetic inputs and the number of outputs. Inputs
        are images (N, C, 32, 32), (N, 1, 64, 64) for the discriminator, features (N, 33) for the sampler and (N, 287)
        for the severity head, or 6 hours of records (N, 6, 38) with missing values for the recurrent network.
    """
    network_name, trainable = name.split()
    generator = torch.Generator().manual_seed(3)
    images_N = torch.rand(9, 1, 32, 32, generator=generator) * 255
    if network_name == "discriminator":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: nn.Module = Discriminator(64, 1, 2, widest=128)
        images_N = torch.rand(9, 1, 64, 64, generator=generator) * 2 - 1
        return network, dict(network.named_parameters()), hinge_of_real, images_N, 2
    if network_name in EARLY_WARNING:
        return _records_case(network_name, trainable)
    init = "phantom" if network_name in PHANTOM_ONLY else "random"
    data = ImageData(labels=("benign", "malignant"), image_size=32)
    model = ModelSection(name=network_name, init=init, trainable=trainable)
    network = build_model(model, data, 0, ReconstructionSection() if network_name == "restorer" else None)
    parameters = {path: p for path, p in network.named_parameters() if p.requires_grad}
    if network_name == "restorer":
        joint = JointLoss(network, LossWeights(adversarial=0.1, ssim=0.02))
        return joint, parameters, loss_of_image, torch.rand(9, 4, 32, 32, generator=generator) * 255, 1
    if network_name == "phantom-sampler":
        heads = {path.removeprefix("head."): p for path, p in parameters.items()}
        return network.head, heads, loss_of(0.3), torch.randn(9, 33, generator=generator), 2
    with torch.no_grad():  # with a zero head the layers below it would have zero gradients and remain untested
        network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=generator) * 0.1)
    return network, parameters, loss_per_row, images_N, network.head.out_features


def records_study(network: str, *, hours: int = 6, **sections: dict) -> Study:
    """A study of early warning with a short window."""
    content = {
        "study": {"name": "warning", "task": "early-warning", "rounds": 2},
        "data": {
            "vocabulary": "icu", "window_hours": hours, "outcome": "in_hospital_death", "labels": ["survived", "died"]
        },
        "model": {"name": network, "init": "random", "trainable": "all" if network == "gru" else "head"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8, "delta": 1e-4, "max_grad_norm": 0.4, "nominal_patients": 20},
        "aggregation": {"nominal_sites": 2},
    }  # fmt: skip
    return parse_study({name: content.get(name, {}) | sections.get(name, {}) for name in {*content, *sections}})


def _records_case(name: str, trainable: str) -> Case:
    study = records_study(name, model={"trainable": trainable})
    network, rows_NTV = initial_network(study), synthetic_rows(records_data(study), 9)
    parameters = {path: p for path, p in network.named_parameters() if p.requires_grad}
    if name == "gru":
        return network, parameters, mean_over_hours, rows_NTV, 1
    heads = {path.removeprefix("head."): p for path, p in parameters.items()}
    return network.head, heads, loss_per_row, network.features(rows_NTV), 1
