"""The release of held-out scores: its guarantee, the distribution of its noise, and its path through a site."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.randomness import KnownRandom
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wardround.accounting import PureEvent
from wardround.errors import BudgetRefusal, LedgerError, PolicyRefusal, StudyError, WardroundError, WireError
from wardround.metrics.noised_auc import noise_variance
from wardround.networks.build import initial_network
from wardround.study.load import Study, parse_study
from wardround.wire.packets import Broadcast
from wardround_client.ledger.ledger import Ledger, cap_of
from wardround_client.privacy.score_noise import noised, score_histogram, two_sided_geometric
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds import evaluation
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import answer
from wardround_client.site.config import ReleaseConfig
from wardround_client.site.site import ReplyFolder, Site, open_site
from wardround_client.sources.cohort import CohortRow, open_cohort, pseudonym, write_cohort
from wardround_client.studies.store import store_approved
from wardround_client.training.batches import HeldOutRows, Material, material_of
from wardround_client.training.rows import held_out_rows, training_rows
from wardround_client.training.scoring import held_out_scores

KEY = b"k" * 32
DRAWS = 20_000
NOISED = ReleaseConfig(evaluation="noised")


# The mechanism

scores = st.lists(st.tuples(st.floats(width=32) | st.just(math.nan), st.booleans()), max_size=20)


@given(scores, st.tuples(st.floats(width=32) | st.just(math.nan), st.booleans()), st.integers(8, 64))
def test_one_patient_more_moves_exactly_one_cell_by_one(patients, more, bins):
    def counts(rows):
        return score_histogram(np.array([x for x, _ in rows]), np.array([y for _, y in rows], bool), bins, 2.0)

    change_2B = counts([*patients, more]) - counts(patients)
    assert change_2B.sum() == 1 and np.abs(change_2B).sum() == 1 and counts(patients).sum() == len(patients)


def law(epsilon: float, values: np.ndarray) -> np.ndarray:
    share = math.exp(-epsilon)
    return (1 - share) / (1 + share) * share ** np.abs(values)


def p_value(drawn: np.ndarray, epsilon: float) -> float:
    """Chi-square of the draws against the law of `epsilon`, the tails gathered where fewer than 8 are expected."""
    reach = 0
    while len(drawn) * law(epsilon, np.array(reach + 1)) / (1 - math.exp(-epsilon)) > 8:
        reach += 1
    values = np.arange(-reach, reach + 1)
    expected = law(epsilon, values)
    expected[[0, -1]] = math.exp(-epsilon * reach) / (1 + math.exp(-epsilon))  # that and all beyond
    found = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
    return float(stats.chisquare(found, expected * len(drawn)).pvalue)


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 2.7])
def test_the_noise_has_the_law_of_its_epsilon_and_of_no_other(epsilon):
    randomness = SecretRandom()
    drawn = np.array([two_sided_geometric(epsilon, randomness) for _ in range(DRAWS)])
    assert p_value(drawn, epsilon) > 1e-6
    assert p_value(drawn, epsilon * 2 / 3) < 1e-6 and p_value(drawn, epsilon * 3 / 2) < 1e-6
    assert p_value(drawn, epsilon * 1.1) < 1e-6  # the power: a tenth off is seen
    assert drawn.var() == pytest.approx(noise_variance(epsilon), rel=0.12)


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 3.0])
def test_no_output_is_more_than_e_to_the_epsilon_likelier_with_one_patient_more(epsilon):
    values = np.arange(-200, 201)
    ratio = law(epsilon, values - 1) / law(epsilon, values)  # a cell of 1 against a cell of 0; all others are the same
    assert max(ratio.max(), (1 / ratio).max()) == pytest.approx(math.exp(epsilon), rel=1e-9)


def test_draws_at_neighbours_are_told_apart_as_well_as_epsilon_allows_and_no_better():
    epsilon, randomness = 1.0, SecretRandom()
    empty, one = np.zeros((1, 1), np.int64), np.ones((1, 1), np.int64)
    without, with_one = (
        np.array([noised(counts, epsilon, randomness)[0, 0] for _ in range(4000)]) for counts in (empty, one)
    )
    shares = np.mean(without <= 0), np.mean(with_one <= 0)  # the output that tells most
    ratio, error = shares[0] / shares[1], 4 * math.sqrt((1 / shares[0] + 1 / shares[1] - 2) / 4000)
    assert abs(math.log(ratio) - epsilon) < error < epsilon / 3


def test_every_cell_gets_noise_of_its_own_empty_ones_too():
    drawn = np.array([noised(np.zeros((2, 8), np.int64), 0.5, SecretRandom()) for _ in range(300)])
    variance_2B = drawn.var(axis=0)
    assert drawn.dtype == np.int64 and (variance_2B > noise_variance(0.5) / 2).all()
    correlation = np.corrcoef(drawn.reshape(300, -1).T) - np.eye(16)
    assert np.abs(correlation).max() < 0.3


def test_infinite_epsilon_adds_nothing_and_an_impossible_one_is_refused():
    counts_2B = np.arange(16).reshape(2, 8)
    assert (noised(counts_2B, math.inf, SecretRandom()) == counts_2B).all()
    for epsilon in (0.0, -1.0, math.nan, -math.inf):
        with pytest.raises(WardroundError):
            noised(counts_2B, epsilon, SecretRandom())


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_two_releases_under_other_keys_differ(key):
    counts_2B = np.zeros((2, 16), np.int64)
    first, again, other = (noised(counts_2B, 0.1, KnownRandom(str(k).encode())) for k in (key, key, key + 1))
    assert (first == again).all() and (first != other).any()


# Scores: a patient counts once, and depends on nobody else


def study_of(rounds: int = 3, **evaluation) -> Study:
    content = {
        "study": {"name": "t", "rounds": rounds, "spare_rounds": 0},
        "data": {"labels": ["benign", "malignant"], "image_size": 64},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
        "evaluation": {"epsilon": 1.0, "holdout": 0.5} | evaluation,
    }
    return parse_study(content)


def held_out(patients: int = 6) -> HeldOutRows:
    generator = np.random.default_rng(3)
    images_NCHW = generator.integers(0, 256, (3 * patients, 1, 64, 64), dtype=np.uint8)
    labels_N = np.array([int(n % 6 == 2) for n in range(3 * patients)])  # one image of each second patient
    return HeldOutRows(values_N=images_NCHW, labels_N=labels_N, patient_N=np.repeat(np.arange(patients), 3))


def some(images: HeldOutRows, rows_N: np.ndarray) -> HeldOutRows:
    columns = ("values_N", "labels_N", "patient_N")
    return HeldOutRows(**{name: getattr(images, name)[rows_N] for name in columns})


def question_of(study: Study, **changes) -> Broadcast:
    return broadcast_of(study, study.study.rounds + 1, **changes)


def test_a_patient_counts_once_with_the_highest_score_and_any_positive_label():
    study, images = study_of(), held_out()
    network, weights = initial_network(study), question_of(study).weights
    logits_P, positive_P = held_out_scores(network, study, weights, images, torch.device("cpu"))
    assert positive_P.tolist() == [True, False] * 3
    singles = [
        held_out_scores(network, study, weights, some(images, np.array([n])), torch.device("cpu"))[0] for n in range(18)
    ]
    assert logits_P == pytest.approx(np.concatenate(singles).reshape(6, 3).max(axis=1), rel=1e-5)


def test_a_patients_score_is_the_same_bit_for_bit_whoever_else_is_there():
    study, images = study_of(), held_out(9)
    network, weights = initial_network(study), question_of(study).weights
    everyone, _ = held_out_scores(network, study, weights, images, torch.device("cpu"))
    for left_out in range(9):
        rest = some(images, images.patient_N != left_out)
        others, _ = held_out_scores(network, study, weights, rest, torch.device("cpu"))
        assert others.tobytes() == np.delete(everyone, left_out).tobytes()


def test_a_score_that_is_not_a_number_counts_and_moves_nobody_else():
    study, images = study_of(), held_out()
    network, weights = initial_network(study), question_of(study).weights
    honest, labels = held_out_scores(network, study, weights, images, torch.device("cpu"))

    class BlindOnce(torch.nn.Module):
        def forward(self, images_NCHW):
            logits = network(images_NCHW)
            logits[(images_NCHW.flatten(1).float().mean(1) == target)] = math.nan
            return logits

        def named_parameters(self, *words, **more):
            return network.named_parameters(*words, **more)

    target = torch.from_numpy(images.values_N[4]).float().mean()
    found, _ = held_out_scores(BlindOnce(), study, weights, images, torch.device("cpu"))
    assert math.isnan(found[1]) and np.delete(found, 1).tobytes() == np.delete(honest, 1).tobytes()
    assert score_histogram(found, labels, 16, 2.0).sum() == 6


# The way through a site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with a real ledger and reply folder. Every study it is asked about is approved; releases are its own."""
    known = {
        study.sha256(): study
        for study in (study_of(), study_of(epsilon=0.0), study_of(epsilon=math.inf), study_of(epsilon=30.0))
    }
    return Site(
        name="hospital",
        cap=cap_of(study_of()),
        ledger=Ledger(tmp_path / "ledger.sqlite3"),
        replies=ReplyFolder(tmp_path / "replies"),
        study_of=known.__getitem__,
        material_of=training_material,
        held_out_of=lambda study: held_out(),
        release=NOISED,
        randomness=SecretRandom(),
        device=torch.device("cpu"),
    )


