"""Wardround beside stock Flower, NVFLARE and one plain loop on the same work: processor time and memory.

    ./run bench peers [--steps 30] [--repeats 1] [--works plain,private,empty] [--markdown]

The work: six sites, three rounds, the seed CNN on small generated images, each site's fifth held out and scored.
`plain` and `private` take so many local steps a round, with Adam; `private` is patient-level privacy at epsilon 8,
with Opacus in the peers; `empty` takes one step a round without privacy, which leaves start-up and shut-down.
Wardround is called as a user does, without baselines; it also ingests the files and writes its report.

Counted are the seconds of processor time, user and system, of all processes that a command starts, including those
that outlive it, and the largest sum of their resident memory, looked at every 0.1 s (shared pages count more than
once). Ratios are to stock Flower in the same repeat. Every process may use one thread for torch.

Each peer gets a virtual environment of its own in bench/.peers/, with the versions below. The first call downloads
them, so `./run bench` without a name leaves this benchmark out. A peer that cannot be installed is left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measure import MB, Sheet, arguments_of, machine, ratio, spread, tell

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "peer_programs"
TORCH = ("torch==2.13.0", "opacus==1.6.0", "numpy==2.4.6", "pillow==13.0.0")
PEERS = {
    "loop": TORCH,
    "flower": ("flwr[simulation]==1.39.0", "ray==2.55.1", *TORCH),
    "flare": ("nvflare==2.9.0", *TORCH),
}
NAMES = {"loop": "one plain loop", "flower": "stock Flower", "flare": "NVFLARE", "wardround": "Wardround"}
BASE = "flower"
WORKS = {"plain": "without privacy", "private": "epsilon 8", "empty": "one step a round"}
INSTALL_LIMIT_S = 900.0
POLL_S = 0.1
LINGER_S = 15.0  # how long processes may outlive their command before they are ended
HERTZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux

STUDY = """
[study]
name = "peers"
rounds = {rounds}
spare_rounds = 0
[data]
modality = "any"
image_size = {image_size}
region = "whole"
channels = "grey"
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
optimizer = "adam"
learning_rate = {learning_rate}
local_steps = {steps}
[privacy]
epsilon = {epsilon}
delta = 1e-4
max_grad_norm = {clip}
sampling_rate = 0.5
images_per_patient = 1
nominal_patients = {training}
[aggregation]
nominal_sites = {sites}
min_sites = {sites}
round_deadline_s = 600
[evaluation]
holdout = 0.2
"""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a command and all processes that it started have used."""

    cpu_s: float
    wall_s: float
    peak_mb: float  # all processes together
    largest_mb: float  # the largest single process


class NotDone(Exception):
    """A command failed or took too long, in one line."""


def install(peer: str, folder: Path) -> Path:
    """The Python of the peer's environment, made on the first call. Raises `NotDone` where that fails."""
    place, wanted = folder / peer, "\n".join(PEERS[peer])
    python, stamp = place / "bin" / "python", place / "stamp"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"peers: installing {', '.join(PEERS[peer])} in {place} ...", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, capture_output=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *PEERS[peer]]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise NotDone(f"{NAMES[peer]} could not be installed within {INSTALL_LIMIT_S:.0f} s") from None
    except (subprocess.CalledProcessError, OSError) as error:
        raise NotDone(f"{NAMES[peer]} could not be installed: {last_line(getattr(error, 'stderr', ''))}") from None
    stamp.write_text(wanted, encoding="utf-8")
    return python


def last_line(text: str | bytes | None) -> str:
    text = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return ([line for line in text.strip().splitlines() if line.strip()] or ["no message"])[-1][:200]


