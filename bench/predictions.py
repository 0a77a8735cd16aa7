"""Measure what predictions promise: calibrated probabilities, label sets with stated coverage, and refusals.

    ./run bench predictions [--data lidc_nodules] [--epsilon 8] [--draws 2] [--markdown]

For each fold of three splits by patient, the study is trained by the round functions of real sites on three folds,
calibrated on noised counts of a fourth (`evaluation.epsilon`, six sites), and tested on the last, which neither saw.
The second table is the share of images that are refused as unlike the training data.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
import torch
from measure import Sheet, arguments_of, machine, tell
from PIL import Image

from wardround.metrics.calibration import fit_calibration
from wardround.metrics.classification import expected_calibration_error, patient_scores, probabilities
from wardround.metrics.noised_auc import ScoreHistogram, noise_variance
from wardround.networks.build import initial_network
from wardround.phantoms.crops import generate_crops
from wardround.phantoms.outliers import CHEST_SHARE, EMPTY_SHARE, generate_outliers
from wardround.study.load import Study, load_study
from wardround.tasks.assessment import SiteData, patient_offsets
from wardround.tasks.classification.familiarity import Familiarity, load_familiarity
from wardround.tasks.labelled.scores import score
from wardround_client.privacy.score_noise import noised, score_histogram
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.sources.images.decoding.crop import luminance, to_grey
from wardround_client.sources.images.decoding.dicom_pixels import read_frame
from wardround_client.sources.images.folder.layout import discover
from wardround_simulation.compare.compare import read_folds
from wardround_simulation.engine.assessment import InProcessTrainer, sites_of_fold
from wardround_simulation.engine.in_process import Hospital, open_hospitals
from wardround_simulation.run.hospitals import prepare_hospitals

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data"))
COUNT_EPSILONS = (math.inf, 8.0, 2.0, 1.0)
COVERAGE = 0.9
CROP_PX, CROPS = 128, 15
FRESH_SEED = 977  # differs from the seeds of all pre-trainings


class FoldScores:
    """Logits of a fold's rows at each site, and their labels and patients."""

    def __init__(self, sites: list[SiteData], study: Study, weights: dict[str, np.ndarray]) -> None:
        network = initial_network(study)
        self.sites = []
        for site, offset in zip(sites, patient_offsets(sites), strict=True):
            rows = np.flatnonzero(site.held_out_N)
            shares_N = score(network, study, weights, site.inputs_N[rows])
            logits_N = np.log(shares_N) - np.log1p(-shares_N)
            self.sites.append((logits_N, site.labels_N[rows].astype(np.int64), site.patient_N[rows] + offset))

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([one[0] for one in self.sites]), np.concatenate([one[1] for one in self.sites])

    def patients(self) -> tuple[np.ndarray, np.ndarray]:
        found = [patient_scores(probabilities(one[0]), one[1], one[2]) for one in self.sites if len(one[0])]
        shares_P = np.concatenate([one[0] for one in found])
        return np.log(shares_P) - np.log1p(-shares_P), np.concatenate([one[1] for one in found])

    def histogram(self, study: Study, epsilon: float, randomness: SecretRandom) -> ScoreHistogram:
        """Return the sum of the sites' noised counts, as they would be released."""
        bins, scale = study.evaluation.bins, study.evaluation.logit_scale
        total_2B = np.zeros((2, bins), np.int64)
        for logits_N, labels_N, patients_N in self.sites:
            if not len(logits_N):
                continue
            shares_P, labels_P, _ = patient_scores(probabilities(logits_N), labels_N, patients_N)
            counts_2B = score_histogram(np.log(shares_P) - np.log1p(-shares_P), labels_P == 1, bins, scale)
            total_2B += counts_2B if math.isinf(epsilon) else noised(counts_2B, epsilon, randomness)
        variance = 0.0 if math.isinf(epsilon) else len(self.sites) * noise_variance(epsilon)
        return ScoreHistogram(counts_2B=total_2B, noise_variance=variance, logit_scale=scale)