def training_material(study: Study) -> Material:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(12, 33)).astype(np.float32)
    labels = generator.integers(0, 2, 12).astype(np.int16)
    return material_of(features, labels, np.repeat(np.arange(6), 2), np.ones(12, bool))


def unread(study: Study) -> HeldOutRows:
    pytest.fail("held-out images were read")  # no `Exception`, which a round would answer with noise alone


def refused(site: Site, question: Broadcast) -> str:
    with pytest.raises((PolicyRefusal, BudgetRefusal, WireError)) as caught:
        release_scores(question, dataclasses.replace(site, held_out_of=unread))
    return caught.value.code


def test_by_default_nothing_leaves(site: Site, tmp_path: Path):
    assert ReleaseConfig().evaluation == "off" and not ReleaseConfig().per_site
    fields = {field.name: field for field in dataclasses.fields(Site)}
    assert fields["release"].default.evaluation == "off"
    silent = dataclasses.replace(site, release=ReleaseConfig())
    assert refused(silent, question_of(study_of())) == "evaluation_off"
    assert site.ledger.attempts() == [] and site.ledger.events() == [] and not len(site.replies)


def test_a_site_file_without_the_section_releases_nothing(tmp_path: Path):
    site = open_site(site_folder(tmp_path, study_of(), release=""))
    assert refused(site, question_of(study_of())) == "evaluation_off"


