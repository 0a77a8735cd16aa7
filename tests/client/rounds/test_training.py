"""One round at one site: admitted, reserved, trained, settled and replied, or refused before an image is read."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.randomness import KnownRandom
from builders.sites import site_in, study_of, twelve_images

from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal, RefusedError, WireError
from wardround.networks.build import initial_network
from wardround.study.load import Study, parse_study
from wardround.tasks.reconstruction import networks
from wardround.tasks.reconstruction.restorer import Restorer
from wardround.wire.packets import weights_sha256
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds import training
from wardround_client.rounds.training import answer
from wardround_client.site.site import Site, open_site
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.studies.store import store_approved
from wardround_client.training.batches import Material, material_of
from wardround_client.training.rows import training_rows
from wardround_client.training.steps import learning_rate
from wardround_client.training.train import train

KEY = b"k" * 32


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_in(tmp_path)


def test_a_round_is_one_event_and_moves_the_weights(site: Site) -> None:
    message = broadcast_of(study_of())
    reply = answer(message, site).weights
    assert {name: (a.shape, a.dtype) for name, a in reply.items()} == {
        name: (a.shape, np.dtype(np.float32)) for name, a in message.weights.items()
    }
    assert any((reply[name] != message.weights[name]).any() for name in reply)
    assert [event.steps for event in site.ledger.events()] == [1]
    (attempt,) = site.ledger.attempts()
    assert attempt.reply_sha256 == weights_sha256(reply)


def test_a_round_asked_for_twice_gets_the_same_bytes_and_is_charged_once(site: Site, tmp_path: Path) -> None:
    message = broadcast_of(study_of())
    first, again = answer(message, site).weights, answer(message, site).weights
    reopened = dataclasses.replace(site, ledger=Ledger(tmp_path / "ledger.sqlite3"), admitted={}, materials={})
    later = answer(message, reopened).weights
    assert weights_sha256(first) == weights_sha256(again) == weights_sha256(later)
    assert len(site.ledger.attempts()) == 1


def test_the_same_round_with_other_weights_is_refused(site: Site) -> None:
    message = broadcast_of(study_of())
    answer(message, site)
    other = dataclasses.replace(message, weights={name: array + 1 for name, array in message.weights.items()})
    with pytest.raises(PolicyRefusal) as caught:
        answer(other, site)
    assert caught.value.code == "other_weights"
    assert len(site.ledger.attempts()) == 1


def fails_with_patients(train):
    """A training that fails for whoever is there, as `cross_entropy` does for a label that the network has not."""

    def trained(study, plan, network, weights, material, *rest):
        if len(material.labels_N):
            raise IndexError("Target 3 is out of bounds, patient CANARY")
        return train(study, plan, network, weights, material, *rest)

    return trained


@pytest.mark.parametrize("where", ["reading", "training"])
def test_an_error_with_patients_is_answered_with_noise_alone_as_one_charged_attempt(
    site: Site, monkeypatch, caplog, where: str
) -> None:
    """A code would tell without noise that a patient is there whose data cause it."""

    def unreadable(_: Study) -> Material:
        raise OSError("/data/CANARY.dcm")

    if where == "reading":
        site = dataclasses.replace(site, material_of=unreadable)
    else:
        monkeypatch.setattr(training, "train", fails_with_patients(train))
    message = broadcast_of(study_of())
    reply = answer(message, site).weights
    assert all((reply[name] != message.weights[name]).any() for name in reply), "the noise is in it"
    (attempt,) = site.ledger.attempts()
    assert attempt.reply_sha256 == weights_sha256(reply) == weights_sha256(answer(message, site).weights)
    assert [event.steps for event in site.ledger.events()] == [1]
    assert "CANARY" in caplog.text and "Traceback" in caplog.text, "the site's own log has it in full"


@pytest.mark.parametrize("error", [Exception("always"), KeyboardInterrupt(), SystemExit()])
def test_an_error_with_nobody_too_and_what_ends_the_process_propagate(site: Site, monkeypatch, error) -> None:
    def always(*arguments, **keywords):
        raise error

    monkeypatch.setattr(training, "train", always)
    with pytest.raises(type(error)):
        answer(broadcast_of(study_of()), site)
    (attempt,) = site.ledger.attempts()
    assert attempt.reply_sha256 is None


class Crash(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


class CrashingReplies(dict):
    """A reply store whose disk dies before the reply is on it."""

    def __setitem__(self, attempt, weights) -> None:
        raise Crash


def test_a_crash_before_settling_is_charged_and_the_retry_is_a_new_event(site: Site) -> None:
    message = broadcast_of(study_of())
    with pytest.raises(Crash):
        answer(message, dataclasses.replace(site, replies=CrashingReplies()))
    assert len(site.ledger.attempts()) == 1
    lost = site.ledger.attempts()[0]
    reply = answer(message, site).weights
    attempts = site.ledger.attempts()
    assert len(attempts) == 2 and attempts[0] == lost and lost.reply_sha256 is None
    assert attempts[1].reply_sha256 == weights_sha256(reply)


def test_without_spare_rounds_the_site_sits_out_and_never_spends_more(site: Site) -> None:
    for round_ in (1, 2):
        with pytest.raises(Crash):
            answer(broadcast_of(study_of(), round_), dataclasses.replace(site, replies=CrashingReplies()))
        answer(broadcast_of(study_of(), round_), site)
    with pytest.raises(BudgetRefusal) as caught:
        answer(broadcast_of(study_of(), 3), site)
    assert caught.value.code == "no_spare_rounds"
    assert site.ledger.spent(1e-4).value <= 8.0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"study_sha256": "0" * 64}, "not_approved"),
        ({"architecture_sha256": "0" * 64}, "architecture"),
        ({"round": 4}, "round"),
        ({"round": 0}, "round"),
        ({"weights": {"head.weight": np.zeros((1, 33), np.float32)}}, "names"),
        (
            {"weights": {"head.weight": np.zeros((1, 34), np.float32), "head.bias": np.zeros(1, np.float32)}},
            "shape",
        ),
        (
            {"weights": {"head.weight": np.full((1, 33), np.nan, np.float32), "head.bias": np.zeros(1, np.float32)}},
            "not-finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_read(site: Site, changes: dict, code: str) -> None:
    def read(_: Study):
        pytest.fail("data were read")  # no `Exception`, which a round would answer with noise alone

    with pytest.raises((RefusedError, WireError)) as caught:
        answer(broadcast_of(study_of(), **changes), dataclasses.replace(site, material_of=read))
    assert caught.value.code == code
    assert site.ledger.attempts() == []


@pytest.mark.parametrize(("trainable", "refused"), [("head", True), ("norm+head", True), ("all", False)])
def test_a_site_whose_installed_start_differs_in_what_does_not_travel_refuses(
    site: Site, monkeypatch, trainable: str, refused: bool
) -> None:
    study = parse_study({
        "study": {"name": "restore", "task": "reconstruction", "rounds": 1},
        "data": {"labels": ["benign", "malignant"], "image_size": 32},
        "model": {"name": "restorer", "trainable": trainable},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.1, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
        "reconstruction": {"crop_px": 32},
    })  # fmt: skip
    message, shipped = broadcast_of(study), networks.load_phantom_restorer

    def altered(*arguments) -> Restorer:
        restorer = shipped(*arguments)
        with torch.no_grad():
            restorer.generator.stem.weight[0, 0, 0, 0] += 1e-3
        return restorer

    monkeypatch.setattr(networks, "load_phantom_restorer", altered)
    images = np.random.default_rng(1).integers(0, 256, (4, 1, 32, 32), dtype=np.uint8)
    material = material_of(images, np.zeros(4, np.int16), np.arange(4), np.ones(4, bool))
    here = dataclasses.replace(site, study_of=lambda _: study, material_of=lambda _: material)
    if not refused:  # every weight travels: the site trains from those it received
        answer(message, here)
        return
    with pytest.raises(PolicyRefusal) as caught:
        answer(message, here)
    assert caught.value.code == "architecture" and site.ledger.attempts() == []


@pytest.mark.parametrize(("epsilon", "code"), [(9.0, "budget"), (math.inf, "no_privacy")])
def test_a_study_above_the_cap_or_without_privacy_is_refused_before_an_image_is_read(site, epsilon, code) -> None:
    def read(_: Study):
        pytest.fail("data were read")  # no `Exception`, which a round would answer with noise alone

    with pytest.raises(RefusedError) as caught:
        answer(broadcast_of(study_of(epsilon=epsilon)), dataclasses.replace(site, material_of=read))
    assert caught.value.code == code
    assert site.ledger.attempts() == []


def test_a_site_with_a_cap_of_one_refuses_a_study_of_two_before_an_image_is_read(site: Site) -> None:
    def read(_: Study):
        pytest.fail("data were read")  # no `Exception`, which a round would answer with noise alone

    strict = dataclasses.replace(site, cap=Cap(epsilon=1.0, delta=1e-4), material_of=read)
    with pytest.raises(BudgetRefusal, match="cap of epsilon 1"):
        answer(broadcast_of(study_of(epsilon=2.0)), strict)
    assert site.ledger.attempts() == [] and site.ledger.holds() == []


def test_an_answer_brings_the_head_of_the_ledger_after_its_settlement(site: Site) -> None:
    message = broadcast_of(study_of())
    first = answer(message, site).head
    assert first == site.ledger.head() and first.entries == 4  # opened, hold, attempt, settled
    assert answer(message, site).head == first
    assert answer(broadcast_of(study_of(), 2), site).head.entries == 6


def test_a_released_run_sends_what_was_settled_again_and_reads_no_image_for_more(site: Site) -> None:
    message = broadcast_of(study_of())
    first = answer(message, site)
    site.ledger.release(message.study_sha256, message.run_id, "an officer")

    def read(_: Study):
        pytest.fail("data were read")  # no `Exception`, which a round would answer with noise alone

    closed = dataclasses.replace(site, material_of=read, materials={})
    assert weights_sha256(answer(message, closed).weights) == weights_sha256(first.weights)
    with pytest.raises(BudgetRefusal) as caught:
        answer(broadcast_of(study_of(), 2), closed)
    assert caught.value.code == "released" and len(site.ledger.attempts()) == 1


def test_known_randomness_is_refused_where_privacy_is_promised(site: Site) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        answer(broadcast_of(study_of()), dataclasses.replace(site, randomness=KnownRandom(b"seed")))
    assert caught.value.code == "known_randomness"


def test_two_sites_with_the_same_data_never_add_the_same_noise(site: Site, tmp_path: Path) -> None:
    twin = dataclasses.replace(
        site, ledger=Ledger(None), replies={}, randomness=SecretRandom(), admitted={}, materials={}
    )
    message = broadcast_of(study_of())
    one, two = answer(message, site).weights, answer(message, twin).weights
    assert not np.allclose(one["head.weight"], two["head.weight"])


def test_a_reply_altered_on_disk_is_not_sent(site: Site) -> None:
    message = broadcast_of(study_of())
    reply = answer(message, site).weights
    (attempt,) = site.ledger.attempts()
    site.replies[attempt.id] = {name: array + 1 for name, array in reply.items()}
    with pytest.raises(LedgerError, match="differs from the settled one"):
        answer(message, site)


# A site opened from its folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{n // 2}"), label=n // 2 % 2) for n in range(24)]
    images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
    names = ("benign", "malignant")
    write_cohort(tmp_path / "cohort", rows, images, row_shape=(1, 64, 64), label_names=names, site_key=KEY)
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    store_approved(tmp_path, study_of())
    return tmp_path


def test_a_site_from_its_folder_trains_and_keeps_its_features(folder: Path) -> None:
    reply = answer(broadcast_of(study_of()), open_site(folder)).weights
    assert reply["head.weight"].shape == (1, 33)
    cached = list((folder / "cache").glob("features-*.safetensors"))
    assert len(cached) == 1
    before = cached[0].stat().st_mtime_ns
    again = answer(broadcast_of(study_of(), 2), open_site(folder)).weights
    assert again["head.weight"].shape == (1, 33)
    assert cached[0].stat().st_mtime_ns == before


def test_an_approved_study_that_was_altered_is_refused(folder: Path) -> None:
    path = folder / "studies" / f"{study_of().sha256()}.json"
    path.write_text(path.read_text().replace('"epsilon": 8.0', '"epsilon": 80.0'))
    with pytest.raises(PolicyRefusal) as caught:
        answer(broadcast_of(study_of()), open_site(folder))
    assert caught.value.code == "altered"


def test_patients_held_out_never_train(folder: Path) -> None:
    study = study_of()
    from wardround_client.sources.cohort import open_cohort

    cohort = open_cohort(folder / "cohort")
    rows = training_rows(study, cohort)
    held_out = cohort.holdout_rank_P < study.evaluation.holdout
    assert not rows[held_out[cohort.patient_N]].any()
    material = open_site(folder).material_of(study)
    assert set(cohort.patient_N[material.index.rows_N]) == set(np.flatnonzero(~held_out))


# The arithmetic of a round


def test_the_learning_rate_rule_uses_public_numbers_only_and_is_bounded() -> None:
    from wardround_client.privacy.plan import plan_from_study

    study = study_of()
    plan = plan_from_study(study)
    rate = learning_rate(study, plan, 34, 1)
    spread = 0.3 * plan.noise_multiplier * math.sqrt(34 * 3 * 1)
    assert rate == pytest.approx(min(32.0, 3 * 8 / spread))
    free = study_of(epsilon=math.inf)
    assert learning_rate(free, plan_from_study(free), 34, 1) == 32.0


def test_cosine_warms_up_and_fades() -> None:
    content = study_of().model_dump()
    content["study"]["rounds"] = 20
    content["training"].update(learning_rate=1.0, schedule="cosine", warmup_rounds=3)
    study = parse_study(content)
    from wardround_client.privacy.plan import plan_from_study

    plan = plan_from_study(study)
    rates = [learning_rate(study, plan, 1, round_) for round_ in range(1, 21)]
    assert rates[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert max(rates) <= 1.0 and 0 < rates[-1] < 0.05


def test_fedprox_pulls_towards_the_received_weights_after_the_noise() -> None:
    """Without data and noise the only force is mu (w - w_received), which is zero at the start: nothing moves."""
    content = study_of(epsilon=math.inf).model_dump()
    content["aggregation"].update(strategy="fedprox", proximal_mu=0.5)
    content["training"].update(learning_rate=0.1, local_steps=3)
    study = parse_study(content)
    from wardround_client.privacy.plan import plan_from_study

    network = initial_network(study)
    message = broadcast_of(study)
    empty = material_of(np.zeros((0, 33), np.float32), np.zeros(0, np.int16), np.zeros(0, int), np.zeros(0, bool))
    reply = train(
        study, plan_from_study(study), network, message.weights, empty, 1, SecretRandom(), torch.device("cpu")
    )
    assert all((reply[name] == message.weights[name]).all() for name in reply)
    content["aggregation"].update(proximal_mu=2.0)
    full = twelve_images(study)
    near, far = (
        train(
            parse_study(content | {"aggregation": content["aggregation"] | {"proximal_mu": mu}}),
            plan_from_study(study),
            network,
            message.weights,
            full,
            1,
            SecretRandom(),
            torch.device("cpu"),
        )
        for mu in (5.0, 1e-6)
    )

    def moved(reply) -> float:
        return sum(float(np.square(reply[name] - message.weights[name]).sum()) for name in reply)

    assert moved(near) < moved(far)


# Two processes at one site: a killed run's worker may still train when the next run asks the same


def answer_in_a_process(folder: str, barrier, pipe) -> None:
    torch.set_num_threads(1)
    site = open_site(Path(folder))
    barrier.wait()
    pipe.send(weights_sha256(answer(broadcast_of(study_of()), site).weights))


def test_two_processes_asked_the_same_round_at_once_make_one_attempt(folder: Path) -> None:
    context = torch.multiprocessing.get_context("fork")
    barrier, ours = context.Barrier(2), []
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        context.Process(target=answer_in_a_process, args=(str(folder), barrier, sender)).start()
        ours.append(receiver)
    one, two = (receiver.recv() for receiver in ours)
    assert one == two and len(Ledger(folder / "ledger.sqlite3").attempts()) == 1
