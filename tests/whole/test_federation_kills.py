"""kill -9 of any process of a federation, fifty times over a run of ten rounds: the run ends, and all books are right.

The two kinds of daemons are restarted as systemd would do with our units; the daemons must handle all processes that
they started themselves. The victims and the times are drawn from a seed that is printed; WARDROUND_KILL_SEED repeats
the same draws.
"""

import configparser
import contextlib
import math
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from builders.federation import NAMES, Federation, approve, command, deadline_s
from builders.processes import alive, descendants
from paths import ROOT

from wardround.records.audit_log import verified
from wardround.study.load import load_study
from wardround_client.flower.task_process import PROCESS_NAME
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_server.runs.folder import RunFolder

pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "tiny"
rounds = {rounds}
spare_rounds = 60
[data]
image_size = 32
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
learning_rate = 0.1
[privacy]
epsilon = 4.0
delta = 1e-6
max_grad_norm = 1.0
sampling_rate = 1.0
nominal_patients = 8
[aggregation]
nominal_sites = 3
min_sites = {min_sites}
round_deadline_s = {deadline_s}
"""
UNITS = ROOT / "deploy" / "systemd"
KINDS = {  # what a process is, by what stands on its command line, or its name
    PROCESS_NAME: "task",
    "multiprocessing.forkserver": "warm process",
    "multiprocessing.resource_tracker": "tracker of the warm process",
    "wardround_client.flower.executor": "executor",
    "flower-supernode": "SuperNode",
    "wardround_client.flower.supernode": "SuperNode",
    "wardround_client.cli.main start": "site daemon",
    "wardround.networks.initial_weights": "first weights",
    "flwr-serverapp": "server app",
    "flower-superexec": "server's executor",
    "flower-superlink": "SuperLink",
    "wardround_server.cli.main start": "server daemon",
    "/flwr ": "flwr command",
}


def unit_of(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNITS / f"wardround-{'server' if name == 'server' else 'site'}.service")
    return unit


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def kind_of(pid: int) -> str:
    line = command_line(pid)
    with contextlib.suppress(OSError):
        line += Path(f"/proc/{pid}/comm").read_text()  # a fork has its parent's command line
    return next((kind for words, kind in KINDS.items() if words in line), f"other: {line[:80]}")


def of_folder(folder: Path) -> set[int]:
    """The living processes that work in the folder or were told of it, by their command line or environment."""
    found, told = set(), os.fsencode(folder)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = told in (process / "cmdline").read_bytes() or told in (process / "environ").read_bytes()
            if known or (process / "cwd").resolve(strict=True).is_relative_to(folder):
                found.add(int(process.name))
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return alive(found) - {os.getpid()}


class Systemd:
    """Keeps the daemons of a federation as systemd does with our units. `all_ended`: daemon -> what of it lived on
    when it was to start again.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.folders = {"server": federation.server, **federation.folders}
        self.starts_at: dict[str, float] = {}
        self.codes: list[int] = []
        services = {name: unit_of(name)["Service"] for name in self.folders}
        assert all(one["Restart"] == "always" and one["KillMode"] == "mixed" for one in services.values())
        self.pause_s = {name: float(one["RestartSec"]) for name, one in services.items()}
        self.given_up_at = {name: int(one["RestartPreventExitStatus"]) for name, one in services.items()}

    def look(self) -> None:
        """Start again what ended, after its pause. By then nothing of it may live: no control group helps here."""
        now = time.monotonic()
        for name, process in list(self.federation.processes.items()):
            if (code := process.poll()) is not None:
                assert code != self.given_up_at[name], f"{name} ended with {code}: systemd would not start it again"
                self.codes.append(code)
                del self.federation.processes[name]
                self.starts_at[name] = now + self.pause_s[name]
        for name, at in list(self.starts_at.items()):
            if now >= at:
                left = [command_line(pid) for pid in of_folder(self.folders[name]) if kind_of(pid) in KINDS.values()]
                assert not left, f"{name}: {self.pause_s[name]} s after its end there was still {left}"
                del self.starts_at[name]
                self.federation.start(name)

    def tree(self) -> dict[int, str]:
        """Every process of every daemon that is up -> the daemon's name."""
        started = {name: process.pid for name, process in self.federation.processes.items() if process.poll() is None}
        tree = {pid: name for name, daemon in started.items() for pid in {daemon, *descendants(daemon)}}
        return {pid: name for pid, name in tree.items() if command_line(pid)}  # what has none ended meanwhile

    def kill(self, pid: int, with_group: bool) -> None:
        """kill -9. Of a daemon systemd ends the control group as well; without that its children see to themselves."""
        group = descendants(pid) if with_group and "daemon" in kind_of(pid) else set()
        for one in (pid, *group):
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue


def kill_through(
    systemd: Systemd, run: RunFolder, kills: int, rounds: int, limit_s: float, draw: random.Random
) -> list[tuple[str, str]]:
    """Kill until the run is finished: in every round but the last its share of `kills`, at random moments, and then
    nothing until the round is done.
    """
    began, killed, next_kill, said = time.monotonic(), [], 0.0, None
    while run.state() != "finished":
        now = time.monotonic()
        problem = run.problem()
        if problem and problem != said:
            said = problem
            print(f"{now - began:6.1f} s  problem: {problem['phase']}: {problem['error'][:200]}", flush=True)
        assert now - began < limit_s, f"not finished within {limit_s} s\n{systemd.federation.logs()}"
        systemd.look()
        done = run.rounds_done()
        share = min(kills, math.ceil(kills * (done + 1) / (rounds - 1)))
        if run.state() == "training" and len(killed) < share and now >= next_kill and (tree := systemd.tree()):
            known = sorted(tree, key=lambda pid, tree=tree: (tree[pid], kind_of(pid), pid))
            pid, with_group = draw.choice(known), draw.random() < 0.5
            kind, daemon = kind_of(pid), tree[pid]
            systemd.kill(pid, with_group)
            killed.append((kind, daemon))
            print(f"{now - began:6.1f} s  round {done + 1}: kill {len(killed)}: {kind} of {daemon}", flush=True)
            next_kill = now + draw.uniform(1.0, 9.0)
        time.sleep(0.2)
    return killed


