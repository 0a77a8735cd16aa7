"""The score of a classifier that is explained, and the layer that its map is taken from, for every network.

The score is the logit of one label. For two labels, the logit of the first is minus that of the second. Two parts of a
network are changed for an explanation, and only there: a `PhantomHead` limits its first feature to +-1.5, beyond which
no pixel would matter, so the limit is lifted; and its frozen features pass gradients.

Shapes: N images, C channels, H rows, W columns, V views of an image, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.densenet import LAYERS_PER_BLOCK, DenseNet121
from wardround.networks.phantom_encoder import CROP_PX, LARGEST_ROW_NORM, LOGIT_SCALE, PhantomEncoder
from wardround.networks.preprocessing import VIEWS, DihedralViews
from wardround.networks.public_head import PhantomHead, PhantomNetwork
from wardround.networks.resnet import BLOCKS_PER_STAGE, ResNet
from wardround.networks.seed_cnn import SeedCNN

MAPS_OF_RESNET = 2 * BLOCKS_PER_STAGE - 1  # the end of stage 2, where a cell is 8 x 8 pixels; in the last it is 32 x 32
# The end of the second block, where a cell is 8 x 8 pixels; the layer between the blocks counts.
MAPS_OF_DENSENET = LAYERS_PER_BLOCK[0] + LAYERS_PER_BLOCK[1]
MAPS_OF_SEED_CNN = 4  # the second convolution with its ReLU


@dataclass(frozen=True, kw_only=True)
class Target:
    """How to explain one network.

    `prepare` turns grey values (N, C, H, W) into what `logits` reads; `logits` returns (N, K). The output of `layer`
    is (N, D, h, w), or (V N, D, h, w) if `by_view`. `pools_mean` is whether the network uses the mean of its maps
    alone. `reads_px` is the side of the middle square that the network reads; None: the whole image. `blur_cells` is
    the deviation of the blur of the map, in cells of the layer (docs/benchmarks.md, "Explanations").
    """

    prepare: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    layer: nn.Module
    by_view: bool = False
    pools_mean: bool = True
    reads_px: int | None = None
    blur_cells: float = 0.25

    def score(self, prepared_NCHW: Tensor, label: int) -> Tensor:
        """Return the logit of a label, (N,)."""
        return label_score(self.logits(prepared_NCHW), label)


def label_score(logits_NK: Tensor, label: int) -> Tensor:
    """Return the score of a label, (N,): its logit; with one output, the logit or minus the logit."""
    if logits_NK.shape[1] == 1:
        return logits_NK[:, 0] if label else -logits_NK[:, 0]
    return logits_NK[:, label]


def target_of(network: nn.Module) -> Target:
    """Return how to explain a network in evaluation mode. Raises `ModelError` if it is not a classifier."""
    if isinstance(network, PhantomHead):
        public, head = network.public, network.head

        def of_features(pooled_ND: Tensor) -> Tensor:
            first_N1 = public.encoder.head(pooled_ND) / LOGIT_SCALE
            components_NC = public.standardise(pooled_ND) @ public.projection_DC
            norm_N1 = components_NC.norm(dim=1, keepdim=True).clamp(min=1e-12)
            limited_NC = components_NC * (LARGEST_ROW_NORM / norm_N1).clamp(max=1)
            return head(torch.cat([first_N1, limited_NC], 1))

        return _target_of_encoder(public.encoder, of_features)
    if isinstance(network, PhantomNetwork):
        return _target_of_encoder(network, network.head)
    if isinstance(network, ResNet):
        return Target(prepare=Tensor.float, logits=network, layer=network.blocks[MAPS_OF_RESNET])
    if isinstance(network, DenseNet121):
        return Target(prepare=Tensor.float, logits=network, layer=network.trunk[MAPS_OF_DENSENET])
    if isinstance(network, SeedCNN):
        layer = network.trunk[MAPS_OF_SEED_CNN]
        return Target(prepare=Tensor.float, logits=network, layer=layer, pools_mean=False)
    raise ModelError(f"{type(network).__name__}: there are no explanations for this network")


def _target_of_encoder(encoder: PhantomEncoder, of_pooled: Callable[[Tensor], Tensor]) -> Target:
    views = DihedralViews()

    def logits(prepared_N1HW: Tensor) -> Tensor:
        return of_pooled(DihedralViews.average(encoder.pool(views(prepared_N1HW))))

    return Target(
        prepare=encoder.prepare,
        logits=logits,
        layer=encoder.trunk,
        by_view=True,
        pools_mean=False,
        reads_px=CROP_PX,
        blur_cells=0.5,
    )


def from_views(maps_VNhw: Tensor) -> Tensor:
    """Turn the maps of the eight views back to the image's orientation and average them: (V N, h, w) -> (N, h, w).

    This reverses `DihedralViews`, whose views are quarter turns, each followed by its mirror image.
    """
    views = maps_VNhw.reshape(VIEWS, -1, *maps_VNhw.shape[1:])
    returned = []
    for number in range(VIEWS):
        view = views[number].flip(2) if number % 2 else views[number]
        for _ in range(number // 2):
            view = view.flip(1).transpose(1, 2)
        returned.append(view)
    return torch.stack(returned).mean(0)
