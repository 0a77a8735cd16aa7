"""`wardround-site pull` against plain pynetdicom (C-MOVE) and dicomweb-client (WADO-RS), from an Orthanc here.

    ./run bench pacs_pull [--studies 5] [--size 64] [--repeats 3] [--markdown]

All write the objects to files. The pull also lists what there is, checks each object against the list, keeps a
manifest, makes every file durable, and asks again in the end. Needs root, a Linux with `unshare` and `ip`, and Debian's
packages orthanc and orthanc-dicomweb: Orthanc listens on all interfaces, so all of it runs in a network namespace.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import requests
from dicomweb_client.api import DICOMwebClient
from measure import Sheet, arguments_of, interleaved, machine, ratio, spread, tell
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import AllTransferSyntaxes, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove

from wardround_client.pacs.node import open_node
from wardround_client.pacs.pace import Pace
from wardround_client.pacs.pull import Order, pull
from wardround_client.pacs.query import Wanted

INSIDE = "WARDROUND_BENCH_INSIDE"
DICOM_PORT, HTTP_PORT, SITE_PORT = 14242, 18042, 11112
ROOT = f"http://127.0.0.1:{HTTP_PORT}/dicom-web"
EACH = 100  # objects of a study
AS_STORED = (("application/dicom", "*"),)
SITE = f"""\
name = "bench"
[privacy]
epsilon_cap = 1.0
delta_cap = 1e-5
[pacs.archive]
[pacs.archive.dicom]
address = "127.0.0.1:{DICOM_PORT}"
pacs_ae = "TESTPACS"
listen = "127.0.0.1:{SITE_PORT}"
[pacs.archive.web]
url = "{ROOT}"
"""


def start_orthanc(folder: Path) -> subprocess.Popen[bytes]:
    """Start an Orthanc with an empty store and DICOMweb, and wait until it replies."""
    plugins = [str(path) for path in sorted(Path("/usr/lib/orthanc").glob("libOrthancDicomWeb.so*"))[:1]]
    folder.mkdir()
    settings = {
        "DicomAet": "TESTPACS", "DicomPort": DICOM_PORT, "HttpPort": HTTP_PORT, "Plugins": plugins,
        "DicomModalities": {"site": {"AET": "WARDROUND", "Host": "127.0.0.1", "Port": SITE_PORT}},
        "AuthenticationEnabled": False, "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "StorageDirectory": str(folder), "IndexDirectory": str(folder),
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "log", "wb") as log:
        environment = {**os.environ, "TCP_NODELAY": "1"}
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, env=environment)
    ends = time.monotonic() + 60
    while b"Orthanc has started" not in (folder / "log").read_bytes():
        if process.poll() is not None or time.monotonic() > ends:
            raise SystemExit(f"Orthanc did not start: {(folder / 'log').read_text()[-500:]}")
        time.sleep(0.1)
    return process


def fill(studies: int, size: int) -> int:
    """Store CT objects of `size` x `size` pixels; return the bytes of one."""
    pixels = np.random.default_rng(0).integers(0, 2000, (size, size), dtype="<u2").tobytes()
    with requests.Session() as session:
        session.trust_env = False
        for study in range(1, studies + 1):
            for number in range(1, EACH + 1):
                content = ct(study, number, size, pixels)
                session.post(f"http://127.0.0.1:{HTTP_PORT}/instances", data=content, timeout=60).raise_for_status()
    return len(content)


def ct(study: int, number: int, size: int, pixels: bytes) -> bytes:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.3.{study}", f"1.2.3.{study}.1"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = f"1.2.3.{study}.1.{number}"
    made.PatientID, made.Modality, made.InstanceNumber = f"P{study}", "CT", number
    made.StudyDate, made.StudyTime = f"202401{study % 28 + 1:02d}", f"{study % 24:02d}{study // 28 % 60:02d}00"
    made.AccessionNumber = f"A{study}"
    made.Rows = made.Columns = size
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PixelData = 15, pixels
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


def ours(site: Path, folder: Path, way: str) -> int:
    """Pull everything into a new folder."""
    node = open_node(site, "archive")
    wanted = Wanted(first=date(2024, 1, 1), last=date(2024, 1, 31))
    order = Order(node=node, wanted=wanted, folder=folder / "objects", way=way, today=date(2024, 2, 1))
    done = pull(order, Pace(node, 3600))
    if not done.complete:
        raise SystemExit(f"the pull of the benchmark is not complete: {done}")
    return done.came


def plain_move(folder: Path, studies: int) -> int:
    """C-MOVE of each study with pynetdicom, as its examples do it: the handler writes the file."""
    folder.mkdir()
    came = []

    def keep(event: evt.Event) -> int:
        came.append(1)
        (folder / f"{len(came)}.dcm").write_bytes(event.encoded_dataset())
        return 0x0000

    entity = AE("WARDROUND")
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), AllTransferSyntaxes)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
    server = entity.start_server(("127.0.0.1", SITE_PORT), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        association = entity.associate("127.0.0.1", DICOM_PORT, ae_title="TESTPACS")
        for study in range(1, studies + 1):
            query = Dataset()
            query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", f"1.2.3.{study}"
            for _ in association.send_c_move(query, "WARDROUND", StudyRootQueryRetrieveInformationModelMove):
                pass
        association.release()
    finally:
        server.shutdown()
    return len(came)


def plain_web(folder: Path, studies: int) -> int:
    """WADO-RS of each study with dicomweb-client; its data sets are written to files."""
    folder.mkdir()
    client, count = DICOMwebClient(ROOT), 0
    client._session.trust_env = False
    for study in range(1, studies + 1):
        for dataset in client.iter_study(f"1.2.3.{study}", media_types=AS_STORED):
            count += 1
            dataset.save_as(folder / f"{count}.dcm")
    return count


def peak_mb(site: Path, folder: Path, way: str, last: str) -> tuple[int, float]:
    """Return the objects and the peak memory of the command as a process of its own, for studies up to a day."""
    program = Path(sys.executable).with_name("wardround-site")
    words = ["pull", "archive", "--from", "2024-01-01", "--to", last, "--way", way, "--site", str(site), "--json"]
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(json.dumps([json.loads(done.stdout)['came'], peak / 1024]))\n"
    )
    command = [sys.executable, "-c", code, str(program), *words, "--into-folder", str(folder / "objects")]
    came, peak = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return came, peak


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=5, help=f"studies of {EACH} objects each")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of an object")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if shutil.which("Orthanc") is None or os.geteuid() != 0:
        raise SystemExit("bench/pacs_pull.py needs root and Debian's packages orthanc and orthanc-dicomweb")
    if INSIDE not in os.environ:
        words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', sys.executable, *sys.argv]
        os.execvpe("unshare", words, {**os.environ, INSIDE: "yes"})
    found = machine()
    studies, total = arguments.studies, arguments.studies * EACH
    with tempfile.TemporaryDirectory() as place:
        orthanc = start_orthanc(Path(place) / "store")
        try:
            object_bytes = fill(studies, arguments.size)
            site = Path(place) / "site"
            site.mkdir()
            (site / "site.toml").write_text(SITE)

            def anew(work, *words: object):
                def run() -> None:
                    folder = Path(tempfile.mkdtemp(dir=place))
                    try:
                        if work(folder / "new", *words) != total:
                            raise SystemExit("objects are missing in the benchmark")
                    finally:
                        shutil.rmtree(folder)

                return run

            works = {
                "pull c-move": anew(lambda folder: ours(site, _made(folder), "c-move")),
                "pynetdicom c-move": anew(plain_move, studies),
                "pull web": anew(lambda folder: ours(site, _made(folder), "web")),
                "dicomweb-client": anew(plain_web, studies),
            }
            seconds = interleaved(
                works, arguments.repeats, warm=1 if arguments.repeats > 1 else 0, clock=time.perf_counter
            )
            few = date(2024, 1, 1 + max(1, min(studies, 27) // 5)).isoformat()
            memory = {
                (way, last): peak_mb(site, Path(tempfile.mkdtemp(dir=place)), way, last)
                for way in ("c-move", "web")
                for last in (few, "2024-01-31")
            }
        finally:
            orthanc.terminate()
            orthanc.wait(60)
    per_s = {name: spread([total / one for one in values]) for name, values in seconds.items()}
    over = {
        "c-move": ratio(seconds["pynetdicom c-move"], seconds["pull c-move"]),
        "web": ratio(seconds["dicomweb-client"], seconds["pull web"]),
    }
    rows = [
        *([f"{name}, objects/s", one.text(0)] for name, one in per_s.items()),
        ["speed of pull c-move over pynetdicom", over["c-move"].text()],
        ["speed of pull web over dicomweb-client", over["web"].text()],
        *([f"peak memory, {way}, {came:,} objects, MB", f"{peak:,.0f}"] for (way, _), (came, peak) in memory.items()),
    ]
    title = f"Pull of {total:,} CT objects of {object_bytes / 1000:,.0f} kB from Orthanc"
    document = {
        "settings": {"studies": studies, "size": arguments.size, "repeats": arguments.repeats},
        "objects": total,
        "object_bytes": object_bytes,
        "objects_per_s": {name: one.to_json() for name, one in per_s.items()},
        "ratio": {name: one.to_json() for name, one in over.items()},
        "peak_mb": [{"way": way, "objects": came, "mb": round(peak, 1)} for (way, _), (came, peak) in memory.items()],
    }
    columns = ["what", f"median (smallest–largest) of {arguments.repeats}"]
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows)])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