def calibration_sheet(data: Path, epsilon: float, draws: int, place: Path) -> tuple[Sheet, dict]:
    study = load_study(ROOT / "studies" / "lidc.toml", (f"privacy.epsilon={epsilon}",))
    prepared = prepare_hospitals(discover(data, study.data, None), study, place)
    hospitals = open_hospitals({one.name: one.folder for one in prepared}, study)
    folds = read_folds(data / "folds.csv").fold_by_split
    found: dict[float, list[dict[str, np.ndarray]]] = {one: [] for one in COUNT_EPSILONS}
    randomness = SecretRandom()
    for by_patient in folds.values():
        numbers = sorted(set(by_patient.values()))
        for _ in range(draws):
            rows: dict[float, list[dict[str, np.ndarray]]] = {one: [] for one in COUNT_EPSILONS}
            for fold in numbers:
                following = numbers[(numbers.index(fold) + 1) % len(numbers)]
                calibrating, tested = train_fold(study, hospitals, by_patient, fold, following)
                for count_epsilon in COUNT_EPSILONS:
                    rows[count_epsilon].append(outcome(study, calibrating, tested, count_epsilon, randomness))
                print(f"fold {fold} done", file=sys.stderr)
            for count_epsilon, parts in rows.items():  # of all patients of a split together
                found[count_epsilon].append({name: np.concatenate([p[name] for p in parts]) for name in parts[0]})
    figures = {str(one): figures_of(parts) for one, parts in found.items()}
    columns = ["counts released at", "ECE, images", "calibrated", "ECE, patients", "calibrated", "sets cover", "both"]
    keys = ("ece_images", "ece_images_calibrated", "ece_patients", "ece_patients_calibrated", "coverage", "both")
    table = [[f"ε = {name}", *(f"{one[key]:.3f}" for key in keys)] for name, one in figures.items()]
    title = f"Calibration on patients never seen, study at ε = {epsilon:g}, label sets of {COVERAGE:.0%}"
    return Sheet(title=title, columns=columns, rows=table), figures


def train_fold(
    study: Study, hospitals: list[Hospital], by_patient: Mapping[str, int], tested: int, calibrating: int
) -> tuple[FoldScores, FoldScores]:
    """Train without both folds; return the scores of the calibrating and of the tested one."""
    rest = {name: fold for name, fold in by_patient.items() if fold not in (tested, calibrating)}
    training = sites_of_fold(study, hospitals, rest, -2)
    weights = InProcessTrainer(hospitals).federated(study, training)
    scored = [
        FoldScores(sites_of_fold(study, hospitals, by_patient, fold), study, weights) for fold in (calibrating, tested)
    ]
    return scored[0], scored[1]


def outcome(
    study: Study, calibrating: FoldScores, tested: FoldScores, epsilon: float, randomness: SecretRandom
) -> dict[str, np.ndarray]:
    fitted = fit_calibration(calibrating.histogram(study, epsilon, randomness), COVERAGE)
    logits_N, labels_N = tested.images()
    logits_P, labels_P = tested.patients()
    shown_N, shown_P = probabilities(logits_N), probabilities(logits_P)
    sets_P2 = np.ones((len(logits_P), 2), bool) if fitted is None else fitted.label_sets(logits_P)
    return {
        "labels_N": labels_N,
        "shown_N": shown_N,
        "calibrated_N": shown_N if fitted is None else fitted.probability(logits_N),
        "labels_P": labels_P,
        "shown_P": shown_P,
        "calibrated_P": shown_P if fitted is None else fitted.probability(logits_P),
        "inside_P": sets_P2[np.arange(len(labels_P)), labels_P],
        "both_P": sets_P2.all(axis=1),
    }


