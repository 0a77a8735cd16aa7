"""`wardround-sim compare` for reconstruction: every fold's patients restored by models that never saw them.

Each piece of work is one fold: at each epsilon the federation trains on the other folds with the round functions of a
real site and server, and everything is measured on the same spoiled images of the fold: the trained models, their
public start, classical methods tuned on training patients, and the area under the ROC curve of the public nodule
classifier on what each of them makes of the images. Shapes: N images, P patients.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from wardround.errors import DataError
from wardround.metrics.classification import auc
from wardround.networks.build import build_model, initial_network
from wardround.networks.weights import load_weights, trained_parameters
from wardround.storage.atomic import write_file
from wardround.study.load import Study, study_from_json
from wardround.study.schema import DataSection, ModelSection
from wardround.tasks.reconstruction.degradations import degradation_of
from wardround.tasks.reconstruction.study import section_of
from wardround_simulation.assess.restoration import START, without_privacy
from wardround_simulation.assess.restoration_measures import TUNING_IMAGES, compared, mean_over, spoil, spread_rows
from wardround_simulation.compare.compare import (
    HOLDOUT,
    Folds,
    append_work,
    comparison_identity,
    finished_work,
)
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.engine.workers import process_pool

IMAGES_OF_A_PATIENT = 2  # at most, of those tested: the mean over patients hardly changes, and the time does
TRUE = "true image"

Row = dict[str, Any]


def compare_restoration(
    study: Study,
    site_folders: dict[str, Path],
    folds: Folds,
    epsilons: Sequence[float],
    draws: int,
    folder: Path,
    processes: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Do every piece that `folder`/comparison.jsonl does not hold yet; write comparison.json; return all rows.

    Raises `UsageError` where the folder holds another comparison.
    """
    pieces = [
        (split, fold, draw)
        for split, by_patient in folds.fold_by_split.items()
        for fold in ([0] if split == HOLDOUT else sorted(set(by_patient.values())))
        for draw in range(draws)
    ]
    log, keys = folder / "comparison.jsonl", {piece: "/".join(map(str, piece)) for piece in pieces}
    content = [comparison_identity(study, site_folders, {}, folds, ()), [repr(epsilon) for epsilon in epsilons]]
    identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    done = finished_work(log, identity)
    rest = [piece for piece in pieces if keys[piece] not in done]
    arguments = (study.to_json(), tuple(sorted(site_folders.items())), folds, tuple(epsilons))
    if progress:
        progress(len(pieces) - len(rest), len(pieces))
    if rest:
        with process_pool(min(processes, len(rest))) as pool:
            running = {pool.submit(run_piece, *piece, *arguments): piece for piece in rest}  # type: ignore[arg-type]  # two tuples in a row
            for future in as_completed(running):
                key = keys[running[future]]
                done[key] = future.result()
                append_work(log, {"identity": identity, "work": key, "rows": done[key]})
                if progress:
                    progress(sum(k in done for k in keys.values()), len(pieces))
    rows = [row for piece in pieces for row in done[keys[piece]]]
    write_file(folder / "comparison.json", (json.dumps(rows, indent=1) + "\n").encode(), mode=None)
    return rows


def run_piece(
    split: str,
    fold: int,
    draw: int,
    study_json: str,
    site_folders: tuple[tuple[str, Path], ...],
    folds: Folds,
    epsilons: Sequence[float],
) -> list[Row]:
    """One fold, in a process of the pool."""
    study = study_from_json(study_json)
    hospitals = in_process.open_hospitals(dict(site_folders), study)
    rows = fold_rows(study, hospitals, folds.fold_by_split[split], fold, epsilons)
    return [{"split": split, "fold": fold, "draw": draw, **row} for row in rows]


