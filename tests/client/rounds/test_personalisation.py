"""A model is personalised at one site: within the hold, charged once, kept there, and never sent."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.personal import HEAD, NETWORK, released, site_folder, study_of

from wardround.accounting import spent
from wardround.errors import (
    BudgetRefusal,
    LedgerError,
    ModelError,
    PolicyRefusal,
    UsageError,
    WardroundError,
    WireError,
)
from wardround.networks.build import initial_network
from wardround.networks.weights import exchanged_names
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.load import Study, parse_study
from wardround.study.personal import personal_study
from wardround.wire.evaluation import evaluation_round
from wardround.wire.packets import Broadcast, pack_answer, weights_sha256
from wardround.wire.protocol import EVALUATE, PERSONALISE, TRAIN
from wardround_client.flower.site_app import QUESTIONS
from wardround_client.ledger.ledger import Ledger, cap_of
from wardround_client.privacy.plan import plan_from_study
from wardround_client.rounds import personalisation
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.personalisation import kept_question, personalise, released_network, with_tensors
from wardround_client.rounds.training import answer
from wardround_client.site.site import Site, open_site
from wardround_client.training.features import compute_features
from wardround_client.training.train import train


def after_a_round(folder: Path, study: Study) -> Site:
    """The site after the study's first round, in which it held the whole budget."""
    site = open_site(site_folder(folder, study))
    answer(broadcast_of(study), site)
    return site


def charged(site: Site) -> int:
    return len([one for one in site.ledger.attempts() if one.purpose == PERSONALISE])


