"""A checkpoint is complete or an error, and a kill during writing leaves the previous one."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from wardround.errors import ModelError, WardroundError
from wardround.storage.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "sum": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 2))),
    "scalar": np.array(-0.0),
}
MANIFEST = {"round": 7, "epsilon": "inf", "missing": [{"site": "north"}]}


def no_warning(line):
    raise AssertionError(line)


def test_tensors_and_manifest_come_back_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", TENSORS, MANIFEST)
    tensors, manifest = load_checkpoint(tmp_path / "a.safetensors")
    assert manifest == MANIFEST
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype and tensors[name].tobytes() == array.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


def test_other_programs_read_the_file_as_safetensors(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", TENSORS, MANIFEST)
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["sum"], TENSORS["sum"])


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, TENSORS, MANIFEST)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)]
    damaged += [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole + b"\0", b"", b"PK\x03\x04" + b"\0" * 100]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ModelError) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_missing_file_a_folder_and_a_foreign_file_are_one_line_each(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": TENSORS["w"]}, tmp_path / "foreign.safetensors")
    for name in ("missing.safetensors", "foreign.safetensors", "."):
        with pytest.raises(ModelError) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    for folder in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(WardroundError, match="cannot be written") as caught:
            save_checkpoint(folder / "a.safetensors", TENSORS, MANIFEST)
        assert "\n" not in str(caught.value)


FILLER = """
import resource, sys, numpy as np
from pathlib import Path
from wardround.storage.checkpoint import save_checkpoint
from wardround.errors import WardroundError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save_checkpoint(Path(sys.argv[1]), {"w": np.zeros(10_000, np.float32)}, {"round": 2})
except WardroundError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_one_line_and_keeps_the_file_before(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, TENSORS, MANIFEST)
    done = subprocess.run([sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1 and not done.stderr
    assert load_checkpoint(path)[1] == MANIFEST
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_manifest_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError):
        save_checkpoint(tmp_path / "a.safetensors", TENSORS, {"epsilon": float("inf")})
    assert not list(tmp_path.iterdir())


def test_the_latest_is_the_newest_whole_one_and_a_damaged_one_is_named(tmp_path):
    assert latest_checkpoint(tmp_path, no_warning) is None
    for number in (8, 9, 10):
        save_checkpoint(tmp_path / f"round-{number:06d}.safetensors", TENSORS, {"round": number})
    assert latest_checkpoint(tmp_path, no_warning).manifest == {"round": 10}
    newest = tmp_path / "round-000010.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    lines = []
    assert latest_checkpoint(tmp_path, lines.append).manifest == {"round": 9}
    assert len(lines) == 1 and "round-000010" in lines[0]
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ModelError, match="none of its 3"):
        latest_checkpoint(tmp_path, lines.append)


WRITER = """
import sys, numpy as np
from pathlib import Path
from wardround.storage.checkpoint import save_checkpoint
number = 0
while True:
    number += 1
    tensors = {"w": np.full(200_000, number, np.float32)}
    save_checkpoint(Path(sys.argv[1]) / "only.safetensors", tensors, {"round": number})
    print(number, flush=True)
"""


def test_a_kill_at_any_moment_of_writing_leaves_a_whole_file(tmp_path):
    for delay in (0.0, 0.003, 0.011, 0.017):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        written = int(process.stdout.readline())
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        written = max([written, *map(int, process.stdout.read().split())])
        process.wait()
        tensors, manifest = load_checkpoint(tmp_path / "only.safetensors")
        assert manifest["round"] in (written, written + 1)
        assert (tensors["w"] == manifest["round"]).all()
        assert len(list(tmp_path.iterdir())) <= 2  # the file, and one partial file that the next write replaces
