"""What Flower and Ray cost: a simulated round against the same work in a plain loop, and the server's memory by sites.

    .venv/bin/python bench/simulated_round.py [--rounds 6] [--json]

Both run the same rounds of the same study on the same generated images, on one core, so that no parallelism hides
the engine's cost; the first round of each (opening the sites, first use of torch) is left out. The memory part
counts the peak of the server's process over a few rounds with a network of 11 million weights at 2, 8 and 32 sites.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KEY = b"bench" * 7


def study_of(sites: int, rounds: int, model: str, local_steps: int):
    from wardround.study import parse_study

    return parse_study(
        {
            "study": {"name": "bench", "rounds": rounds, "spare_rounds": 0},
            "data": {"labels": ["a", "b"], "image_size": 64},
            "model": {"name": model, "init": "random", "trainable": "all"},
            "training": {"learning_rate": 0.01, "local_steps": local_steps},
            "privacy": {
                "epsilon": 8,
                "delta": 1e-4,
                "max_grad_norm": 1.0,
                "sampling_rate": 0.5,
                "nominal_patients": 20,
            },
            "aggregation": {"nominal_sites": sites, "max_update_norm": 1e9},
        }
    )


def make_sites(folder: Path, study, sites: int, patients: int) -> list[Path]:
    from wardround_client.data.cohort import CohortRow, pseudonym, write_cohort
    from wardround_simulation.hospitals import Prepared, settle_rules

    generator = np.random.default_rng(0)
    folders = []
    for number in range(sites):
        place = folder / f"site-{number:02d}"
        rows = [CohortRow(pseudonym=pseudonym(KEY, f"{number}/{n}"), label=n % 2) for n in range(patients)]
        images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
        write_cohort(place / "cohort", rows, images, shape_CHW=(1, 64, 64), label_names=("a", "b"), site_key=KEY)
        settle_rules(Prepared(name=place.name, folder=place, report=None), study, "cpu", 1)
        folders.append(place)
    return folders


def run(study, exchange) -> list[float]:
    """Seconds of each round but the first."""
    from wardround.models.registry import architecture_sha256
    from wardround_client.tasks import classification
    from wardround_server.rounds import run_rounds
    from wardround_simulation.in_process import start_weights

    network = classification.initial_network(study)
    seconds: list[float] = []
    start = start_weights(study)
    run_rounds(
        study,
        "bench",
        architecture_sha256(network),
        start,
        exchange,
        None,
        lambda record: seconds.append(record.seconds),
    )
    return seconds[1:]


def overhead(rounds: int) -> dict:
    import torch

    from wardround_client.site import open_site
    from wardround_simulation.engine import with_flower
    from wardround_simulation.in_process import in_process_exchange

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    study = study_of(3, rounds + 1, "resnet-small", 4)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        plain = run(study, in_process_exchange([open_site(f) for f in make_sites(Path(one), study, 3, 40)]))
        began = time.monotonic()
        flower = with_flower(make_sites(Path(two), study, 3, 40), lambda exchange: run(study, exchange))
        whole_s = time.monotonic() - began
    ratios = sorted(f / p for f, p in zip(flower, plain, strict=True))
    return {
        "plain_round_s": statistics.median(plain),
        "simulated_round_s": statistics.median(flower),
        "ratio": statistics.median(flower) / statistics.median(plain),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "simulation_start_and_end_s": whole_s - sum(flower),
    }


def server_peak_mb(sites: int) -> float:
    """Peak memory of a process that is nothing but the server: replies come one at a time from generated weights."""
    from wardround.wire import SiteReply

    study = study_of(sites, 3, "resnet-large", 1)

    def exchange(broadcast, deadline_s):
        generator = np.random.default_rng(broadcast.round)
        for number in range(sites):
            weights = {
                name: array + generator.standard_normal(array.shape, dtype=np.float32) * 1e-3
                for name, array in broadcast.weights.items()
            }
            yield SiteReply(site=f"site-{number:02d}", weights=weights, code=None, seconds=0.0, bytes_up=0)

    run(study, exchange)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--server-peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server_peak:
        print(server_peak_mb(arguments.server_peak))
        return
    peaks = {}
    for sites in (2, 8, 32):
        command = [sys.executable, __file__, "--server-peak", str(sites)]
        peaks[sites] = float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    result = {**overhead(arguments.rounds), "server_peak_mb": peaks}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"a round in a plain loop      {result['plain_round_s']:8.2f} s")
    print(f"a round through Flower, Ray  {result['simulated_round_s']:8.2f} s")
    print(f"ratio                        {result['ratio']:8.2f}")
    print(f"smallest, largest ratio      {result['ratio_min']:8.2f}, {result['ratio_max']:.2f}")
    print(f"start and end of the engine  {result['simulation_start_and_end_s']:8.1f} s, once a run")
    for sites, peak in peaks.items():
        print(f"server's peak, {sites:2d} sites       {peak:8.0f} MB  (11 million weights)")


if __name__ == "__main__":
    main()
