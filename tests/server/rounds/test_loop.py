"""The round loop: which replies count, which sites are named, and the cost of a kill. Sites are functions here."""

import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
from builders.rounds import START, Sites, WithLedgers, a_study, head, run, same_bits, trained
from paths import TESTS

from wardround.errors import ModelError, RoundError, UsageError, WardroundError
from wardround.storage.checkpoint import load_checkpoint
from wardround.wire.packets import SiteReply
from wardround_server.rounds.loop import Missing
from wardround_server.runs.metrics_log import append_lines, read_lines, trim_lines


def test_a_run_of_one_site_is_that_site_training_by_itself():
    outcome = run(a_study(nominal_sites=1, min_sites=1), Sites(("a",)))
    weights = START
    for number in range(1, 5):
        weights = trained(weights, "a", number)
    assert same_bits(outcome.weights, weights)
    assert outcome.rounds_completed == 4 and outcome.missing == () and outcome.sites == ("a",)


def test_counters_and_records_tell_what_happened(tmp_path):
    records = []
    outcome = run(a_study(rounds=2), Sites(faults={(2, "bb"): "late"}), tmp_path, records.append)
    assert [(record.round, record.rounds) for record in records] == [(1, 2), (2, 2)]
    assert same_bits(records[-1].weights, outcome.last_weights)
    assert outcome.bytes_up == 5 * 16 and outcome.bytes_down == 6 * 16
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    codes = [None, None, None, None, "late", None]
    expected = [(number, site, codes.pop(0)) for number in (1, 2) for site in ("a", "bb", "ccc")]
    assert [(line["round"], line["site"], line["code"]) for line in lines] == expected
    assert lines[0]["update_norm"] == pytest.approx(math.sqrt(4) * 1.05) and lines[4]["update_norm"] is None


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("late", "late"),
        ("failed", "failed"),
        ("refused:budget", "refused:budget"),
        ("invalid:size", "invalid:size"),
        (lambda weights: None, "failed"),
        (lambda weights: {**weights, "head.bias": np.float32(np.nan) * np.ones((), np.float32)}, "invalid:not-finite"),
        (lambda weights: {**weights, "head.bias": np.full((), 1e30, np.float32)}, "invalid:norm"),
        (lambda weights: {**weights, "head.bias": np.zeros(2, np.float32)}, "invalid:shape"),
        (lambda weights: {**weights, "head.bias": np.zeros(())}, "invalid:dtype"),
        (lambda weights: {**weights, "extra": np.zeros(1, np.float32)}, "invalid:names"),
        (lambda weights: {"head.bias": weights["head.bias"]}, "invalid:names"),
    ],
)
def test_a_bad_site_costs_its_part_and_is_named(fault, code):
    outcome = run(a_study(rounds=2), Sites(faults={(1, "bb"): fault}))
    without = run(a_study(rounds=1), Sites(("a", "ccc")))
    assert outcome.missing == (Missing(round=1, site="bb", code=code),)
    assert outcome.rounds_completed == 2
    one_round = run(a_study(rounds=1), Sites(faults={(1, "bb"): fault}))
    assert same_bits(one_round.weights, without.weights)


ROLLED_BACK = [head(4), head(6, "e"), head(1), None]


@pytest.mark.parametrize("back", ROLLED_BACK)
def test_a_site_whose_ledger_went_back_or_forked_is_refused_and_named(tmp_path, back):
    sites = WithLedgers({(3, "bb"): back})
    outcome = run(a_study(rounds=3), sites, tmp_path)
    assert outcome.missing == (Missing(round=3, site="bb", code="invalid:ledger-rollback"),)
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["site"] == "bb"]
    assert [line["ledger_head"] and line["ledger_head"]["entries"] for line in lines] == [4, 6, back and back.entries]
    assert outcome.ledger_heads == {"a": head(8), "bb": head(6), "ccc": head(8)}
    without = run(a_study(rounds=3), WithLedgers(faults={(3, "bb"): "late"}))
    assert same_bits(outcome.weights, without.weights)


