"""What the public phantom encoder measures of a nodule, by name, and each measurement's share of a linear score.

The seven named outputs are linear read-outs of the encoder's 128 pooled features, fitted to the known attributes of
phantoms (`wardround-sim pretrain --network named-outputs`). No patient's image is in them. How well each one works on
fresh phantoms is in the shipped file (`Readouts.accuracy`); on patients it has not been measured.

The score of a `PhantomHead` is divided exactly: its mean over phantoms, a share for each named output, and a
remainder. A share is the output's distance from its mean over phantoms times a coefficient; the coefficients are those
of the least-squares regression of the score on the named outputs over phantoms. The remainder is what the head uses
that these outputs do not name, and what the limits of the public features cut off; over phantoms it is not correlated
with any of them.

Shapes: N images, D pooled features, F public features, K named outputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped, tensors_sha256
from wardround.networks.phantom_encoder import POOLED, PUBLIC_FEATURES, PublicFeatures, load_phantom_encoder
from wardround.networks.public_head import PhantomHead
from wardround.tasks.classification.explain.targets import label_score

SHIPPED_FILE = "named_outputs.safetensors"
PACKAGE = "wardround.tasks.classification.explain"
LOG_PIXELS_OFFSET = 2.4  # `log_pixels` of the phantoms is log(diameter / pixel size) - 2.4
LOBULATION_SCALE = 5.0  # `lobulation` of the phantoms is five times the deviation of the outline from an ellipse

Kind = Literal["diameter", "probability", "amount", "share"]


@dataclass(frozen=True, kw_only=True)
class Output:
    """One named output: the phantoms' attribute (`phantoms.crops.CONCEPTS`), how it is called, and what it is."""

    concept: str
    title: str
    kind: Kind

    @property
    def is_probability(self) -> bool:
        """Whether the read-out is the logit of a yes-or-no attribute."""
        return self.kind == "probability"


