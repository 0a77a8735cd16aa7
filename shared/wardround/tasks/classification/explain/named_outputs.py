"""What the public encoder sees in a nodule, in words of radiology, and how much each of it contributes to the score.

The named outputs are linear read-outs of the encoder's pooled features. They are fitted to generated nodules, whose true
attributes are known, and tested on others; no patient is involved. A share is exact: the model's logit is regressed on
the named outputs over the same phantoms, a share is the coefficient times the output's distance from its mean, and the
remainder is what is left. So base, shares and remainder add up to the logit. The remainder is what the model uses
that has no name here; where it is large, the named shares explain little.

Shapes: N phantoms, H rows, W columns, D features, K named outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.metrics.ranking import auc
from wardround.networks.phantom_encoder import PublicFeatures, load_phantom_encoder
from wardround.networks.public_head import PhantomHead, PhantomNetwork
from wardround.phantoms.crops import CONCEPTS, generate_crops

SEED, FITTED, TESTED = 41, 1_500, 500  # phantoms; the seed differs from those of all pre-trainings
RIDGE = 3.0
AT_ONCE = 100
# Name for people, column of the phantoms' attributes, unit; a probability has no unit.
NAMED = (
    ("diameter", "log_diameter", "mm"),
    ("spiculation", "spiculation", ""),
    ("lobulation", "lobulation", ""),
    ("solidity", "solid", ""),
    ("calcification", "calcified", ""),
    ("contact with the chest wall", "wall_contact", ""),
    ("contact with a vessel", "vessel_contact", ""),
)
COLUMNS = [CONCEPTS.index(column) for _, column, _ in NAMED]


@dataclass(frozen=True, kw_only=True)
class NamedOutput:
    """One named output of an image.

    `value` is in `unit`, or from 0 to 1. `share` is its part of the logit. `reliability` is how well the read-out works
    on phantoms that it was not fitted to: R² for the diameter and lobulation, else the AUC (0.5 is a coin).
    """

    name: str
    value: float
    unit: str
    share: float
    reliability: float
    measure: str


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """The logit of one image as `base` + the shares of the named outputs + `remainder`."""

    logit: float
    base: float
    outputs: tuple[NamedOutput, ...]
    remainder: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicReference:
    """Generated nodules and what the encoder makes of them.

    `images_NHW` are uint8, `features_ND` standardised pooled features, `attributes_NK` the true attributes, of which
    the first `FITTED` rows are for fitting. `readout_DK` and `offset_K` give the named outputs.
    """

    public: PublicFeatures
    images_NHW: Tensor
    labels_N: np.ndarray
    features_ND: np.ndarray
    attributes_NK: np.ndarray
    readout_DK: np.ndarray
    offset_K: np.ndarray

    def outputs(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the named outputs of standardised features, (N, K), in the scale of the attributes."""
        return features_ND @ self.readout_DK + self.offset_K

    def features_of(self, images_NCHW: Tensor) -> np.ndarray:
        """Return the standardised pooled features of images, grey values 0..255 (N, C, H, W) -> (N, D)."""
        with torch.no_grad():
            chunks = images_NCHW.split(AT_ONCE)
            found = [self.public.standardise(self.public.pooled(chunk)) for chunk in chunks]
        return torch.cat(found).double().numpy()


@functools.lru_cache(maxsize=1)
def public_reference() -> PublicReference:
    """Paint the phantoms and fit the read-outs by ridge regression (a few seconds; kept for the next call)."""
    public = load_phantom_encoder()[1].eval()
    phantoms = generate_crops(FITTED + TESTED, SEED)
    empty = np.empty(0)
    unfitted = PublicReference(
        public=public,
        images_NHW=phantoms.images_NHW,
        labels_N=phantoms.labels_N.numpy(),
        features_ND=empty,
        attributes_NK=phantoms.concepts_NK[:, COLUMNS].double().numpy(),
        readout_DK=empty,
        offset_K=empty,
    )
    features_ND = unfitted.features_of(phantoms.images_NHW[:, None])
    readout_DK, offset_K = _ridge(features_ND[:FITTED], unfitted.attributes_NK[:FITTED])
    return PublicReference(
        **{**vars(unfitted), "features_ND": features_ND, "readout_DK": readout_DK, "offset_K": offset_K}
    )