def test_a_ledger_that_stands_still_or_grows_is_taken():
    outcome = run(a_study(rounds=3), WithLedgers({(2, "a"): head(4), (3, "a"): head(400, "f")}))
    assert outcome.missing == () and outcome.ledger_heads["a"] == head(400, "f")


def test_a_refused_head_is_not_remembered():
    """After a rollback the site must come back to where it was, not to its old copy."""
    faults = {(2, "bb"): head(1), (3, "bb"): head(3)}
    outcome = run(a_study(rounds=4), WithLedgers(faults))
    assert [(m.round, m.code) for m in outcome.missing] == [(n, "invalid:ledger-rollback") for n in (2, 3)]


@pytest.mark.parametrize("back", ROLLED_BACK)
def test_a_resumed_run_still_notices(tmp_path, back):
    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(a_study(rounds=3), WithLedgers(), tmp_path, stop)
    outcome = run(a_study(rounds=3), WithLedgers({(3, "bb"): back}), tmp_path)
    assert outcome.missing == (Missing(round=3, site="bb", code="invalid:ledger-rollback"),)


@pytest.mark.parametrize("back", [head(5), head(6, "e"), None])
def test_a_round_below_its_quorum_counts_for_nobody_but_its_ledgers_are_remembered(tmp_path, back):
    """bb alone answers round 3, goes back to the copy from before it, and is asked again."""
    faults = {(3, "a"): "late", (3, "ccc"): "late"}
    with pytest.raises(RoundError):
        run(a_study(rounds=3), WithLedgers({(3, "bb"): head(7)}, faults=faults), tmp_path)
    outcome = run(a_study(rounds=3), WithLedgers({(3, "bb"): back}), tmp_path)
    assert outcome.missing == (Missing(round=3, site="bb", code="invalid:ledger-rollback"),)
    assert outcome.ledger_heads["bb"] == head(7)


def test_a_site_whose_ledger_moved_on_in_a_round_below_its_quorum_raises_no_alarm(tmp_path):
    with pytest.raises(RoundError):
        run(a_study(rounds=3), WithLedgers(faults={(3, "a"): "late", (3, "ccc"): "late"}), tmp_path)
    outcome = run(a_study(rounds=3), WithLedgers(), tmp_path)  # the same replies again, and ledgers that stood still
    assert outcome.missing == () and same_bits(outcome.weights, run(a_study(rounds=3), WithLedgers()).weights)


def test_a_round_below_its_quorum_names_the_sites_and_the_same_call_continues(tmp_path):
    study = a_study()
    faults = {(3, "a"): "late", (3, "ccc"): "refused:budget"}
    with pytest.raises(RoundError, match=r"round 3: 1 valid replies.*a \(late\), ccc \(refused:budget\)"):
        run(study, Sites(faults=faults), tmp_path)
    sites = Sites()
    outcome = run(study, sites, tmp_path)
    assert sites.asked == [3, 4]
    assert same_bits(outcome.weights, run(study, Sites()).weights)
    rounds_and_sites = [(line["round"], line["site"]) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert rounds_and_sites == [(number, site) for number in (1, 2, 3, 4) for site in ("a", "bb", "ccc")]


def test_an_exchange_without_sites_misses_its_quorum():
    with pytest.raises(RoundError, match="no other site is connected"):
        run(a_study(), Sites(()))


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
@pytest.mark.parametrize("release", ["last", "ema", "tail_mean"])
@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_run_stopped_and_continued_equals_one_that_was_not(tmp_path, strategy, release, stop_after):
    study = a_study(rounds=8, strategy=strategy, release=release)
    faults = {(2, "a"): "late", (7, "bb"): "failed"}

    def stop(record):
        if record.round == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, Sites(faults=faults), tmp_path, stop)
    sites = Sites(faults=faults)
    continued, whole = run(study, sites, tmp_path), run(study, Sites(faults=faults))
    assert sites.asked == list(range(stop_after + 1, 9))
    assert same_bits(continued.weights, whole.weights) and same_bits(continued.last_weights, whole.last_weights)
    assert (continued.missing, continued.sites) == (whole.missing, whole.sites)
    assert (continued.bytes_up, continued.bytes_down) == (whole.bytes_up, whole.bytes_down)
    again = run(study, Sites(names=()), tmp_path)
    assert same_bits(again.weights, whole.weights)


