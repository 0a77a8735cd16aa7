"""Mistakes of a user are reported in one line with the right exit code, quickly, and nothing is written or lost.

Each case runs the command itself in a separate process, as a user would.
"""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from wardround.errors import DataError
from wardround_simulation.cli.main import main
from wardround_simulation.compare.compare import read_folds

COMMAND = [sys.executable, "-m", "wardround_simulation.cli.main"]
STUDY = """
[study]
name = "tiny"
rounds = 2
[data]
modality = "any"
image_size = 32
labels = ["benign", "malignant"]
[privacy]
epsilon = 8.0
delta = 1e-3
max_grad_norm = 0.3
nominal_patients = 4
[aggregation]
nominal_sites = 2
[evaluation]
holdout = 0.3
"""


def rows_of(*patients):
    """Manifest rows: (file, patient, site, label), one picture a patient."""
    return [(f"{number}.png", *patient) for number, patient in enumerate(patients)]


GOOD = rows_of(*((f"p{n}", f"site-{n % 2}", ("benign", "malignant")[n // 2 % 2]) for n in range(12)))


def write_data(folder, rows, columns=("file", "patient_id", "site", "label")):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(7)
    for row in rows:
        if "/" not in row[0]:
            Image.fromarray(generator.integers(0, 256, (32, 32)).astype(np.uint8)).save(folder / row[0])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


def ask(folder, *words, prefix=(), timeout_s=60):
    words = [*prefix, *COMMAND, *map(str, words)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=timeout_s)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def is_one_line(done, exit_code, *parts, after=()):
    """The answer is one line of ours with these parts, after the stages named in `after`, and no traceback."""
    lines = done.stderr.splitlines()
    assert done.returncode == exit_code, done.stderr
    assert lines[-1].startswith("wardround-sim: ") and all(part in lines[-1] for part in parts), done.stderr
    assert [line.strip() for line in lines[:-1]] == list(after), done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study, good data and much that is wrong; the commands of a test write elsewhere."""
    root = tmp_path_factory.mktemp("bad")
    (root / "tiny.toml").write_text(STUDY)
    write_data(root / "good", GOOD)
    write_data(root / "column", GOOD, ("file", "patient", "site", "label"))
    (write_data(root / "gone", GOOD) / "3.png").unlink()
    write_data(root / "leaves", [("../good/0.png", *GOOD[0][1:]), *GOOD[1:]])
    write_data(root / "absolute", [(str(root / "good" / "0.png"), *GOOD[0][1:]), *GOOD[1:]])
    write_data(root / "twice", [*GOOD, ("99.png", "p0", "site-1", "benign")])
    write_data(root / "oneclass", [(*row[:3], "benign") for row in GOOD])
    write_data(root / "strange", [(*row[:3], "tumour") for row in GOOD])
    write_data(root / "pool", [(row[0], row[1], row[3]) for row in GOOD], ("file", "patient_id", "label"))
    (root / "empty").mkdir()
    (root / "file").write_text("x")
    (root / "nonempty").mkdir()
    (root / "nonempty" / "thesis.txt").write_text("years of work")
    (root / "other").mkdir()
    claim = {"run_id": "r", "name": "another", "study_sha256": "0" * 64, "data": "elsewhere", "test_data": None}
    (root / "other" / "run.json").write_text(json.dumps(claim))
    (root / "other" / "checkpoints").mkdir()
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text('{"run_id"')
    (root / "folds-column.csv").write_text("patient,split0\np0,0\np1,1\n")
    (root / "folds-text.csv").write_text("patient_id,split0\np0,first\np1,1\n")
    (root / "folds-unknown.csv").write_text("patient_id,split0\nx,0\ny,1\n")
    save_file({"w": np.zeros(3, np.float32)}, root / "small.safetensors")
    (root / "cut.safetensors").write_bytes((root / "small.safetensors").read_bytes()[:-4])
    return root


RUN = ("run", "tiny.toml", "--out", "never", "--data")
GIVEN = (*RUN, "good")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("runn",), ("No such command 'runn'", "run")),
        (("run", "--dta", "good"), ("No such option", "--data")),
        (("run", "--sites", "0", "--data", "good"), ("--sites",)),
        ((*GIVEN, "--device", "tpu"), ("--device tpu", "auto, cpu or cuda")),
        (("run", "nowhere.toml", "--data", "good"), ("nowhere.toml: no such study file",)),
        (("run", "good/manifest.csv", "--data", "good"), ("manifest.csv: not a TOML file",)),
        (("run", "tiny.toml", "--out", "never"), ("--data is missing",)),
        ((*GIVEN, "--set", "privacy.epsilom=3"), ("unknown key privacy.epsilom", "did you mean epsilon")),
        ((*GIVEN, "--set", "privcy.epsilon=3"), ("unknown key privcy", "did you mean privacy")),
        ((*GIVEN, "--set", "privacy.epsilon=0"), ("privacy.epsilon", "greater than 0")),
        ((*GIVEN, "--set", "privacy.epsilon=-1"), ("privacy.epsilon", "greater than 0")),
        ((*GIVEN, "--set", "privacy.sampling_rate=1.5"), ("privacy.sampling_rate", "less than or equal to 1")),
        ((*GIVEN, "--set", "epsilon"), ("--set epsilon", "section.key=value")),
        ((*GIVEN, "--set", "model.init=none.safetensors"), ("model.init", "no such file")),
        ((*RUN, "nowhere"), ("nowhere: no such folder",)),
        ((*RUN, "file"), ("file: no such folder",)),
        ((*RUN, "empty"), ("empty: holds no images", "manifest.csv")),
        ((*RUN, "column"), ("manifest.csv: column patient_id is missing",)),
        ((*RUN, "gone"), ("manifest.csv: row 5: file: no such file",)),
        ((*RUN, "leaves"), ("manifest.csv: row 2: file: the path leaves the data folder",)),
        ((*RUN, "absolute"), ("manifest.csv: row 2", "folder")),
        ((*RUN, "twice"), ("manifest.csv: rows 2 and 14: one patient at two sites",)),
        ((*RUN, "oneclass"), ("every label is benign", "malignant")),
        ((*RUN, "strange"), ("no row has a label of the study",)),
        ((*RUN, "pool", "--sites", "50"), ("50 sites need at least 50 patients", "12")),
        ((*GIVEN, "--sites", "3"), ("names 2 sites, but --sites is 3",)),
        ((*GIVEN, "--set", "aggregation.nominal_sites=3"), ("has 2 sites, but the study requires 3", "--set")),
        ((*GIVEN, "--test-data", "good"), ("a patient of the test data is also in the training data",)),
        ((*GIVEN, "--ray-address", "127.0.0.1:9"), ("--ray-address 127.0.0.1:9: no reply from a Ray cluster",)),
        ((*GIVEN, "--ray-address", "cluster"), ("--ray-address cluster: write HOST:PORT",)),
        (("run", "--sites", "9", "--out", "never"), ("--sites 9", "the study requires 3 to 5")),
        (("run", "tiny.toml", "--data", "good", "--out", "file"), ("file: is a file",)),
        (("run", "tiny.toml", "--data", "good", "--out", "good/out"), ("good/out: lies inside --data",)),
        (("run", "tiny.toml", "--data", "good", "--out", "good"), ("good: lies inside --data",)),
        (("run", "tiny.toml", "--data", "good", "--out", "file/deeper"), ("file: is a file",)),
        (("run", "tiny.toml", "--data", "good", "--out", "nonempty"), ("nonempty: is not empty and contains no run",)),
        (
            ("run", "tiny.toml", "--data", "good", "--out", "other"),
            ("other: contains a run of another study (another)",),
        ),
        (("run", "tiny.toml", "--data", "good", "--out", "damaged"), ("run.json: damaged",)),
        (("compare", "tiny.toml", "--out", "never"), ("--data is missing",)),
        (
            ("compare", "tiny.toml", "--data", "good", "--epsilon", "8,lots"),
            ("--epsilon 8,lots: lots is not a number",),
        ),
        (
            ("compare", "tiny.toml", "--data", "good", "--epsilon", "nan"),
            ("--epsilon nan: each value must be above 0",),
        ),
        (("compare", "tiny.toml", "--data", "good", "--epsilon", "0"), ("--epsilon 0: each value must be above 0",)),
        (("compare", "tiny.toml", "--data", "oneclass", "--out", "never"), ("every label is benign",)),
    ],
    ids=lambda value: "-".join(map(str, value))[:60] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_and_writes_nothing(place, monkeypatch, capfd, words, parts):
    """The command's own `main`, called in this process: each start of Python would cost more than all the rest."""
    before, terminate = names_in(place), signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["wardround-sim", *words])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, terminate)
    said = capfd.readouterr()
    done = subprocess.CompletedProcess(words, ended.value.code, said.out, said.err)
    is_one_line(done, 2, *parts)
    assert names_in(place) == before


def test_a_mistake_is_answered_before_anything_heavy_is_loaded(place):
    words = f"sys.argv = ['wardround-sim', *{(*RUN, 'gone')!r}]"
    code = f"import sys, atexit; {words}; from wardround_simulation.cli.main import main\n"
    code += "atexit.register(lambda: print(sorted({'torch', 'ray', 'flwr', 'matplotlib'} & set(sys.modules))))\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "row 5: file: no such file" in done.stderr and done.stdout == "[]\n"


LOADING = "Loading torch and Flower"
PREPARING = "Preparing the hospitals' data"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--set", "model.init=cut.safetensors"), ("cut.safetensors: cannot be read",)),
        (("--device", "cuda"), ("--device cuda: torch finds no CUDA GPU", "--device cpu")),
    ],
)
def test_what_only_torch_can_tell_is_told_before_any_data_are_prepared(place, tmp_path, words, parts):
    import torch

    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    out = tmp_path / "out"
    is_one_line(ask(place, "run", "tiny.toml", "--data", "good", "--out", out, *words), 2, *parts, after=[LOADING])
    assert names_in(out) == [".lock", "run.json", "study.json"]