def decompose(network: nn.Module, image_CHW: np.ndarray) -> Decomposition:
    """Return the named outputs of an image, uint8 (C, H, W), and their shares of the network's logit.

    Raises `ModelError` for a network without the public encoder, or with more than two labels.
    """
    logits_of = _logits_of(network)
    reference = public_reference()
    fitted_NK = reference.outputs(reference.features_ND[:FITTED])
    mean_K, spread_K = fitted_NK.mean(0), fitted_NK.std(0) + 1e-9
    logits_N = logits_of(reference.images_NHW[:FITTED, None])
    weight_K1, base_1 = _ridge((fitted_NK - mean_K) / spread_K, logits_N[:, None])
    images_NCHW = torch.from_numpy(np.array(image_CHW[None]))
    values_K = reference.outputs(reference.features_of(images_NCHW))[0]
    shares_K = weight_K1[:, 0] * (values_K - mean_K) / spread_K
    logit, base = float(logits_of(images_NCHW)[0]), float(base_1[0])
    reliabilities = _reliabilities(reference)
    outputs = tuple(
        NamedOutput(
            name=name,
            value=_shown(value, column),
            unit=unit,
            share=float(share),
            reliability=reliability,
            measure=measure,
        )
        for (name, column, unit), value, share, (reliability, measure) in zip(
            NAMED, values_K, shares_K, reliabilities, strict=True
        )
    )
    return Decomposition(logit=logit, base=base, outputs=outputs, remainder=logit - base - float(shares_K.sum()))


def _logits_of(network: nn.Module) -> Callable[[Tensor], np.ndarray]:
    if not isinstance(network, (PhantomHead, PhantomNetwork)) or network.head.out_features != 1:
        raise ModelError(f"{type(network).__name__}: named outputs exist for the phantom encoder and two labels only")

    def logits(images_NCHW: Tensor) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([network(chunk)[:, 0] for chunk in images_NCHW.split(AT_ONCE)]).double().numpy()

    return logits


def _reliabilities(reference: PublicReference) -> list[tuple[float, str]]:
    """Return how well each read-out works on the phantoms that were kept apart, and the measure's name."""
    predicted_NK = reference.outputs(reference.features_ND[FITTED:])
    found = []
    for column, (_, _, _) in enumerate(NAMED):
        true_N, predicted_N = reference.attributes_NK[FITTED:, column], predicted_NK[:, column]
        if set(np.unique(true_N)) <= {0.0, 1.0}:
            spread = predicted_N - predicted_N.min()
            area = auc(spread / max(spread.max(), 1e-12), true_N.astype(np.int64))
            found.append((float("nan") if area is None else area, "AUC"))
        else:
            explained = 1 - np.square(true_N - predicted_N).sum() / np.square(true_N - true_N.mean()).sum()
            found.append((float(explained), "R²"))
    return found


def _shown(value: float, column: str) -> float:
    if column == "log_diameter":
        return float(np.exp(value + 2))  # as `phantoms.crops` defines it
    return float(np.clip(value / 5 if column == "lobulation" else value, 0.0, 1.0))


def _ridge(inputs_ND: np.ndarray, targets_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (D, K) and offsets (K,) of a ridge regression on centred inputs."""
    mean_D, mean_K = inputs_ND.mean(0), targets_NK.mean(0)
    centred_ND = inputs_ND - mean_D
    gram_DD = centred_ND.T @ centred_ND + RIDGE * np.eye(inputs_ND.shape[1])
    weights_DK = np.linalg.solve(gram_DD, centred_ND.T @ (targets_NK - mean_K))
    return weights_DK, mean_K - mean_D @ weights_DK