def test_a_study_without_a_budget_for_figures_gets_none(site: Site):
    assert refused(site, question_of(study_of(epsilon=0.0))) == "evaluation_not_asked"


def test_exact_counts_need_the_sites_own_word(site: Site):
    exact = study_of(epsilon=math.inf)
    assert refused(site, question_of(exact)) == "evaluation_exact"
    willing = dataclasses.replace(site, release=ReleaseConfig(evaluation="exact"))
    assert refused(willing, question_of(exact)) == "no_privacy"  # and the permission for studies without privacy
    willing = dataclasses.replace(willing, cap=cap_of(exact))
    counts_2B = release_scores(question_of(exact), willing).counts_2B
    assert counts_2B.sum() == 6 and counts_2B[1].sum() == 3
    assert math.isinf(site.ledger.spent(1e-4).value)


def test_a_site_that_allows_exact_counts_still_adds_the_noise_a_study_promises(site: Site):
    willing = dataclasses.replace(site, release=ReleaseConfig(evaluation="exact"), held_out_of=lambda study: held_out())
    sums = [
        release_scores(question_of(study_of(), run_id=f"run-{n}"), fresh(willing)).counts_2B.sum() for n in range(12)
    ]
    assert len(set(sums)) > 3


def fresh(site: Site) -> Site:
    return dataclasses.replace(site, ledger=Ledger(None), replies={})


