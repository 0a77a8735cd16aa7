"""Measure the cost of Flower and Ray: a simulated round against a plain loop, and the server's memory by sites.

    ./run bench simulated_round [--rounds 6] [--sites 2,8,32] [--markdown]

Every round is run twice, one after the other and on one core, so that no parallelism hides the engine's cost: by the
same sites in a plain loop, then through Flower and Ray. The first round (opening the sites, first use of torch) is left
out. The timed part is the exchange, from the broadcast to the last reply. The memory figure is the peak of a server's
process over a few rounds with a network of 11 million weights.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measure import MB, Sheet, arguments_of, machine, ratio, spread, tell

KEY = b"bench" * 7


def study_of(sites: int, rounds: int, model: str, local_steps: int):
    from wardround.study.load import parse_study

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
    from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
    from wardround_simulation.run.hospitals import Prepared, settle_rules

    generator = np.random.default_rng(0)
    folders = []
    for number in range(sites):
        place = folder / f"site-{number:02d}"
        rows = [CohortRow(pseudonym=pseudonym(KEY, f"{number}/{n}"), label=n % 2) for n in range(patients)]
        images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
        write_cohort(place / "cohort", rows, images, row_shape=(1, 64, 64), label_names=("a", "b"), site_key=KEY)
        settle_rules(Prepared(name=place.name, folder=place, report=None), study, "cpu", 1)
        folders.append(place)
    return folders


def run(study, exchange) -> None:
    """Run all rounds of the study with the server's loop."""
    from wardround.networks.build import initial_network
    from wardround.networks.fingerprint import architecture_sha256
    from wardround_server.rounds.loop import run_rounds
    from wardround_simulation.engine.in_process import start_weights

    network = initial_network(study)
    run_rounds(study, "bench", architecture_sha256(network), start_weights(study), exchange, None, lambda record: None)


def overhead(rounds: int, patients: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each round in a plain loop and through the engine, and those of its start and end."""
    import torch

    from wardround_client.site.site import open_site
    from wardround_simulation.engine.flower import with_flower
    from wardround_simulation.engine.in_process import in_process_exchange

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    study = study_of(3, rounds + 1, "resnet-small", 4)
    seconds: dict[str, list[float]] = {"plain": [], "simulated": []}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        folders = make_sites(Path(one), study, 3, patients)

        def both_ways(simulated):
            # Opened here, because a ledger can be used only in the thread that opened it.
            plain = in_process_exchange([open_site(folder) for folder in folders])

            def exchange(broadcast, deadline_s):
                for name, way in (("plain", plain), ("simulated", simulated)):
                    began = time.monotonic()
                    replies = list(way(broadcast, deadline_s))
                    seconds[name].append(time.monotonic() - began)
                return replies

            run(study, exchange)

        began = time.monotonic()
        with_flower(make_sites(Path(two), study, 3, patients), both_ways)
        whole_s = time.monotonic() - began
    rest_s = whole_s - sum(map(sum, seconds.values()))
    return {name: values[1:] for name, values in seconds.items()}, rest_s


def server_peak_mb(sites: int) -> float:
    """Return the peak memory of a process that runs only the server, with replies generated one at a time."""
    from wardround.wire.packets import SiteReply

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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--patients", type=int, default=40, help="at each of the three sites")
    parser.add_argument("--sites", default="2,8,32", help="numbers of sites to take the server's memory at")
    arguments = parser.parse_args()
    found = machine()
    sites = [int(number) for number in arguments.sites.split(",")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        peaks_mb = {number: fresh.submit(server_peak_mb, number).result() for number in sites}
    seconds, start_and_end_s = overhead(arguments.rounds, arguments.patients)
    spreads = {
        "plain_round_s": spread(seconds["plain"]),
        "simulated_round_s": spread(seconds["simulated"]),
        "ratio": ratio(seconds["simulated"], seconds["plain"]),
    }
    rows = [
        ["a round in a plain loop, s", spreads["plain_round_s"].text()],
        ["a round through Flower and Ray, s", spreads["simulated_round_s"].text()],
        ["ratio", spreads["ratio"].text()],
        ["start and end of the engine, s, once a run", f"{start_and_end_s:.1f}"],
    ]
    memory = [[str(number), f"{peak:,.0f}"] for number, peak in peaks_mb.items()]
    document = {
        "settings": {"rounds": arguments.rounds, "patients": arguments.patients},
        **{name: one.to_json() for name, one in spreads.items()},
        "start_and_end_s": start_and_end_s,
        "server_peak_mb": {str(number): peak for number, peak in peaks_mb.items()},
    }
    columns = ["what", f"median (smallest–largest) of {arguments.rounds}"]
    title = "A simulated round, three sites on one core"
    server = "The server's whole process at its peak, 11 million weights"
    sheets = [
        Sheet(title=title, columns=columns, rows=rows),
        Sheet(title=server, columns=["sites", "MB"], rows=memory),
    ]
    tell(arguments, found, document, sheets)


if __name__ == "__main__":
    main()
