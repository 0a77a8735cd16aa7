"""`wardround-sim federation` with real processes, none of which outlives the command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from wardround.errors import WardroundError
from wardround_simulation.cli.progress import RunProgress
from wardround_simulation.local import programs
from wardround_simulation.local.federation import LocalFederation

STUDY = """
[study]
name = "small"
rounds = 6
spare_rounds = 6
[data]
modality = "CT"
image_size = 64
region = "marked"
spacing_mm = 1.4
window_hu = [[-1000, 400]]
labels = ["benign", "malignant"]
[model]
name = "phantom-encoder"
init = "phantom"
trainable = "head"
[training]
learning_rate = "rule"
[privacy]
epsilon = 4.0
delta = 1e-4
max_grad_norm = 0.3
sampling_rate = 1.0
nominal_patients = 8
[aggregation]
nominal_sites = 3
min_sites = 3
round_deadline_s = 120
"""
SITES = ("hospital-1", "hospital-2", "hospital-3")


def test_a_run_after_one_that_was_stopped_for_good_is_approved_as_well_and_nothing_is_approved_twice(tmp_path) -> None:
    asked = []

    class Answered(LocalFederation):
        def _ask_server(self, *words):
            assert words == ("runs",)
            return [{"study_sha256": sha256} for sha256 in ("a" * 64, "b" * 64, "a" * 64)]

        def _ask_sites(self, *words, sites=None):
            asked.append((words, sites))
            known = {"one": ("approved", 2), "two": ("approved", 1), "new": ("proposed", 0)}
            return {name: [{"sha256": "a" * 64, "state": s, "runs": n}] for name, (s, n) in known.items()}

    here = Answered(folder=tmp_path, data=tmp_path, sites=("one", "two", "new"))
    for name, folder in (("one", "studies"), ("two", "studies"), ("new", "proposals")):
        receive(here.site(name) / folder, "a" * 64)
    here.approve("a" * 64, [], RunProgress(Console(), 1, quiet=True))
    words, sites = asked[-1]
    assert words[:5] == ("studies", "approve", "a" * 64, "--runs", 2) and sites == ["two", "new"]


def test_the_wait_for_the_proposals_starts_no_program_until_every_site_has_received_the_study(tmp_path) -> None:
    sha256, asked, names, looks = "a" * 64, [], ("one", "two"), []

    class Slow(RunProgress):
        def pieces(self, done, total):
            """Look at the folders several times before the last site receives the study."""
            looks.append(done)
            if len(looks) == 3:
                receive(here.site("two") / "proposals", sha256)

    class Answered(LocalFederation):
        def _ask_server(self, *words):
            return [{"study_sha256": sha256}]

        def _ask_sites(self, *words, sites=None):
            asked.append((words[:2], len(looks)))
            return {name: [{"sha256": sha256, "state": "proposed", "runs": 0}] for name in names}

    here = Answered(folder=tmp_path, data=tmp_path, sites=names)
    receive(here.site("one") / "proposals", sha256)
    here.approve(sha256, [], Slow(Console(), 1, quiet=True))
    assert looks == [1, 1, 1, 2]
    assert asked == [(("studies", "list"), 4), (("studies", "approve"), 4)]


def receive(folder: Path, sha256: str) -> None:
    folder.mkdir(parents=True)
    (folder / f"{sha256}.json").write_text("{}")


def of_folder(folder: Path) -> set[int]:
    """The living processes that were told of the folder, or work in it."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = os.fsencode(folder) in (process / "cmdline").read_bytes()
            if told or (process / "cwd").resolve(strict=True).is_relative_to(folder):
                found.add(int(process.name))
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return found


def soon(what, limit_s: float, why: str) -> None:
    ends = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < ends, why
        time.sleep(0.2)