def restoration_table(rows: Sequence[Row]) -> Table:
    """Means over folds and draws; the paired differences of each fold to the public start, and how they scatter."""
    table = Table(box=None, pad_edge=False)
    for name in ("method", "PSNR", "SSIM", "gain over the start", "worst fold", "best fold", "nodule AUC"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        gains = [row["gain_db"] for row in own]
        areas = [row["auc"] for row in own if row["auc"] is not None]
        table.add_row(
            method,
            f"{np.mean([row['psnr_db'] for row in own]):.2f}",
            f"{np.mean([row['ssim'] for row in own]):.4f}",
            f"{np.mean(gains):+.3f} ± {np.std(gains, ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0:.3f}",
            f"{min(gains):+.3f}",
            f"{max(gains):+.3f}",
            f"{np.mean(areas):.4f}" if areas else "–",
        )
    return table


def fold_rows(
    study: Study, hospitals: list[Hospital], fold_of: dict[str, int], fold: int, epsilons: Sequence[float]
) -> list[Row]:
    """Train at each epsilon on the other folds and test on this one: a row a method, with its figures and gains."""
    training, testing = [], []
    for hospital in hospitals:
        fold_P = np.array([fold_of.get(name, -1) for name in hospital.cohort.pseudonyms])
        training.append((hospital, hospital.rows_of_patients((fold_P >= 0) & (fold_P != fold))))
        testing.append((hospital, _few_of_each(hospital, hospital.rows_of_patients(fold_P == fold))))
    networks: dict[str, nn.Module] = {START: initial_network(study)}
    for epsilon in epsilons:
        asked = in_process.with_epsilon(study, epsilon) if math.isfinite(epsilon) else without_privacy(study)
        networks[f"trained, ε = {epsilon:g}" if math.isfinite(epsilon) else "trained, no privacy"] = _trained(
            asked, training
        )
    images, labels_N, patients_N = _gathered(testing)
    tuning = np.concatenate([
        np.asarray(h.cohort.images_NCHW[spread_rows(np.flatnonzero(rows_N), 1 + TUNING_IMAGES // len(training))])
        for h, rows_N in training
    ])  # fmt: skip
    degradation = degradation_of(section_of(study))
    spoiled = spoil(images, degradation)
    figures, pictures, strengths = compared(spoiled, spoil(tuning, degradation), networks)
    areas = _areas(study, {**pictures, TRUE: torch.from_numpy(images).float()}, labels_N)
    start, out = figures[START], []
    for name, found in figures.items():
        gain = mean_over(found.psnr_N - start.psnr_N, patients_N)
        out.append({
            "method": name, "strength": strengths.get(name),
            "psnr_db": float(found.psnr_N.mean()), "ssim": float(found.ssim_N.mean()),
            "gain_db": gain.value, "gain_ci95": [gain.low, gain.high], "auc": areas[name], "auc_true": areas[TRUE],
            "images": len(images), "patients": int(len(np.unique(patients_N))),
        })  # fmt: skip
    return out


def _trained(study: Study, training: list[tuple[Hospital, np.ndarray]]) -> nn.Module:
    admitted: dict[str, object] = {}
    sites = [in_process.temporary_site(study, h.name, [(h, rows_N)], admitted) for h, rows_N in training]
    network = initial_network(study)
    load_weights(trained_parameters(network, study), in_process.train_together(study, sites))
    return network


def _few_of_each(hospital: Hospital, rows_N: np.ndarray) -> np.ndarray:
    """Of each patient's rows at most `IMAGES_OF_A_PATIENT`, spread evenly, bool (N,)."""
    kept = np.zeros(len(rows_N), dtype=bool)
    for patient in np.unique(hospital.cohort.patient_N[rows_N]):
        kept[spread_rows(np.flatnonzero(rows_N & (hospital.cohort.patient_N == patient)), IMAGES_OF_A_PATIENT)] = True
    return kept


def _gathered(parts: list[tuple[Hospital, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (N, 1, H, W), labels (N,) and patients (N,) of some rows of some hospitals."""
    images = np.concatenate([np.asarray(h.cohort.images_NCHW[rows_N]) for h, rows_N in parts])
    if not len(images):
        raise DataError("no patient of this fold is in the data; check the folds")
    labels_N = np.concatenate([h.cohort.labels_N[rows_N] for h, rows_N in parts]).astype(np.int64)
    patients = [h.cohort.patient_N[rows_N].astype(np.int64) + (n << 32) for n, (h, rows_N) in enumerate(parts)]
    return images, labels_N, np.concatenate(patients)


def _areas(study: Study, pictures: dict[str, Tensor], labels_N: np.ndarray) -> dict[str, float | None]:
    """AUC of the public nodule classifier (the phantom model, which no patient moved) on each method's images; None
    where the study's labels are not those that it tells apart.
    """
    if "malignant" not in study.data.labels:
        return dict.fromkeys(pictures)
    data = DataSection(labels=("benign", "malignant"), image_size=study.data.image_size)
    classifier = build_model(ModelSection(), data, 0).eval()
    kept_N = np.isin(labels_N, [study.data.labels.index(label) for label in ("benign", "malignant")])
    positive_N = (labels_N[kept_N] == study.data.labels.index("malignant")).astype(np.int64)
    areas: dict[str, float | None] = {}
    with torch.no_grad():
        for name, picture in pictures.items():
            logits = torch.cat([classifier(part)[:, 0] for part in picture[torch.from_numpy(kept_N)].split(32)])
            areas[name] = auc(logits.double().numpy(), positive_N)
    return areas
