"""Small runs by the command itself, for tests of whole runs."""

import csv
import subprocess
import sys

import numpy as np
from PIL import Image

from wardround_client.ledger.ledger import Ledger

COMMAND = [sys.executable, "-m", "wardround_simulation.cli.main"]
LABELS = ("benign", "malignant")
STUDY = """
[study]
name = "tiny"
rounds = 3
spare_rounds = 1
[data]
modality = "any"
image_size = 32
labels = ["benign", "malignant"]
[privacy]
epsilon = 8.0
delta = 1e-3
max_grad_norm = 0.3
nominal_patients = 10
[aggregation]
nominal_sites = 2
min_sites = 1
[evaluation]
holdout = 0.3
"""
FREE = ("--set", "privacy.epsilon=inf", "--no-baselines")


def picture(generator, label):
    """Noise, with a square that is brighter in the malignant ones."""
    pixels_HW = generator.integers(0, 100, (32, 32))
    pixels_HW[10:22, 10:22] += 60 + 60 * label
    return pixels_HW.astype(np.uint8)


def write_pictures(folder, patients=24, images=2):
    """A manifest of two sites; patients p0, p1, ... alternate between the sites, and in pairs between the labels."""
    folder.mkdir()
    generator, rows = np.random.default_rng(1), []
    for patient in range(patients):
        label = patient // 2 % 2
        for number in range(images):
            name = f"{patient}-{number}.png"
            Image.fromarray(picture(generator, label)).save(folder / name)
            rows.append((name, f"p{patient}", f"site-{patient % 2}", LABELS[label]))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "patient_id", "site", "label"), *rows])
    return folder


def command(*words):
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def sites_of(run):
    return {folder.name: folder for folder in sorted((run / "sites").iterdir())}


def ledger_of(site_folder):
    ledger = Ledger(site_folder / "ledger.sqlite3")
    found = ledger.events(), ledger.attempts(), ledger.spent(1e-3)
    ledger.close()
    return found
