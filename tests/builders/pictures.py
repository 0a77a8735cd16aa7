"""Folders of pictures with a manifest, and their ingestion."""

from __future__ import annotations

import csv

import numpy as np
from PIL import Image

from wardround.sources.images.study import ImageData
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest

KEY = b"site key of the tests, 32 bytes."


LABELS = ("benign", "malignant")


def study(**settings):
    return ImageData(**{"image_size": 16, "labels": LABELS, "modality": "any", **settings})


def pixels(seed, shape=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def manifest(folder, rows):
    """Write files and their manifest. `rows`: name, patient, label, pixels (an array, or bytes of a damaged file)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, _, content in rows:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            Image.fromarray(content).save(folder / name)
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "patient_id", "label"), *(row[:3] for row in rows)])
    return folder


def many(count=40):
    return [(f"{i:02d}.png", f"patient {i // 4}", LABELS[i % 2], pixels(i)) for i in range(count)]


def run(folder, out, pool, progress=None, **settings):
    data = study(**settings)
    (source,) = discover(folder, data)
    return ingest(source, data, out, KEY, workers=1, pool=pool, progress=progress)
