"""The phantom encoder: a small CNN pre-trained on phantoms, and the public features that it computes for an image.

Shapes: N images, C channels, H rows, W columns, D pooled features, K outputs. Everything in the shipped file, including
the statistics of the projection, comes from phantoms, so using it costs no privacy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped
from wardround.networks.preprocessing import CentreCrop, DihedralViews, OtsuNormalise

CROP_PX = 64
WIDTHS = (16, 32, 64)
GROUPS = 8
POOLED = 2 * WIDTHS[-1]
COMPONENTS = 32
WHITENING = 0.7
PUBLIC_FEATURES = 1 + COMPONENTS
LOGIT_SCALE = 2.0  # the first public feature is half the phantom logit, so a weight of 2 on it gives the phantom model
LARGEST_LOGIT_FEATURE = 1.5
LARGEST_DEVIATION = 5.0
LARGEST_ROW_NORM = 1.5
SHIPPED_FILE = "phantom_encoder.safetensors"


class PhantomEncoder(nn.Module):
    """A three-layer CNN over the middle 64 x 64 pixels, normalised per image.

    It has about 24,000 parameters, and is trainable as a whole or by its head only. It uses no batch statistics and no
    in-place activations: the output for an image depends only on that image, which per-patient clipping requires.
    """

    feature_dim = POOLED

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.crop = CentreCrop(CROP_PX)
        self.normalise = OtsuNormalise()
        layers: list[nn.Module] = []
        before = 1
        for index, width in enumerate(WIDTHS):
            kernel = 5 if index == 0 else 3
            layers += [
                nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.ReLU(),
            ]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(POOLED, outputs)

    def prepare(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float, any H and W -> normalised (N, 1, 64, 64).

        Each channel is normalised separately, then the channels are averaged.
        """
        return self.normalise(self.crop(images_NCHW)).mean(1, keepdim=True)

    def pool(self, prepared_N1HW: Tensor) -> Tensor:
        """Prepared images (N, 1, 64, 64) -> (N, D).

        The pooled features are the largest response near the centre, where the nodule is, and the mean response over
        the whole map.
        """
        maps_NDHW = self.trunk(prepared_N1HW)
        return torch.cat([maps_NDHW[:, :, 2:6, 2:6].amax((2, 3)), maps_NDHW.mean((2, 3))], 1)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> logits (N, K)."""
        return self.head(self.pool(self.prepare(images_NCHW)))


class PublicFeatures(nn.Module):
    """33 public features of an image: half the phantom logit, and 32 partly whitened principal components.

    The components are those of the pooled features, which are averaged over eight flips and turns. The absolute value
    of the logit feature and the row norm of the components are at most 1.5, so a patient's gradient is bounded before
    any clipping. A linear head that starts at `initial_head` is the phantom model. None of these parameters is trained.
    """

    mean_D: Tensor
    deviation_D: Tensor
    projection_DC: Tensor

    out_features = PUBLIC_FEATURES

    def __init__(self, encoder: PhantomEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.views = DihedralViews()
        self.register_buffer("mean_D", torch.zeros(POOLED))
        self.register_buffer("deviation_D", torch.ones(POOLED))
        self.register_buffer("projection_DC", torch.zeros(POOLED, COMPONENTS))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float -> features (N, 33)."""
        return self.of_pooled(self.pooled(images_NCHW))

    def of_pooled(self, pooled_ND: Tensor) -> Tensor:
        """Pooled features (N, 128) -> features (N, 33)."""
        logit_N1 = self.encoder.head(pooled_ND) / LOGIT_SCALE
        logit_N1 = logit_N1.clamp(-LARGEST_LOGIT_FEATURE, LARGEST_LOGIT_FEATURE)
        components_NC = self.standardise(pooled_ND) @ self.projection_DC
        norm_N1 = components_NC.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return torch.cat([logit_N1, components_NC * (LARGEST_ROW_NORM / norm_N1).clamp(max=1)], 1)

    def pooled(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> pooled features (N, D), averaged over the eight views."""
        views = self.views(self.encoder.prepare(images_NCHW))
        return DihedralViews.average(self.encoder.pool(views))

    def standardise(self, pooled_ND: Tensor) -> Tensor:
        """Pooled features (N, D) -> the same in standard deviations from their mean over phantoms, clamped to +-5."""
        return ((pooled_ND - self.mean_D) / self.deviation_D).clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION)

    @torch.no_grad()
    def fit_projection(self, pooled_ND: Tensor) -> None:
        """Set mean, deviation and projection from the pooled features of phantoms.

        The projection consists of principal components, each divided by its deviation to the power `WHITENING`, with
        one common scale that makes the mean squared row norm 1.
        """
        self.mean_D.copy_(pooled_ND.mean(0))
        self.deviation_D.copy_(pooled_ND.std(0) + 1e-6)
        standard = self.standardise(pooled_ND).double()
        _, singular, right = torch.linalg.svd(standard, full_matrices=False)
        deviations = (singular / len(standard) ** 0.5)[:COMPONENTS]
        projection = right[:COMPONENTS].T / deviations**WHITENING
        projection = projection * right[:COMPONENTS].T.sum(0).sign()  # fixes the sign of a component, which is free
        scale = (standard @ projection).square().sum(1).mean().sqrt()
        self.projection_DC.copy_((projection / scale).float())


def initial_head(outputs: int = 1) -> nn.Linear:
    """Return a linear head over the public features that starts as the phantom model.

    With one output, the score is the phantom logit for `malignant`, limited to +-3. With more outputs there is no
    phantom model of the classes, so all weights start at zero.
    """
    head = nn.Linear(PUBLIC_FEATURES, outputs)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        if outputs == 1:
            head.weight[0, 0] = LOGIT_SCALE
    return head


def _layout(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def load_phantom_encoder(path: str | None = None) -> tuple[PhantomEncoder, PublicFeatures]:
    """Load the shipped encoder as a trainable network and as frozen features, which share no tensor.

    `path` names another encoder file, as written by `wardround-sim pretrain`. Raises `ModelError` if the file is
    missing, altered, or of another architecture.
    """
    stored = read_shipped("wardround.networks", SHIPPED_FILE, path)
    frozen = PublicFeatures(PhantomEncoder())
    if _layout(stored.tensors) != _layout(frozen.state_dict()):
        raise ModelError(
            f"{stored.name}: not a phantom encoder of this version (names, shapes or types differ); pretrain again"
        )
    stored.check_hash()
    frozen.load_state_dict(stored.tensors, strict=True)
    trainable = PhantomEncoder()
    trainable.load_state_dict(frozen.encoder.state_dict(), strict=True)
    return trainable, frozen.eval()
