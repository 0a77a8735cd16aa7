"""How good a run's synthetic images are: beside the public start, which cost no privacy, and beside real images.

Shapes: N images, C channels, H rows, W columns, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from wardround.errors import DataError, required
from wardround.networks.build import initial_network, start_weights
from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study
from wardround.tasks.assessment import Assessed, AtEnd, SiteData, SyntheticImages, Trainer, Weights
from wardround.tasks.round_notes import append_note, read_notes
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.measures.fidelity import frechet, frechet_interval
from wardround.tasks.synthesis.measures.figures import AT_ONCE, Figures, auc_of, figures_of, real_images
from wardround.tasks.synthesis.measures.section import held_out_shown, shown
from wardround.tasks.synthesis.phantom_sampler import PhantomSampler
from wardround.tasks.synthesis.use import PhantomPool, as_painted, chosen_from, generated, kept_of, paint_pool

POOL = 1500  # phantoms painted to choose from, and images that a GAN makes at the end
A_ROUND = 200  # images that a GAN makes after a round
SHOWN = 24
SEED = 5
NOTES_FILE = "synthesis.jsonl"


class SynthesisAssessment:
    """The Fréchet distance to the held-out patients round by round; at the end all figures, of the model and of its
    public start, on images made from the same phantoms or latents.
    """

    def __init__(self, study: Study, sites: Sequence[SiteData], out: Path) -> None:
        self._study, self._out = study, out
        self._network, self._start = initial_network(study).eval(), start_weights(study)
        self._encoder = load_phantom_encoder()[1]
        self.real = real_images(sites, self._features)
        if len(study.data.labels) == 2 and not self.real.labels_N[self.real.held_out_N].sum() > 0:
            raise DataError(
                "the held-out patients have one label only; raise evaluation.holdout, or give more patients"
            )
        self._pool: PhantomPool | None = None
        if not self._is_gan:
            self._pool = paint_pool(self._sampler, POOL, SEED)
            self._pool_ND: np.ndarray = self._encoder.standardise(self._pool.pooled_ND).numpy()
        self.notes = read_notes(out / NOTES_FILE)
        self._sheets: dict[int, np.ndarray] = {}

    @property
    def _is_gan(self) -> bool:
        return isinstance(self._network, SharedGAN)

    @property
    def _gan(self) -> SharedGAN:
        return cast(SharedGAN, self._network)

    @property
    def _sampler(self) -> PhantomSampler:
        return cast(PhantomSampler, self._network)

    @property
    def _phantoms(self) -> PhantomPool:
        return required(self._pool, "pool")

    def after_round(self, round_: int, weights: Weights) -> str:
        self._load(weights)
        held_out_ND = self.real.features_ND[self.real.held_out_N]
        if self._is_gan:
            made = generated(self._gan, torch.arange(A_ROUND) % len(self._study.data.labels), SEED)
            note = {"frechet": frechet(self._features(made.images_NCHW), held_out_ND), **self._balance(made)}
        else:
            made, kept_N = chosen_from(self._sampler, self._phantoms), kept_of(self._sampler, self._phantoms)
            note = {"frechet": frechet(self._pool_ND[kept_N], held_out_ND), "kept": float(kept_N.mean())}
        self.notes[round_] = note
        if round_:
            append_note(self._out / NOTES_FILE, round_, note)
        if round_ in shown_rounds(self._study.study.rounds):
            self._sheets[round_] = by_label(made, len(self._study.data.labels), SHOWN)
        return f"Fréchet distance {note['frechet']:.2f}"

    def at_end(self, end: AtEnd) -> Assessed:
        end.stage("Measuring synthetic images: the public start, the model, and real images")
        model = self.figures(end.weights)
        start = self.figures(self._start) if self._is_gan else self._phantoms_as_painted(model.images)
        floor = self._floor()
        result = {
            "synthesis": {
                "model": model.to_json(),
                "start": start.to_json(),
                "real": floor,
                "frechet_over_start": round(model.frechet.value / start.frechet.value, 4),
            }
        }
        real_NCHW = held_out_shown(self._study, self.real) if end.show_images else None
        words = shown(self._study, result["synthesis"], self.notes, self._sheets, real_NCHW)
        return Assessed(weights=end.weights, result=result, site_tests={}, **words)

    def figures(self, weights: Weights) -> Figures:
        """All figures of the images that the model makes with these weights."""
        self._load(weights)
        if self._is_gan:
            made = generated(self._gan, torch.arange(POOL) % len(self._study.data.labels), SEED + 1)
            features_ND = self._features(made.images_NCHW)
        else:
            made = chosen_from(self._sampler, self._phantoms)
            features_ND = self._pool_ND[kept_of(self._sampler, self._phantoms)]
        return figures_of(made, features_ND, self.real)

    def _phantoms_as_painted(self, count: int) -> Figures:
        """The figures of as many phantoms as the model kept, for a Fréchet distance depends on their number."""
        made = as_painted(self._phantoms, count, self._study.data.labels)
        return figures_of(made, self._pool_ND[:count], self.real)

    def _floor(self) -> dict[str, Any]:
        """The same distances for real images of the patients who trained: what no synthetic image can be expected to
        beat, and what a classifier trained on real images reaches.
        """
        real, trained_N = self.real, self.real.trained_N
        apart = frechet_interval(real.features_ND[trained_N], real.features_ND[~trained_N], real.patients_N[~trained_N])
        trained = SyntheticImages(images_NCHW=real.images_NCHW[trained_N], labels_N=real.labels_N[trained_N])
        found, each = auc_of(trained, real)
        return {
            "frechet": apart.to_json(),
            "auc": found.to_json() if found else None,
            "auc_by_classifier": [round(one, 4) for one in each],
            "images": int(trained_N.sum()),
        }

    def _balance(self, made: SyntheticImages) -> dict[str, float]:
        """The discriminator's mean logit for held-out patients and for fakes: far apart, it has won."""
        real = SyntheticImages(
            images_NCHW=self.real.images_NCHW[self.real.held_out_N], labels_N=self.real.labels_N[self.real.held_out_N]
        )
        return {name: self._mean_logit(images) for name, images in (("real_logit", real), ("fake_logit", made))}

    def _mean_logit(self, images: SyntheticImages) -> float:
        total = 0.0
        with torch.no_grad():
            for at in range(0, len(images.labels_N), AT_ONCE):
                logits_NK = self._network(torch.from_numpy(images.images_NCHW[at : at + AT_ONCE]))
                labels_N = torch.from_numpy(images.labels_N[at : at + AT_ONCE])
                total += float(logits_NK.gather(1, labels_N[:, None]).sum())
        return total / max(1, len(images.labels_N))

    def _load(self, weights: Weights) -> None:
        load_weights(trained_parameters(self._network, self._study), weights)

    def _features(self, images_NCHW: np.ndarray) -> np.ndarray:
        """The encoder's pooled features in units of their spread over phantoms, (N, 128)."""
        parts = []
        with torch.no_grad():
            for at in range(0, len(images_NCHW), AT_ONCE):
                chunk = torch.from_numpy(np.ascontiguousarray(images_NCHW[at : at + AT_ONCE]))
                parts.append(self._encoder.standardise(self._encoder.pooled(chunk)))
        return torch.cat(parts).numpy()


def assessment_of(study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> SynthesisAssessment:
    """The assessment of a run. Raises `DataError` where nobody is held out to test on. Nothing is trained for it by
    the simulation: its baseline is the public start.
    """
    return SynthesisAssessment(study, sites, out)


def shown_rounds(rounds: int) -> set[int]:
    """The rounds whose images are kept for the report: the start, the end, and two between."""
    return {0, rounds // 3, 2 * rounds // 3, rounds}


def by_label(made: SyntheticImages, labels: int, count: int) -> np.ndarray:
    """Up to `count` images, the same number of each label, label after label."""
    each = count // labels
    return np.concatenate([made.images_NCHW[made.labels_N == label][:each] for label in range(labels)])
