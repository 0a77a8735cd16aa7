"""Fit the shipped read-outs of the phantom encoder to the known attributes of phantoms.

The same seed gives the same tensors on one machine. No real image is used. Shapes: N images, D pooled features, F
public features, K named outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from torch import Tensor

from wardround.metrics.classification import auc
from wardround.networks.model_file import tensors_sha256
from wardround.networks.phantom_encoder import PublicFeatures, load_phantom_encoder
from wardround.phantoms.crops import CONCEPTS, GENERATOR_VERSION, PhantomCrops, generate_crops
from wardround.tasks.classification.explain.named_outputs import OUTPUTS
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

DEFAULT_SEED, DEFAULT_CROPS = 41, 20_000
FRESH_CROPS = 5_000
RIDGE = 10.0  # of some 20,000 rows: it only keeps nearly equal features from cancelling each other
INVERSE_PENALTY = 0.1
MOST_STEPS = 2_000

Progress = Callable[[str, int, int], None]


def pretrain_named_outputs(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    crops: int = DEFAULT_CROPS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Fit on `crops` phantoms, measure on 5,000 fresh ones, write `out_file` and return its metadata."""
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        _, public = load_phantom_encoder()
        phantoms = generate_crops(crops + FRESH_CROPS, seed, lambda done, total: report("phantoms", done, total))
        pooled_ND = _pooled(public, phantoms.images_NHW, report)
        with torch.no_grad():
            standard_ND, features_NF = public.standardise(pooled_ND).double(), public.of_pooled(pooled_ND).double()
        weight_KD, bias_K = _fit(standard_ND[:crops], phantoms, crops)
    raw_NK = standard_ND @ weight_KD.T + bias_K
    tensors = {"weight_KD": weight_KD, "bias_K": bias_K, **regression(raw_NK[:crops], features_NF[:crops])}
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    facts = {
        "format": "wardround named outputs 1",
        "command": f"wardround-sim pretrain --network named-outputs --seed {seed} --crops {crops}",
        "seed": str(seed),
        "crops": str(crops),
        "generator_version": str(GENERATOR_VERSION),
        "encoder_sha256": tensors_sha256(public.state_dict()),
        "accuracy": json.dumps(_accuracy(raw_NK[crops:], phantoms, crops)),
    }
    return write_pretrained(out_file, tensors, facts)


def regression(raw_NK: Tensor, features_NF: Tensor) -> dict[str, Tensor]:
    """Return means and the least-squares regression of each public feature on the named outputs."""
    mean_K, mean_F = raw_NK.mean(0), features_NF.mean(0)
    away_NK, away_NF = raw_NK - mean_K, features_NF - mean_F
    coefficients_KF = torch.linalg.lstsq(away_NK, away_NF).solution
    fitted_NF = away_NK @ coefficients_KF
    return {
        "mean_K": mean_K,
        "mean_F": mean_F,
        "coefficients_KF": coefficients_KF,
        "covariance_FF": away_NF.T @ away_NF / len(away_NF),
        "explained_FF": fitted_NF.T @ fitted_NF / len(fitted_NF),
    }


def _pooled(public: PublicFeatures, images_NHW: Tensor, report: Progress) -> Tensor:
    parts = []
    with torch.no_grad():
        for chunk in images_NHW.split(250):
            parts.append(public.pooled(chunk[:, None]))
            report("features", sum(map(len, parts)), len(images_NHW))
    return torch.cat(parts)


def _attribute(phantoms: PhantomCrops, concept: str) -> np.ndarray:
    return phantoms.concepts_NK[:, CONCEPTS.index(concept)].double().numpy()


def _fit(standard_ND: Tensor, phantoms: PhantomCrops, crops: int) -> tuple[Tensor, Tensor]:
    inputs_ND = standard_ND.numpy()
    weights, biases = [], []
    for output in OUTPUTS:
        truth_N = _attribute(phantoms, output.concept)[:crops]
        if output.is_probability:
            fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=MOST_STEPS).fit(inputs_ND, truth_N > 0.5)
        else:
            fitted = Ridge(alpha=RIDGE).fit(inputs_ND, truth_N)
        weights.append(np.ravel(fitted.coef_))
        biases.append(float(np.ravel(fitted.intercept_)[0]))
    return torch.from_numpy(np.stack(weights)), torch.tensor(biases, dtype=torch.float64)


def _accuracy(raw_NK: Tensor, phantoms: PhantomCrops, crops: int) -> dict[str, float]:
    """Return the AUC of each probability and the R2 of each other output on the fresh phantoms."""
    found = {}
    for output, values_N in zip(OUTPUTS, raw_NK.T.numpy(), strict=True):
        truth_N = _attribute(phantoms, output.concept)[crops:]
        figure = (
            auc(values_N, (truth_N > 0.5).astype(np.int64)) if output.is_probability else r2_score(truth_N, values_N)
        )
        found[output.concept] = round(float(figure or 0.0), 3)
    return found
