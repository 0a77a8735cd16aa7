"""How far an image is from crops of nodules: the score by which `predict` refuses images unlike the training data.

The score combines two facts about the features of a small network that was trained on generated pictures alone, to
tell crops of nodules from everything else: the Mahalanobis distance of the features from those of phantoms (Lee et al.
2018), and the network's logit. No patient's image is in it, so it costs no privacy, and it says nothing about the
patients of a study: it knows what the public phantoms look like.

It applies to studies of marked regions on CT (`applies_to`). For other studies there is no such public reference.

Shapes: N images, C channels, H rows, W columns, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped
from wardround.networks.preprocessing import CentreCrop, DihedralViews, OtsuNormalise
from wardround.sources.images.study import image_data
from wardround.study.load import Study

CROP_PX = 64
WIDTHS = (24, 48, 96)
GROUPS = 8
FEATURES = 2 * WIDTHS[-1]
LOGIT_WEIGHT = 0.4  # of a logit, in deviations of the distance: docs/benchmarks.md, "Images unlike the training data"
RIDGE = 1e-3  # of the mean variance of the features, added to each, so that the covariance can be inverted
SHIPPED_FILE = "familiarity.safetensors"
THRESHOLD = "threshold"


class Block(nn.Module):
    """Two 3 x 3 convolutions that halve height and width, with a shortcut connection."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
        )
        self.around = nn.Conv2d(before, width, 1, stride=2, bias=False)

    def forward(self, maps_NCHW: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, width, H / 2, W / 2)."""
        return torch.relu(self.body(maps_NCHW) + self.around(maps_NCHW))


class NoduleDetector(nn.Module):
    """Tells crops with a nodule in the middle from other pictures: about 160,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.crop, self.normalise = CentreCrop(CROP_PX), OtsuNormalise()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTHS[0], 5, stride=2, padding=2, bias=False), nn.GroupNorm(GROUPS, WIDTHS[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(WIDTHS[0], WIDTHS[1]), Block(WIDTHS[1], WIDTHS[2]))
        self.head = nn.Linear(FEATURES, 1)

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float, any H and W -> normalised (N, 1, 64, 64)."""
        return self.normalise(self.crop(images_NCHW)).mean(1, keepdim=True)

    def features(self, prepared_N1HW: Tensor) -> Tensor:
        """Prepared images -> (N, D): the largest response near the middle, and the mean response."""
        maps = self.blocks(self.stem(prepared_N1HW))
        return torch.cat([maps[:, :, 2:6, 2:6].amax((2, 3)), maps.mean((2, 3))], 1)


class Familiarity(nn.Module):
    """The distance of images from what the public phantoms look like; larger means less alike."""

    mean_D: Tensor
    precision_DD: Tensor

    def __init__(self, detector: NoduleDetector | None = None) -> None:
        super().__init__()
        self.detector = detector or NoduleDetector()
        self.views = DihedralViews()
        self.register_buffer("mean_D", torch.zeros(FEATURES))
        self.register_buffer("precision_DD", torch.eye(FEATURES))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float -> distances, float32 (N,)."""
        features_ND = self.features(images_NCHW)
        away_ND = features_ND - self.mean_D
        squared_N = ((away_ND @ self.precision_DD) * away_ND).sum(1).clamp(min=0) / FEATURES
        return squared_N.sqrt() - LOGIT_WEIGHT * self.detector.head(features_ND)[:, 0]

    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> features (N, D), averaged over eight flips and turns."""
        views = self.views(self.detector.prepare(images_NCHW))
        return DihedralViews.average(self.detector.features(views))

    @torch.no_grad()
    def fit(self, features_ND: Tensor) -> None:
        """Set mean and precision from the features of phantoms."""
        features_ND = features_ND.double()
        covariance_DD = torch.cov(features_ND.T)
        covariance_DD += RIDGE * covariance_DD.diagonal().mean() * torch.eye(FEATURES, dtype=torch.float64)
        self.mean_D.copy_(features_ND.mean(0).float())
        self.precision_DD.copy_(torch.linalg.inv(covariance_DD).float())


def applies_to(study: Study) -> bool:
    """Return whether the images of a study are what the public reference shows: marked regions on CT, in grey."""
    return (
        image_data(study).modality == "CT"
        and image_data(study).region == "marked"
        and image_data(study).channels == "grey"
    )


class NotJudged(nn.Module):
    """Stands in for `Familiarity` where there is no reference: every image has the distance 0."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Images (N, C, H, W) -> zeros, float32 (N,)."""
        return images_NCHW[:, 0, 0, 0].float() * 0.0


def familiarity_of(study: Study) -> tuple[nn.Module, float]:
    """Return the module that gives an image's distance, and the largest distance of a familiar image.

    Where there is no reference (`applies_to`), every image has the distance 0 and is familiar.
    """
    return load_familiarity() if applies_to(study) else (NotJudged(), 0.0)


def load_familiarity(path: str | None = None) -> tuple[Familiarity, float]:
    """Load the shipped network, or that of another file; return it with the largest distance of a familiar image.

    Raises `ModelError` if the file is missing, altered, or of another version.
    """
    stored = read_shipped("wardround.tasks.classification", SHIPPED_FILE, path)
    network = Familiarity()
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in stored.tensors.items()} != wanted:
        raise ModelError(f"{stored.name}: not a familiarity network of this version; pretrain again")
    stored.check_hash()
    network.load_state_dict(stored.tensors, strict=True)
    try:
        return network.eval(), float(stored.metadata[THRESHOLD])
    except (KeyError, ValueError):
        raise ModelError(f"{stored.name}: states no threshold; pretrain again") from None