def test_a_release_is_one_pure_event_of_the_epsilon_of_its_noise(site: Site):
    release = release_scores(question_of(study_of()), site)
    assert release.counts_2B.dtype == np.int64 and release.counts_2B.shape == (2, 16)
    assert site.ledger.events() == [PureEvent(epsilon=1.0, count=1)]
    (attempt,) = site.ledger.attempts()
    assert attempt.reply_sha256 is not None and site.ledger.spent(1e-4).value <= 1.0


def test_what_leaves_has_the_noise_of_the_epsilon_that_the_ledger_was_charged(site: Site):
    study, images = study_of(), held_out()
    network, weights = initial_network(study), question_of(study).weights
    logits_P, positive_P = held_out_scores(network, study, weights, images, torch.device("cpu"))
    exact_2B = score_histogram(logits_P, positive_P, 16, 2.0)
    drawn = []
    for _ in range(40):
        again = fresh(site)
        drawn.append(release_scores(question_of(study), again).counts_2B - exact_2B)
        (event,) = again.ledger.events()
    assert p_value(np.concatenate(drawn).ravel(), event.epsilon) > 1e-6
    assert p_value(np.concatenate(drawn).ravel(), 1.5 * event.epsilon) < 1e-6


def test_asked_twice_the_same_bytes_and_one_charge(site: Site, tmp_path: Path):
    question = question_of(study_of())
    first, again = release_scores(question, site), release_scores(question, site)
    site.ledger.close()
    reopened = dataclasses.replace(site, ledger=Ledger(tmp_path / "ledger.sqlite3"), admitted={}, held_out_of=unread)
    later = release_scores(question, reopened)
    assert first.counts_2B.tobytes() == again.counts_2B.tobytes() == later.counts_2B.tobytes()
    assert len(reopened.ledger.attempts()) == 1


def test_figures_of_another_run_than_the_one_approved_are_refused_before_a_patient_is_read(site: Site):
    release_scores(question_of(study_of()), site)
    assert refused(site, question_of(study_of(), run_id="another")) == "runs_used"
    assert len(site.ledger.attempts()) == 1


def test_the_same_question_with_other_weights_is_refused(site: Site):
    question = question_of(study_of())
    release_scores(question, site)
    other = dataclasses.replace(question, weights={name: array + 1 for name, array in question.weights.items()})
    assert refused(site, other) == "other_weights"
    assert len(site.ledger.attempts()) == 1


def test_training_and_figures_are_two_questions_that_cannot_be_exchanged(site: Site):
    question = question_of(study_of())
    assert refused(site, dataclasses.replace(question, round=3)) == "round"
    with pytest.raises(PolicyRefusal) as caught:
        answer(question, site)
    assert caught.value.code == "round" and site.ledger.attempts() == []


def test_a_budget_that_does_not_cover_the_figures_refuses_the_whole_study_before_a_round(site: Site):
    study = study_of(epsilon=30.0)
    assert refused(site, question_of(study)) == "budget"
    with pytest.raises(BudgetRefusal):
        answer(question_of(study, round=1), dataclasses.replace(site, material_of=unread))
    assert site.ledger.attempts() == []


