"""Networks with synthetic images, ready for a clipping engine."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from wardround.networks.build import build_model
from wardround.sources.images.study import ImageData
from wardround.study.schema import ModelSection
from wardround.tasks.labelled.objective import loss_per_image
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights, loss_of_image
from wardround.tasks.reconstruction.study import ReconstructionSection
from wardround.tasks.synthesis.dcgan import Discriminator, hinge_of_real
from wardround.tasks.synthesis.sampler_objective import loss_of
from wardround_client.clipping.engines import LossPerImage

Case = tuple[nn.Module, dict[str, nn.Parameter], LossPerImage, Tensor, int]
PHANTOM_ONLY = ("phantom-sampler", "restorer")


@functools.cache
def hostile_case(name: str) -> Case:
    """Return the case `NETWORK TRAINABLE`.

    Returns:
        The network, the parameters that train, the loss per image, 9 synthetic inputs and the number of outputs. Inputs
        are images (N, C, 32, 32), (N, 1, 64, 64) for the discriminator, or features (N, 33) for the sampler.
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
    return network, parameters, loss_per_image, images_N, network.head.out_features