def figures_of(parts: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Return means over splits and draws; the errors of a split are those of all its patients together."""

    def error(shown: str, labels: str) -> float:
        return float(np.mean([expected_calibration_error(part[shown], part[labels]) for part in parts]))

    return {
        "ece_images": error("shown_N", "labels_N"),
        "ece_images_calibrated": error("calibrated_N", "labels_N"),
        "ece_patients": error("shown_P", "labels_P"),
        "ece_patients_calibrated": error("calibrated_P", "labels_P"),
        "coverage": float(np.mean([part["inside_P"].mean() for part in parts])),
        "both": float(np.mean([part["both_P"].mean() for part in parts])),
    }


def refusal_sheet(data: Path) -> tuple[Sheet, dict]:
    network, threshold = load_familiarity()
    sets = image_sets(data)
    shares = {name: float((distances(network, images) > threshold).mean()) for name, images in sets.items()}
    rows = [[name, str(len(sets[name])), f"{share:.1%}"] for name, share in shares.items()]
    columns = ["images", "number", "refused"]
    return Sheet(title="Images unlike the training data", columns=columns, rows=rows), shares


@torch.no_grad()
def distances(network: Familiarity, images_NHW: np.ndarray) -> np.ndarray:
    chunks = torch.from_numpy(images_NHW).split(200)
    return torch.cat([network(chunk[:, None]) for chunk in chunks]).numpy()


def image_sets(data: Path) -> dict[str, np.ndarray]:
    """Return sets of grey images, uint8 (N, H, W): nodules first, then what is none."""
    random = np.random.default_rng(0)
    nodules = np.stack([np.asarray(Image.open(path).convert("L")) for path in sorted((data / "images").glob("*.png"))])
    outliers = generate_outliers(1600, FRESH_SEED).numpy()
    kinds: dict[str, list[np.ndarray]] = {}
    for path in sorted((DATA / "dicom" / "files").glob("*.dcm")):
        name, images = dicom_crops(path, random)
        kinds.setdefault(name, []).extend(images)
    return {
        "LIDC nodules": nodules,
        "fresh phantoms": generate_crops(1000, FRESH_SEED).images_NHW.numpy(),
        "phantoms without a nodule": outliers[: round(EMPTY_SHARE * len(outliers))],
        "painted pictures": outliers[round((EMPTY_SHARE + CHEST_SHARE) * len(outliers)) :],
        "noise": random.integers(0, 256, (300, CROP_PX, CROP_PX)).astype(np.uint8),
        "photographs": np.stack(photographs(random)),
        **{name: np.stack(images) for name, images in sorted(kinds.items()) if images},
    }


def photographs(random: np.random.Generator) -> list[np.ndarray]:
    """Return crops of scikit-learn's two sample photographs."""
    from sklearn.datasets import load_sample_images

    grey = [np.asarray(Image.fromarray(image).convert("L")) for image in load_sample_images().images]
    return [crop for image in grey for side in (128, 256, 400) for crop in crops_of(image, 2 * CROPS, side, random)]


def dicom_crops(path: Path, random: np.random.Generator) -> tuple[str, list[np.ndarray]]:
    """Return a kind of image and crops of a real DICOM file; no crops if it cannot be decoded or is too small."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        frame = read_frame(path, 0)
    except Exception:  # damaged on purpose, for other tests
        return "", []
    values = luminance(frame.values) if frame.values.ndim == 3 else frame.values
    grey = to_grey(values, (-1000.0, 400.0) if frame.hu else (0.0, 255.0))
    modality = str(header.get("Modality"))
    kind = {"CT": "other CT", "CR": "radiographs"}.get(modality, "ultrasound, MR and others")
    if min(grey.shape) < CROP_PX:
        return kind, []
    whole = np.asarray(Image.fromarray(grey).resize((CROP_PX, CROP_PX)))
    sides = [side for side in (128, 256) if min(grey.shape) >= side]
    return kind, [whole, *(crop for side in sides for crop in crops_of(grey, CROPS, side, random))]


def crops_of(image_HW: np.ndarray, count: int, side: int, random: np.random.Generator) -> list[np.ndarray]:
    made = []
    for _ in range(count):
        top, left = (int(random.integers(0, size - side + 1)) for size in image_HW.shape)
        crop = Image.fromarray(image_HW[top : top + side, left : left + side])
        made.append(np.asarray(crop.resize((CROP_PX, CROP_PX))))
    return made


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=DATA / "lidc_nodules", help="a folder with manifest.csv, folds.csv"
    )
    parser.add_argument("--epsilon", type=float, default=8.0, help="of the study")
    parser.add_argument("--draws", type=int, default=2, help="of the noise, for each fold")
    arguments = parser.parse_args()
    if not (arguments.data / "folds.csv").is_file():
        sys.exit(f"{arguments.data}: has no folds.csv; give --data")
    found = machine()
    with tempfile.TemporaryDirectory() as place:
        calibration, figures = calibration_sheet(arguments.data, arguments.epsilon, arguments.draws, Path(place))
    refusals, shares = refusal_sheet(arguments.data)
    tell(arguments, found, {"calibration": figures, "refused": shares}, [calibration, refusals])


if __name__ == "__main__":
    main()
