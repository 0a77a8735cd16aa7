"""A pull from a real Orthanc does not fall far behind the libraries alone, and its memory is flat."""

import json
import subprocess
import sys

import pytest
from paths import ROOT
from whole.pacs import missing

HERE = 0.4  # docs/benchmarks.md has more, measured alone; other tests write to the same disk meanwhile


@pytest.mark.slow
def test_a_pull_is_not_far_behind_the_libraries_alone() -> None:
    if why := missing():
        pytest.skip(why)
    command = [sys.executable, str(ROOT / "bench" / "pacs_pull.py"), "--repeats", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    for way in ("c-move", "web"):
        assert document["ratio"][way]["median"] >= HERE
        few, all_ = (one["mb"] for one in document["peak_mb"] if one["way"] == way)
        assert all_ < few * 1.25
