"""The study file: it is strict and canonical, and every mistake is reported in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import paths
import pytest

from wardround.errors import StudyError
from wardround.study.load import load_study, study_from_json
from wardround.study.personal import personal_study

STUDIES = sorted(paths.STUDIES.glob("*.toml"))
MINIMAL = """
[study]
name = "tiny"
rounds = 3
[data]
labels = ["benign", "malignant"]
[privacy]
epsilon = 8
delta = 1e-4
max_grad_norm = 0.3
nominal_patients = 20
[aggregation]
nominal_sites = 2
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_ready_study_loads_and_survives_json(path: Path) -> None:
    study = load_study(path)
    again = study_from_json(study.to_json())
    assert again == study
    assert again.sha256() == study.sha256()


def test_hash_does_not_depend_on_layout_or_written_defaults(minimal: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(MINIMAL.replace("rounds = 3", "rounds    =  3  # three\nspare_rounds = 2") + "min_sites = 2\n")
    assert load_study(other).sha256() == load_study(minimal).sha256()


@pytest.mark.parametrize(
    "override", ["privacy.epsilon=3", "study.rounds=4", "data.labels=['a', 'b']", "model.trainable=all"]
)
def test_any_change_changes_the_hash(minimal: Path, override: str) -> None:
    assert load_study(minimal, (override,)).sha256() != load_study(minimal).sha256()


@pytest.mark.parametrize("init", ["phantom", "random"])
def test_no_study_has_the_hash_of_one_that_starts_from_a_file_unless_it_starts_from_that_file(init, tmp_path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"one")
    path = tmp_path / "s.toml"
    path.write_text(MINIMAL + '[model]\ninit = "m.safetensors"\n')
    honest = load_study(path).to_json()
    forged = json.loads(honest)
    forged["model"]["init"] = init
    with pytest.raises(StudyError, match="model: init_sha256 belongs to a file"):
        study_from_json(json.dumps(forged))
    path.write_text(MINIMAL + f'[model]\ninit = "{init}"\ninit_sha256 = "{"0" * 64}"\n')
    with pytest.raises(StudyError, match="init_sha256"):
        load_study(path)


def test_a_model_file_counts_by_content_and_not_by_place(minimal: Path, tmp_path: Path) -> None:
    hashes = set()
    for folder, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "start.safetensors").write_bytes(content)
        study = load_study(minimal, (f"model.init={tmp_path / folder / 'start.safetensors'}",))
        hashes.add(study.sha256())
    assert len(hashes) == 2


def test_infinity_is_written_as_toml_or_text(minimal: Path) -> None:
    assert load_study(minimal, ("privacy.epsilon=inf",)).privacy.epsilon == math.inf
    assert load_study(minimal, ("privacy.epsilon='inf'",)).privacy.epsilon == math.inf


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilom=3", ["privacy.epsilom", "did you mean epsilon?"]),
        ("privacy.epsilon=0", ["privacy.epsilon", "greater than 0"]),
        ("privacy.epsilon=-1", ["privacy.epsilon"]),
        ("privacy.epsilon=nan", ["epsilon"]),
        ("privacy.sampling_rate=1.5", ["privacy.sampling_rate", "less than or equal to 1"]),
        ("privacy.sampling_rate=0", ["privacy.sampling_rate"]),
        ("privacy.delta=0.5", ["privacy.delta"]),
        ("privacy.max_grad_norm=inf", ["max_grad_norm"]),
        ("privacy.nominal_patients=99999", ["delta"]),
        ("data.labels=['a']", ["data.labels"]),
        ("data.labels=['a', 'a']", ["data.labels"]),
        ("data.window_hu=[[400, -1000]]", ["window"]),
        ("study.rounds=0", ["study.rounds"]),
        ("training.learning_rate='ruel'", ["training.learning_rate"]),
        ("training.optimizer='adam'", ["learning_rate"]),
        ("aggregation.min_sites=3", ["min_sites"]),
        ("aggregation.strategy='fedprox'", ["proximal_mu"]),
        ("model.name='resnet-small'", ["init"]),
        ("model.init='nowhere.safetensors'", ["no such file"]),
        ("modle.name='x'", ["modle", "did you mean model?"]),
        ("epsilon=3", ["section.key=value"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(minimal: Path, override: str, words: list[str]) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(minimal, (override,))
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("content", ["not toml [", "\xff\xfe"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StudyError, match="not a TOML file"):
        load_study(path)
    with pytest.raises(StudyError, match="no such study file"):
        load_study(tmp_path / "missing.toml")


PERSONAL = "\n[personalisation]\nepsilon = 2\n"


def test_a_study_without_personalisation_has_no_trace_of_it_and_one_with_it_has_another_hash(minimal: Path) -> None:
    plain = load_study(minimal)
    assert plain.personalisation is None and "personalisation" not in plain.canonical() + plain.to_json()
    assert personal_study(plain) is None
    minimal.write_text(MINIMAL + PERSONAL)
    study = load_study(minimal)
    changes = ("epsilon=3", "trainable=all", "steps=21", "learning_rate=0.1", "spare_attempts=0")
    others = [load_study(minimal, (f"personalisation.{change}",)) for change in changes]
    assert len({one.sha256() for one in (plain, study, *others)}) == 2 + len(changes)
    assert study_from_json(study.to_json()).sha256() == study.sha256()
    derived = personal_study(study)
    assert derived is not None and derived.privacy.epsilon == 2 and derived.budgeted_steps == 40
    assert derived.model_dump(include={"data"}) == study.model_dump(include={"data"})
    assert (derived.evaluation.holdout, derived.evaluation.epsilon) == (study.evaluation.holdout, 0)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("personalisation.epsilon=0",), "personalisation.epsilon"),
        (("personalisation.epsilon=1e9",), "between 0.001 and 10000"),
        (("personalisation.trainable=body",), "personalisation.trainable"),
        (("personalisation.step=3",), "did you mean steps"),
        (("evaluation.holdout=0",), "evaluation.holdout above 0"),
        (("privacy.epsilon=inf", "privacy.max_grad_norm=inf", "training.learning_rate=0.1"), "finite epsilon needs"),
        (
            (
                *("privacy.epsilon=inf", "privacy.max_grad_norm=inf", "training.learning_rate=0.1"),
                "personalisation.epsilon=inf",
            ),
            "personalisation.learning_rate",
        ),
        (("study.task=synthesis", "model.name=phantom-sampler"), "models of synthesis cannot be personalised"),
    ],
)
def test_a_personalisation_that_cannot_be_is_refused_in_one_line(minimal: Path, overrides, message: str) -> None:
    minimal.write_text(MINIMAL + PERSONAL)
    with pytest.raises(StudyError, match=message) as error:
        load_study(minimal, overrides)
    assert "\n" not in str(error.value)
