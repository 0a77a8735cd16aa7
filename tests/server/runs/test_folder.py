"""A run at the server is defined by its folder: its state, its sites' replies and its end outlive every process."""

import numpy as np
import pytest

from wardround.errors import ModelError, RoundError, UsageError, WardroundError
from wardround.networks.build import build_model
from wardround.networks.fingerprint import architecture_sha256
from wardround.processes.supervisor import sole
from wardround.storage.checkpoint import load_checkpoint
from wardround.study.load import parse_study
from wardround_server.runs.folder import create_run, find_run, quorum, runs
from wardround_server.runs.phases import Gathering, ask, start_of


def study_of(name="tiny", min_sites=2):
    return parse_study(
        {
            "study": {"name": name, "rounds": 2},
            "data": {"image_size": 32, "labels": ("benign", "malignant")},
            "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
            "aggregation": {"nominal_sites": 3, "min_sites": min_sites},
        }
    )


def test_submitting_twice_makes_one_run_until_it_is_finished_or_stopped(tmp_path):
    run = create_run(tmp_path, study_of())
    assert create_run(tmp_path, study_of()) == run and len(runs(tmp_path)) == 1
    other = create_run(tmp_path, study_of("other"))
    assert {one.run_id for one in runs(tmp_path)} == {run.run_id, other.run_id}
    assert find_run(tmp_path, run.run_id).study().sha256() == study_of().sha256()
    with pytest.raises(UsageError):
        find_run(tmp_path, "../" + run.run_id)


def test_a_run_trains_when_enough_sites_approved_and_a_word_once_given_is_not_lost_to_silence(tmp_path):
    run = create_run(tmp_path, study_of())
    assert run.state() == "proposed" and quorum(run.study()) == 2
    run.record_decisions({"east": "approved", "north": "proposed", "west": "late"})
    assert run.state() == "proposed" and run.approvals()["west"].state == "late"
    run.record_decisions({"east": "unreachable", "north": "approved"})
    assert run.approved() == ("east", "north") and run.state() == "training"
    run.record_decisions({"north": "revoked"})
    assert run.approved() == ("east",) and run.state() == "proposed"


def test_a_stopped_run_waits_for_resume_and_a_finished_one_stays_finished(tmp_path):
    run = create_run(tmp_path, study_of(min_sites=1))
    run.record_decisions({"east": "approved"})
    run.stop()
    assert run.state() == "stopped"
    run.resume()
    assert run.state() == "training"
    with pytest.raises(UsageError):
        run.resume()
    (run.path / "result.json").write_text("{}")
    assert run.state() == "finished"
    with pytest.raises(UsageError):
        run.stop()


class Sites:
    """A federation of what the test says; `online` counts how often it was asked."""

    def __init__(self, there, words=None, error=None):
        self.there, self.words, self.error, self.asked = there, words or {}, error, 0

    def online(self):
        self.asked += 1
        return self.there[min(self.asked, len(self.there)) - 1]

    def propose(self, study, sites, limit_s):
        if self.error:
            raise self.error
        return {site: word for site, word in self.words.items() if site in sites}

    def exchange(self, directory):
        return lambda broadcast, deadline_s: iter([directory])


def test_one_process_at_a_time_works_on_a_run_and_its_failure_is_kept_until_the_next_success(tmp_path):
    run = create_run(tmp_path, study_of())
    with pytest.raises(WardroundError, match="disk"):
        ask(run, Sites([{}], error=WardroundError("the disk\nis full")))
    assert run.problem()["phase"] == "propose" and run.problem()["error"] == "the disk is full"
    with run.phase("train"):
        assert run.at_work()
        with pytest.raises(RoundError, match="another process"):
            ask(run, Sites([{}]))
    ask(run, Sites([{"east": 1}], words={"east": "approved"}))
    assert run.problem() is None and not run.at_work() and run.approved() == ("east",)


def test_a_round_waits_for_its_sites_and_not_for_ever_and_names_those_who_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("wardround_server.runs.phases.LOOK_S", 0.01)
    monkeypatch.setattr("wardround_server.runs.phases.GATHER_LIMIT_S", 0.1)
    run = create_run(tmp_path, study_of(min_sites=1))
    run.record_decisions({"east": "approved", "north": "approved", "west": "refused"})
    late = Sites([{"east": 1, "west": 3}, {"east": 1, "west": 3}, {"east": 1, "north": 2, "west": 3}])
    assert list(Gathering(run, late, 1)(None, 5.0)) == [{"east": 1, "north": 2}]
    assert late.asked == 3
    assert list(Gathering(run, Sites([{"east": 1}]), 1)(None, 5.0)) == [{"east": 1, "north": None}]
    assert list(Gathering(run, Sites([{}]), 1)(None, 0.2)) == [{"east": None, "north": None}]
    run.stop()
    with pytest.raises(RoundError, match="stopped"):
        list(Gathering(run, Sites([{}]), 1)(None, 5.0))


def test_a_site_that_approves_late_joins_a_run_at_work_and_one_that_refused_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("wardround_server.runs.phases.ASK_AGAIN_SOON_S", 0.0)
    run = create_run(tmp_path, study_of(min_sites=1))
    run.record_decisions({"east": "approved", "north": "proposed", "west": "refused"})
    there = Sites([{"east": 1, "north": 2, "west": 3}], words={"north": "approved", "west": "approved"})
    assert list(Gathering(run, there, 1)(None, 5.0)) == [{"east": 1, "north": 2}]


def test_a_run_whose_sites_only_fail_asks_those_who_came_later_at_once_when_it_tries_again(tmp_path):
    """Each try is over within seconds: a pause that begins with it would never end, and the site wait for ever."""
    run = create_run(tmp_path, study_of(min_sites=1))
    run.record_decisions({"east": "approved"})
    there = Sites([{"east": 1, "north": 2}], words={"north": "approved"})
    assert list(Gathering(run, there, 1)(None, 5.0)) == [{"east": 1}]
    with pytest.raises(RoundError), run.phase("train"):
        raise RoundError("round 1: 0 valid replies")
    with run.phase("train"):
        assert list(Gathering(run, there, 1)(None, 5.0)) == [{"east": 1, "north": 2}]


def test_the_first_weights_are_those_of_the_studys_network_and_are_made_once(tmp_path):
    run = create_run(tmp_path, study_of())
    tensors, manifest = start_of(run, run.study())
    network = build_model(run.study().model, run.study().data, run.study().study.seed)
    assert manifest["architecture_sha256"] == architecture_sha256(network)
    for name, tensor in network.state_dict().items():
        assert np.array_equal(tensors[name], tensor.numpy())
    made = (run.path / "start.safetensors").stat().st_mtime_ns
    start_of(run, run.study())
    assert (run.path / "start.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ModelError):
        start_of(run, study_of("other"))
    assert load_checkpoint(run.path / "start.safetensors")[1]["kind"] == "start"


def test_a_folder_has_one_daemon(tmp_path):
    with sole(tmp_path), pytest.raises(WardroundError, match="already"), sole(tmp_path):
        pytest.fail("two daemons")
    with sole(tmp_path):
        pass
