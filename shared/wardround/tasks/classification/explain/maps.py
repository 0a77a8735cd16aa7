"""Maps of what in an image raises or lowers the score of a label, in pixels of the image.

- The *evidence map* is Grad-CAM (Selvaraju et al. 2017) where the network reads the mean of its maps alone. The phantom
  encoder also reads their maximum near the centre, and the seed CNN has a dense layer; there Grad-CAM, which averages
  gradients over the map, would credit places that the network does not read. Their map is gradient times activation
  (HiResCAM, Draelos and Carin 2020), which equals Grad-CAM for a mean. Both keep their sign: positive raises the
  score, negative lowers it. Without the sign, the encoder's map would show where the layer responds at all, and would
  hardly change with random weights (docs/benchmarks.md, "Explanations").
- The *occlusion map* (Zeiler and Fergus 2014) hides one square after the other with the grey value of lung, and shows
  by how much the score falls. It uses no gradient and runs the whole network.

Both are computed by Captum. The maps of the eight views of the phantom encoder are turned back to the image's
orientation and averaged. Shapes: N images, C channels, H rows, W columns, h, w cells of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, Occlusion
from torch import Tensor, nn
from torch.nn import functional

from wardround.networks.preprocessing import darker_class_mean
from wardround.tasks.classification.explain.targets import Target, from_views, target_of

WINDOWS_A_SIDE = 8  # a hidden square has an eighth of the side of what the network reads, and moves by half of its own
AT_ONCE = 4  # hidden squares in one pass, which bounds memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """The two maps of one image, float32 (H, W), in units of the score per cell or square.

    `evidence_HW` is positive where the image raises the score and negative where it lowers it. `occlusion_HW` is
    positive where hiding lowers the score and negative where it raises it. `reads_px` is the side of the middle square
    outside which both are zero, because the network does not read it; None: the network reads the whole image.
    `prefer_occlusion` is whether the evidence maps of this kind of network did not point at nodules reliably in the
    tests on phantoms (docs/benchmarks.md, "Explanations"), or were not tested.
    """

    evidence_HW: np.ndarray
    occlusion_HW: np.ndarray
    reads_px: int | None = None
    prefer_occlusion: bool = False


def maps_of(network: nn.Module, image_CHW: np.ndarray, label: int) -> Maps:
    """Return both maps of one image, uint8 (C, H, W), for the score of `label`.

    Raises `ModelError` for a network that is not a classifier.
    """
    images_NCHW, target = torch.from_numpy(np.array(image_CHW[None])), target_of(network)
    return Maps(
        evidence_HW=evidence_maps(network, images_NCHW, label)[0].numpy(),
        occlusion_HW=occlusion_maps(network, images_NCHW, label)[0].numpy(),
        reads_px=target.reads_px,
        prefer_occlusion=not target.by_view,
    )


def evidence_maps(network: nn.Module, images_NCHW: Tensor, label: int) -> Tensor:
    """Return what raises (positive) or lowers the score of `label`, float32 (N, H, W), from grey values 0..255.

    Raises `ModelError` for a network that is not a classifier.
    """
    network.eval()
    target = target_of(network)
    prepared = target.prepare(images_NCHW).detach()

    def score(prepared_NCHW: Tensor) -> Tensor:
        return target.score(prepared_NCHW, label)

    with torch.enable_grad():
        if target.pools_mean:
            found = LayerGradCam(score, target.layer).attribute(prepared)
        else:
            found = LayerGradientXActivation(score, target.layer).attribute(prepared).sum(1, keepdim=True)
    cells_N1hw = found.detach()
    side = target.reads_px or images_NCHW.shape[-1]
    pixels_NHW = functional.interpolate(cells_N1hw, (side, side), mode="bilinear", align_corners=False)[:, 0]
    if target.by_view:
        pixels_NHW = from_views(pixels_NHW)
    return _in_image(_smooth(pixels_NHW, side / cells_N1hw.shape[-1] * target.blur_cells), images_NCHW)


@torch.no_grad()
def occlusion_maps(network: nn.Module, images_NCHW: Tensor, label: int) -> Tensor:
    """Return by how much hiding lowers the score of `label`, float32 (N, H, W). Images are grey values 0..255.

    Raises `ModelError` for a network that is not a classifier.
    """
    network.eval()
    target = target_of(network)
    read_NCHW = _middle(images_NCHW, target).float()
    window = max(2, read_NCHW.shape[-1] // WINDOWS_A_SIDE)

    def score(hidden_NCHW: Tensor) -> Tensor:
        return target.score(target.prepare(hidden_NCHW), label)

    lung_NC11 = darker_class_mean(read_NCHW)
    maps_NCHW = Occlusion(score).attribute(
        read_NCHW,
        sliding_window_shapes=(read_NCHW.shape[1], window, window),
        strides=(read_NCHW.shape[1], window // 2, window // 2),
        baselines=lung_NC11.expand_as(read_NCHW),
        perturbations_per_eval=AT_ONCE,
    )
    return _in_image(_smooth(maps_NCHW[:, 0].float(), window / 4), images_NCHW)


def _middle(images_NCHW: Tensor, target: Target) -> Tensor:
    side = images_NCHW.shape[-1]
    if target.reads_px is None or side <= target.reads_px:
        return images_NCHW
    first = (side - target.reads_px) // 2
    return images_NCHW[..., first : first + target.reads_px, first : first + target.reads_px]


def _in_image(maps_Nhw: Tensor, images_NCHW: Tensor) -> Tensor:
    """Place maps of the middle of the images into the images, zero outside; cut what extends beyond small images."""
    height, width = images_NCHW.shape[-2:]
    side = maps_Nhw.shape[-1]
    top, left = (height - side) // 2, (width - side) // 2
    return functional.pad(maps_Nhw, (left, width - side - left, top, height - side - top))


def _smooth(maps_NHW: Tensor, deviation_px: float) -> Tensor:
    """Apply a Gaussian blur, so that the border between two cells does not show as an edge of the image."""
    reach = int(3 * deviation_px) + 1
    taps = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / 2 / deviation_px**2)
    taps = taps / taps.sum()
    padded = functional.pad(maps_NHW[:, None], (reach,) * 4, mode="replicate")
    blurred = functional.conv2d(functional.conv2d(padded, taps[None, None, None]), taps[None, None, :, None])
    return blurred[:, 0]
