"""Number of images per forward pass, as large as speeds training up and the machine's memory allows.

The number determines how each image is rounded, so it must not depend on the patients (see `engines.py`). It is
computed from the machine's total memory, never from the free memory, which the cached files of a larger cohort would
lower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wardround.processes.memory import machine_memory_bytes
from wardround_client.privacy.plan import PrivacyPlan

MOST_IMAGES = {"cpu": 64, "cuda": 256}  # larger numbers were not faster
SHARE_OF_MEMORY = 0.25  # leaves room for other sites of a simulation and for memory that the estimate misses
COPIES = 3  # an activation, its gradient, and a layer's working memory for both
UNIT_GRADIENT_COPIES = 2
BATCH_OF_PASSES = 4


def images_at_once(network: nn.Module, parameters: dict[str, nn.Parameter], images_NCHW: Tensor) -> int:
    """Return the number of images in one pass: a power of two, at least 1.

    It is computed from the machine's memory and the memory that one image needs.
    """
    device = images_NCHW.device
    most = MOST_IMAGES.get(device.type, MOST_IMAGES["cpu"])
    fitting = SHARE_OF_MEMORY * memory_bytes(device) / bytes_per_image(network, parameters, images_NCHW)
    return max(1, min(most, 1 << int(math.log2(max(1.0, fitting)))))


def images_per_batch(plan: PrivacyPlan, most: int) -> int:
    """Return the number of images that are handed to an engine together.

    An engine takes at most `most` of them in one pass. Plain training (C = inf) takes all of them.
    """
    return most if math.isinf(plan.max_grad_norm) else BATCH_OF_PASSES * most


def bytes_per_image(network: nn.Module, parameters: dict[str, nn.Parameter], images_NCHW: Tensor) -> float:
    """Return the memory that one image needs, in bytes, measured in a forward pass over two of `images_NCHW`.

    It counts the tensors that autograd keeps or, if that is more (frozen layers keep nothing), the outputs of all
    layers, plus a gradient for each image, as if every image were a patient of its own.
    """
    kept: dict[int, int] = {}
    given: list[int] = []
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def note(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given.append(output.numel() * output.element_size())

    images = images_NCHW[:2]
    layers = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(images)  # kept alive, so that no memory address is used twice
    finally:
        for hook in hooks:
            hook.remove()
    del outputs
    unit_gradient = sum(4 * parameter.numel() for parameter in parameters.values())
    return (
        COPIES * max(sum(kept.values()), sum(given)) / len(images)
        + UNIT_GRADIENT_COPIES * unit_gradient
        + images[0].numel()
    )


def memory_bytes(device: torch.device) -> int:
    """Return the memory of a GPU or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_memory_bytes()
