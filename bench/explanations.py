"""Measure where the maps of a classifier point on phantoms, and how they change with random weights.

    ./run bench explanations [--phantoms 600] [--occluded 200] [--training 12000] [--networks 3] [--markdown]

The pointing game counts images whose map is largest on the nodule. An image's middle pixel is on the nodule in many
phantoms, so the nodules are also moved away from the middle, and the middle pixel is counted beside the maps. The
encoder with its head is the one that ships; the small ResNet is trained here, on other phantoms, from several
seeds for some minutes each, because its maps differ between trainings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from measure import Sheet, arguments_of, machine, tell
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional

from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.public_head import PhantomHead, phantom_network
from wardround.networks.resnet import SMALL_WIDTHS, ResNet
from wardround.phantoms.masked import MaskedCrops, generate_masked_crops
from wardround.tasks.classification.explain.maps import evidence_maps, occlusion_maps
from wardround.tasks.classification.explain.named_outputs import OUTPUTS, load_readouts
from wardround.tasks.classification.explain.sanity import likeness, points_at, randomised

LABELS = ("benign", "malignant")
TEST_SEED, TRAINING_SEED = 2_031, 11
RESNET_PX, RESNET_SHIFT_PX = 64, 9.6
BATCH, EPOCHS, PEAK_LEARNING_RATE = 32, 5, 3e-3
COMPARED, RANDOM_NETWORKS = 40, 5


def trained_resnet(count: int, seed: int) -> nn.Module:
    """Train resnet-small from random weights on phantoms whose nodules are anywhere near the middle."""
    phantoms = generate_masked_crops(count, TRAINING_SEED, RESNET_PX, RESNET_SHIFT_PX)
    torch.manual_seed(seed)
    network = ResNet(1, SMALL_WIDTHS, 1)
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * (count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(count)[: count // BATCH * BATCH].split(BATCH):
            images_NCHW = phantoms.images_NHW[rows, None]
            images_NCHW = images_NCHW.flip(3) if torch.rand(()) < 0.5 else images_NCHW
            images_NCHW = images_NCHW.transpose(2, 3) if torch.rand(()) < 0.5 else images_NCHW
            logits_N = network(images_NCHW)[:, 0]
            loss = functional.binary_cross_entropy_with_logits(logits_N, phantoms.labels_N[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def logits_of(network: nn.Module, images_NCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(chunk)[:, 0] for chunk in images_NCHW.split(50)])


def shares(hits_N: Tensor, phantoms: MaskedCrops, logits_N: Tensor) -> dict[str, tuple[int, int]]:
    """Return hits and images: of those that the model calls malignant, of malignant phantoms, and of all."""
    groups = {"called malignant": logits_N > 0, "malignant": phantoms.labels_N == 1, "all": torch.ones_like(hits_N)}
    return {name: (int(hits_N[rows].sum()), int(rows.sum())) for name, rows in groups.items()}


def pointing(network: nn.Module, phantoms: MaskedCrops, occluded: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the shares by map, and those of the middle pixel."""
    images_NCHW, masks_NHW = phantoms.images_NHW[:, None], phantoms.masks_NHW
    logits_N, middle = logits_of(network, images_NCHW), masks_NHW.shape[1] // 2
    found = torch.cat([evidence_maps(network, chunk, 1) for chunk in images_NCHW.split(50)])
    few = MaskedCrops(
        images_NHW=phantoms.images_NHW[:occluded],
        labels_N=phantoms.labels_N[:occluded],
        masks_NHW=masks_NHW[:occluded],
    )
    hidden = torch.cat([occlusion_maps(network, chunk, 1) for chunk in few.images_NHW[:, None].split(10)])
    return {
        "middle pixel": shares(masks_NHW[:, middle, middle], phantoms, logits_N),
        "evidence": shares(points_at(found, masks_NHW), phantoms, logits_N),
        "occlusion": shares(points_at(hidden, few.masks_NHW), few, logits_N[:occluded]),
    }