class TreeWatcher(threading.Thread):
    """Watches the memory and processor time of all processes below this one, except those that were there before."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.peak_bytes = self.largest_bytes = 0
        self.ticks: dict[int, int] = {}

    def run(self) -> None:
        while not self.ended.wait(POLL_S):
            sizes = []
            for pid in descendants(os.getpid()):
                with suppress(OSError, ValueError, IndexError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                    self.ticks[pid] = int(fields[11]) + int(fields[12])
                    sizes.append(int(fields[21]) * PAGE)
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
            self.largest_bytes = max([self.largest_bytes, *sizes])


def descendants(root: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found: set[int] = set()
    more = {root}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def measured(command: Sequence[str], folder: Path, limit_s: float) -> Used:
    """Run a command to its end and to the end of what it started. Raises `NotDone` where it fails.

    This process adopts what the command leaves behind (Linux's subreaper), so that its time is counted too. Time of
    processes whose parent does not wait for them is missing from the system's sum; the watcher saw most of it.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    before, began, watcher = children_cpu_s(), time.monotonic(), TreeWatcher()
    watcher.start()
    failure = None
    with (folder / "output.txt").open("w+b") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            if process.wait(limit_s):
                output.seek(0)
                failure = f"ended with {process.returncode}: {last_line(output.read())}"
        except subprocess.TimeoutExpired:
            failure = f"took longer than {limit_s:.0f} s"
        finally:
            wall_s = time.monotonic() - began
            end_descendants(0.0 if failure else LINGER_S)
            watcher.ended.set()
            watcher.join()
    if failure:
        raise NotDone(failure)
    return Used(
        cpu_s=max(children_cpu_s() - before, sum(watcher.ticks.values()) / HERTZ),
        wall_s=wall_s,
        peak_mb=watcher.peak_bytes / MB,
        largest_mb=watcher.largest_bytes / MB,
    )


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def end_descendants(linger_s: float) -> None:
    """Wait for all processes below this one, and end those that are still there after `linger_s`."""
    ends = time.monotonic() + linger_s
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        left = descendants(os.getpid())
        if not left:
            return
        if time.monotonic() > ends:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
        time.sleep(POLL_S)


def write_data(folder: Path, sites: Sequence[str], patients: int, image_size: int) -> None:
    """Grey PNG files, one a patient: noise, and a brighter middle for a malignant label."""
    from PIL import Image

    generator = np.random.default_rng(0)
    lines = ["file,patient_id,site,label"]
    (folder / "images").mkdir(parents=True)
    for site in sites:
        for number in range(patients):
            image_HW = generator.integers(0, 160, (image_size, image_size), dtype=np.uint8)
            quarter = image_size // 4
            image_HW[quarter:-quarter, quarter:-quarter] += np.uint8(80 * (number % 2))
            name = f"images/{site}-{number:03d}.png"
            Image.fromarray(image_HW).save(folder / name)
            lines.append(f"{name},{site}-{number},{site},{('benign', 'malignant')[number % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_work(folder: Path, data: Path, sites: Sequence[str], work: str, arguments) -> None:
    """study.toml for Wardround and settings.json for the peers, with the same noise."""
    from wardround.study.load import load_study
    from wardround_client.privacy.plan import plan_from_study

    private, training = work == "private", round(0.8 * arguments.patients)
    numbers = {
        "rounds": arguments.rounds,
        "image_size": arguments.image_size,
        "learning_rate": 0.001,
        "steps": 1 if work == "empty" else arguments.steps,
        "clip": 1.0 if private else "inf",
    }
    text = STUDY.format(**numbers, epsilon=8.0 if private else "inf", training=training, sites=len(sites))
    (folder / "study.toml").write_text(text, encoding="utf-8")
    noise = plan_from_study(load_study(folder / "study.toml")).noise_multiplier
    settings = {**numbers, "data": str(data), "sites": list(sites), "batch": training // 2, "noise": noise}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def command_of(peer: str, pythons: dict[str, Path], folder: Path, data: Path, out: Path) -> list[str]:
    if peer != "wardround":
        return [str(pythons[peer]), str(PROGRAMS / f"{peer}.py"), str(folder / "settings.json")]
    module = [sys.executable, "-m", "wardround_simulation.cli.main", "run", str(folder / "study.toml")]
    return [*module, "--data", str(data), "--out", str(out), "--no-baselines", "--device", "cpu"]


def measure_all(
    arguments, works: Sequence[str], pythons: dict[str, Path]
) -> tuple[dict[str, dict[str, list[Used]]], list[str]]:
    """What each peer used for each work in each repeat, and one line for each that failed."""
    peers = [*pythons, "wardround"]
    sites = [f"site-{number}" for number in range(1, arguments.sites + 1)]
    used: dict[str, dict[str, list[Used]]] = {work: {peer: [] for peer in peers} for work in works}
    failed: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory(prefix="peers-") as base:
        data = Path(base) / "data"
        write_data(data, sites, arguments.patients, arguments.image_size)
        for work in works:
            place = Path(base) / work
            place.mkdir()
            write_work(place, data, sites, work, arguments)
            for repeat in range(arguments.repeats):
                for peer in peers if repeat % 2 == 0 else reversed(peers):
                    if (work, peer) in failed:
                        continue
                    with tempfile.TemporaryDirectory(dir=place) as folder:
                        command = command_of(peer, pythons, place, data, Path(folder) / "out")
                        try:
                            used[work][peer].append(measured(command, Path(folder), arguments.limit))
                        except NotDone as error:
                            failed[work, peer] = f"{NAMES[peer]}, {WORKS[work]}: {error}"
                            used[work][peer] = []
    return used, list(failed.values())


def sheet_of(work: str, used: dict[str, list[Used]]) -> tuple[dict, Sheet]:
    """One work's figures, for the document and as a table."""
    document, rows = {}, []
    for peer, repeats in used.items():
        if not repeats:
            continue
        columns = {name: [asdict(one)[name] for one in repeats] for name in asdict(repeats[0])}
        figures = {name: spread(values) for name, values in columns.items()}
        row = [NAMES[peer], figures["cpu_s"].text(1), figures["peak_mb"].text(0), figures["largest_mb"].text(0)]
        if used.get(BASE):
            for name in ("cpu_s", "peak_mb"):
                base = [asdict(one)[name] for one in used[BASE]]
                figures[f"{name}_to_{BASE}"] = ratio(columns[name], base)
                row.append(figures[f"{name}_to_{BASE}"].text(2))
        else:
            row += ["–", "–"]
        rows.append([*row, figures["wall_s"].text(0)])
        document[peer] = {name: one.to_json() for name, one in figures.items()}
    columns = ["", "CPU s", "peak, all, MB", "largest, MB", "CPU to Flower", "peak to Flower", "wall s"]
    return document, Sheet(title=f"{work}: {WORKS[work]}", columns=columns, rows=rows)


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--patients", type=int, default=40, help="at each site, one image each")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="local steps a round; the empty run takes one")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--works", default=",".join(WORKS), help="of plain, private, empty")
    parser.add_argument("--peers", default=",".join(PEERS), help="of loop, flower, flare; Wardround always runs")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one command may take")
    parser.add_argument("--environments", type=Path, default=HERE / ".peers", help="where the peers are installed")
    arguments = parser.parse_args()
    works, wanted = arguments.works.split(","), [name for name in arguments.peers.split(",") if name]
    if set(works) - set(WORKS) or set(wanted) - set(PEERS):
        parser.error(f"--works takes {', '.join(WORKS)}, --peers takes {', '.join(PEERS)}")
    pythons, missing = {}, []
    for peer in wanted:
        try:
            pythons[peer] = install(peer, arguments.environments.resolve())
        except NotDone as error:
            missing.append(str(error))
    found = machine()
    used, failed = measure_all(arguments, works, pythons)
    for line in (*missing, *failed):
        print(f"peers: {line}", file=sys.stderr)
    results = {work: sheet_of(work, used[work]) for work in works}
    settings = {"sites", "patients", "image_size", "rounds", "steps", "repeats"}
    document = {
        "settings": {name: value for name, value in vars(arguments).items() if name in settings},
        "versions": {peer: PEERS[peer] for peer in pythons},
        "left_out": [*missing, *failed],
        "works": {work: figures for work, (figures, _) in results.items()},
    }
    tell(arguments, found, document, [sheet for _, sheet in results.values()])


if __name__ == "__main__":
    main()
