"""From sites' releases to federated figures: what is accepted, what is refused by name, and which sites are shown."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from wardround.errors import WireError
from wardround.metrics.noised_auc import noise_variance
from wardround.metrics.ranking import auc
from wardround.metrics.score_bins import bins_of
from wardround.study.load import parse_study
from wardround.wire.evaluation import MAX_COUNT, ScoreRelease, SiteRelease, pack_release, unpack_release
from wardround.wire.packets import Broadcast, LedgerHead, Packet, Tensor, pack_refusal
from wardround_server.rounds.evaluation import federated_test, figures_of, merged

BINS = 16
HEAD = LedgerHead(entries=1, sha256="d" * 64)
QUESTION = Broadcast(
    study_sha256="a" * 64, run_id="run", round=5, weights={"w": np.zeros(2, np.float32)}, architecture_sha256="b" * 64
)
RELEASE = ScoreRelease(counts_2B=np.arange(-8, 24, dtype=np.int64).reshape(2, BINS), per_site=True, head=HEAD)


def study_of(**evaluation):
    return parse_study(
        {
            "study": {"name": "t", "rounds": 4},
            "data": {"labels": ["benign", "malignant"]},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 3},
            "evaluation": {"epsilon": 3.0} | evaluation,
        }
    )


def test_counts_cross_the_wire_bit_for_bit():
    release, code = unpack_release(pack_release(QUESTION, RELEASE), QUESTION, BINS)
    assert code is None and release.per_site and release.counts_2B.tobytes() == RELEASE.counts_2B.tobytes()
    assert not unpack_release(pack_release(QUESTION, dataclasses.replace(RELEASE, per_site=False)), QUESTION, BINS)[
        0
    ].per_site


@pytest.mark.parametrize("code", ["evaluation_off", "no_spare_rounds", "failed"])
def test_a_refusal_crosses_as_its_code(code):
    assert unpack_release(pack_refusal(QUESTION, code), QUESTION, BINS) == (None, code)


def changed(header=(), counts=None, dtype="int64", shape=(2, BINS), data=None, names=("counts",)):
    packet = pack_release(QUESTION, RELEASE)
    values = RELEASE.counts_2B if counts is None else counts
    tensor = Tensor(dtype, shape, np.asarray(values, "<i8").tobytes() if data is None else data)
    return Packet(header={**packet.header, **dict(header)}, tensors=dict.fromkeys(names, tensor))


@pytest.mark.parametrize(
    "packet, code",
    [
        (changed(header={"protocol": 99}), "protocol"),
        (changed(header={"kind": "broadcast"}), "header"),
        (changed(header={"kind": "answer"}), "header"),
        (changed(header={"extra": "x"}), "header"),
        (changed(header={"ledger_entries": 0}), "header"),
        (changed(header={"ledger_head": ""}), "header"),
        (changed(header={"ledger_recent": "c" * 8}), "header"),
        (changed(header={"per_site": 2}), "header"),
        (changed(header={"per_site": True}), "header"),
        (changed(header={"per_site": "1"}), "header"),
        (changed(header={"study_sha256": "c" * 64}), "stale"),
        (changed(header={"run_id": "other"}), "stale"),
        (changed(header={"round": 4}), "stale"),
        (changed(names=()), "names"),
        (changed(names=("counts", "scores")), "names"),
        (changed(names=("scores",)), "names"),
        (changed(dtype="float32"), "dtype"),
        (changed(shape=(2, BINS - 1)), "shape"),
        (changed(shape=(BINS, 2)), "shape"),
        (changed(shape=(2 * BINS,)), "shape"),
        (changed(shape=(2.0, float(BINS))), "shape"),
        (changed(data=b"\0" * 8), "size"),
        (changed(data=b"\0" * (16 * BINS + 8)), "size"),
        (changed(counts=np.full((2, BINS), MAX_COUNT + 1)), "range"),
        (changed(counts=np.full((2, BINS), np.iinfo(np.int64).min)), "range"),
        (changed(counts=np.full((2, BINS), np.iinfo(np.int64).max)), "range"),
    ],
)
def test_a_hostile_answer_is_refused_by_name(packet, code):
    with pytest.raises(WireError) as caught:
        unpack_release(packet, QUESTION, BINS)
    assert caught.value.code == code


def test_a_site_cannot_pack_something_else():
    for counts_2B in (np.zeros((2, BINS)), np.zeros((3, BINS), np.int64), np.zeros(BINS, np.int64)):
        with pytest.raises(WireError):
            pack_release(QUESTION, ScoreRelease(counts_2B=counts_2B, per_site=False, head=HEAD))


def sites(count, epsilon=math.inf, per_site=False, seed=1):
    """(answers of so many sites of 100 patients, all scores, all labels)."""
    generator, answers, scores, labels = np.random.default_rng(seed), [], [], []
    for number in range(count):
        label_P = (generator.random(100) < 0.4).astype(np.int64)
        logits_P = generator.normal(size=100) + 1.5 * label_P
        counts = np.bincount(bins_of(logits_P, BINS, 2.0) + BINS * label_P, minlength=2 * BINS).reshape(2, BINS)
        if math.isfinite(epsilon):
            noise = generator.geometric(1 - math.exp(-epsilon), (2, 2, BINS))
            counts = counts + noise[0] - noise[1]
        release = ScoreRelease(counts_2B=counts.astype(np.int64), per_site=per_site, head=HEAD)
        answers.append(SiteRelease(site=f"site-{number}", release=release, code=None, bytes_up=16 * BINS))
        scores.append(logits_P)
        labels.append(label_P)
    return answers, np.concatenate(scores), np.concatenate(labels)


def test_exact_counts_of_all_sites_give_the_pooled_auc():
    answers, scores_P, labels_P = sites(3)
    found = figures_of(study_of(epsilon=math.inf), answers)
    assert found["auc"] == pytest.approx(auc(scores_P, labels_P), abs=0.005)
    assert found["patients_noised"] == 300 and found["positives_noised"] == labels_P.sum()
    assert found["epsilon"] == "inf" and found["sites"] == ["site-0", "site-1", "site-2"] and found["missing"] == []


def test_the_figures_are_plain_json_and_the_order_of_sites_does_not_matter():
    answers, _, _ = sites(3, epsilon=3.0)
    found = figures_of(study_of(), answers)
    turned = figures_of(study_of(), answers[::-1])
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(turned))
    low, high = found["auc_ci95"]
    assert low < found["auc"] < high and [row["specificity"] for row in found["thresholds"]] == [0.8, 0.9, 0.95]


def test_the_variance_of_the_sum_is_that_of_all_sites_that_answered():
    assert merged(study_of(), [RELEASE.counts_2B] * 4).noise_variance == pytest.approx(4 * noise_variance(3.0))
    assert (merged(study_of(), [RELEASE.counts_2B] * 4).counts_2B == 4 * RELEASE.counts_2B).all()


def test_sites_without_a_release_are_named_and_cost_their_part_only():
    answers, _, _ = sites(3)
    answers[1] = SiteRelease(site="site-1", release=None, code="refused:evaluation_off", bytes_up=0)
    found = figures_of(study_of(epsilon=math.inf), answers)
    assert found["missing"] == [{"site": "site-1", "code": "refused:evaluation_off"}]
    assert found["sites"] == ["site-0", "site-2"] and found["patients_noised"] == 200 and found["auc"] is not None


def test_one_site_alone_is_shown_only_where_it_says_so():
    study, (answers, _, _) = study_of(epsilon=math.inf), sites(1)
    found = figures_of(study, answers)  # "all sites" would be this one under another name
    assert found["auc"] is None and found["patients_noised"] == 0 and found["per_site"] == {}
    open_, _, _ = sites(1, per_site=True)
    found = figures_of(study, open_)
    assert found["auc"] is not None and found["per_site"]["site-0"]["auc"] == found["auc"]


def test_figures_of_single_sites_are_made_for_those_that_allow_them_and_for_no_other():
    answers, _, _ = sites(3)
    answers[2] = dataclasses.replace(answers[2], release=dataclasses.replace(answers[2].release, per_site=True))
    assert list(figures_of(study_of(epsilon=math.inf), answers)["per_site"]) == ["site-2"]


def test_nobody_at_all_gives_no_figure_and_no_error():
    found = figures_of(study_of(), [])
    assert found["auc"] is None and found["calibration"] is None and found["thresholds"] == []


def test_a_study_without_a_budget_sends_no_question():
    class Nobody:
        def ask_for_figures(self, question, bins, deadline_s):
            raise AssertionError("a site was asked")

    weights = {"w": np.zeros(2, np.float32)}
    assert federated_test(study_of(epsilon=0.0), "run", "b" * 64, weights, Nobody()) is None


def test_the_question_names_the_round_after_the_last():
    asked = []

    class Listening:
        def ask_for_figures(self, question, bins, deadline_s):
            asked.append((question, bins, deadline_s))
            return iter(sites(3)[0])

    weights = {"w": np.zeros(2, np.float32)}
    federated_test(study_of(bins=16), "run", "b" * 64, weights, Listening())
    ((question, bins, deadline_s),) = asked
    assert question.round == 5 and question.weights is weights and bins == 16 and deadline_s == 600.0
