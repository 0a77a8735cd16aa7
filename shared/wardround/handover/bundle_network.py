"""The ONNX file as a torch module, and a table of its predictions. `bundle.py` copies this file into each MONAI bundle.

It therefore imports nothing of Wardround. Shapes: N images, C channels, H rows, W columns, K logits.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn


class OnnxNetwork(nn.Module):
    """Runs model.onnx. It has no parameters that torch could train or move to another device."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Images (N, C, H, W), grey values 0..255 -> (N, K + 1): the logits, and the distance as the last column."""
        images = np.ascontiguousarray(images_NCHW.float().round().clamp(0, 255).byte().cpu().numpy())
        logits_NK, distance_N = self.session.run(["logits", "distance"], {"images": images})
        return torch.from_numpy(np.concatenate([logits_NK, distance_N[:, None]], axis=1)).to(images_NCHW.device)


def read_array(path: str) -> np.ndarray:
    """Read an image (C, H, W), uint8, from a file of numpy. A file with pickled objects is refused."""
    return np.load(path, allow_pickle=False)


def predict(
    batches: Iterable[Mapping[str, Any]],
    inferer: Callable[..., Tensor],
    network: nn.Module,
    columns: list[str],
    path: str,
) -> None:
    """Write a CSV file with one row for each image: its file, the logits and the distance.

    Args:
        batches: Of `image`, (N, C, H, W), and `path`, N texts.
        inferer: Called with images and network.
        network: Returns (N, K + 1), as `OnnxNetwork` does.
        columns: The K + 1 names of the columns of figures.
        path: The CSV file to write.
    """
    with open(path, "w", newline="", encoding="utf-8") as file, torch.no_grad():
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        for batch in batches:
            found = inferer(batch["image"], network).tolist()
            writer.writerows([name, *row] for name, row in zip(batch["path"], found, strict=True))
