"""`wardround-site ledger`: it shows the ledger's content, refuses in one line, and reading writes nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from wardround.errors import LedgerError, UsageError
from wardround.study.load import Study, load_study
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import plan_from_study

CAP = Cap(epsilon=8.0, delta=1e-4)
STUDY = """
[study]
name = "asked"
rounds = 5
spare_rounds = 1
[data]
labels = ["benign", "malignant"]
[privacy]
epsilon = {epsilon}
delta = 1e-4
max_grad_norm = 0.3
sampling_rate = {rate}
nominal_patients = 10
[aggregation]
nominal_sites = 1
[evaluation]
epsilon = 0.5
"""


def study_file(folder: Path, epsilon: float = 3.0, rate: float = 1.0) -> Path:
    path = folder / f"study-{epsilon}-{rate}.toml"
    path.write_text(STUDY.format(epsilon=epsilon, rate=rate))
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text('name = "h"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    return tmp_path


def used(site: Path, rate: float = 1.0) -> Study:
    """A study held, three rounds trained and one evaluation lost."""
    study = load_study(study_file(site, rate=rate))
    ledger = Ledger(site / "ledger.sqlite3")
    ledger.hold(study.sha256(), "run-1", plan_from_study(study), CAP)
    for number in (1, 2, 3):
        ledger.settle(ledger.reserve(study.sha256(), "run-1", number, "w", cap=CAP), "reply")
    ledger.reserve(study.sha256(), "run-1", 6, "w", "evaluate", cap=CAP)
    ledger.close()
    return study


def said(*words: object, fails: bool = False) -> Result:
    done = CliRunner().invoke(app, ["ledger", *map(str, words)], env={"COLUMNS": "100"})
    assert fails or done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_show_says_what_the_ledger_holds_and_lines_it_up(site: Path) -> None:
    study = used(site)
    done = said("show", "--site", site)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    columns = re.compile(r"(\S+) +(\S+) +(evaluate|train) +(\d+) +(\d+) +(\d+) +(\S+) +(\S+)")
    rows = [found for line in lines if (found := columns.match(line))]
    short = study.sha256()[:12]
    assert [row.groups()[:6] for row in rows] == [
        (short, "run-1", "evaluate", "2", "1", "0"),
        (short, "run-1", "train", "6", "3", "3"),
    ]
    header = next(line for line in lines if line.startswith("study"))
    for name, group in (("held", 4), ("used", 5), ("settled", 6)):
        assert {row.end(group) for row in rows} == {header.index(name) + len(name)}, "a column is not lined up"
    ledger = Ledger(site / "ledger.sqlite3")
    for words in (f"{ledger.spent(1e-4).value:.3g}", f"{ledger.committed(1e-4).value:.3g}", "per patient", "opacus"):
        assert words in done.output


def test_show_as_json_carries_every_figure_with_all_that_gives_it_a_meaning(site: Path) -> None:
    used(site)
    ledger = Ledger(site / "ledger.sqlite3")
    shown = json.loads(said("show", "--site", site, "--json").output)
    assert shown["spent"] == ledger.spent(1e-4).to_json()
    assert shown["held"] == ledger.committed(1e-4).to_json()
    assert shown["remaining"]["epsilon"] == pytest.approx(8.0 - ledger.committed(1e-4).value)
    assert (shown["entries"], shown["head"]) == (ledger.head().entries, ledger.head().sha256)
    assert shown["holds"][0]["attempts"]["train"] == {"held": 6, "used": 3, "settled": 3}
    assert shown["cap"] == {"epsilon": 8.0, "delta": 1e-4, "allow_no_privacy": False}


@pytest.mark.parametrize(("rate", "accountant"), [(1.0, "analytic Gaussian"), (0.5, "PRV")])
def test_the_tighter_figure_stands_beside_the_gate(site: Path, rate: float, accountant: str) -> None:
    study = load_study(study_file(site, rate=rate))
    ledger = Ledger(site / "ledger.sqlite3")
    ledger.hold(study.sha256(), "run-1", plan_from_study(study), CAP)
    ledger.reserve(study.sha256(), "run-1", 1, "w", cap=CAP)
    shown = json.loads(said("show", "--site", site, "--prv-timeout", 60, "--json").output)
    (beside,) = shown["spent_by_other_accountants"]
    assert accountant in beside["accountant"] and 0 < beside["epsilon"] < shown["spent"]["epsilon"]
    without = json.loads(said("show", "--site", site, "--prv-timeout", 0, "--json").output)
    assert len(without["spent_by_other_accountants"]) == (accountant != "PRV")


def test_looking_at_a_site_without_a_ledger_makes_none(site: Path) -> None:
    before = sorted(site.iterdir())
    assert "none yet" in said("show", "--site", site).output
    study = study_file(site)
    assert said("what-if", study, "--site", site).exit_code == 0
    assert sorted(path for path in site.iterdir() if path != study) == before
    done = said("verify", "--site", site, fails=True)
    assert isinstance(done.exception, UsageError) and "there is no ledger yet" in str(done.exception)


def test_what_if_agrees_with_hold_and_ends_with_3_where_it_would_refuse(site: Path) -> None:
    used(site)
    entries = Ledger(site / "ledger.sqlite3").head().entries
    fits = said("what-if", study_file(site, 1.0), "--site", site)
    assert fits.exit_code == 0 and "it would be admitted" in fits.output
    too_much = said("what-if", study_file(site, 7.0), "--site", site, "--json")
    assert too_much.exit_code == 3
    answer = json.loads(too_much.output)
    assert answer["refusal"]["code"] == "budget" and 0 < answer["rounds_affordable"] < answer["rounds_asked"] == 6
    smaller = said("what-if", study_file(site, 7.0), "--set", "privacy.epsilon=1", "--site", site)
    assert smaller.exit_code == 0
    assert Ledger(site / "ledger.sqlite3").head().entries == entries, "a question was written down"


def test_release_gives_back_by_the_hashs_first_letters_and_says_who_did_it(site: Path) -> None:
    study = used(site)
    before = json.loads(said("show", "--site", site, "--json").output)["remaining"]["epsilon"]
    done = said("release", study.sha256()[:8], "run-1", "--site", site, "--who", "Dr. Marie", "--json")
    answer = json.loads(done.output)
    assert answer["hold"]["state"] == "released by Dr. Marie"
    assert answer["remaining"]["epsilon"] > before
    assert Ledger(site / "ledger.sqlite3").holds()[0].released_by == "Dr. Marie"


@pytest.mark.parametrize("words", [("0" * 12, "run-1"), ("HASH", "run-9"), ("SHORT", "run-1")])
def test_a_release_of_what_is_not_held_is_a_usage_error(site: Path, words: tuple[str, str]) -> None:
    study = used(site)
    name = {"HASH": study.sha256(), "SHORT": study.sha256()[:4]}.get(words[0], words[0])
    done = said("release", name, words[1], "--site", site, fails=True)
    assert isinstance(done.exception, UsageError) and "no hold" in str(done.exception)
    assert Ledger(site / "ledger.sqlite3").holds()[0].released_by is None


def test_verify_names_the_head_and_an_altered_entry(site: Path) -> None:
    used(site)
    path = site / "ledger.sqlite3"
    assert Ledger(path).head().sha256 in said("verify", "--site", site).output
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"round":2', b'"round":4'))
    done = said("verify", "--site", site, fails=True)
    assert isinstance(done.exception, LedgerError) and "entry 5 was altered" in str(done.exception)
    path.unlink()
    for command in (("verify",), ("show",), ("what-if", study_file(site))):
        done = said(*command, "--site", site, fails=True)
        assert isinstance(done.exception, LedgerError) and "is missing" in str(done.exception)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "exit_code", "line"),
    [
        (["ledger", "show"], 2, "is not a site's folder"),
        (["ledger", "verify", "--site", "damaged"], 1, "not a readable ledger"),
        (["ledger", "what-if"], 2, "Missing argument"),
        (["ledger", "burn"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(tmp_path: Path, words: list[str], exit_code: int, line: str) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "ledger.sqlite3").write_bytes(b"nothing that SQLite wrote" * 99)
    command = [sys.executable, "-m", "wardround_client.cli.main", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == exit_code and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and line in done.stderr
