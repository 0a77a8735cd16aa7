"""Images of no patient from a trained model: phantoms that its realness keeps, or what its generator draws.

The same model, count and seed give the same images on one machine. Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from wardround.networks.public_head import POSITIVE_PHANTOM
from wardround.phantoms.crops import generate_crops
from wardround.tasks.assessment import SyntheticImages
from wardround.tasks.synthesis.dcgan import to_grey
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.phantom_sampler import PhantomSampler

FREELY_KEPT = 0.02  # of the bank: so many of its phantoms have the odds of the cap, and at least so many are kept
AT_ONCE = 100
STREAMS = 100_000  # a seed's phantoms are painted from streams of their own

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhantomPool:
    """Painted phantoms to choose from, with what the encoder says of them: uint8 (N, 1, H, W), whether each was painted
    malignant, pooled (N, 128) and public features (N, 33), and two uniform numbers each, which the odds of keeping and
    of the label are held against."""

    images_NCHW: np.ndarray
    malignant_N: np.ndarray
    pooled_ND: Tensor
    features_ND: Tensor
    draws_N2: Tensor


def make_images(
    network: nn.Module, count: int, seed: int, label: int | None = None, progress: Progress | None = None
) -> SyntheticImages:
    """`count` images from a sampler or a GAN with its trained weights, of one label or of those that come.

    The sampler's labels are drawn by its label head, so that they are as sure as it is; a GAN's are every one as often.
    """
    report = progress or (lambda done, total: None)
    if isinstance(network, SharedGAN):
        labels_N = torch.arange(count) % network.generator.labels if label is None else torch.full((count,), label)
        return generated(network, labels_N, seed)
    sampler = cast(PhantomSampler, network)
    images, labels, have, stream = [], [], 0, 0
    while have < count:
        pool = paint_pool(sampler, AT_ONCE, seed * STREAMS + stream)
        chosen = chosen_from(sampler, pool)
        keep_N = np.ones(len(chosen.labels_N), dtype=bool) if label is None else chosen.labels_N == label
        images.append(chosen.images_NCHW[keep_N])
        labels.append(chosen.labels_N[keep_N])
        have, stream = have + int(keep_N.sum()), stream + 1
        report(min(have, count), count)
    return SyntheticImages(images_NCHW=np.concatenate(images)[:count], labels_N=np.concatenate(labels)[:count])


def generated(network: SharedGAN, labels_N: Tensor, seed: int) -> SyntheticImages:
    """One image for each label, from latents of a seed."""
    dice = torch.Generator().manual_seed(seed)
    latents_NZ = torch.randn(len(labels_N), network.generator.latent, generator=dice)
    with torch.no_grad():
        parts = [
            to_grey(network.generator(*part))
            for part in zip(latents_NZ.split(AT_ONCE), labels_N.split(AT_ONCE), strict=True)
        ]
    return SyntheticImages(images_NCHW=torch.cat(parts).numpy(), labels_N=labels_N.numpy())


def paint_pool(network: PhantomSampler, count: int, seed: int, progress: Progress | None = None) -> PhantomPool:
    """Paint phantoms and look at them with the encoder; nothing of it depends on the trained weights."""
    report = progress or (lambda done, total: None)
    phantoms = generate_crops(count, seed)
    images_NCHW = phantoms.images_NHW[:, None]
    with torch.no_grad():
        pooled = []
        for chunk in images_NCHW.split(AT_ONCE):
            pooled.append(network.public.pooled(chunk))
            report(sum(map(len, pooled)), count)
        pooled_ND = torch.cat(pooled)
        features_ND = network.public.of_pooled(pooled_ND)
    draws_N2 = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return PhantomPool(
        images_NCHW=images_NCHW.numpy(),
        malignant_N=phantoms.labels_N.numpy() == 1,
        pooled_ND=pooled_ND,
        features_ND=features_ND,
        draws_N2=draws_N2,
    )


def as_painted(pool: PhantomPool, count: int, labels: tuple[str, ...]) -> SyntheticImages:
    """The first `count` phantoms with the label they were painted with: the public start, which no patient touched."""
    malignant = 0 if labels[0] == POSITIVE_PHANTOM else 1
    labels_N = np.where(pool.malignant_N[:count], malignant, 1 - malignant)
    return SyntheticImages(images_NCHW=pool.images_NCHW[:count], labels_N=labels_N.astype(np.int64))


def kept_of(network: PhantomSampler, pool: PhantomPool) -> np.ndarray:
    """Which phantoms of the pool the sampler keeps, bool (N,): each by itself, with odds exp(realness) up to a cap that
    leaves out `FREELY_KEPT` of the bank (rejection sampling; J. von Neumann, 1951)."""
    with torch.no_grad():
        cap = torch.quantile(network.head(network.bank_MD)[:, 1], 1 - FREELY_KEPT)
        return (pool.draws_N2[:, 0] < torch.exp((network.head(pool.features_ND)[:, 1] - cap).clamp(max=0))).numpy()


def chosen_from(network: PhantomSampler, pool: PhantomPool) -> SyntheticImages:
    """The phantoms of the pool that the sampler keeps, with labels drawn by its label head."""
    kept_N = kept_of(network, pool)
    with torch.no_grad():
        second_N = pool.draws_N2[:, 1] < torch.sigmoid(network.head(pool.features_ND)[:, 0])
    return SyntheticImages(images_NCHW=pool.images_NCHW[kept_N], labels_N=second_N.numpy()[kept_N].astype(np.int64))
