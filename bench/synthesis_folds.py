"""Measure the value of synthetic images over folds by patient: phantom sampler, raw phantoms and real images.

    ./run bench synthesis_folds --data lidc_nodules [--split split0] [--epsilon 8] [--pool 8000] [--markdown]

For each fold the study is trained by the round functions of real sites (`in_process`) on the other folds' patients, and
measured on the fold's patients. The measures are the AUC of a classifier trained only on synthetic images (three layers
from scratch, the mean score of several), the Fréchet distance on the phantom encoder's features, a linear two-sample
classifier, and the check for copies. The arms choose the same number of images from one pool of painted phantoms, and
the classifiers of a fold have the same seeds. `real` is a classifier trained on the training patients' images, and the
distance of these images from the fold's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Sheet, arguments_of, machine, tell

from wardround.networks.build import initial_network
from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.weights import load_weights, trained_parameters
from wardround.study.load import Study, load_study
from wardround.tasks.assessment import SyntheticImages
from wardround.tasks.synthesis.measures.fidelity import frechet_interval
from wardround.tasks.synthesis.measures.figures import AT_ONCE, RealImages, auc_of, figures_of
from wardround.tasks.synthesis.use import PhantomPool, as_painted, chosen_from, kept_of, paint_pool
from wardround_client.sources.images.folder.layout import discover
from wardround_simulation.compare.compare import read_folds
from wardround_simulation.engine import in_process
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.run.hospitals import prepare_hospitals

STUDIES = Path(__file__).resolve().parents[1] / "studies"
POOL_SEED = 31  # differs from the bank's seed and from those of all pre-trainings
PATIENTS_A_SITE = 53  # public: agreed for these six sites in advance


def study_for(sites: int, epsilon: str) -> Study:
    overrides = (f"aggregation.nominal_sites={sites}", f"aggregation.min_sites={sites}", f"privacy.epsilon={epsilon}")
    return load_study(STUDIES / "synthesis.toml", (*overrides, f"privacy.nominal_patients={PATIENTS_A_SITE}"))


def labelled_images(hospitals: list[Hospital], fold_of: dict[str, int]) -> tuple[RealImages, np.ndarray]:
    """Return all images of patients in the split, and each image's fold.

    `trained_N` is all False; `with_fold` sets it for a fold.
    """
    encoder = load_phantom_encoder()[1]
    images, labels, patients, folds, offset = [], [], [], [], 0
    for hospital in hospitals:
        cohort = hospital.cohort
        fold_N = np.array([fold_of.get(name, -1) for name in cohort.pseudonyms])[cohort.patient_N]
        rows = np.flatnonzero((cohort.labels_N >= 0) & (fold_N >= 0))
        images.append(np.asarray(cohort.values_N[rows]))
        labels.append(cohort.labels_N[rows].astype(np.int64))
        patients.append(cohort.patient_N[rows] + offset)
        folds.append(fold_N[rows])
        offset += cohort.patient_count
    images_NCHW = np.concatenate(images)
    with torch.no_grad():
        chunks = torch.from_numpy(images_NCHW).split(AT_ONCE)
        features_ND = torch.cat([encoder.standardise(encoder.pooled(chunk)) for chunk in chunks]).numpy()
    real = RealImages(
        images_NCHW=images_NCHW,
        labels_N=np.concatenate(labels),
        patients_N=np.concatenate(patients),
        trained_N=np.zeros(len(images_NCHW), dtype=bool),
        features_ND=features_ND,
    )
    return real, np.concatenate(folds)


def with_fold(real: RealImages, held_out_N: np.ndarray) -> RealImages:
    return RealImages(
        images_NCHW=real.images_NCHW,
        labels_N=real.labels_N,
        patients_N=real.patients_N,
        trained_N=~held_out_N,
        features_ND=real.features_ND,
    )


def one_fold(
    study: Study, hospitals: list[Hospital], real: RealImages, fold_of: dict[str, int], fold: int, pool: PhantomPool
) -> dict:
    """Return all figures of one fold, by arm."""
    sites = []
    admitted: dict[str, object] = {}
    for hospital in hospitals:
        fold_P = np.array([fold_of.get(name, -1) for name in hospital.cohort.pseudonyms])
        rows_N = hospital.rows_of_patients((fold_P >= 0) & (fold_P != fold))
        sites.append(in_process.temporary_site(study, hospital.name, [(hospital, rows_N)], admitted))
    network = initial_network(study).eval()
    load_weights(trained_parameters(network, study), in_process.train_together(study, sites))
    pool_ND = network.public.standardise(pool.pooled_ND).numpy()
    made, kept_N = chosen_from(network, pool), kept_of(network, pool)
    raw = as_painted(pool, len(made.labels_N), study.data.labels)
    floor = frechet_interval(
        real.features_ND[real.trained_N], real.features_ND[real.held_out_N], real.patients_N[real.held_out_N]
    )
    trained = SyntheticImages(images_NCHW=real.images_NCHW[real.trained_N], labels_N=real.labels_N[real.trained_N])
    found, each = auc_of(trained, real)
    return {
        "sampler": figures_of(made, pool_ND[kept_N], real).to_json(),
        "raw": figures_of(raw, pool_ND[: len(raw.labels_N)], real).to_json(),
        "real": {"auc": found.to_json(), "auc_by_classifier": each, "frechet": floor.to_json()},
        "kept": round(float(kept_N.mean()), 4),
    }


def sheet_of(results: dict[int, dict], study: Study) -> list[Sheet]:
    rows = []
    for fold, one in results.items():
        rows.append([str(fold), *_cells(one)])
    columns = [
        "fold", "AUC raw", "AUC sampler", "AUC real", "Fréchet raw", "Fréchet sampler", "Fréchet real",
        "told apart raw", "told apart sampler", "copies, p", "kept",
    ]  # fmt: skip
    means = [np.mean([float(row[place]) for row in rows]) for place in range(1, len(columns))]
    rows.append(["mean", *(f"{value:.3f}" for value in means)])
    gain = [one["sampler"]["auc"]["value"] - one["raw"]["auc"]["value"] for one in results.values()]
    ratio = [one["sampler"]["frechet"]["value"] / one["raw"]["frechet"]["value"] for one in results.values()]
    error = np.std(gain, ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
    notes = [
        f"AUC gain over raw phantoms, paired: {np.mean(gain):+.4f} ± {error:.4f} (standard error over folds)",
        f"Fréchet distance over raw phantoms': {np.mean(ratio):.3f} ({min(ratio):.3f}–{max(ratio):.3f})",
    ]
    return [
        Sheet(
            title=f"Synthetic images, ε = {study.privacy.epsilon:g}, by fold", columns=columns, rows=rows, notes=notes
        )
    ]


def _cells(one: dict) -> list[str]:
    sampler, raw, real = one["sampler"], one["raw"], one["real"]
    figures = [
        raw["auc"]["value"], sampler["auc"]["value"], real["auc"]["value"],
        raw["frechet"]["value"], sampler["frechet"]["value"], real["frechet"]["value"],
        raw["told_apart"]["value"], sampler["told_apart"]["value"], sampler["copies"]["p_value"], one["kept"],
    ]  # fmt: skip
    return [f"{value:.3f}" for value in figures]


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder with manifest.csv and folds.csv")
    parser.add_argument("--split", default="split0")
    parser.add_argument("--epsilon", default="8")
    parser.add_argument("--pool", type=int, default=8000, help="phantoms to choose from")
    parser.add_argument("--sites", type=Path, help="where prepared sites are kept; by default nowhere")
    parser.add_argument("--folds", help="comma-separated; by default all")
    arguments = parser.parse_args()
    found = machine()
    with tempfile.TemporaryDirectory() as place:
        sources = discover(arguments.data, load_study(STUDIES / "synthesis.toml").data, None)
        study = study_for(len(sources), arguments.epsilon)
        prepared = prepare_hospitals(sources, study, arguments.sites or Path(place))
        hospitals = in_process.open_hospitals({h.name: h.folder for h in prepared}, study)
        fold_of = read_folds(arguments.data / "folds.csv").fold_by_split[arguments.split]
        real, fold_N = labelled_images(hospitals, fold_of)
        pool = paint_pool(initial_network(study), arguments.pool, POOL_SEED)
        folds = [int(one) for one in arguments.folds.split(",")] if arguments.folds else sorted(set(fold_of.values()))
        results = {}
        for fold in folds:
            results[fold] = one_fold(study, hospitals, with_fold(real, fold_N == fold), fold_of, fold, pool)
            print(fold, json.dumps(results[fold]), file=sys.stderr, flush=True)
    settings = {name: getattr(arguments, name) for name in ("split", "epsilon", "pool")}
    document = {"settings": settings, "folds": {str(fold): one for fold, one in results.items()}}
    tell(arguments, found, document, sheet_of(results, study))


if __name__ == "__main__":
    main()
