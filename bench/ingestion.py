"""Measure ingestion: files per second against plain pydicom, and an epoch from the cohort against decoding.

    ./run bench ingestion [--patients 60] [--repeats 3] [--workers 2] [--markdown]

Ingestion includes all steps: scan, hashes, pseudonyms, decoding, cropping, quality gate and the cohort on disk.
`pydicom` only reads every file and its pixels, in the same number of processes. The processes of both are warm. The
files are phantom CT slices of 16 bits, which the benchmark writes and then reads from the page cache. Two more lines
compare the processor time of one process for a whole slice shrunk to 128², without the parent's part.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pydicom
from measure import Sheet, Spread, arguments_of, interleaved, machine, ratio, spread, tell

from wardround.sources.images.study import ImageData
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.images.decoding.prepare import FrameAddress, Recipe, prepare, scan
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest

KEY = b"bench" * 7
BATCH = 64
FILES_A_TASK = 16
DATA = ImageData(image_size=128, spacing_mm=0.7, labels=("benign", "malignant"))


def decode(paths: Sequence[Path]) -> int:
    """Decode every file with pydicom alone, and return the number of bytes of the pixels."""
    return sum(pydicom.dcmread(path).pixel_array.nbytes for path in paths)


def decode_in_processes(pool: ProcessPoolExecutor, paths: Sequence[Path]) -> int:
    return sum(pool.map(decode, [paths[first : first + FILES_A_TASK] for first in range(0, len(paths), FILES_A_TASK)]))


def write_phantoms(folder: Path, patients: int) -> Path:
    """Write a phantom hospital with labels for whole series, so that every file becomes an image."""
    from wardround_simulation.phantoms.dicom import LABELS_FILE, write_phantom_hospitals

    write_phantom_hospitals(folder, 1, patients, seed=0)
    table = folder / "hospital-1" / LABELS_FILE
    with open(table, encoding="utf-8", newline="") as file:
        label_of = {row["SeriesInstanceUID"]: row["label"] for row in csv.DictReader(file)}
    lines = ["SeriesInstanceUID,label", *(f"{series},{label}" for series, label in label_of.items())]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table.parent


def epoch(images_NCHW: np.ndarray, generator: np.random.Generator) -> int:
    """Read every image once, in batches of a new random order, as training does; return the number of bytes."""
    order_N = generator.permutation(len(images_NCHW))
    return sum(int(images_NCHW[order_N[at : at + BATCH]].nbytes) for at in range(0, len(order_N), BATCH))


def write_slices(folder: Path, size: int, count: int) -> list[Path]:
    """Write uncompressed CT slices: pydicom's own small one, with a body of the given size in pixels."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:size, :size] / size - 0.5
    body = np.where(x**2 + y**2 < 0.16, 40.0, -1000.0)
    body[(x - 0.15) ** 2 + y**2 < 0.02] = -800
    paths = []
    for number in range(count):
        slice_ = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
        values = body + np.random.default_rng(number).normal(0, 10, body.shape) + 1024
        slice_.Rows = slice_.Columns = size
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.InstanceNumber = 1, -1024, number + 1
        slice_.SOPInstanceUID, slice_.ImagePositionPatient = pydicom.uid.generate_uid(), [0, 0, 2.0 * number]
        slice_.PixelData = np.clip(np.rint(values), 0, 4095).astype("<i2").tobytes()
        paths.append(folder / f"{number:03d}.dcm")
        slice_.save_as(paths[-1])
    return paths


def cpu_over_pydicom(folder: Path, size: int, repeats: int) -> Spread:
    """Return the processor time of a worker's two steps over that of pydicom, which reads the file and its pixels."""
    paths, data = write_slices(folder, size, 40), DATA.model_copy(update={"spacing_mm": None})

    def ours() -> None:
        for path in paths:
            record = scan(path, data, KEY)
            here = FrameAddress(path=path, spacing_mm=record.frames[0].spacing_mm, native=record.native)
            image = prepare(Recipe(kind="dicom", here=here), data)
            if record.fault or image.fault:
                raise RuntimeError(f"a slice of the benchmark was refused: {record.fault or image.fault}")

    works = {
        "ours": ours,
        "pydicom": lambda: decode(paths),
    }
    seconds = interleaved(works, repeats, clock=time.process_time)
    return ratio(seconds["ours"], seconds["pydicom"])