def check_site(folder: Path, study, run: RunFolder) -> Counter:
    """All that must hold at a site, whatever was killed where."""
    ledger, plan = Ledger(folder / "ledger.sqlite3"), plan_from_study(study)
    assert ledger.verify() == ledger.head()
    attempts = ledger.attempts(study.sha256(), run.run_id)
    assert len(attempts) == len(ledger.attempts()) == sum(event.releases for event in ledger.events())
    promised = plan.promised().value
    assert ledger.spent(study.privacy.delta).value <= promised <= study.privacy.epsilon
    settled = [attempt for attempt in attempts if attempt.reply_sha256 is not None]
    assert len({attempt.round for attempt in settled}) == len(settled), "a round was settled twice"
    of_round = {attempt.round: attempt.reply_sha256 for attempt in settled}
    released = [entry for entry in verified(folder / "audit.jsonl").entries if entry["event"] == "released"]
    assert all(of_round[entry["round"]] == entry["reply"] for entry in released)
    counted = {line["round"] for line in run.metrics() if line["site"] == folder.name and line["code"] is None}
    assert counted <= {entry["round"] for entry in released}, "a reply was counted that the site's log does not have"
    return Counter(attempts=len(attempts), lost=len(attempts) - len(settled), counted=len(counted))


def killed_run(tmp_path: Path, kills: int, rounds: int, min_sites: int, limit_s: float) -> Counter:
    """A federation, its run, its kills, and all that must hold afterwards."""
    seed = int(os.environ.get("WARDROUND_KILL_SEED") or random.SystemRandom().randrange(10**6))
    deadline = deadline_s()
    print(f"\nseed {seed}, round deadline {deadline} s", flush=True)
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(rounds=rounds, min_sites=min_sites, deadline_s=deadline))
    study, federation = load_study(path), Federation(tmp_path)
    systemd = Systemd(federation)
    try:
        for folder in federation.folders.values():
            approve(path, folder)
        for name in ("server", *NAMES):
            federation.start(name)
        run_id = command("server", "submit", path, "--server", federation.server)["run"]
        run, began = RunFolder(path=federation.server / "runs" / run_id), time.monotonic()
        killed = kill_through(systemd, run, kills, rounds, limit_s, random.Random(seed))
        seconds = time.monotonic() - began
        while systemd.starts_at:  # what was killed in the last moment starts too, and must be able to end
            systemd.look()
            time.sleep(0.2)
        codes = {name: federation.stop(name) for name in list(federation.processes)}
    finally:
        for name in list(federation.processes):
            federation.stop(name)
    begun, not_yet = {0}, {130, -signal.SIGTERM}  # the last one started may not listen to signals yet
    assert len(killed) == kills and set(codes.values()) <= begun | not_yet, codes
    ends = time.monotonic() + 20
    while (left := of_folder(tmp_path)) and time.monotonic() < ends:
        time.sleep(0.2)
    assert not left, f"orphans: {[command_line(pid) for pid in left]}"

    result, lines = run.result(), run.metrics()
    assert result["rounds_completed"] == rounds
    counted = Counter(line["round"] for line in lines if line["code"] is None)
    assert all(counted[number] >= min_sites for number in range(1, rounds + 1)), counted
    told = Counter((line["round"], line["site"]) for line in lines)
    assert max(told.values()) == 1 and {number for number, _ in told} == set(range(1, rounds + 1))
    missing = Counter(line["code"] for line in lines if line["code"] is not None)
    assert not [code for code in missing if code.startswith("invalid")], "a kill made a reply that is none"
    absent = [(one["round"], one["site"], one["code"]) for one in result["missing"]]
    assert sorted(absent) == sorted((one["round"], one["site"], one["code"]) for one in lines if one["code"])
    shown = command("server", "show", run_id, "--server", federation.server)
    assert shown["state"] == "finished" and shown["metrics"] == lines
    verified(federation.server / "audit.jsonl")
    found = sum((check_site(folder, study, run) for folder in federation.folders.values()), Counter())
    kinds = Counter(kind for kind, _ in killed)
    print(f"seed {seed}: {kills} kills in {seconds:.0f} s over {rounds} rounds with at least {min_sites} of 3 sites")
    print("killed: " + ", ".join(f"{kind} {number}" for kind, number in kinds.most_common()))
    print(f"missing parts of rounds, by code: {dict(missing)}")
    print(f"at the sites: {found['attempts']} attempts, {found['lost']} lost, {found['counted']} replies counted")
    return kinds


def test_after_fifty_kills_over_ten_rounds_every_round_has_its_quorum_and_every_attempt_one_event(tmp_path) -> None:
    kinds = killed_run(tmp_path, kills=50, rounds=10, min_sites=2, limit_s=2700)
    assert len(kinds) >= 6 and not [kind for kind in kinds if kind.startswith("other")], kinds