def test_the_last_three_checkpoints_are_kept(tmp_path):
    run(a_study(rounds=6), Sites(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"round-00000{number}.safetensors" for number in (4, 5, 6)]


def test_a_folder_of_another_study_run_or_network_is_refused_and_kept(tmp_path):
    run(a_study(rounds=1), Sites(), tmp_path)
    before = (tmp_path / "checkpoints" / "round-000001.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another study"):
        run(a_study(rounds=2), Sites(), tmp_path)
    with pytest.raises(UsageError, match="another run"):
        run(a_study(rounds=1), Sites(), tmp_path, run_id="run-2")
    with pytest.raises(UsageError, match="another architecture"):
        run(a_study(rounds=1), Sites(), tmp_path, architecture_sha256="c" * 64)
    with pytest.raises(ModelError, match="does not fit"):
        run(a_study(rounds=1), Sites(), tmp_path, start_weights={"other": np.zeros(1, np.float32)})
    assert (tmp_path / "checkpoints" / "round-000001.safetensors").read_bytes() == before


def test_a_damaged_newest_checkpoint_is_named_and_its_round_repeated(tmp_path):
    study = a_study()
    whole = run(study, Sites(), tmp_path)
    newest = tmp_path / "checkpoints" / "round-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    lines, sites = [], Sites()
    outcome = run(study, sites, tmp_path, warn=lines.append)
    assert sites.asked == [4] and same_bits(outcome.weights, whole.weights)
    assert len(lines) == 1 and "round-000004" in lines[0]
    assert load_checkpoint(newest)[1]["round"] == 4


def test_start_weights_of_a_resumed_run_are_those_of_its_first_call(tmp_path):
    """A round that was charged must be asked again with the same weights, even if the second call brings others."""

    def all_gone(broadcast, deadline_s):
        return iter([SiteReply(site="a", weights=None, code="failed", seconds=0.0, bytes_up=0)])

    with pytest.raises(RoundError):
        run(a_study(), all_gone, tmp_path)
    other = {name: array + 1 for name, array in START.items()}
    outcome = run(a_study(), Sites(), tmp_path, start_weights=other)
    assert same_bits(outcome.weights, run(a_study(), Sites()).weights)


def test_metrics_drop_a_torn_line_and_refuse_a_damaged_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [{"round": 1, "site": "a"}, {"round": 2, "site": "a"}])
    whole = path.read_text()
    path.write_text(whole + '{"round": 3, "si')
    trim_lines(path, last_round=2)
    assert path.read_text() == whole
    trim_lines(path, last_round=1)
    assert read_lines(path) == [{"round": 1, "site": "a"}]
    path.write_text("garbage\n" + whole)
    with pytest.raises(WardroundError, match="line 1 is damaged"):
        read_lines(path)


def test_site_weights_of_the_study_are_used():
    study = a_study(rounds=1, site_weights={"a": 3.0, "bb": 1.0, "ccc": 1e-9})
    outcome = run(study, Sites(("a", "bb")))
    expected = 0.75 * trained(START, "a", 1)["head.bias"] + 0.25 * trained(START, "bb", 1)["head.bias"]
    np.testing.assert_allclose(outcome.weights["head.bias"], expected, rtol=1e-6)


KILLED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from builders.rounds import Sites, a_study, run
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
run(a_study(rounds=400, strategy="fedadam", release="ema"), Sites(), Path(sys.argv[1]))
"""


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path):
    study = a_study(rounds=400, strategy="fedadam", release="ema")
    delays = ("0.03", "0.11", "0.07")
    commands = [[sys.executable, "-c", KILLED, str(tmp_path), str(TESTS), delay] for delay in delays]
    ends = [subprocess.run(command).returncode for command in commands]
    assert -signal.SIGKILL in ends
    assert same_bits(run(study, Sites(), tmp_path).weights, run(study, Sites()).weights)
    lines = [(line["round"], line["site"]) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert lines == [(number, site) for number in range(1, 401) for site in ("a", "bb", "ccc")]