def works_of(source: Path, place: Path, ours: WorkerPool, plain: ProcessPoolExecutor) -> tuple[dict, dict[str, int]]:
    """Return the works to time, and the numbers of files and images that they process."""
    site = discover(source, DATA, sites=1)[0]
    paths = [site.root / file.path for file in site.files]
    numbers, generator = count(), np.random.default_rng(0)
    first = ingest(site, DATA, place / "first", KEY, workers=1, pool=ours)
    cohort = open_cohort(place / "first")

    def ingest_anew() -> None:
        ingest(site, DATA, place / f"cohort-{next(numbers)}", KEY, workers=1, pool=ours)

    works = {
        "ingest": ingest_anew,
        "pydicom": lambda: decode_in_processes(plain, paths),
        "again": lambda: ingest(site, DATA, place / "first", KEY, workers=1, pool=ours),
        "epoch": lambda: epoch(cohort.values_N, generator),
        "decoded epoch": lambda: decode(paths),
    }
    return works, {"files": len(paths), "images": len(cohort.values_N), "decoded": first.decoded}


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, default=60, help="phantom patients, about 8 files each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the system's temporary folder")
    arguments = parser.parse_args()
    found = machine()
    workers = arguments.workers or int(found["cores"])
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        source = write_phantoms(Path(place) / "phantoms", arguments.patients)
        cpu = {size: cpu_over_pydicom(Path(place) / f"slices-{size}", size, arguments.repeats) for size in (128, 512)}
        with WorkerPool(workers) as ours, ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as plain:
            works, sizes = works_of(source, Path(place), ours, plain)
            seconds = interleaved(works, arguments.repeats, clock=time.perf_counter)
    files, images = sizes["files"], sizes["images"]
    over = {
        "ingest over pydicom": ratio(seconds["ingest"], seconds["pydicom"]),
        "decoded epoch over cached epoch": ratio(seconds["decoded epoch"], seconds["epoch"]),
    }
    per_s = {name: spread([files / one for one in seconds[name]]) for name in ("ingest", "pydicom", "again")}
    rows = [
        [f"ingestion, {workers} processes, files/s", per_s["ingest"].text(0)],
        [f"pydicom alone, {workers} processes, files/s", per_s["pydicom"].text(0)],
        ["ingestion's time over pydicom's", over["ingest over pydicom"].text()],
        *([f"processor time over pydicom's, {size}² uncompressed", one.text()] for size, one in cpu.items()),
        ["ingestion again, nothing new, files/s", per_s["again"].text(0)],
        ["an epoch from the cohort, ms", spread(seconds["epoch"]).text(1, 1e3)],
        ["an epoch of decoding, one process, ms", spread(seconds["decoded epoch"]).text(1, 1e3)],
        ["decoding over cohort", over["decoded epoch over cached epoch"].text(0)],
    ]
    columns = ["what", f"median (smallest–largest) of {arguments.repeats}"]
    title = f"Ingestion of {files} phantom DICOM files to {images} images"
    document = {
        "settings": {"workers": workers, "patients": arguments.patients, "repeats": arguments.repeats},
        **sizes,
        "seconds": {name: spread(values).to_json() for name, values in seconds.items()},
        "files_per_s": {name: one.to_json() for name, one in per_s.items()},
        "ratio": {name: one.to_json() for name, one in over.items()},
        "cpu_ratio": {str(size): one.to_json() for size, one in cpu.items()},
    }
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows)])


if __name__ == "__main__":
    main()