def with_random_weights(network: nn.Module, phantoms: MaskedCrops) -> dict[str, dict[str, float]]:
    """Return the mean likeness of each map with that of random networks, on images that are called malignant."""
    images_NCHW = phantoms.images_NHW[:, None]
    rows = torch.nonzero(logits_of(network, images_NCHW) > 0)[:COMPARED, 0]
    kinds: dict[str, tuple[Callable[[nn.Module, Tensor, int], Tensor], Tensor]] = {
        "evidence": (evidence_maps, images_NCHW[rows]),
        "occlusion": (occlusion_maps, images_NCHW[rows[: COMPARED // 4]]),
    }
    out = {}
    for name, (map_of, images) in kinds.items():
        own = map_of(network, images, 1).numpy()
        alike = [
            likeness(one, other)
            for seed in range(RANDOM_NETWORKS)
            for one, other in zip(own, map_of(randomised(network, seed), images, 1).numpy(), strict=True)
        ]
        out[name] = {
            "rank_correlation": float(np.mean([one.rank_correlation for one in alike])),
            "structural_similarity": float(np.mean([one.structural_similarity for one in alike])),
        }
    return out


def share_text(hits: int, count: int) -> str:
    """Return a share with its 95 % interval (Wilson)."""
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return f"{hits / count:.3f} ({interval.low:.2f}–{interval.high:.2f})"


def measured(arguments: argparse.Namespace) -> dict[str, dict]:
    encoder, public = load_phantom_encoder()
    still, moved = (generate_masked_crops(arguments.phantoms, TEST_SEED, 128, shift) for shift in (0, 8))
    small = generate_masked_crops(arguments.phantoms, TEST_SEED, RESNET_PX, RESNET_SHIFT_PX)
    head = PhantomHead(public, LABELS).eval()
    resnets = [trained_resnet(arguments.training, seed) for seed in range(arguments.networks)]
    games = {
        "encoder + head, 128 px": (head, still),
        "encoder + head, 128 px, moved": (head, moved),
        "encoder, all weights, 128 px, moved": (phantom_network(encoder, LABELS).eval(), moved),
        **{f"resnet-small {number}, 64 px, moved": (one, small) for number, one in enumerate(resnets, 1)},
    }
    return {
        "pointing": {name: pointing(*game, arguments.occluded) for name, game in games.items()},
        "random": {
            "encoder + head": with_random_weights(head, moved),
            "resnet-small 1": with_random_weights(resnets[0], small),
        },
        "accuracy": [
            float(((logits_of(one, small.images_NHW[:, None]) > 0) == small.labels_N).float().mean()) for one in resnets
        ],
        "named_outputs": load_readouts().accuracy,
    }


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--phantoms", type=int, default=600)
    parser.add_argument("--occluded", type=int, default=200, help="of them, for the occlusion map, which takes longer")
    parser.add_argument("--training", type=int, default=12_000, help="phantoms to train the ResNet on")
    parser.add_argument("--networks", type=int, default=3, help="ResNets to train")
    arguments = parser.parse_args()
    found, document = machine(), measured(arguments)
    groups = ("called malignant", "malignant", "all")
    rows = [
        [f"{name}: {kind}", *(share_text(*parts[group]) for group in groups)]
        for name, kinds in document["pointing"].items()
        for kind, parts in kinds.items()
    ]
    random = [
        [f"{name}: {kind}", *(f"{value:.2f}" for value in parts.values())]
        for name, kinds in document["random"].items()
        for kind, parts in kinds.items()
    ]
    named = [
        [output.title, "AUC" if output.is_probability else "R²", f"{document['named_outputs'][output.concept]:.3f}"]
        for output in OUTPUTS
    ]
    sheets = [
        Sheet(
            title="Share of phantoms whose map is largest on the nodule (95 % interval)",
            columns=["map", *groups],
            rows=rows,
        ),
        Sheet(
            title="Likeness of a map with that of random weights",
            columns=["map", "rank correlation", "structural similarity"],
            rows=random,
        ),
        Sheet(title="Named outputs on 5,000 fresh phantoms", columns=["output", "measure", "value"], rows=named),
    ]
    tell(arguments, found, document, sheets)


if __name__ == "__main__":
    main()
