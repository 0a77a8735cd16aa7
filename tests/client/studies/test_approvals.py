"""Studies at a site: only approved ones train, decisions are recorded with the person, and the display is true."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from wardround.errors import BudgetRefusal, PolicyRefusal, UsageError
from wardround.operations.health import HEALTH_FILE, HealthService, Probe
from wardround.operations.health_checks import fault
from wardround.records.audit_events import Started
from wardround.records.audit_log import verified
from wardround.study.load import Study, parse_study
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.site import open_site
from wardround_client.studies.approvals import approve, decide_against, find_study, known_studies
from wardround_client.studies.proposals import receive
from wardround_client.studies.store import approved_study, read_decisions, runs_allowed

SITE = 'name = "north"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n'


def study_of(name: str = "nodules", epsilon: float = 3.0, figures: float = 0.0) -> Study:
    return parse_study(
        {
            "study": {"name": name, "rounds": 5, "spare_rounds": 1},
            "data": {"labels": ["benign", "malignant"], "image_size": 64},
            "privacy": {"epsilon": epsilon, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 10},
            "aggregation": {"nominal_sites": 3, "min_sites": 2},
            "evaluation": {"epsilon": figures},
        }
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


def said(*words: object, site: Path, answer: str = "", fails: bool = False) -> Result:
    done = CliRunner().invoke(app, ["studies", *map(str, words), "--site", str(site)], input=answer)
    assert fails or done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def events(site: Path) -> list[tuple[str, str]]:
    return [(entry["decision"], entry["who"]) for entry in verified(site / "audit.jsonl").entries]


def trains(site: Path, study: Study) -> bool:
    try:
        return approved_study(site, study.sha256()) == study
    except PolicyRefusal as refusal:
        assert refusal.code == "not_approved"
        return False


def test_a_study_trains_from_its_approval_to_its_revocation_and_the_log_has_both(site: Path) -> None:
    study = study_of()
    receive(site, study)
    assert not trains(site, study)
    said("approve", study.sha256()[:8], "--by", "Marie Curie", "--yes", site=site)
    assert trains(site, study)
    said("revoke", study.sha256()[:8], "--by", "Pierre Curie", site=site)
    assert not trains(site, study)
    said("approve", study.sha256()[:8], "--by", "Marie Curie", "--yes", site=site)
    assert trains(site, study), "revoked is not for ever"
    assert events(site) == [("approved", "Marie Curie"), ("revoked", "Pierre Curie"), ("approved", "Marie Curie")]
    (known,) = known_studies(site)
    assert [one["decision"] for one in known.decisions] == ["approved", "revoked", "approved"]


def test_a_revocation_holds_even_where_the_approved_file_is_still_there(site: Path) -> None:
    study = study_of()
    said("approve", study_file(site, study), "--by", "Marie", "--yes", site=site)
    copy = (site / "studies" / f"{study.sha256()}.json").read_bytes()
    said("revoke", study.sha256()[:8], "--by", "Marie", site=site)
    (site / "studies" / f"{study.sha256()}.json").write_bytes(copy)  # as a kill in the middle leaves it
    assert not trains(site, study) and known_studies(site)[0].state == "revoked"


def study_file(site: Path, study: Study) -> Path:
    import tomllib

    path = site / "received.toml"
    text = (
        f'[study]\nname = "{study.study.name}"\nrounds = 5\nspare_rounds = 1\n[data]\nlabels = ["benign", '
        f'"malignant"]\n'
        f"image_size = 64\n[privacy]\nepsilon = {study.privacy.epsilon}\ndelta = 1e-4\nmax_grad_norm = 0.3\n"
        "nominal_patients = 10\n[aggregation]\nnominal_sites = 3\nmin_sites = 2\n"
    )
    assert parse_study(tomllib.loads(text)) == study
    path.write_text(text)
    return path


def test_nobody_who_does_not_say_yes_approves(site: Path) -> None:
    study = study_of()
    receive(site, study)
    for answer in ("", "n\n", "\n", "maybe\n"):
        done = said("approve", study.sha256()[:8], "--by", "Marie", site=site, answer=answer, fails=True)
        assert isinstance(done.exception, UsageError) and "it was not confirmed" in str(done.exception)
    assert not trains(site, study) and not (site / "audit.jsonl").exists()
    assert "nodules" in said("approve", study.sha256()[:8], "--by", "Marie", site=site, answer="y\n").output
    assert trains(site, study)


def test_what_the_budget_cannot_hold_is_not_approved(site: Path) -> None:
    for study, kind in ((study_of(epsilon=9.0), BudgetRefusal), (study_of(epsilon=math.inf), PolicyRefusal)):
        receive(site, study)
        done = said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site, fails=True)
        assert isinstance(done.exception, kind) and done.exception.exit_code == 3
        assert not trains(site, study)
    assert not (site / "audit.jsonl").exists()


def test_a_study_that_is_held_already_is_not_counted_twice(site: Path) -> None:
    study = study_of(epsilon=6.0)
    receive(site, study)
    said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site)
    Ledger(site / "ledger.sqlite3").hold(study.sha256(), "run", plan_from_study(study), Cap(epsilon=8.0, delta=1e-4))
    said("revoke", study.sha256()[:8], "--by", "Marie", site=site)
    said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site)
    other = study_of("other", epsilon=6.0)
    receive(site, other)
    assert isinstance(
        said("approve", other.sha256()[:8], "--by", "Marie", "--yes", site=site, fails=True).exception, BudgetRefusal
    )


def test_an_approval_names_its_runs_in_the_record_in_the_log_and_on_the_screen(site: Path) -> None:
    study = study_of(epsilon=1.0, figures=0.5)
    receive(site, study)
    asked = study.sha256()[:8]
    shown = json.loads(said("show", asked, "--runs", 3, "--json", site=site).output)["words"]
    assert "3 runs in all; none has begun" in shown["runs"] and "all 3 runs of this approval" in shown["costs"]
    held, cap = Ledger(None), Cap(epsilon=8.0, delta=1e-4)
    for number in range(3):
        held.hold(study.sha256(), f"run-{number}", plan_from_study(study), cap, runs=3)
    assert f"ε {math.ceil(held.committed(1e-4).value * 100 - 1e-6) / 100:g} with all 3 runs" in shown["costs"]
    together = plan_from_study(study).promised(3).value
    assert 1.0 < together < 3.0 and f"(ε = {math.ceil(together * 100 - 1e-6) / 100:g})" in shown["means"]
    done = said("approve", asked, "--runs", 3, "--by", "Marie", site=site, answer="y\n")
    assert "Approve 3 runs of this study" in done.stderr and "for 3 runs in all" in done.stdout
    (entry,) = verified(site / "audit.jsonl").entries
    assert entry["runs"] == 3 == runs_allowed(site, study.sha256()) == open_site(site).runs_allowed(study.sha256())
    assert known_of(site, study).decisions[-1]["runs"] == 3 == known_of(site, study).runs
    for command in (("studies", "list"), ("status",)):
        assert "for 3 runs" in CliRunner().invoke(app, [*command, "--site", str(site)]).output
    assert "an approval of 3 runs" in said("show", asked, "--json", site=site).output, "as it was approved"


def test_one_run_is_what_an_approval_allows_that_names_no_number(site: Path) -> None:
    study = study_of()
    receive(site, study)
    assert "1 run in all" in json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]["runs"]
    said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site)
    assert runs_allowed(site, study.sha256()) == 1
    path = site / "decisions" / f"{study.sha256()}.json"
    path.write_text(path.read_text().replace('"runs": 1', '"runs2": 1'))  # as it was before approvals named a number
    assert runs_allowed(site, study.sha256()) == 1 and trains(site, study)
    for number in ("0", "-1", "true", '"9"', "1001", "1e9"):
        path.write_text(f'[{{"decision": "approved", "who": "M", "at": "now", "runs": {number}}}]')
        with pytest.raises(UsageError, match="list of decisions"):
            runs_allowed(site, study.sha256())
    for number in (0, 1001):
        with pytest.raises(UsageError, match="from 1 to 1000"):
            approve(site, study, "Marie", Ledger(None), Cap(epsilon=8.0, delta=1e-4), runs=number)


def test_all_runs_of_an_approval_must_fit_the_budget_together(site: Path) -> None:
    study, ledger = study_of(epsilon=3.0), Ledger(site / "ledger.sqlite3")
    receive(site, study)
    words = ("approve", study.sha256()[:8], "--by", "Marie", "--yes")
    done = said(*words, "--runs", 6, site=site, fails=True)
    assert isinstance(done.exception, BudgetRefusal) and "fewer runs" in str(done.exception)
    assert not trains(site, study) and not (site / "audit.jsonl").exists()
    shown = json.loads(said("show", study.sha256()[:8], "--runs", 6, "--json", site=site).output)["words"]
    assert shown["answer"].startswith("would be refused")
    said(*words, "--runs", 3, site=site)
    for number in range(3):
        ledger.hold(study.sha256(), f"run-{number}", plan_from_study(study), Cap(epsilon=8.0, delta=1e-4), runs=3)
    done = said(*words, "--runs", 3, site=site)  # all are in the ledger already, and cost nothing more
    assert done.exit_code == 0


def test_a_revocation_does_not_start_the_count_anew_and_only_a_larger_number_allows_more(site: Path) -> None:
    study, ledger, cap = study_of(epsilon=0.5), Ledger(site / "ledger.sqlite3"), Cap(epsilon=8.0, delta=1e-4)
    receive(site, study)

    def begins(run: str) -> bool:
        try:
            ledger.hold(study.sha256(), run, plan_from_study(study), cap, runs_allowed(site, study.sha256()))
        except PolicyRefusal as refusal:
            assert refusal.code == "runs_used"
            return False
        return True

    words = ("approve", study.sha256()[:8], "--by", "Marie", "--yes")
    said(*words, site=site)
    assert begins("run") and not begins("other")
    said("revoke", study.sha256()[:8], "--by", "Marie", site=site)
    done = said(*words, site=site)
    assert "no new run may begin: 1 run of this study began" in done.output and "--runs 2" in done.output
    shown = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    assert "1 has begun" in shown["runs"] and "a new approval, of 2 runs in all" in shown["runs"]
    assert begins("run") and not begins("other"), "the run that began goes on, and no other begins"
    done = said(*words, "--runs", 2, "--json", site=site)
    assert json.loads(done.output)["runs"] == 2 and json.loads(done.output)["runs_begun"] == 1
    assert begins("other") and not begins("third")
    said(*words, site=site)
    assert runs_allowed(site, study.sha256()) == 1, "the last approval counts, not the largest"
    assert not begins("third") and begins("run") and begins("other")


def test_a_simulated_hospital_allows_any_number_of_runs_under_its_cap_and_writes_that_down_once(site: Path) -> None:
    from wardround_simulation.run.hospitals import Prepared, settle_rules

    study, hospital = study_of(), Prepared(name="north", folder=site / "sim", report=None)
    (site / "sim").mkdir()
    for _ in range(2):
        settle_rules(hospital, study, "cpu", 1)
    (known,) = known_studies(site / "sim")
    assert [(one["who"], one["runs"]) for one in known.decisions] == [("Simulation", 1000)]
    assert open_site(site / "sim").runs_allowed(study.sha256()) == 1000


def test_show_says_what_is_read_what_leaves_and_what_it_costs_now_and_after(site: Path) -> None:
    first, study = study_of("first", epsilon=2.0), study_of(epsilon=3.0)
    ledger = Ledger(site / "ledger.sqlite3")
    cap = Cap(epsilon=8.0, delta=1e-4)
    ledger.hold(first.sha256(), "run", plan_from_study(first), cap)
    receive(site, study)
    words = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    expected = ledger.what_if(plan_from_study(study), cap)
    assert words["hash"] == study.sha256()
    for value in (expected.now.value, expected.after.value):
        assert f"ε {math.ceil(value * 100 - 1e-6) / 100:g}" in words["costs"]
    assert "per patient" in words["costs"] and "of ε 8" in words["costs"]
    assert "34 numbers" in words["leaves"] and "with noise" in words["leaves"]  # the head: 33 weights and a bias
    assert "5 rounds and 1 spare" in words["rounds"] and "at least 2 of 3 sites" in words["rounds"]
    assert words["answer"] == "within this site's budget"
    text = said("show", study.sha256()[:8], site=site).output
    assert "proposed" in text and max(map(len, text.splitlines())) <= 100


def test_the_screen_says_in_which_keys_a_study_differs_from_each_other_one_of_its_name(site: Path) -> None:
    def other(**changes: dict) -> Study:
        content = json.loads(study_of().to_json())
        return parse_study({name: {**section, **changes.get(name, {})} for name, section in content.items()})

    study, elsewhere = study_of(), study_of("elsewhere")
    rate, seed = other(training={"learning_rate": 0.1}), other(study={"seed": 7}, privacy={"sampling_rate": 0.5})
    for one in (study, elsewhere, seed):
        receive(site, one)
    approve(site, rate, "Marie", Ledger(None), Cap(epsilon=8.0, delta=1e-4))
    said("refuse", seed.sha256(), "--by", "Marie", site=site)
    words = json.loads(said("show", study.sha256(), "--json", site=site).output)["words"]
    assert words["differs"] == (
        f"from {rate.sha256()[:12]} (approved) in: training.learning_rate; "
        f"from {seed.sha256()[:12]} (refused) in: privacy.sampling_rate, study.seed"
    )
    shown = said("approve", study.sha256(), "--by", "Marie", site=site, fails=True).stdout
    assert f"differs   from {rate.sha256()[:12]} (approved) in:" in shown
    alone = json.loads(said("show", elsewhere.sha256(), "--json", site=site).output)["words"]
    assert "differs" not in alone
    for number in range(50):  # more of them do not push the rest out of sight
        receive(site, other(study={"seed": 100 + number}, data={"image_size": 32}, training={"momentum": 0.5}))
    words = json.loads(said("show", study.sha256(), "--json", site=site).output)["words"]
    assert words["differs"].startswith(f"from {rate.sha256()[:12]} (approved)") and len(words["differs"]) < 1500
    assert words["differs"].endswith("and from 48 more of this name")


def test_show_says_who_asked(site: Path) -> None:
    (site / "site.toml").write_text(SITE + f'[server]\naddress = "fed.example:9092"\nca_sha256 = "{"0" * 64}"\n')
    study = study_of()
    receive(site, study)
    words = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    assert words["asked by"].startswith("the server at fed.example:9092, received 20")
    assert words["asked by"].endswith(f"its CA's certificate: {'0' * 16}…")
    (site / "site.toml").write_text(SITE + f'[server]\naddress = "new.example:9092"\nca_sha256 = "{"1" * 64}"\n')
    said("approve", study.sha256(), "--by", "Marie", "--yes", site=site)
    receive(site, study)  # from another server, which was not the first
    known = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)
    assert known["words"]["asked by"] == words["asked by"] and known["asked_by"]["server"] == "fed.example:9092"
    assert known["asked_by"]["ca_sha256"] == "0" * 64
    other = study_of("other", epsilon=1.0)
    done = said("approve", study_file(site, other), "--by", "Marie", "--yes", site=site)
    assert "no server: the study was given as a file" in done.output
    receive(site, other)
    assert find_study(site, other.sha256()).asker.server == "new.example:9092", "asked for after its approval"


def test_a_damaged_note_of_who_asked_hides_no_study(site: Path) -> None:
    study = study_of()
    receive(site, study)
    for content in ("", "[]", "{}", '{"server": 1}'):
        (site / "asked").mkdir(exist_ok=True)
        (site / "asked" / f"{study.sha256()}.json").write_text(content)
        assert find_study(site, study.sha256()).asker is None
        assert (
            "received 20" in json.loads(said("show", study.sha256(), "--json", site=site).output)["words"]["asked by"]
        )


DECIDES = """
import sys
from pathlib import Path
from wardround_client.studies.store import add_decision
sys.stdin.readline()
for _ in range(60):
    add_decision(Path(sys.argv[1]), "revoked", "a" * 64, sys.argv[2])
