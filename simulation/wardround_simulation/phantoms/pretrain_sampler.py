"""Write the bank of public phantoms against which the phantom sampler trains: their features, not their pixels.

The same seed gives the same features on one machine, and the metadata contain the seed, so that anyone can paint the
same phantoms and view them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from wardround.networks.phantom_encoder import PublicFeatures, load_phantom_encoder
from wardround.phantoms.crops import GENERATOR_VERSION, generate_crops
from wardround.tasks.synthesis.phantom_sampler import BANK_PHANTOMS, FEATURES
from wardround_simulation.phantoms.shipping import repeatable, write_pretrained

DEFAULT_SEED = 21  # that of the shipped file, which was made with one thread
AT_ONCE = 100

Progress = Callable[[str, int, int], None]


def pretrain_sampler(
    out_file: Path,
    seed: int = DEFAULT_SEED,
    crops: int = BANK_PHANTOMS,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Paint `crops` phantoms, write their public features, float16 (M, D), to `out_file`, and return its metadata."""
    report = progress or (lambda stage, done, total: None)
    with repeatable(threads):
        phantoms = generate_crops(crops, seed, lambda done, total: report("phantoms", done, total))
        # Building the network draws initial weights, which the weights in the file then replace.
        with torch.random.fork_rng(devices=[]):
            public = load_phantom_encoder()[1]
        features_MD = public_features(public, phantoms.images_NHW, lambda done, total: report("features", done, total))
    tensors = {FEATURES: features_MD.half()}
    facts = {
        "format": "wardround phantom bank 1",
        "command": f"wardround-sim pretrain --network sampler --seed {seed} --crops {crops}",
        "seed": str(seed),
        "crops": str(crops),
        "generator_version": str(GENERATOR_VERSION),
    }
    return write_pretrained(out_file, tensors, facts)


def public_features(
    public: PublicFeatures, images_NHW: Tensor, report: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """Return the public features (N, D) of grey images (N, H, W), uint8."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(images_NHW), AT_ONCE):
            parts.append(public(images_NHW[first : first + AT_ONCE, None]))
            report(min(first + AT_ONCE, len(images_NHW)), len(images_NHW))
    return torch.cat(parts)
