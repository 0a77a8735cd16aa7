"""Measure a round of a real federation with a 100 MB model: its overhead over training, and the server's memory.

    ./run bench federation_round [--sites 1,3] [--rounds 4] [--megabytes 100] [--markdown]

A server and its sites are separate processes, which communicate over TLS on this machine. Each site has four patients
and takes one step per round. A round is the time from the broadcast to the last reply, from the server's metrics. Its
overhead is that time minus the training time of the slowest site, from that site's log: polling, starting a process and
loading torch, hashing, packing, sending, checking, averaging. The time from checkpoint to checkpoint is that of a whole
round, including the server's step and the writing. The first round is left out. The figures are wall time, which other
work on the machine lengthens; the processor time of all processes of a round is listed too.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from measure import MB, Sheet, arguments_of, machine, spread, tell

from wardround_client.flower.task_process import PROCESS_NAME

GOAL_S, GOAL_SITES = 20.0, 3
KEY = b"bench" * 7
HERTZ = os.sysconf("SC_CLK_TCK")
TRAINED = re.compile(r"round (\d+): trained in ([0-9.]+) s")

STUDY = """
[study]
name = "bench"
rounds = {rounds}
[data]
image_size = {size}
labels = ["a", "b"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
learning_rate = 0.01
local_steps = 1
[privacy]
epsilon = 8
delta = 1e-4
max_grad_norm = 1.0
sampling_rate = 1.0
nominal_patients = 4
[aggregation]
nominal_sites = {sites}
min_sites = {sites}
round_deadline_s = 600
max_update_norm = 1e9
"""


def image_size_for(megabytes: float) -> int:
    """Return the smallest image size at which the seed CNN, mostly its dense layer, has this many megabytes."""
    from wardround.networks.seed_cnn import SeedCNN

    size = 16
    while sum(p.numel() for p in SeedCNN(1, size, 1).parameters()) * 4 < megabytes * 1e6:
        size += 4
    return size


def write_cohort_at(site: Path, seed: int, size: int) -> None:
    from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort

    generator = np.random.default_rng(seed)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"{seed}/{n}"), label=n % 2) for n in range(4)]
    images = (generator.integers(0, 256, (1, size, size), dtype=np.uint8) for _ in rows)
    write_cohort(site / "cohort", rows, images, row_shape=(1, size, size), label_names=("a", "b"), site_key=KEY)


class Watcher(threading.Thread):
    """Samples the peak memory and the processor time of some processes and all their descendants."""

    def __init__(self, roots: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self.roots, self.ended = roots, threading.Event()
        self.peak_mb: dict[tuple[str, str], float] = {}
        self.cpu_s: list[tuple[float, dict[str, float]]] = []  # (time of the sample, seconds by root)

    def run(self) -> None:
        while not self.ended.wait(0.5):
            found = {}
            for name, root in self.roots.items():
                found[name] = 0.0
                for pid in below(root):
                    cpu_s, peak_mb, program = look_at(pid)
                    found[name] += cpu_s
                    self.peak_mb[name, program] = max(self.peak_mb.get((name, program), 0.0), peak_mb)
            self.cpu_s.append((time.time(), found))


def below(root: int) -> set[int]:
    """Return a process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


def look_at(pid: int) -> tuple[float, float, str]:
    """Return a process's seconds of processor time with those of ended children, peak memory (MB) and program."""
    try:
        folder = Path(f"/proc/{pid}")
        ticks = sum(map(int, (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:15]))
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        words = (folder / "cmdline").read_bytes().decode() + (folder / "comm").read_text()
    except OSError:
        return 0.0, 0.0, ""
    names = ("flower-superlink", "flwr-serverapp", "flower-supernode", PROCESS_NAME, "superexec")
    program = next((name for name in names if name in words), "other")
    return ticks / HERTZ, int(status.get("VmHWM", "0").split()[0]) * 1024 / MB, program


def federation(sites: int, rounds: int, size: int) -> dict:
    """Train a study of `rounds` rounds at `sites` sites, and return its costs."""
    from rich.console import Console

    from wardround.study.load import load_study
    from wardround_simulation.cli.progress import RunProgress
    from wardround_simulation.local.federation import LocalFederation

    quiet = RunProgress(Console(stderr=True), rounds, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        path = place / "bench.toml"
        path.write_text(STUDY.format(rounds=rounds, size=size, sites=sites), encoding="ascii")
        study = load_study(path)
        here = LocalFederation(folder=place / "f", data=place, sites=tuple(f"site-{n}" for n in range(1, sites + 1)))
        here.found(quiet)
        for number, name in enumerate(here.sites):
            write_cohort_at(here.site(name), number, size)
        with here.daemons(quiet) as running:
            watcher = Watcher({daemon.name: daemon.process.pid for daemon in running})
            watcher.start()
            run = here.submit(path)["run"]
            here.approve(study.sha256(), running, quiet)
            here.watch(run, study, running, quiet)
            watcher.ended.set()
            watcher.join()
            status = here.status_json(run)["run"]
            stamps = checkpoint_times(here.server / "runs" / run)
        trained = {
            (int(number), name): float(seconds)
            for name in here.sites
            for number, seconds in TRAINED.findall((here.site(name) / "logs" / "site.log").read_text(encoding="utf-8"))
        }
    return told(status["metrics"], trained, watcher, rounds, stamps)


def checkpoint_times(run: Path) -> dict[int, float]:
    """Return the time at which the checkpoint of each of the last rounds was written."""
    found = (run / "checkpoints").glob("round-*.safetensors")
    return {int(path.stem.removeprefix("round-")): path.stat().st_mtime for path in found}


def told(
    lines: list[dict], trained: dict[tuple[int, str], float], watcher: Watcher, rounds: int, stamps: dict[int, float]
) -> dict:
    """Return the figures of the measured rounds, without the first."""
    round_s, training_s, whole_s = [], [], []
    for number in range(2, rounds + 1):
        of_round = [line for line in lines if line["round"] == number]
        faults = [line["code"] for line in of_round if line["code"] is not None]
        if faults:
            raise RuntimeError(f"round {number} was not whole: {faults}")
        round_s.append(max(line["seconds"] for line in of_round))
        training_s.append(max(trained[number, line["site"]] for line in of_round))
        if number in stamps and number - 1 in stamps:
            whole_s.append(stamps[number] - stamps[number - 1])
    first, last = min(stamps.values()), max(stamps.values())
    inside = [cpu for at, cpu in watcher.cpu_s if first <= at <= last]
    cpu_s = {name: (inside[-1][name] - inside[0][name]) / (len(stamps) - 1) for name in inside[0]} if inside else {}
    return {
        "round_s": round_s,
        "training_s": training_s,
        "overhead_s": [one - other for one, other in zip(round_s, training_s, strict=True)],
        "whole_round_s": whole_s,
        "cpu_s_per_round": cpu_s,
        "megabytes": lines[-1]["bytes_down"] / 1e6,
        "peak_mb": {program: peak for (name, program), peak in watcher.peak_mb.items() if name == "server"},
        "site_peak_mb": max(
            (peak for (name, program), peak in watcher.peak_mb.items() if name != "server" and program == PROCESS_NAME),
            default=0.0,
        ),
    }


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--sites", default="1,3", help="numbers of sites, separated by commas")
    parser.add_argument("--rounds", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of the model")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: two at least, for the first one is not counted")
    found, size = machine(), image_size_for(arguments.megabytes)
    results = {}
    for number in (int(word) for word in arguments.sites.split(",")):
        print(f"{number} sites ...", file=sys.stderr, flush=True)
        results[number] = federation(number, arguments.rounds, size)
    document = {"settings": {"rounds": arguments.rounds, "image_size": size}, "sites": {}}
    for number, one in results.items():
        spreads = {name: spread(one[name]) for name in ("round_s", "training_s", "overhead_s", "whole_round_s")}
        document["sites"][str(number)] = {**one, **{name: value.to_json() for name, value in spreads.items()}}
        results[number] = {**one, **spreads}
    columns = ["sites", *map(str, results)]
    rows = [
        ["round, broadcast to last reply, s", *(one["round_s"].text(1) for one in results.values())],
        ["training, slowest site, s", *(one["training_s"].text(1) for one in results.values())],
        ["overhead: the difference, s", *(one["overhead_s"].text(1) for one in results.values())],
        ["from checkpoint to checkpoint, s", *(one["whole_round_s"].text(1) for one in results.values())],
        [
            "processor time of a round, server, s",
            *(f"{one['cpu_s_per_round']['server']:.1f}" for one in results.values()),
        ],
        ["processor time of a round, all sites, s", *(f"{of_sites(one):.1f}" for one in results.values())],
        ["server's averaging process at its peak, MB", *(peak(one, "flwr-serverapp") for one in results.values())],
        ["server's SuperLink at its peak, MB", *(peak(one, "flower-superlink") for one in results.values())],
        ["a site's training process at its peak, MB", *(f"{one['site_peak_mb']:,.0f}" for one in results.values())],
    ]
    megabytes = next(iter(results.values()))["megabytes"]
    title = f"A round of a federation of processes, {megabytes:.0f} MB of weights; median (smallest–largest)"
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows, notes=[verdict(results)])])


def verdict(results: dict) -> str:
    """Return a sentence on whether the goal was reached, if its number of sites was measured."""
    goal = f"Goal: overhead at most {GOAL_S:.0f} s at {GOAL_SITES} sites: "
    if GOAL_SITES not in results:
        return goal + "not measured."
    return goal + ("reached." if results[GOAL_SITES]["overhead_s"].median <= GOAL_S else "missed.")


def peak(one: dict, program: str) -> str:
    return f"{one['peak_mb'].get(program, 0.0):,.0f}"


def of_server(one: dict) -> float:
    return one["cpu_s_per_round"].get("server", 0.0)


def of_sites(one: dict) -> float:
    return sum(seconds for name, seconds in one["cpu_s_per_round"].items() if name != "server")


if __name__ == "__main__":
    main()