class Crash(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


class CrashingReplies(dict):
    def __setitem__(self, attempt, counts) -> None:
        raise Crash


def test_a_crash_before_the_counts_are_on_disk_is_charged_and_never_sent(site: Site):
    question, dying = question_of(study_of()), dataclasses.replace(site, replies=CrashingReplies())
    with pytest.raises(Crash):
        release_scores(question, dying)
    assert site.ledger.events() == [PureEvent(epsilon=1.0, count=1)]
    assert [attempt.reply_sha256 for attempt in site.ledger.attempts()] == [None]
    release_scores(question, site)  # the spare attempt
    assert site.ledger.events() == [PureEvent(epsilon=1.0, count=2)]
    assert len(site.ledger.attempts()) == 2


def test_the_attempt_is_on_disk_before_a_score_is_computed(site: Site):
    def watched(study: Study) -> HeldOutRows:
        seen.append(len(site.ledger.attempts()))
        return held_out()

    seen: list[int] = []
    release_scores(question_of(study_of()), dataclasses.replace(site, held_out_of=watched))
    assert seen == [1]


@pytest.mark.parametrize("where", ["reading", "scoring"])
def test_an_error_with_held_out_patients_is_answered_with_the_noise_alone(site: Site, monkeypatch, caplog, where: str):
    def unreadable(study: Study) -> HeldOutRows:
        raise OSError("/data/CANARY.dcm")

    def fails(network, study, weights, images, device):
        if len(images.labels_N):
            raise RuntimeError("CANARY")
        return held_out_scores(network, study, weights, images, device)

    if where == "reading":
        site = dataclasses.replace(site, held_out_of=unreadable)
    else:
        monkeypatch.setattr(evaluation, "held_out_scores", fails)
    question = question_of(study_of())
    counts_2B = release_scores(question, site).counts_2B
    (attempt,) = site.ledger.attempts()
    assert attempt.reply_sha256 is not None and site.ledger.events() == [PureEvent(epsilon=1.0, count=1)]
    assert counts_2B.any() and (release_scores(question, site).counts_2B == counts_2B).all()
    assert "CANARY" in caplog.text, "the site's own log has it in full"


def test_counts_changed_on_disk_are_not_sent(site: Site):
    question = question_of(study_of())
    release_scores(question, site)
    (attempt,) = site.ledger.attempts()
    site.replies[attempt.id] = {"counts": np.zeros((2, 16), np.int64)}
    with pytest.raises(LedgerError):
        release_scores(question, site)


@pytest.mark.parametrize("rules, shown", [({}, False), ({"per_site": True}, False),
    ({"per_site": True, "minimum_patients": 1}, True), ({"minimum_patients": 1}, False)])  # fmt: skip
def test_figures_of_one_site_are_shown_only_where_it_says_so_and_enough_patients_stand_behind(site, rules, shown):
    allowing = dataclasses.replace(site, release=ReleaseConfig(evaluation="noised", **rules))
    sure = dataclasses.replace(allowing, held_out_of=lambda study: held_out(20), study_of=lambda _: study_of())
    assert release_scores(question_of(study_of()), sure).per_site is shown


def test_known_randomness_is_refused(site: Site):
    assert refused(dataclasses.replace(site, randomness=KnownRandom(b"x")), question_of(study_of())) == (
        "known_randomness"
    )


@pytest.mark.parametrize("evaluation", [{"epsilon": 1.0, "holdout": 0}, {"epsilon": 1e-5}, {"bins": 4}])
def test_a_study_whose_figures_have_no_meaning_is_refused(evaluation):
    with pytest.raises(StudyError, match="evaluation"):
        study_of(**evaluation)


def test_figures_are_for_two_labels():
    content = study_of().model_dump()
    content["data"]["labels"] = ("a", "b", "c")
    with pytest.raises(StudyError, match="two labels"):
        parse_study(content)


# From a folder


def site_folder(root: Path, study: Study, release: str) -> Path:
    generator, folder = np.random.default_rng(1), root / "site"
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{n // 2}"), label=n // 2 % 2) for n in range(80)]
    images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
    write_cohort(
        folder / "cohort", rows, images, row_shape=(1, 64, 64), label_names=("benign", "malignant"), site_key=KEY
    )
    text = f'name = "site"\n[privacy]\nepsilon_cap = 99.0\ndelta_cap = 1e-4\nallow_no_privacy = true\n{release}\n'
    (folder / "site.toml").write_text(text)
    store_approved(folder, study)
    return folder


def test_a_site_from_a_folder_counts_exactly_those_it_never_trains_on(tmp_path: Path):
    study = study_of(epsilon=math.inf)
    site = open_site(site_folder(tmp_path, study, '[release]\nevaluation = "exact"'))
    cohort = open_cohort(tmp_path / "site" / "cohort")
    trained = set(cohort.patient_N[training_rows(study, cohort)])
    tested = set(held_out_rows(study, cohort).patient_N)
    assert not trained & tested and len(trained | tested) == 40 and len(tested) > 5
    counts_2B = release_scores(question_of(study), site).counts_2B
    assert counts_2B.sum() == len(tested)
    positives = {p for p in tested if (cohort.labels_N[cohort.patient_N == p] == 1).any()}
    assert counts_2B[1].sum() == len(positives)