class Crash(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def crashes(*arguments, **keywords):
    raise Crash


def test_the_whole_budget_is_held_before_the_first_image_is_read(tmp_path: Path) -> None:
    study = study_of()
    plan = plan_from_study(study)
    site = after_a_round(tmp_path, study)
    (hold,) = site.ledger.holds()
    assert {purpose: share.attempts for purpose, share in hold.shares.items()} == {TRAIN: 2, PERSONALISE: 2}
    assert site.ledger.committed(1e-4).value == pytest.approx(spent(plan.events(), 1e-4).value)
    assert site.ledger.committed(1e-4).value > plan_from_study(study_of()).promised().value * 0.999


def test_a_study_whose_personalisation_exceeds_the_cap_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    study = study_of()
    site = open_site(site_folder(tmp_path, study, epsilon_cap=6.2))  # enough for the rounds alone

    def unread(_: Study):
        pytest.fail("images were read")

    with pytest.raises(BudgetRefusal):
        answer(broadcast_of(study), dataclasses.replace(site, material_of=unread))
    assert site.ledger.holds() == []


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_all_attempts_together_cost_at_most_the_epsilon_asked_for(epsilon: float, spare: int, rate: float) -> None:
    study = study_of(HEAD | {"privacy": {"sampling_rate": rate}}, epsilon=epsilon, spare_attempts=spare)
    plan = plan_from_study(study)
    share = plan.shares()[PERSONALISE]
    assert share.attempts == 1 + spare
    assert 0.98 * epsilon < spent(share.events(share.attempts), 1e-4).value <= epsilon
    assert spent(plan.events(), 1e-4).value <= cap_of(study).epsilon


def test_the_personal_plan_is_the_studys_and_never_the_datas() -> None:
    study = study_of(steps=7, trainable="norm+head")
    personal = plan_from_study(study).personal
    assert personal is not None
    assert (personal.sampling_rate, personal.max_grad_norm, personal.nominal_patients) == (1.0, 0.3, 8)
    assert (personal.local_steps, personal.rounds, personal.spare_rounds) == (7, 1, 1)
    derived = personal_study(study)
    assert derived is not None and derived.model.trainable == "norm+head" and derived.personalisation is None


def test_one_attempt_is_one_event_settled_and_recorded(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    made = personalise(released(study), site)
    assert charged(site) == 1 and not made.again
    (event,) = site.ledger.events("run", PERSONALISE)
    assert event.steps == 2
    attempt = site.ledger.attempts()[-1]
    assert attempt.reply_sha256 == weights_sha256(made.tensors) and made.epsilon.value < 3.0
    assert made.together.value > site.ledger.spent(1e-4, "run", TRAIN).value
    entries = [entry for entry in verified(tmp_path / AUDIT_FILE).entries if entry["event"] == "personalised"]
    assert [entry["sha256"] for entry in entries] == [attempt.reply_sha256]


def test_the_attempt_is_on_disk_before_a_patient_is_read(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)

    def read(_: Study):
        assert len(Ledger(tmp_path / "ledger.sqlite3").attempts()) == 2
        raise Crash

    with pytest.raises(Crash):
        personalise(released(study), dataclasses.replace(site, material_of=read, materials={}))
    assert charged(site) == 1


def test_asked_again_the_same_model_and_no_second_charge(tmp_path: Path, monkeypatch) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    first = personalise(released(study), site)
    monkeypatch.setattr(personalisation, "train", crashes)
    for again in (personalise(released(study), site), personalise(released(study), open_site(tmp_path))):
        assert again.again and weights_sha256(again.tensors) == weights_sha256(first.tensors)
        assert again.epsilon == first.epsilon
    assert charged(site) == 1


def test_a_crash_before_settling_is_charged_and_the_retries_are_limited(tmp_path: Path, monkeypatch) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    monkeypatch.setattr(personalisation, "save_checkpoint", crashes)
    for attempts in (1, 2):
        with pytest.raises(Crash):
            personalise(released(study), site)
        assert charged(site) == attempts
    monkeypatch.undo()
    with pytest.raises(BudgetRefusal) as caught:
        personalise(released(study), site)
    assert caught.value.code == "no_spare_attempts"
    assert charged(site) == 2 and site.ledger.spent(1e-4, "run", PERSONALISE).value <= 3.0


def test_a_crash_between_the_file_and_the_settlement_is_charged_and_the_retry_is_a_new_event(
    tmp_path: Path, monkeypatch
) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    monkeypatch.setattr(Ledger, "settle", crashes)
    with pytest.raises(Crash):
        personalise(released(study), site)
    monkeypatch.undo()
    made = personalise(released(study), site)
    assert charged(site) == 2 and not made.again
    assert weights_sha256(personalise(released(study), site).tensors) == weights_sha256(made.tensors)


def personalise_until_killed(folder: Path, study: Study, where: object, name: str) -> None:
    """Personalise in a fork of this process, which is killed by the signal 9 when it calls `where.name`."""
    process = os.fork()
    if process == 0:
        try:
            setattr(where, name, lambda *arguments, **keywords: os.kill(os.getpid(), signal.SIGKILL))
            personalise(released(study), open_site(folder))
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize("place", ["reserve", "train", "save_checkpoint", "settle", "record"])
def test_a_kill_during_the_personalisation_loses_no_charge(tmp_path: Path, place: str) -> None:
    study = study_of()
    after_a_round(tmp_path, study).ledger.close()
    where = {"reserve": Ledger, "settle": Ledger}.get(place, personalisation)
    name = {"record": "ModelPersonalised"}.get(place, place)
    personalise_until_killed(tmp_path, study, where, name)
    site = open_site(tmp_path)
    begun = charged(site)
    assert begun == (0 if place == "reserve" else 1)
    made = personalise(released(study), site)
    assert charged(site) == (1 if place in ("reserve", "record") else 2)
    assert made.again == (place == "record")
    assert site.ledger.spent(1e-4, "run", PERSONALISE).value <= 3.0


def test_other_weights_of_the_same_run_are_refused(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    personalise(released(study), site)
    with pytest.raises(PolicyRefusal) as caught:
        personalise(broadcast_of(study, evaluation_round(study)), site)
    assert caught.value.code == "other_weights" and charged(site) == 1


def test_what_does_not_fit_is_refused_and_charges_nothing(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    question = released(study)
    cases: list[tuple[str, Broadcast]] = [
        ("run_unknown", dataclasses.replace(question, run_id="another-run")),
        ("architecture", dataclasses.replace(question, architecture_sha256="0" * 64)),
        ("round", dataclasses.replace(question, round=1)),
        ("shape", dataclasses.replace(question, weights={n: a[..., None] for n, a in question.weights.items()})),
        ("not-finite", dataclasses.replace(question, weights={n: a * np.nan for n, a in question.weights.items()})),
        ("not_approved", dataclasses.replace(question, study_sha256="0" * 64)),
    ]
    for code, bad in cases:
        with pytest.raises((PolicyRefusal, WireError)) as caught:
            personalise(bad, site)
        assert caught.value.code == code
    assert charged(site) == 0 and len(site.ledger.holds()) == 1


def test_a_study_without_the_section_and_one_that_is_revoked_are_refused(tmp_path: Path) -> None:
    plain = parse_study({**study_of().model_dump(), "personalisation": None})
    site = after_a_round(tmp_path, plain)
    with pytest.raises(PolicyRefusal) as caught:
        personalise(released(plain), site)
    assert caught.value.code == "personalisation_not_asked"
    assert [set(hold.shares) for hold in site.ledger.holds()] == [{TRAIN}]


def test_a_lowered_cap_and_a_released_hold_end_the_personalisation(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    text = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(text.replace(f"epsilon_cap = {cap_of(study).epsilon}", "epsilon_cap = 4.0"))
    with pytest.raises(BudgetRefusal):
        personalise(released(study), site)
    (tmp_path / "site.toml").write_text(text)
    site.ledger.release(study.sha256(), "run", "Ada")
    with pytest.raises(BudgetRefusal) as caught:
        personalise(released(study), site)
    assert caught.value.code == "released" and charged(site) == 0


@pytest.mark.parametrize(
    "trainable", [*(pytest.param(part, marks=pytest.mark.slow) for part in ("head", "norm+head")), "all"]
)
def test_only_the_parameters_asked_for_move_and_they_move_from_the_released_ones(
    tmp_path: Path, trainable: str
) -> None:
    study = study_of(NETWORK, trainable=trainable)
    site = after_a_round(tmp_path, study)
    made = personalise(released(study), site)
    network = initial_network(study)
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    before |= released(study).weights
    moved = {name for name in before if (made.tensors[name] != before[name]).any()}
    asked = set(exchanged_names(network, trainable))
    assert {name for name in asked if before[name].size > 1} <= moved <= asked  # the noise of one number may be 0
    again = with_tensors(study, made.tensors).state_dict()
    assert all((again[name].numpy() == made.tensors[name]).all() for name in again)


def test_a_head_is_trained_on_the_features_of_the_released_body(tmp_path: Path, monkeypatch) -> None:
    study = study_of(NETWORK, trainable="head")
    site = after_a_round(tmp_path, study)
    seen = []

    def noted(*arguments):
        seen.append(arguments[4])
        return train(*arguments)

    monkeypatch.setattr(personalisation, "train", noted)
    personalise(released(study), site)
    (material,) = seen
    network, images = released_network(study, released(study).weights), site.material_of(study)
    right, failed = compute_features(network, images.inputs_N, images.index.rows_N, torch.device("cpu"))
    rows = images.index.rows_N
    assert not failed and len(rows) and (material.inputs_N[rows] == right[rows]).all()
    assert (material.index.rows_N == rows).all(), "held-out patients are not trained on"


def test_nobody_held_out_is_trained_on(tmp_path: Path) -> None:
    study = study_of()
    personal = personal_study(study)
    assert personal is not None
    site = after_a_round(tmp_path, study)
    assert site.held_out_of is not None
    held_out = set(site.held_out_of(study).patient_N.tolist())
    patients = np.repeat(np.arange(24), 2)
    assert held_out and not held_out & set(patients[site.material_of(personal).index.rows_N].tolist())


def test_the_noise_is_that_of_the_personal_plan(tmp_path: Path, monkeypatch) -> None:
    """With no patient drawn, a step moves the weights by the noise alone: its size is the plan's."""
    study = study_of(learning_rate=1.0, steps=1, trainable="head")
    plan = plan_from_study(study).personal
    assert plan is not None
    site = after_a_round(tmp_path, study)
    monkeypatch.setattr(
        personalisation, "_material", lambda site, study, personal, network: _nobody(site, study, personal)
    )
    moves = []
    for run in range(40):
        site = dataclasses.replace(site, ledger=Ledger(None))
        question = released(study, run_id=f"run-{run}")
        site.ledger.hold(study.sha256(), question.run_id, plan_from_study(study), site.cap)
        made = personalise(question, dataclasses.replace(site, runs_allowed=lambda _: 100))
        moves += [(made.tensors[name] - array).ravel() for name, array in question.weights.items()]
    deviation = np.concatenate(moves).std() * plan.expected_patients / plan.max_grad_norm
    assert 0.9 < deviation / plan.noise_multiplier < 1.1


def _nobody(site: Site, study: Study, personal: Study):
    from wardround_client.training.rows import empty_material

    return empty_material(personal, site.device)


def test_a_network_without_the_parameters_asked_for_is_refused_before_the_first_round(tmp_path: Path) -> None:
    bare = HEAD | {"model": {"name": "seed-cnn", "init": "random", "trainable": "all"}}
    study = study_of(bare, trainable="norm+head")
    site = open_site(site_folder(tmp_path, study))
    with pytest.raises(ModelError, match=r"personalisation\.trainable"):
        answer(broadcast_of(study), site)
    assert site.ledger.holds() == []


def test_nothing_of_it_can_be_asked_for_by_a_server(tmp_path: Path) -> None:
    study = study_of(HEAD | {"evaluation": {"epsilon": 1.0, "holdout": 0.4}})
    site = after_a_round(tmp_path, study)
    made = personalise(released(study), site)
    assert PERSONALISE not in QUESTIONS
    kept = {weights_sha256(reply) for reply in site.replies.values()}
    assert weights_sha256(made.tensors) not in kept
    personal = [one.id for one in site.ledger.attempts() if one.purpose == PERSONALISE]
    assert not set(personal) & set(site.replies)
    counts = release_scores(released(study), site).counts_2B
    assert counts.shape == (2, 16)  # the federated test is of the released weights, in the same round number
    with pytest.raises(PolicyRefusal):
        answer(dataclasses.replace(released(study)), site)


def test_what_a_server_gets_before_and_after_is_the_same_but_for_the_length_of_the_ledger(tmp_path: Path) -> None:
    study = study_of()
    site, question = after_a_round(tmp_path, study), broadcast_of(study)
    before = pack_answer(question, answer(question, site))
    personalise(released(study), site)
    after = pack_answer(question, answer(question, site))
    assert after.tensors == before.tensors
    changed = {name for name in before.header if before.header[name] != after.header[name]}
    assert changed == {"ledger_entries", "ledger_head", "ledger_recent"}
    assert int(after.header["ledger_entries"]) - int(before.header["ledger_entries"]) == 2


def test_the_released_weights_of_the_federated_test_can_be_personalised(tmp_path: Path) -> None:
    study = study_of(HEAD | {"evaluation": {"epsilon": 1.0, "holdout": 0.4}})
    site = after_a_round(tmp_path, study)
    assert site.personal is not None
    with pytest.raises(UsageError):
        kept_question(study, site.personal)
    release_scores(released(study), site)
    question = kept_question(study, site.personal)
    assert weights_sha256(question.weights) == weights_sha256(released(study).weights)
    assert not personalise(question, site).again
    assert [one.purpose for one in site.ledger.attempts()] == [TRAIN, EVALUATE, PERSONALISE]
    with pytest.raises(UsageError):
        kept_question(study, site.personal, "another")


def test_a_model_that_was_removed_or_altered_is_refused_and_not_trained_again(tmp_path: Path) -> None:
    study = study_of()
    site = after_a_round(tmp_path, study)
    made = personalise(released(study), site)
    path = made.folder / personalisation.MODEL_FILE
    personalisation.save_checkpoint(path, {n: a + 1 for n, a in made.tensors.items()}, {})
    with pytest.raises(LedgerError):
        personalise(released(study), site)
    path.unlink()
    with pytest.raises(PolicyRefusal) as caught:
        personalise(released(study), site)
    assert caught.value.code == "reply_gone" and charged(site) == 1


def test_a_model_that_diverged_is_not_kept_and_stays_charged(tmp_path: Path, monkeypatch) -> None:
    study = study_of(learning_rate=1e15, steps=4)
    site = after_a_round(tmp_path, study)
    monkeypatch.setattr(personalisation.np, "isfinite", lambda array: np.zeros(1, bool))
    monkeypatch.setattr(personalisation.training, "admit", lambda *arguments, **keywords: None)
    with pytest.raises(WardroundError, match="diverged"):
        personalise(released(study), site)
    assert charged(site) == 1 and site.personal is not None and not site.personal.exists()
