"""A thousand damaged files and tables: no traceback, no hang, and no neighbour is lost.

Damage is random from a fixed seed: bits, bytes and blocks changed, cut out, doubled, and numbers set to their extremes.
"""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from builders.pictures import KEY, LABELS, study
from PIL import Image

from wardround.errors import WardroundError
from wardround.study.load import load_study
from wardround_client.site.config import load_site_config
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest

pytestmark = pytest.mark.slow

BATCH = 50
LONGEST_S = 120.0  # for a batch, beside other work
EXTREMES = (b"\0", b"\xff", b"\x80", b"\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"-1", b"9" * 30)
WORDS = (
    b"\n",
    b",",
    b'"',
    b"\0",
    b"\xef\xbb\xbf",
    "\u2028".encode(),
    b"nan",
    b"inf",
    b"1e400",
    b"..",
    b"/",
    b"=",
    b"[",
)


def mutant(content: bytes, dice: np.random.Generator, words: tuple[bytes, ...] = EXTREMES) -> bytes:
    changed = bytearray(content)
    for _ in range(int(dice.integers(1, 6))):
        at, kind = int(dice.integers(len(changed) + 1)), int(dice.integers(7))
        size = int(dice.integers(1, 1 + min(64, max(1, len(changed)))))
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(dice.integers(8))
        elif kind == 1:
            changed[at : at + size] = dice.bytes(size)
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        elif kind == 4:
            word = words[int(dice.integers(len(words)))]
            changed[at : at + len(word)] = word
        elif kind == 5:
            changed[at:at] = words[int(dice.integers(len(words)))]
        else:
            del changed[at:]
    return bytes(changed)


def good_pictures() -> dict[str, bytes]:
    found = {}
    for number, (kind, mode) in enumerate(
        (("PNG", "L"), ("JPEG", "RGB"), ("TIFF", "L"), ("GIF", "L"), ("WEBP", "RGB"), ("BMP", "L"), ("JPEG2000", "L"))
    ):
        content, dice = io.BytesIO(), np.random.default_rng(number)
        pixels = dice.integers(0, 256, (40, 40, 3) if mode == "RGB" else (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(content, format=kind)
        found[kind] = content.getvalue()
    return found


def good_dicom() -> dict[str, bytes]:
    """Files of several syntaxes that pydicom brings along."""
    names = (
        "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_small_odd.dcm", "image_dfl.dcm",
        "MR_small_bigendian.dcm", "nested_priv_SQ.dcm", "rtplan.dcm",
    )  # fmt: skip
    found = {}
    for name in names:
        path = pydicom.data.get_testdata_file(name, download=False)
        if path is not None:
            found[name] = Path(path).read_bytes()
    assert len(found) >= 5
    return found


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, item_limit_s=20.0) as workers:
        yield workers


def neighbours(folder: Path) -> None:
    """Four good pictures of four patients, of both labels."""
    for number in range(4):
        place = folder / LABELS[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(1000 + number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"good{number}.png")


@pytest.mark.parametrize("batch", range(6))
@pytest.mark.parametrize("goods", [good_pictures, good_dicom])
def test_damaged_files_cost_no_neighbour(tmp_path, pool, goods, batch) -> None:
    dice, data = np.random.default_rng((batch, len(goods.__name__))), study()
    neighbours(tmp_path / "data")
    (source,) = discover(tmp_path / "data", data)
    ingest(source, data, tmp_path / "alone", KEY, workers=1, pool=pool)
    alone = {line["values_sha256"] for line in csv.DictReader((tmp_path / "alone/table.csv").open(encoding="utf-8"))}
    assert len(alone) == 4
    for number in range(BATCH):
        name, content = list(goods().items())[number % len(goods())]
        (tmp_path / f"data/{LABELS[number % 2]}/{number:03d}-{name}.bin").write_bytes(mutant(content, dice))
    began = time.monotonic()
    (source,) = discover(tmp_path / "data", data)
    report = ingest(source, data, tmp_path / "out", KEY, workers=2, pool=pool)
    assert time.monotonic() - began < LONGEST_S
    table = list(csv.DictReader((tmp_path / "out/table.csv").open(encoding="utf-8")))
    assert alone <= {line["values_sha256"] for line in table}
    assert report.quality.files == 4 + BATCH


@pytest.mark.parametrize("batch", range(8))
def test_damaged_tables_are_read_or_refused_in_one_line(tmp_path, batch) -> None:
    dice, data = np.random.default_rng(batch), study()
    neighbours(tmp_path / "a")
    rows = [f"{LABELS[n % 2]}/good{n}.png,p{n},{'north' if n < 2 else 'south'},{LABELS[n % 2]}" for n in range(4)]
    manifest = ("file,patient_id,site,label\n" + "\n".join(rows) + "\n").encode()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    labels = b"SeriesInstanceUID,coordX,coordY,coordZ,label\n1.2.3,1.0,2.0,-3.5,benign\n1.2.4,0,0,0,malignant\n"
    for _ in range(BATCH):
        (tmp_path / "a/manifest.csv").write_bytes(mutant(manifest, dice, WORDS))
        (tmp_path / "b/labels.csv").write_bytes(mutant(labels, dice, WORDS))
        for folder in ("a", "b"):
            try:
                discover(tmp_path / folder, data)
            except WardroundError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000


STUDY = b"""[study]
name = "tiny"
rounds = 3
[data]
labels = ["benign", "malignant"]
window_hu = [[-1000, 400]]
[model]
name = "seed-cnn"
init = "random"
[training]
learning_rate = 0.01
[privacy]
epsilon = 8.0
delta = 1e-4
max_grad_norm = 1.0
nominal_patients = 5
[aggregation]
nominal_sites = 2
"""
SITE = b"""name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
allow_no_privacy = false
[release]
evaluation = "off"
per_site = false
minimum_patients = 50
[compute]
device = "auto"
threads = 2
precision = "float32"
"""


@pytest.mark.parametrize("content, load", [(STUDY, load_study), (SITE, load_site_config)], ids=["study", "site"])
def test_damaged_settings_are_read_or_refused_in_one_line(tmp_path, content, load) -> None:
    dice, path = np.random.default_rng(7), tmp_path / "settings.toml"
    path.write_bytes(content)
    load(path)
    for _ in range(300):
        path.write_bytes(mutant(content, dice, WORDS))
        try:
            load(path)
        except WardroundError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, str(error)
