"""How many images go through the network at once: as many as help, and no more than the machine's memory holds.

The number decides how each image is rounded, so it must not depend on the patients (see `engines.py`): it comes from
the memory that the machine has, never from what is free, which the cached files of a larger cohort would lower.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from wardround_client.privacy.plan import PrivacyPlan

MOST_IMAGES = {"cpu": 64, "cuda": 256}  # more was not faster
SHARE_OF_MEMORY = 0.25  # other sites of a simulation, and what the estimate does not see
COPIES = 3  # an activation, its gradient, and a layer's work on both
UNIT_GRADIENT_COPIES = 2
BATCH_OF_PASSES = 4


def images_at_once(network: nn.Module, parameters: dict[str, nn.Parameter], images_NCHW: Tensor) -> int:
    """Images in one pass, 1 or more: a power of two, from the machine's memory and what one image needs."""
    device = images_NCHW.device
    most = MOST_IMAGES.get(device.type, MOST_IMAGES["cpu"])
    fitting = SHARE_OF_MEMORY * memory_bytes(device) / bytes_per_image(network, parameters, images_NCHW)
    return max(1, min(most, 1 << int(math.log2(max(1.0, fitting)))))


def images_per_batch(plan: PrivacyPlan, most: int) -> int:
    """Images that are handed to an engine together, of which it takes `most` in one pass or less. Plain training, for
    C = inf, takes all of them.
    """
    return most if math.isinf(plan.max_grad_norm) else BATCH_OF_PASSES * most


def bytes_per_image(network: nn.Module, parameters: dict[str, nn.Parameter], images_NCHW: Tensor) -> float:
    """Measured in a forward pass over two of `images_NCHW`: what autograd keeps, or where that is less (frozen layers
    keep nothing) what all layers give; and a gradient for each of them, as if every image were a patient of its own.
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
            outputs = network(images)  # held, so that no address comes twice
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
    """The memory of a GPU, or of the machine: what its kernel counts, or its control group allows."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [_total(), _control_group_limit()]
    return min((value for value in found if value is not None), default=1 << 30)


def _total(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")), None)


def _control_group_limit(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Control group v2; None where there is none, or no limit."""
    try:
        most = (folder / "memory.max").read_text().strip()
        return None if most == "max" else int(most)
    except (OSError, ValueError):
        return None
