"""kill -9 of the whole simulation at any moment: the same command continues it, and no charge is lost.

The moments are drawn anew in every call of the tests, and the seed is printed with the result.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardround_client.ledger.ledger import Ledger

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "wardround_simulation.cli.main"]
ROUNDS = 24
LOCAL_STEPS = 400  # so that most of a round is training, and a kill in a round falls between attempt and reply
STUDY = """
[study]
name = "killed"
rounds = {rounds}
spare_rounds = {spare_rounds}
[data]
modality = "any"
image_size = 32
labels = ["benign", "malignant"]
[training]
local_steps = {local_steps}
[privacy]
epsilon = 8.0
delta = 1e-3
max_grad_norm = 0.3
nominal_patients = 10
[aggregation]
nominal_sites = 3
min_sites = 1
[evaluation]
holdout = 0.3
"""


def write_data(folder):
    generator = np.random.default_rng(1)
    folder.mkdir()
    lines = ["file,patient_id,site,label"]
    for patient in range(36):
        label = patient // 3 % 2
        for number in range(2):
            pixels_HW = generator.integers(0, 120, (32, 32)) + 80 * label
            Image.fromarray(pixels_HW.astype(np.uint8)).save(folder / f"{patient}-{number}.png")
            lines.append(f"{patient}-{number}.png,p{patient},site-{patient % 3},{('benign', 'malignant')[label]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def start(root):
    words = ["run", "study.toml", "--data", "data", "--out", "out", "--no-baselines", "--json"]
    log = (root / "log.txt").open("a")
    return subprocess.Popen([*COMMAND, *words], cwd=root, stdout=log, stderr=log, start_new_session=True)


def rounds_done(out):
    found = sorted((out / "checkpoints").glob("round-*.safetensors"))
    return int(found[-1].stem.removeprefix("round-")) if found else -1


def moments(draw):
    """Where to kill: (name, condition on the output folder, random wait in seconds after it holds)."""

    def cohort(out):
        return (out / "run.json").exists()

    def some_rounds(more):
        def reached(out, first=[]):  # noqa: B006  remembers what the folder held when it was first asked
            first.append(rounds_done(out))
            return rounds_done(out) >= first[0] + more

        return reached

    yield "at the start", lambda out: True, draw.uniform(0, 1)
    yield "ingest", cohort, draw.uniform(0, 6)
    yield "before the first round", lambda out: list(out.glob("sites/*/site.toml")), draw.uniform(0, 8)
    for _ in range(7):
        yield "in the rounds", some_rounds(draw.randint(1, 4)), draw.uniform(0, 0.5)
    yield "near the end", lambda out: rounds_done(out) >= ROUNDS - 1, draw.uniform(0, 0.5)
    yield "after the rounds", lambda out: rounds_done(out) >= ROUNDS, draw.uniform(0, 3)


def wait_until(condition, process, limit_s=240):
    ends = time.monotonic() + limit_s
    while process.poll() is None and not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


def offspring(group):
    """Live processes of a command, by command line: of its session, and those that name its Ray's folder."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            said = (stat.parent / "cmdline").read_text()
            if fields[0] != "Z" and (int(fields[3]) == group or f"/wardround-{group}-" in said):
                found[int(stat.parent.name)] = said[:80]
    return found


def all_gone(group, within_s):
    started = time.monotonic()
    while left := offspring(group):
        if time.monotonic() - started > within_s:
            raise AssertionError(f"after {within_s} s these are still there: {left}")
        time.sleep(0.1)
    return time.monotonic() - started


def ledgers(out):
    for folder in sorted((out / "sites").iterdir()):
        ledger = Ledger(folder / "ledger.sqlite3")
        yield folder.name, ledger.events(), ledger.attempts(), ledger.spent(1e-3).value
        ledger.close()


@pytest.mark.parametrize("spare_rounds", [40, 0])
def test_a_killed_run_goes_on_and_every_released_reply_has_one_charge(tmp_path, spare_rounds):
    seed = random.SystemRandom().randrange(10**6)
    (tmp_path / "study.toml").write_text(
        STUDY.format(rounds=ROUNDS, spare_rounds=spare_rounds, local_steps=LOCAL_STEPS)
    )
    write_data(tmp_path / "data")
    out, kills, longest_s = tmp_path / "out", Counter(), 0.0
    draw = random.Random(seed)
    for name, condition, wait_s in moments(draw):
        process = start(tmp_path)
        wait_until(lambda condition=condition: condition(out), process)
        time.sleep(wait_s)
        if process.poll() is None:
            kills[name] += 1
        # the command alone, whose workers then end by themselves, or all at once, as when the power fails
        for pid in (process.pid,) if draw.random() < 0.4 else offspring(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if draw.random() < 0.5:  # else the next run begins while the killed one's workers still are there
            longest_s = max(longest_s, all_gone(process.pid, within_s=30))
    process = start(tmp_path)
    process.wait(timeout=300)
    all_gone(process.pid, within_s=10)
    said = (tmp_path / "log.txt").read_text()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lost, missing = 0, {(line["round"], line["site"]): line["code"] for line in lines if line["code"]}
    for name, events, attempts, epsilon in ledgers(out):
        assert sum(event.steps for event in events) == len(attempts) * LOCAL_STEPS
        settled = Counter(attempt.round for attempt in attempts if attempt.reply_sha256)
        released = {line["round"] for line in lines if line["site"] == name and line["code"] is None}
        assert set(settled) == released and set(settled.values()) == {1}
        assert epsilon <= 8.0 and len(attempts) <= ROUNDS + spare_rounds
        lost += len(attempts) - len(settled)
    codes = Counter(missing.values())
    print(f"seed {seed}: {dict(kills)}; {lost} attempts lost, {dict(codes)}; all gone within {longest_s:.1f} s")
    assert sum(kills.values()) >= 9 and lost > 0 and "Traceback" not in said
    assert max(Counter((line["round"], line["site"]) for line in lines).values()) == 1
    assert set(codes) == ({"refused:no_spare_rounds"} if spare_rounds == 0 else set())
    if spare_rounds == 0 and process.returncode != 0:  # the last rounds, where every site had lost one
        assert process.returncode == 1 and "0 valid replies" in said.splitlines()[-1]
        assert all(f"site-{number} (refused:no_spare_rounds)" in said.splitlines()[-1] for number in range(3))
        return
    assert process.returncode == 0, said[-2000:]
    result = json.loads((out / "result.json").read_text())
    assert result["rounds_completed"] == ROUNDS
    assert {(entry["round"], entry["site"]): entry["code"] for entry in result["missing"]} == missing
    assert spare_rounds or len(missing) == lost