@pytest.mark.slow
def test_one_command_trains_a_federation_and_leaves_no_process_also_when_stopped_or_killed_in_training(tmp_path):
    """Whoever calls it again at once after a kill does not find the daemons of the killed one in the way."""
    (tmp_path / "small.toml").write_text(STUDY)
    out = tmp_path / "federation"
    words = ["federation", tmp_path / "small.toml", "--patients", "12", "--out", out, "--json"]
    command = [str(programs.PROGRAMS / "wardround-sim"), *map(str, words)]
    server = out / "server"

    def started(rounds_done: int) -> subprocess.Popen:
        """The command, when it has trained so many rounds."""
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        checkpoint = f"runs/*/checkpoints/round-{rounds_done:06d}.safetensors"
        soon(lambda: list(server.glob(checkpoint)) or process.poll() is not None, 400, f"no round {rounds_done}")
        assert process.poll() is None and len(of_folder(out)) >= 8, process.communicate()[1]
        return process

    for rounds_done, number in ((0, signal.SIGTERM), (1, signal.SIGINT)):
        stopped = started(rounds_done)
        os.killpg(stopped.pid, number)  # as a terminal does: to this command and whatever is in its group
        assert "stopped; the same command continues" in stopped.communicate(timeout=60)[1]
        assert stopped.returncode == 130 and not of_folder(out)

    killed = started(2)
    killed.kill()
    killed.wait()
    soon(lambda: not of_folder(out), 40, "processes outlived the command that was killed")
    killed = started(3)
    other = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (other.returncode, "choose another --out" in other.stderr) == (1, True), other.stderr
    assert killed.poll() is None
    killed.kill()
    killed.wait()

    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert not of_folder(out)
    said = json.loads(done.stdout)
    run = said["run"]
    assert (run["state"], run["round"], run["words"]) == ("finished", 6, dict.fromkeys(SITES, "approved"))
    replies = {(line["round"], line["site"], line["code"]) for line in run["metrics"]}
    assert replies == {(round_, site, None) for round_ in range(1, 7) for site in SITES}
    for site in SITES:
        (hold,) = said["ledgers"][site]["holds"]
        train = hold["attempts"]["train"]
        assert hold["run"] == run["run"] and train["settled"] == 6 <= train["used"] <= 6 + 4  # one lost a kill or stop
    assert (
        len(list((server / "runs").iterdir())) == 1 and (server / "runs" / run["run"] / "model.safetensors").is_file()
    )

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and json.loads(again.stdout) == said


def test_a_program_that_fails_is_named_with_its_own_last_line() -> None:
    code = "import sys; print('two', file=sys.stderr); print('no data here', file=sys.stderr); sys.exit(2)"
    with pytest.raises(WardroundError, match="^north: no data here$"):
        programs.call("north", "python", "-c", code, limit_s=30)
    assert programs.call("north", "python", "-c", "print(5); raise SystemExit(1)", limit_s=30, codes=(0, 1)) == "5\n"


def test_a_program_that_takes_too_long_is_named_and_ended(monkeypatch) -> None:
    monkeypatch.setattr(programs, "GRACE_S", 1.0)
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    began, pids = time.monotonic(), of_python(code)
    with pytest.raises(WardroundError, match="^north: `python -c` did not finish within 2 s$"):
        programs.call("north", "python", "-c", code, limit_s=2)
    assert time.monotonic() - began < 20 and of_python(code) == pids == set()


def of_python(code: str) -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if code.encode() in words:
            found.add(int(process.name))
    return found


def test_a_daemon_that_ended_is_named_with_its_last_line_and_its_log(tmp_path) -> None:
    daemon = programs.start(
        "north", "python", "-c", "print('{}'); print('the port is taken'); raise SystemExit(1)",
        printed=tmp_path / "printed", log=tmp_path / "site.log",
    )  # fmt: skip
    daemon.process.wait(30)
    assert daemon.started
    with pytest.raises(
        WardroundError, match=f"^north: the daemon exited with code 1: the port is taken; its log: {tmp_path}"
    ):
        daemon.check()
    programs.end([daemon])


def test_a_started_program_ends_with_the_one_that_started_it_also_by_kill(tmp_path) -> None:
    code = "import time; time.sleep(61)"
    starter = (
        f"from pathlib import Path; from wardround_simulation.local.programs import start; import time; "
        f"start('north', 'python', '-c', {code!r}, printed=Path({str(tmp_path / 'p')!r}), log=Path('log')); "
        f"time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    soon(lambda: of_python(code), 30, "it was not started")
    process.kill()
    process.wait()
    soon(lambda: not of_python(code), 20, "it outlived its starter")
