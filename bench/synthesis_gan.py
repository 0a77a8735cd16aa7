"""Measure the GAN under privacy: Fréchet distance and the discriminator's balance, round by round.

    ./run bench synthesis_gan --data lidc_nodules [--init random] [--trainable all] [--epsilon 8] [--rounds 20]

The GAN is trained by the round functions of real sites (`in_process`) and measured on the patients that the study holds
out. The curve shows what to expect of a generator with fewer than some thousand patients; there is no reference for it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import Sheet, arguments_of, machine, tell

from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.study.load import Study, load_study
from wardround.tasks.synthesis.assess import SynthesisAssessment
from wardround_client.sources.images.folder.layout import discover
from wardround_client.training.rows import training_rows
from wardround_server.rounds.loop import run_rounds
from wardround_simulation.engine import in_process
from wardround_simulation.engine.assessment import sites_of
from wardround_simulation.run.hospitals import prepare_hospitals

STUDY = Path(__file__).resolve().parents[1] / "studies" / "synthesis.toml"


def study_of(arguments) -> Study:
    given = {
        "study.rounds": arguments.rounds,
        "data.image_size": 64,
        "model.name": "dcgan",
        "model.init": arguments.init,
        "model.trainable": arguments.trainable,
        "training.optimizer": "adam",
        "training.learning_rate": arguments.rate,
        "training.local_steps": arguments.local_steps,
        "training.augmentation": "light",
        "synthesis.generator_steps": arguments.generator_steps,
        "privacy.epsilon": arguments.epsilon,
        "privacy.max_grad_norm": 0.1,
        "privacy.sampling_rate": 0.5,
        "privacy.nominal_patients": 53,
        "aggregation.nominal_sites": 6,
        "aggregation.min_sites": 6,
        "aggregation.release": "ema",
        "evaluation.holdout": 0.2,
    }
    return load_study(STUDY, tuple(f"{key}={value}" for key, value in given.items()))


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--init", choices=("random", "phantom"), default="random")
    parser.add_argument("--trainable", choices=("head", "norm+head", "all"), default="all")
    parser.add_argument("--epsilon", default="8")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--local-steps", type=int, default=4)
    parser.add_argument("--generator-steps", type=int, default=4)
    parser.add_argument("--rate", type=float, default=5e-4)
    arguments = parser.parse_args()
    found, study = machine(), study_of(arguments)
    with tempfile.TemporaryDirectory() as place:
        prepared = prepare_hospitals(discover(arguments.data, study.data, None), study, Path(place) / "sites")
        hospitals = in_process.open_hospitals({h.name: h.folder for h in prepared}, study)
        assessment = SynthesisAssessment(study, sites_of(study, hospitals), Path(place))
        start = in_process.start_weights(study)
        assessment.after_round(0, start)
        admitted: dict[str, object] = {}
        sites = [
            in_process.temporary_site(study, h.name, [(h, training_rows(study, h.cohort))], admitted) for h in hospitals
        ]
        outcome = run_rounds(
            study,
            "bench",
            architecture_sha256(initial_network(study)),
            start,
            in_process.in_process_exchange(sites),
            None,
            lambda record: assessment.after_round(record.round, record.weights),
        )
        figures = {"model": assessment.figures(outcome.weights).to_json(), "start": assessment.figures(start).to_json()}
    notes = assessment.notes
    rows = [
        [str(at), *(f"{notes[at][name]:.2f}" for name in ("frechet", "real_logit", "fake_logit"))]
        for at in sorted(notes)
    ]
    said = [
        f"{name}: AUC {one['auc']['value']:.3f} ({one['auc']['low']:.3f}–{one['auc']['high']:.3f}), "
        f"Fréchet {one['frechet']['value']:.2f}, copies p = {one['copies']['p_value']:.2g}"
        for name, one in figures.items()
    ]
    title = f"GAN from {arguments.init}, {arguments.trainable}, ε = {arguments.epsilon}"
    sheet = Sheet(title=title, columns=["round", "Fréchet", "real logit", "fake logit"], rows=rows, notes=said)
    settings = {name: getattr(arguments, name) for name in ("init", "trainable", "epsilon", "rounds", "rate")}
    curve = {str(at): note for at, note in notes.items()}
    tell(arguments, found, {"settings": settings, "curve": curve, "figures": figures}, [sheet])


if __name__ == "__main__":
    main()