OUTPUTS = (
    Output(concept="log_pixels", title="Diameter", kind="diameter"),
    Output(concept="spiculation", title="Spiculation", kind="probability"),
    Output(concept="lobulation", title="Lobulation", kind="amount"),
    Output(concept="solid", title="Solid", kind="probability"),
    Output(concept="calcified", title="Calcification", kind="probability"),
    Output(concept="wall_contact", title="Wall contact", kind="share"),
    Output(concept="vessel_contact", title="Vessel contact", kind="probability"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Readouts:
    """The read-outs with the public features that they read.

    `weight_KD` and `bias_K` act on the standardised pooled features. `mean_K` is the mean of the outputs over phantoms
    and `mean_F` that of the public features. `coefficients_KF` are the regression coefficients of each public feature
    on the outputs; `covariance_FF` is the features' covariance and `explained_FF` the part that the outputs explain.
    `accuracy` is R2, or AUC for a probability, by concept, on phantoms that the fit did not see.
    """

    public: PublicFeatures
    weight_KD: Tensor
    bias_K: Tensor
    mean_K: Tensor
    mean_F: Tensor
    coefficients_KF: Tensor
    covariance_FF: Tensor
    explained_FF: Tensor
    accuracy: dict[str, float]

    @torch.no_grad()
    def raw(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> outputs (N, K): a logit for a probability, else the measure itself."""
        standard_ND = self.public.standardise(self.public.pooled(images_NCHW))
        return standard_ND @ self.weight_KD.T + self.bias_K


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of one named output in the score, in units of the score."""

    output: Output
    value: float


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """An exact division of a score: `score` = `start` + the sum of `shares` + `remainder`.

    `start` is the score's mean over phantoms. `explained` is the part of the score's variance over phantoms that the
    named outputs explain, 0 to 1.
    """

    score: float
    start: float
    shares: tuple[Share, ...]
    remainder: float
    explained: float


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of the shipped file."""
    outputs = len(OUTPUTS)
    return {
        "weight_KD": (outputs, POOLED),
        "bias_K": (outputs,),
        "mean_K": (outputs,),
        "mean_F": (PUBLIC_FEATURES,),
        "coefficients_KF": (outputs, PUBLIC_FEATURES),
        "covariance_FF": (PUBLIC_FEATURES, PUBLIC_FEATURES),
        "explained_FF": (PUBLIC_FEATURES, PUBLIC_FEATURES),
    }


def load_readouts(path: str | None = None) -> Readouts:
    """Load the shipped read-outs, or those of another file.

    Raises `ModelError` if the file is missing, altered, of another version, or fitted to another encoder.
    """
    stored = read_shipped(PACKAGE, SHIPPED_FILE, path)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in stored.tensors.items()}
    if found != {name: (shape, torch.float32) for name, shape in tensor_shapes().items()}:
        raise ModelError(f"{stored.name}: not the named outputs of this version; pretrain again")
    stored.check_hash()
    _, public = load_phantom_encoder()
    if stored.metadata.get("encoder_sha256") != tensors_sha256(public.state_dict()):
        raise ModelError(f"{stored.name}: fitted to another phantom encoder; pretrain again")
    try:
        accuracy = {
            output.concept: float(json.loads(stored.metadata["accuracy"])[output.concept]) for output in OUTPUTS
        }
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{stored.name}: states no accuracy; pretrain again") from None
    return Readouts(public=public, accuracy=accuracy, **stored.tensors)


def measures(raw_NK: Tensor, spacing_mm: float | None) -> Tensor:
    """Outputs (N, K) in units of a reader: diameter in mm, probabilities and amounts 0..1.

    The diameter is in pixels if the pixel size is unknown. Lobulation is the deviation of the outline from an ellipse
    relative to the radius, and wall contact is the share of wall in the middle 32 x 32 pixels.
    """
    columns = []
    for output, values_N in zip(OUTPUTS, raw_NK.T, strict=True):
        if output.kind == "diameter":
            columns.append((values_N + LOG_PIXELS_OFFSET).exp() * (spacing_mm or 1.0))
        elif output.is_probability:
            columns.append(values_N.sigmoid())
        elif output.kind == "amount":
            columns.append((values_N / LOBULATION_SCALE).clamp(0, 1))
        else:
            columns.append(values_N.clamp(0, 1))
    return torch.stack(columns, 1)


def measure_text(output: Output, value: float, spacing_mm: float | None) -> str:
    """Return a measure with its unit, for example `8.4 mm` or `73 %`."""
    if output.kind == "diameter":
        return f"{value:.1f} mm" if spacing_mm else f"{value:.0f} pixels"
    return f"{value:.0%}".replace("%", " %")


@torch.no_grad()
def decompose(readouts: Readouts, network: PhantomHead, image_CHW: Tensor, label: int) -> Decomposition | None:
    """Divide the score of `label` for one image, grey values (C, H, W), into shares of the named outputs.

    None if the network reads other public features than the read-outs.
    """
    if tensors_sha256(network.public.state_dict()) != tensors_sha256(readouts.public.state_dict()):
        return None
    logits_1K = network(image_CHW[None])
    if logits_1K.shape[1] == 1:
        weight_F, bias = network.head.weight[0], network.head.bias[0]
        weight_F, bias = (weight_F, bias) if label else (-weight_F, -bias)
    else:
        weight_F, bias = network.head.weight[label], network.head.bias[label]
    score = float(label_score(logits_1K, label)[0])
    away_K = readouts.raw(image_CHW[None])[0] - readouts.mean_K
    shares_K = (readouts.coefficients_KF @ weight_F) * away_K
    start = float(weight_F @ readouts.mean_F + bias)
    variance = float(weight_F @ readouts.covariance_FF @ weight_F)
    return Decomposition(
        score=score,
        start=start,
        shares=tuple(Share(output=output, value=float(value)) for output, value in zip(OUTPUTS, shares_K, strict=True)),
        remainder=score - start - float(shares_K.double().sum()),
        explained=float(weight_F @ readouts.explained_FF @ weight_F) / variance if variance > 0 else 0.0,
    )
