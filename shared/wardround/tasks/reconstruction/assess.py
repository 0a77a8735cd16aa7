"""How well a run's restorer restores: the held-out patients' images beside the public start and classical methods.

What the run releases is decided here by the accept test's released counts alone; the exact figures stand beside it and
decide nothing. Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from wardround import text
from wardround.errors import DataError
from wardround.networks.build import initial_network, start_weights
from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study
from wardround.tasks.assessment import (
    Assessed,
    AtEnd,
    ReportSection,
    ReportTable,
    Sheet,
    SiteData,
    Trainer,
    Weights,
    patient_offsets,
)
from wardround.tasks.reconstruction.accept_test import released_model
from wardround.tasks.reconstruction.degradations import degradation_of
from wardround.tasks.reconstruction.measures.balance import (
    Balance,
    balance_of,
    balance_plot,
    balance_series,
    balance_table,
)
from wardround.tasks.reconstruction.measures.comparison import methods_rows, methods_table, without_privacy
from wardround.tasks.reconstruction.measures.quality import (
    START,
    TUNING_IMAGES,
    Quality,
    by_network,
    compared,
    mean_over,
    quality_of,
    spoil,
    spread_rows,
)
from wardround.tasks.reconstruction.restorer import Restorer
from wardround.tasks.reconstruction.study import section_of
from wardround.tasks.round_notes import append_note, read_notes

__all__ = ["RestorationAssessment", "assessment_of", "methods_rows", "methods_table"]

TRAINED, PLAIN = "trained", "trained without privacy"
CURVE_IMAGES, MOST_TEST_IMAGES, SHOWN_IMAGES = 24, 300, 5
CURVE_FILE = "restoration.jsonl"


@dataclass(frozen=True, kw_only=True)
class RoundNote:
    """The global model after a round on a few held-out images: PSNR in dB, and the terms of the loss."""

    psnr_db: float
    balance: Balance


class RestorationAssessment:
    """PSNR and loss round by round on a few held-out images, and at the end every method on all of them."""

    def __init__(self, study: Study, data: Sequence[SiteData], out: Path, trainer: Trainer) -> None:
        self._study, self._sites, self._out, self._trainer = study, list(data), out, trainer
        self._degradation = degradation_of(section_of(study))
        self._network, self._start = initial_network(study), start_weights(study)
        images, patients, names, training = [], [], [], []
        for site, offset in zip(self._sites, patient_offsets(self._sites), strict=True):
            rows = np.flatnonzero(site.held_out_N)
            images.append(np.asarray(site.values_N[rows]))
            patients.append(site.patient_N[rows].astype(np.int64) + offset)
            names.append(np.full(len(rows), site.name))
            rows = spread_rows(np.flatnonzero(site.training_N), TUNING_IMAGES // len(self._sites) + 1)
            training.append(np.asarray(site.values_N[rows]))
        keep = spread_rows(np.arange(sum(map(len, images))), MOST_TEST_IMAGES)
        if not len(keep):
            raise DataError("no patient is held out for testing; raise evaluation.holdout, or give more patients")
        self._images, self._patients_N = np.concatenate(images)[keep], np.concatenate(patients)[keep]
        self._names_N, self._training = np.concatenate(names)[keep], np.concatenate(training)
        self._few = spoil(self._images[spread_rows(np.arange(len(keep)), CURVE_IMAGES)], self._degradation)
        self._before = quality_of(by_network(initial_network(study), self._few), self._few.true_N1HW)
        self._notes = _read_notes(out / CURVE_FILE)
        self._shown: dict[int, Tensor] = {}

    def after_round(self, round_: int, weights: Weights) -> str:
        """PSNR of the global model on a few held-out images, and its gain over the start."""
        restored = by_network(self._with(weights), self._few)
        found = quality_of(restored, self._few.true_N1HW)
        balance = balance_of(cast(Restorer, self._network), self._few)
        note = RoundNote(psnr_db=float(found.psnr_N.mean()), balance=balance)
        self._notes[round_] = note
        self._shown[round_] = restored[:SHOWN_IMAGES]
        if round_:
            append_note(self._out / CURVE_FILE, round_, {"psnr_db": note.psnr_db, **asdict(note.balance)})
        return f"PSNR {found.psnr_N.mean():.2f} dB, {(found.psnr_N - self._before.psnr_N).mean():+.3f} on the start"

    def at_end(self, end: AtEnd) -> Assessed:
        """Every method on the held-out images, what the accept test decided, and pictures."""
        end.stage("Restoring the held-out images by every method")
        spoiled, training = spoil(self._images, self._degradation), spoil(self._training, self._degradation)
        networks: dict[str, nn.Module] = {START: initial_network(self._study), TRAINED: self._with(end.weights)}
        if end.baselines:
            end.stage("Training the same network without privacy")
            networks[PLAIN] = self._trained_plainly()
        quality, pictures, strengths = compared(spoiled, training, networks)
        weights, released = released_model(end.released, end.weights, self._start)
        test = (end.released or {}).get("accept_test")
        reason = (
            test["reason"] if test else "no accept test was paid for (evaluation.epsilon = 0): not accepted by a test"
        )
        result: dict[str, Any] = {
            "released": released,
            "accept": {"accepted": bool(test and test["accepted"]), "reason": reason},
            "restoration": self._figures(quality, strengths),
        }
        return Assessed(
            weights=weights,
            result=result,
            site_tests={site.name: self._at_site(site.name, quality) for site in self._sites},
            asked=self._asked(),
            headline=self._headline(quality, released, reason),
            sections=[self._section(quality, strengths, reason, pictures if end.show_images else {})],
            series={
                "psnr_db": {round_: note.psnr_db for round_, note in self._notes.items()},
                **balance_series(self._balances()),
            },
            samples={r: _side_by_side(self._few.true_N1HW, s) for r, s in self._shown.items()}
            if end.show_images
            else {},
        )

    def _balances(self) -> dict[int, Balance]:
        return {round_: self._notes[round_].balance for round_ in sorted(self._notes)}

    def _with(self, weights: Weights) -> nn.Module:
        load_weights(trained_parameters(self._network, self._study), weights)
        return self._network

    def _trained_plainly(self) -> nn.Module:
        study = without_privacy(self._study)
        network = initial_network(study)
        load_weights(trained_parameters(network, study), self._trainer.federated(study, self._sites))
        return network

    def _figures(self, quality: Mapping[str, Quality], strengths: Mapping[str, float]) -> dict[str, Any]:
        methods = {}
        for name, found in quality.items():
            psnr, similarity = mean_over(found.psnr_N, self._patients_N), mean_over(found.ssim_N, self._patients_N)
            gain = mean_over(found.psnr_N - quality[START].psnr_N, self._patients_N)
            methods[name] = {
                "psnr_db": psnr.value, "psnr_ci95": [psnr.low, psnr.high],
                "ssim": similarity.value, "ssim_ci95": [similarity.low, similarity.high],
                "gain_db": gain.value, "gain_ci95": [gain.low, gain.high],
            }  # fmt: skip
            if name in strengths:
                methods[name]["strength"] = strengths[name]
        patients = int(len(np.unique(self._patients_N)))
        return {
            "degradation": self._degradation.kind, "strength": self._degradation.words(), "unit": "image",
            "images": len(self._images), "patients": patients, "methods": methods,
        }  # fmt: skip

    def _at_site(self, site: str, quality: Mapping[str, Quality]) -> dict[str, Any] | None:
        rows_N = self._names_N == site
        if not rows_N.any():
            return None
        found, start = quality[TRAINED].psnr_N[rows_N], quality[START].psnr_N[rows_N]
        gain = mean_over(found - start, self._patients_N[rows_N])
        return {
            "psnr_db": float(found.mean()), "ssim": float(quality[TRAINED].ssim_N[rows_N].mean()),
            "gain_db": gain.value, "gain_ci95": [gain.low, gain.high],
            "patients": int(len(np.unique(self._patients_N[rows_N]))),
        }  # fmt: skip

    def _asked(self) -> str:
        start = {"phantom": "generated phantoms", "random": "random weights"}.get(self._study.model.init, "a file")
        return (
            f"Asked: to restore images that lost something ({self._degradation.words()}). The network starts from "
            f"{start}; {self._study.model.trainable} of it is trained in "
            f"{text.count_text(self._study.study.rounds, 'round')} across "
            f"{text.count_text(len(self._sites), 'hospital')}. No image leaves its hospital."
        )

    def _headline(self, quality: Mapping[str, Quality], released: str, reason: str) -> list[str]:
        found = mean_over(quality[TRAINED].psnr_N, self._patients_N)
        gain = mean_over(quality[TRAINED].psnr_N - quality[START].psnr_N, self._patients_N)
        name = "the model that the hospitals trained" if released == "trained" else "the public start"
        return [
            f"Restored images reach a PSNR of {found.text(2)} dB, {gain.text(3, sign=True)} dB on the public start, "
            "which no patient moved.",
            f"Released: {name}. Accept test: {reason}.",
        ]

    def _section(
        self,
        quality: Mapping[str, Quality],
        strengths: Mapping[str, float],
        reason: str,
        pictures: Mapping[str, Tensor],
    ) -> ReportSection:
        rows = []
        for name, found in quality.items():
            psnr, similarity = mean_over(found.psnr_N, self._patients_N), mean_over(found.ssim_N, self._patients_N)
            gain = mean_over(found.psnr_N - quality[START].psnr_N, self._patients_N)
            setting = f"{strengths[name]:g}" if strengths.get(name) else "–"
            rows.append([name, psnr.text(2), similarity.text(3), "–" if name == START else gain.text(3, True), setting])
        curve = ", ".join(f"{round_}: {self._notes[round_].psnr_db:.2f}" for round_ in sorted(self._notes))
        balances = self._balances()
        return ReportSection(
            anchor="restoration",
            title="How well it restores",
            lines=[
                f"Each of {text.count_text(len(self._images), 'held-out image')} was degraded once "
                f"({self._degradation.words()}) and restored by every method. Classical methods were tuned on images "
                "of training patients, which no ε covers; in a federation their strength would be set in public.",
                f"PSNR in dB on {text.count_text(len(self._few.true_N1HW), 'image')} after each round: {curve}.",
                f"Accept test: {reason}.",
            ],
            tables=[
                ReportTable(
                    caption="PSNR in dB and SSIM, means over held-out images, 95 % intervals over patients; gains are "
                    "paired, image by image",
                    columns=["method", "PSNR", "SSIM", "gain over the public start", "tuned strength"],
                    rows=rows,
                ),
                balance_table(self._study, balances),
            ],
            plots=[balance_plot(balances)],
            sheets=self._sheets(pictures),
        )

    def _sheets(self, pictures: Mapping[str, Tensor]) -> list[Sheet]:
        if not pictures:
            return []
        rows = spread_rows(np.arange(len(self._images)), SHOWN_IMAGES)
        shown = [pictures[name][rows] for name in pictures if name != PLAIN]
        names = [name for name in pictures if name != PLAIN]
        shown.append(torch.from_numpy(self._images[rows]).float())
        tiles = torch.stack(shown, 1).flatten(0, 1).round().clamp(0, 255).to(torch.uint8).numpy()
        return [
            Sheet(
                title="Before, after, target",
                images_NCHW=tiles,
                columns=len(shown),
                caption=f"Each row is one held-out image: {', '.join(names)}, and the true image on the right.",
                tile_px=128,
            )
        ]


def assessment_of(study: Study, sites: Sequence[SiteData], out: Path, trainer: Trainer) -> RestorationAssessment:
    """The assessment of a run. Raises `DataError` where nobody is held out to test on."""
    return RestorationAssessment(study, sites, out, trainer)


def _side_by_side(true_N1HW: Tensor, restored_N1HW: Tensor) -> np.ndarray:
    """True images above restored ones, uint8 (H, W)."""
    count = len(restored_N1HW)
    rows = [torch.cat(list(part[:count, 0].float()), 1) for part in (true_N1HW, restored_N1HW)]
    return torch.cat(rows, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _read_notes(path: Path) -> dict[int, RoundNote]:
    """Return what earlier attempts of this run noted; notes of an earlier version are left out."""
    notes = {}
    for round_, entry in read_notes(path).items():
        with contextlib.suppress(KeyError, TypeError):
            notes[round_] = RoundNote(psnr_db=entry.pop("psnr_db"), balance=Balance(**entry))
    return notes