"""
CHANGES_ITS_MIND = """
import sys
from pathlib import Path
from wardround.study.load import study_from_json
from wardround_client.studies.approvals import approve, decide_against, find_study
from wardround_client.ledger.ledger import Cap, Ledger
site, study = Path(sys.argv[1]), study_from_json(sys.argv[3])
known = find_study(site, study.sha256())  # the state is read anew where the decision is made
sys.stdin.readline()
for _ in range(12):
    if sys.argv[2] == "Marie":
        approve(site, study, "Marie", Ledger(None), Cap(epsilon=8.0, delta=1e-4))
    else:
        decide_against(site, known, "revoked", "Pierre")
"""


def side_by_side(script: str, *words: tuple[str, ...]) -> None:
    """Run the script once for each of `words`, at once: all have loaded before any begins."""
    commands = [[sys.executable, "-c", script, *one] for one in words]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for command in commands]
    for one in running:
        one.stdin.write("go\n")
        one.stdin.close()
    assert [one.wait(timeout=120) for one in running] == [0] * len(running)


def test_decisions_that_processes_write_at_once_are_all_there(tmp_path: Path) -> None:
    side_by_side(DECIDES, (str(tmp_path), "Marie"), (str(tmp_path), "Pierre"), (str(tmp_path), "Irene"))
    who = [one["who"] for one in read_decisions(tmp_path, "a" * 64)]
    assert {name: who.count(name) for name in who} == {"Marie": 60, "Pierre": 60, "Irene": 60}


def test_the_last_decision_of_two_processes_is_the_last_one_in_the_log_and_the_one_that_counts(site: Path) -> None:
    study = study_of()
    approve(site, study, "Marie", Ledger(None), Cap(epsilon=8.0, delta=1e-4))
    side_by_side(CHANGES_ITS_MIND, *((str(site), who, study.to_json()) for who in ("Marie", "Pierre")))
    decided = [one["decision"] for one in known_of(site, study).decisions]
    assert decided == decisions_in_the_log(site, study) and len(decided) == 25
    assert trains(site, study) is (decided[-1] == "approved")
    assert known_of(site, study).state == decided[-1]


class Kill(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def test_a_kill_at_any_point_leaves_no_study_that_trains_without_its_approval_in_the_log(site, monkeypatch) -> None:
    """Every durable step of the three decisions is cut off once, before and after; the same command then finishes."""
    from wardround.records.audit_log import AuditLog
    from wardround_client.studies import approvals

    steps = ["store_approved", "store_proposed", "add_decision"]
    ledger, cap = Ledger(None), Cap(epsilon=8.0, delta=1e-4)

    def killed_at(number: int, late: bool) -> None:
        count = iter(range(100))

        def step(real):
            def at(*words):
                if (now := next(count)) == number and not late:
                    raise Kill
                done = real(*words)
                if now == number:
                    raise Kill
                return done

            return at

        for name in steps:
            monkeypatch.setattr(approvals, name, step(getattr(approvals, name)))
        monkeypatch.setattr(AuditLog, "append", step(AuditLog.append))

    cut = 0
    for number in range(4):
        for late in (False, True):
            study = study_of(f"s{number}{int(late)}", epsilon=0.5)
            receive(site, study)
            AuditLog(site / "audit.jsonl").append(Started(program="wardround-site", version="0.1.0"))
            for act in ("approved", "revoked"):
                killed_at(number, late)
                try:
                    decide(site, study, act, ledger, cap)
                except Kill:
                    cut += 1
                monkeypatch.undo()
                assert not trains(site, study) or "approved" in decisions_in_the_log(site, study)
                decide(site, study, act, ledger, cap)
                assert trains(site, study) is (act == "approved") and known_of(site, study).state == act
                assert decisions_in_the_log(site, study)[-1] == act, "the same command finishes"
    assert cut >= 8


def decide(site: Path, study: Study, act: str, ledger: Ledger, cap: Cap) -> None:
    if act == "approved":
        approve(site, study, "Marie", ledger, cap)
    else:
        decide_against(site, known_of(site, study), "revoked", "Marie")


def known_of(site: Path, study: Study):
    return find_study(site, study.sha256())


def decisions_in_the_log(site: Path, study: Study) -> list[str]:
    entries = verified(site / "audit.jsonl").entries
    return [entry["decision"] for entry in entries if entry.get("study") == study.sha256()]


def test_a_study_without_privacy_says_so_in_capitals(site: Path) -> None:
    study = study_of(epsilon=math.inf)
    receive(site, study)
    words = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    assert words["means"].startswith("NO PRIVACY") and "WITHOUT noise" in words["leaves"]
    assert "does not allow_no_privacy" in words["answer"]
    private = study_of(epsilon=3.0)
    receive(site, private)
    words = json.loads(said("show", private.sha256()[:8], "--json", site=site).output)["words"]
    assert "NO PRIVACY" not in words["means"] and "WITHOUT" not in words["leaves"]


@pytest.mark.parametrize(
    ("rule", "asked", "words"),
    [
        ("off", 1.0, "this site's rules refuse them"),
        ("noised", 1.0, "noised counts of the scores"),
        ("noised", 0.0, "No figures about patients"),
        ("noised", math.inf, "this site's rules refuse them"),
        ("exact", math.inf, "EXACT counts"),
    ],
)
def test_what_leaves_about_held_out_patients_is_what_the_sites_own_rules_let_out(site, rule, asked, words) -> None:
    (site / "site.toml").write_text(SITE + f'[release]\nevaluation = "{rule}"\n')
    study = study_of(figures=asked)
    receive(site, study)
    shown = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    assert words in shown["leaves"]


def test_a_personalisation_is_shown_with_what_it_trains_what_it_costs_and_that_it_stays(site: Path) -> None:
    asked = {"epsilon": 2.0, "trainable": "head", "steps": 12, "spare_attempts": 1}
    study = parse_study({**study_of().model_dump(), "personalisation": asked})
    receive(site, study)
    words = json.loads(said("show", study.sha256()[:8], "--json", site=site).output)["words"]
    shown = words["personalises"]
    for part in ("its last layer", "12 steps", "with noise", "1 spare attempt", "never sent", "charged like a round"):
        assert part in shown
    assert "ε 2 for the personalised model, held from the start" in words["costs"]
    together = plan_from_study(study).promised().value
    assert 3.0 < together < 5.0 and f"{math.ceil(together * 100) / 100:g}" in words["means"]
    assert "personalises" not in json.loads(said_of(site, study_of()))["words"]
    free = parse_study({**study_of().model_dump(), "personalisation": {**asked, "epsilon": math.inf}})
    receive(site, free)
    words = json.loads(said_of(site, free))["words"]
    assert words["means"].startswith("NO PRIVACY") and "WITHOUT noise" in words["personalises"]


def said_of(site: Path, study: Study) -> str:
    receive(site, study)
    return said("show", study.sha256()[:8], "--json", site=site).output


def test_a_prefix_that_is_unknown_short_or_ambiguous_is_one_line(site: Path) -> None:
    hashes: dict[str, list[Study]] = {}
    for number in range(400):
        study = study_of(f"s{number}")
        hashes.setdefault(study.sha256()[:4], []).append(study)
        if len(hashes[study.sha256()[:4]]) == 2:
            break
    (pair,) = [studies for studies in hashes.values() if len(studies) == 2]
    for study in pair:
        receive(site, study)
    prefix = pair[0].sha256()[:4]
    for words, line in (
        (prefix, "2 studies match"),
        ("0000", "no study here has this hash"),
        ("00", "at least 4 letters"),
    ):
        for command in (["show"], ["refuse", "--by", "M"], ["revoke", "--by", "M"], ["approve", "--yes", "--by", "M"]):
            done = said(*command, words, site=site, fails=True)
            assert isinstance(done.exception, UsageError) and line in str(done.exception)
            assert "\n" not in str(done.exception)
    assert find_study(site, pair[1].sha256()[:12]).study == pair[1]


def test_decisions_that_make_no_sense_and_names_that_are_none_are_refused(site: Path) -> None:
    study = study_of()
    receive(site, study)
    known = find_study(site, study.sha256())
    with pytest.raises(UsageError, match="nothing to revoke"):
        decide_against(site, known, "revoked", "Marie")
    for name in ("", "CANARY^ANNA", "/home/x", "id 0815", "a" * 65, "\u3164", "Marie \u3164", "Marie  Curie", "\u1160"):
        for command in ("approve", "refuse"):
            more = ["--yes"] if command == "approve" else []
            done = said(command, study.sha256()[:8], "--by", name, *more, site=site, fails=True)
            assert isinstance(done.exception, UsageError) and "name of a person" in str(done.exception)
    assert known_studies(site)[0].state == "proposed" and not trains(site, study)
    said("refuse", study.sha256()[:8], "--by", "Marie", site=site)
    assert known_studies(site)[0].state == "refused" and events(site) == [("refused", "Marie")]
    receive(site, study)
    assert known_studies(site)[0].state == "refused", "the server cannot ask until it gets another answer"


def test_proposals_that_were_refused_take_no_room_from_those_that_wait(site: Path) -> None:
    first, *more, last = (study_of(f"s{number}") for number in range(102))
    for study in (first, *more[:99]):
        receive(site, study)
    with pytest.raises(PolicyRefusal, match="100 proposals already wait"):
        receive(site, last)
    said("refuse", first.sha256(), "--by", "Marie", site=site)
    assert receive(site, last) == "proposed"
    with pytest.raises(PolicyRefusal, match="100 proposals already wait"):
        receive(site, more[99])


def test_an_altered_proposal_is_no_proposal(site: Path) -> None:
    study = study_of()
    receive(site, study)
    path = site / "proposals" / f"{study.sha256()}.json"
    path.write_text(path.read_text().replace('"epsilon": 3.0', '"epsilon": 7.0'))
    done = said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site, fails=True)
    assert isinstance(done.exception, UsageError) and "altered" in str(done.exception)


def test_the_command_line_ends_with_3_where_the_budget_says_no_and_asks_on_stderr(site: Path) -> None:
    study = study_of(epsilon=9.0)
    receive(site, study)
    words = ["studies", "approve", study.sha256()[:8], "--by", "Marie", "--yes", "--site", str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "wardround_client.cli.main", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3 and len(done.stderr.splitlines()) == 1 and "cap of epsilon 8" in done.stderr


# The page


def test_status_says_what_is_there_and_a_fault_hides_nothing_else(site: Path) -> None:
    study = study_of()
    receive(site, study)
    said("approve", study.sha256()[:8], "--by", "Marie", "--yes", site=site)
    page = json.loads(CliRunner().invoke(app, ["status", "--site", str(site), "--json"]).output)
    assert page["site"] == "north" and page["studies"]["known"][0]["state"] == "approved"
    assert page["budget"]["left"]["epsilon"] == 8.0 and page["last_release"] == {"entry": None}
    assert page["certificates"] == {"ca": "no federation yet"} and "no daemon is running" in page["daemon"]["fault"]
    assert page["objections"] == {"patients": 0} and "cohort" in page["cohort"]["fault"]
    (site / "opt_out.txt").write_text("ab\ncd\n")
    (site / "audit.jsonl").write_bytes((site / "audit.jsonl").read_bytes().replace(b"Marie", b"Maria"))
    text = CliRunner().invoke(app, ["status", "--site", str(site)]).output
    assert "objections    2 patients" in text and "approved, by Marie" in text
    assert "last release  unknown" in text and "was altered" in text


def test_status_says_what_the_daemon_says_of_itself(site: Path) -> None:
    looks = [Probe(name="data", run=lambda: fault("data", "the share is gone", "mount it"), todo="mount it")]
    service = HealthService(looks, site, every_s=0.05)
    service.start()
    try:
        while not (site / HEALTH_FILE).exists():
            time.sleep(0.01)
        text = CliRunner().invoke(app, ["status", "--site", str(site)]).output
    finally:
        service.stop()
    assert re.search(r"daemon +NOT SERVING\n +data: the share is gone", text)