def test_a_wrong_folds_file_is_one_line(place, tmp_path):
    file, part = "folds-text.csv", "row 2, column split0: the fold must be a whole number"
    done = ask(place, "compare", "tiny.toml", "--data", "good", "--folds", file, "--out", tmp_path / "out")
    is_one_line(done, 2, file, part, after=[PREPARING])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "part"),
    [("folds-column.csv", "needs the column patient_id"), ("folds-none.csv", "no such file")],
)
def test_folds_that_cannot_be_read_are_refused_by_file_and_reason(place, file, part):
    with pytest.raises(DataError, match=f"{file}: .*{part}"):
        read_folds(place / file)


def test_folds_of_unknown_patients_are_refused_before_training(place, tmp_path):
    words = ("compare", "tiny.toml", "--data", "good", "--folds", "folds-unknown.csv", "--out", tmp_path / "out")
    done = ask(place, *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the data of 12 patients contain no patient of fold 0" in done.stderr.splitlines()[-1]


def test_a_claim_under_which_nothing_was_trained_binds_nobody(place, tmp_path):
    """The command that a message asks for must work in the folder of the command that failed."""
    out = tmp_path / "out"
    out.mkdir()
    first = {"run_id": "r", "name": "another", "study_sha256": "0" * 64, "data": "elsewhere", "test_data": None}
    (out / "run.json").write_text(json.dumps(first))
    mended = ("run", "tiny.toml", "--data", "good", "--out", out, "--set", "model.init=small.safetensors")
    is_one_line(ask(place, *mended), 2, "small.safetensors: not a phantom-encoder for this study", after=[LOADING])
    assert names_in(out) == [".lock", "run.json", "study.json"]
    second = json.loads((out / "run.json").read_text())
    assert second["study_sha256"] != first["study_sha256"] and second["run_id"] != first["run_id"]


def test_a_folder_is_held_by_one_run_at_a_time(place, tmp_path):
    import fcntl

    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = ask(place, "run", "tiny.toml", "--data", "good", "--out", out)
    is_one_line(done, 2, "another run is using this folder")
    assert names_in(out) == [".lock"]


def test_no_command_shows_the_help_and_says_so_by_its_exit_code(tmp_path):
    done = ask(tmp_path)
    assert done.returncode == 2 and "Usage: " in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert ask(tmp_path, "run", "--help").returncode == 0


# A disk that is full, and files that may not be read: in a mount of our own, or without root's right to read all


def small_disk(size):
    script = f'mount -t tmpfs -o size={size} none disk && cd disk && exec "$@"'
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")


def small_disks_can_be_made(folder):
    (folder / "disk").mkdir()
    command = [*small_disk("64k"), "true"]
    return shutil.which("unshare") and subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def test_a_disk_too_small_for_the_run_is_said_before_data_are_prepared(place, tmp_path):
    if not small_disks_can_be_made(tmp_path):
        pytest.skip("this machine lets nobody mount a small disk")
    words = ("run", place / "tiny.toml", "--data", place / "good", "--out", "out")
    done = ask(tmp_path, *words, prefix=small_disk("8m"))
    is_one_line(done, 1, "out: the run needs about", "MB are free", "free some space", after=[LOADING])


def test_a_disk_without_any_room_is_one_line_and_does_not_spoil_the_folder(place, tmp_path):
    if not small_disks_can_be_made(tmp_path):
        pytest.skip("this machine lets nobody mount a small disk")
    script = 'mount -t tmpfs -o size=64k none disk; cd disk; head -c 60k /dev/zero > filler; "$@"; rm filler; exec "$@"'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    words = ("run", place / "tiny.toml", "--data", place / "good", "--out", "out")
    done = ask(tmp_path, *words, prefix=prefix)
    lines = done.stderr.splitlines()
    assert "the disk is full; free some space" in lines[0] and "MB are free" in lines[-1], done.stderr
    assert "Traceback" not in done.stderr and done.returncode == 1


def without_roots_rights():
    """A prefix under which file permissions count, or None."""
    if os.getuid() != 0:
        return ()
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    return prefix if shutil.which("setpriv") and subprocess.run([*prefix, "true"]).returncode == 0 else None


def test_a_table_or_folder_that_may_not_be_opened_is_one_line(place, tmp_path):
    prefix = without_roots_rights()
    if prefix is None:
        pytest.skip("root may read everything here")
    closed = shutil.copytree(place / "good", tmp_path / "closed")
    (closed / "manifest.csv").chmod(0)
    words = ("run", place / "tiny.toml", "--out", tmp_path / "out", "--data")
    is_one_line(ask(tmp_path, *words, closed, prefix=prefix), 2, "manifest.csv: cannot be read: Permission denied")
    (tmp_path / "sealed").mkdir(mode=0o555)
    words = ("run", place / "tiny.toml", "--data", place / "good", "--out", tmp_path / "sealed" / "out")
    is_one_line(ask(tmp_path, *words, prefix=prefix), 2, "sealed/out: cannot be written")


# Signals


@pytest.mark.parametrize("number, stage", [(signal.SIGINT, "Writing 5 phantom hospitals"), (signal.SIGTERM, LOADING)])
def test_a_stop_is_one_line_at_once_and_leaves_no_process(place, tmp_path, number, stage):
    data = () if stage != LOADING else (place / "tiny.toml", "--data", place / "good")
    words = [*COMMAND, "run", *map(str, data), "--out", str(tmp_path / "out")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True, **streams)
    assert stage in process.stderr.readline()
    time.sleep(0.3)
    asked = time.monotonic()
    process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and time.monotonic() - asked < 60  # a few seconds, where nothing else runs
    assert said.strip().splitlines()[-1] == "wardround-sim: stopped; the same command continues the run"
    assert "Traceback" not in said
    assert not is_anyone_left(process.pid)


def is_anyone_left(group):
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, 0)
            alive = [pid for pid in processes_of(group) if state_of(pid) not in ("Z", "")]
            if alive:
                time.sleep(0.1)
                continue
        return False
    return True


def processes_of(group):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                yield int(stat.parent.name)


def state_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
