"""A site without patients for a study replies like any other: by the same path, charged alike, with noise alone.

If it failed or refused instead, a reply would reveal that at least one patient is there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import trained_parameters
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.load import Study, parse_study
from wardround.wire.evaluation import COUNTS, evaluation_round, pack_release, unpack_release
from wardround.wire.packets import Broadcast, Packet, pack_answer, unpack_answer
from wardround_client.cli.main import app
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import answer
from wardround_client.site import checks
from wardround_client.site.paths import OPT_OUT_FILE
from wardround_client.site.site import open_cohort_of, open_site
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.sources.forget import forget
from wardround_client.studies.store import add_decision, store_approved
from wardround_client.training.rows import training_rows

KEY = b"k" * 32
LABELS = ("benign", "malignant")
TASKS = {
    "head": ({}, 64),
    "network": ({"model": {"name": "seed-cnn", "init": "random", "trainable": "all"}}, 32),
    "sampler": ({"study": {"task": "synthesis"}, "model": {"name": "phantom-sampler"}}, 64),
    "gan": (
        {
            "study": {"task": "synthesis"},
            "model": {"name": "dcgan", "init": "random", "trainable": "all"},
            "synthesis": {"fakes_per_step": 4, "generator_steps": 1},
        },
        64,
    ),
    "reconstruction": (
        {
            "study": {"task": "reconstruction"},
            "model": {"name": "restorer", "trainable": "all"},
            "reconstruction": {"crop_px": 32},
            "evaluation": {"logit_scale": 0.1},
        },
        32,
    ),
}


@functools.cache
def study_of(task: str, holdout: float) -> Study:
    sections, image_size = TASKS[task]
    content = {
        "study": {"name": "t", "rounds": 2, "spare_rounds": 0},
        "data": {"labels": list(LABELS), "image_size": image_size, "modality": "any"},
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 6.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
        "evaluation": {"epsilon": 0.5, "holdout": holdout},
    }
    for name, changes in sections.items():
        content[name] = content.get(name, {}) | changes
    return parse_study(content)


@functools.cache
def question_of(task: str, holdout: float) -> tuple[Broadcast, dict[str, object]]:
    """The question of a round, and where sites of this process keep what is costly to open."""
    study = study_of(task, holdout)
    network = initial_network(study)
    weights = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    sha256 = architecture_sha256(network)
    return Broadcast(
        study_sha256=study.sha256(), run_id="run", round=1, weights=weights, architecture_sha256=sha256
    ), {}


def prepared(folder: Path, size: int, labels: tuple[int, ...]) -> None:
    """A patient for each label, with two images each."""
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{n}"), label=label) for n, label in enumerate(labels) for _ in "ab"]
    generator = np.random.default_rng(0)
    images = (generator.integers(0, 256, (1, size, size), dtype=np.uint8) for _ in rows)
    write_cohort(folder / "cohort", rows, images, row_shape=(1, size, size), label_names=LABELS, site_key=KEY)


def prepared_otherwise(
    folder: Path, shape_CHW: tuple[int, int, int], names: tuple[str, ...], labels: tuple[int, ...], by: str = ""
) -> None:
    """A patient for each label, prepared for another study."""
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{n}"), label=label) for n, label in enumerate(labels)]
    images = (np.full(shape_CHW, 90 + n, np.uint8) for n in range(len(rows)))
    write_cohort(folder / "cohort", rows, images, row_shape=shape_CHW, label_names=names, site_key=KEY, prepared_by=by)


def only_patient_is_listed(folder: Path, size: int) -> None:
    prepared(folder, size, (1,))
    (folder / OPT_OUT_FILE).write_text(pseudonym(KEY, "p0") + "\n")


def only_patient_is_forgotten(folder: Path, size: int) -> None:
    prepared(folder, size, (1,))
    assert forget(folder, KEY, "p0").rows_removed == 2


def damaged(folder: Path, size: int) -> None:
    prepared(folder, size, (0, 1))
    path = folder / "cohort" / "values.npy"
    path.write_bytes(path.read_bytes()[:-100])


def unreadable_list(folder: Path, size: int) -> None:
    prepared(folder, size, (0, 1))
    (folder / OPT_OUT_FILE).write_bytes(b"\xff\n")


SITES: dict[str, tuple[Callable[[Path, int], None], float]] = {
    "six patients": (lambda folder, size: prepared(folder, size, (0, 1) * 3), 0.2),
    "one patient": (lambda folder, size: prepared(folder, size, (1,)), 0.2),
    "one label": (lambda folder, size: prepared(folder, size, (0, 0, 0)), 0.2),
    "nothing prepared": (lambda folder, size: None, 0.2),
    "no patient in training": (lambda folder, size: prepared(folder, size, (0, 1)), 1 - 1e-9),
    "no patient held out": (lambda folder, size: prepared(folder, size, (0, 1)), 1e-9),
    "no label": (lambda folder, size: prepared(folder, size, (-1, -1)), 0.2),
    "a label that the study does not have": (
        lambda folder, size: prepared_otherwise(folder, (1, size, size), ("a", "b", "c", "d"), (3, 2)),
        0.2,
    ),
    "other channels": (lambda folder, size: prepared_otherwise(folder, (3, size, size), LABELS, (0, 1)), 0.2),
    "other size": (lambda folder, size: prepared_otherwise(folder, (1, 16, 16), LABELS, (0, 1)), 0.2),
    "prepared as something else": (
        lambda folder, size: prepared_otherwise(folder, (1, size, size), LABELS, (0, 1), '{"channels": "windows"}'),
        0.2,
    ),
    "images are damaged": (damaged, 0.2),
    "the list of objections is damaged": (unreadable_list, 0.2),
    "the only patient is listed": (only_patient_is_listed, 0.2),
    "the only patient is forgotten": (only_patient_is_forgotten, 0.2),
}


def shape_of(packet: Packet) -> tuple:
    """All that a server sees of a reply but the noised numbers."""
    header = {key: type(value) for key, value in packet.header.items()}
    told = {key: packet.header.get(key) for key in ("kind", "code", "round", "per_site", "ledger_entries")}
    return header, told, {name: (one.dtype, one.shape) for name, one in packet.tensors.items()}


def replies_of(folder: Path, task: str, kind: str) -> tuple[list[tuple], list[tuple]]:
    """What a site of this kind sends for a round and for figures, as the server sees it; and what it charged."""
    make, holdout = SITES[kind]
    folder.mkdir()
    study, (question, admitted) = study_of(task, holdout), question_of(task, holdout)
    make(folder, study.data.image_size)
    rules = 'name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n'
    rules += '[release]\nevaluation = "noised"\nper_site = true\nminimum_patients = 1000\n'
    (folder / "site.toml").write_text(rules)
    store_approved(folder, study)
    site = open_site(folder)
    site.admitted = admitted
    trained = answer(question, site)
    packet = pack_answer(question, trained)
    assert unpack_answer(packet, question)[1] is None
    last = Broadcast(**{**vars(question), "round": evaluation_round(study)})
    released = pack_release(last, release_scores(last, site))
    assert unpack_release(released, last, study.evaluation.bins)[1] is None
    assert np.any(np.frombuffer(released.tensors[COUNTS].data, "<i8")), "noise is in the counts"
    for name, array in trained.weights.items():
        moved = (array != question.weights[name]).any()
        assert moved or array.size == 1, f"noise is in {name}"  # of a single number the noise may be 0, on its grid
    recorded = [(e["event"], e["round"], e["purpose"], e["epsilon"]) for e in verified(folder / AUDIT_FILE).entries]
    attempts = [(one.round, one.purpose, one.reply_sha256 is not None) for one in site.ledger.attempts()]
    return [shape_of(packet), shape_of(released)], [recorded, attempts, site.ledger.events()]


def test_labels_are_matched_by_name_and_one_that_the_study_does_not_have_counts_as_none(tmp_path: Path, caplog) -> None:
    study = study_of("head", 0.2)
    size = study.data.image_size
    prepared_otherwise(tmp_path, (1, size, size), ("other", "malignant", "benign"), (0, 1, 2, -1))
    found = open_cohort_of(tmp_path, study)
    assert found.labels_N.tolist() == [-1, 1, 0, -1] and found.label_names == LABELS
    assert training_rows(study, found).sum() <= 2
    (warning,) = caplog.messages
    assert "count as unlabelled: other" in warning and "wardround-site ingest" in warning


@pytest.mark.parametrize(
    ("shape_CHW", "by", "difference"),
    [
        ((3, 64, 64), "", "3 channels, but the study requires 1"),
        ((1, 32, 32), "", "32 x 32 pixels, but the study requires 64 x 64"),
        ((1, 64, 64), '{"channels": "windows"}', "prepared as windows, but the study requires grey"),
    ],
)
def test_images_of_another_kind_take_no_part_and_the_site_is_warned(
    tmp_path: Path, caplog, shape_CHW, by, difference
) -> None:
    study = study_of("head", 0.2)
    prepared_otherwise(tmp_path, shape_CHW, LABELS, (0, 1), by)
    found = open_cohort_of(tmp_path, study)
    assert found.patient_count == 0 and found.values_N.shape == (0, 1, 64, 64)
    (warning,) = caplog.messages
    assert difference in warning and "no patient takes part" in warning
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    sha256 = store_approved(tmp_path, study)
    add_decision(tmp_path, "approved", sha256, "Marie", 1)
    check = checks.studies(tmp_path)
    assert check.state == "note" and difference in check.found and "ingest" in check.todo
    shown = CliRunner().invoke(app, ["studies", "show", sha256, "--json", "--site", str(tmp_path)])
    assert difference in json.loads(shown.output)["words"]["prepared data"]


@pytest.mark.parametrize("task", list(TASKS))
def test_a_site_without_a_patient_replies_and_is_charged_as_one_with_patients(task: str, tmp_path: Path) -> None:
    expected = replies_of(tmp_path / "six", task, "six patients")
    for number, kind in enumerate(list(SITES)[1:]):
        assert replies_of(tmp_path / str(number), task, kind) == expected, kind
