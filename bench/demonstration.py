"""Measure the demonstration: start, alone, federated and pooled at phantom hospitals, over several sets of hospitals.

    ./run bench demonstration [--seeds 10] [--first-seed 1001] [--patients 80] [--epsilon 8] [--markdown]

Each seed paints other patients at the five hospitals of `./run simulate`, prepares them as a site does, and trains the
demo study by the round functions of real sites (`in_process`) with new noise: the federation, each hospital alone and
all data in one place, each at the study's epsilon. All are tested on the patients whom the study holds out. The first
seed is far from the one of `./run simulate`, and no setting was chosen on these seeds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Sheet, arguments_of, machine, tell

from wardround.study.load import Study, load_study
from wardround.tasks.assessment import SETTINGS, AtEnd
from wardround.tasks.registry import assess_part
from wardround_client.sources.images.folder.layout import discover
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import InProcessTrainer, sites_of
from wardround_simulation.engine.in_process import Hospital
from wardround_simulation.phantoms.dicom import write_phantom_hospitals
from wardround_simulation.run.hospitals import prepare_hospitals

DEMO = Path(__file__).resolve().parents[1] / "studies" / "demo.toml"


def hospitals_of(study: Study, patients: int, seed: int, place: Path) -> list[Hospital]:
    """Paint the phantom hospitals of one seed, and prepare them as sites do."""
    write_phantom_hospitals(place / "phantoms", study.aggregation.nominal_sites, patients, seed)
    prepared = prepare_hospitals(discover(place / "phantoms", study.data), study, place / "sites")
    return in_process.open_hospitals({hospital.name: hospital.folder for hospital in prepared}, study)


def one_draw(study: Study, hospitals: list[Hospital], place: Path) -> dict:
    """Train every model once; return the AUCs by slice, at each hospital and on all held-out patients."""
    trainer, sites = InProcessTrainer(hospitals), sites_of(study, hospitals)
    assessment = assess_part(study.study.task).assessment_of(study, sites, place, trainer)
    end = AtEnd(
        weights=trainer.federated(study, sites),
        released=None,
        others=(),
        baselines=True,
        show_images=False,
        stage=lambda _: None,
    )
    found = assessment.at_end(end).result["auc_by_model"]
    return {
        "sites": {
            site.name: {
                "trained": len(np.unique(site.patient_N[site.training_N])),
                "held_out": len(np.unique(site.patient_N[site.held_out_N])),
                **_values(found["sites"][site.name]),
            }
            for site in sites
        },
        "all": _values(found["all"]),
    }


def _values(by_model: dict) -> dict:
    return {setting: figures["auc"] for setting, figures in by_model.items()}


def sheets_of(results: dict[int, dict], study: Study) -> list[Sheet]:
    """Return the means by hospital over the seeds, and the order of the models seed by seed."""
    sites = list(next(iter(results.values()))["sites"])
    title = f"ε = {study.privacy.epsilon:g}, {len(results)} seeds of phantoms and of noise"
    by_hospital, by_seed = [], []
    for site in sites:
        own = [one["sites"][site] for one in results.values()]
        by_hospital.append([site, f"{own[0]['trained']} + {own[0]['held_out']}", *_means(own), *_gains(own)])
    every = [one["all"] for one in results.values()]
    by_hospital.append(["all", "", *_means(every), *_gains(every)])
    for seed, one in results.items():
        own, means = list(one["sites"].values()), _means([one["all"]])
        by_seed.append([str(seed), means[0], *means[2:], *(_above(own, other) for other in ("start", "alone"))])
    return [
        Sheet(
            title=f"By hospital, {title}",
            columns=("hospital", "patients: trained on + held out", "start", "alone", "federated", "pooled",
                     "federated − start", "above", "federated − alone", "above"),
            rows=by_hospital,
            notes=("AUC by slice, mean over the seeds. Differences: paired, ± their standard error over the seeds.",),
        ),
        Sheet(
            title=f"By seed, {title}",
            columns=("seed", "start", "federated", "pooled", "hospitals above start", "hospitals above alone"),
            rows=by_seed,
        ),
    ]  # fmt: skip


def _means(own: list[dict]) -> list[str]:
    """Return the mean AUC of each setting; a dash where there is none."""
    columns = [[one[name] for one in own if one.get(name) is not None] for name in SETTINGS]
    return [f"{np.mean(column):.3f}" if column else "–" for column in columns]


def _gains(own: list[dict]) -> list[str]:
    """Return, against start and alone, the mean gain of the federated model and how often it is above."""
    cells = []
    for other in ("start", "alone"):
        gains = np.array(_paired(own, other))
        error = f" ± {gains.std(ddof=1) / len(gains) ** 0.5:.3f}" if len(gains) > 1 else ""
        cells += [f"{gains.mean():+.3f}{error}" if len(gains) else "–", _above(own, other) if len(gains) else "–"]
    return cells


def _above(own: list[dict], other: str) -> str:
    gains = _paired(own, other)
    return f"{sum(gain > 0 for gain in gains)} of {len(gains)}"


def _paired(own: list[dict], other: str) -> list[float]:
    pairs = [(one.get("federated"), one.get(other)) for one in own]
    return [federated - beside for federated, beside in pairs if federated is not None and beside is not None]


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1001)
    parser.add_argument("--patients", type=int, default=80, help="at an average hospital")
    parser.add_argument("--epsilon", default="8")
    arguments = parser.parse_args()
    found = machine()
    study = load_study(DEMO, (f"privacy.epsilon={arguments.epsilon}",))
    results = {}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as place:
            hospitals = hospitals_of(study, arguments.patients, seed, Path(place))
            results[seed] = one_draw(study, hospitals, Path(place))
        print(seed, json.dumps(results[seed]), file=sys.stderr, flush=True)
    settings = {name: getattr(arguments, name) for name in ("seeds", "first_seed", "patients", "epsilon")}
    document = {"settings": settings, "seeds": {str(seed): one for seed, one in results.items()}}
    tell(arguments, found, document, sheets_of(results, study))


if __name__ == "__main__":
    main()
