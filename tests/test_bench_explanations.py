"""The maps of the encoder and the occlusion maps of a small ResNet point at nodules, and depend on the weights."""

import json
import subprocess
import sys

import pytest
from paths import ROOT


@pytest.mark.slow
def test_explanations_keep_their_bars() -> None:
    command = [sys.executable, str(ROOT / "bench" / "explanations.py"), "--networks", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    for name, game in document["pointing"].items():
        for kind in ("occlusion",) if name.startswith("resnet") else ("evidence", "occlusion"):
            hits, count = game[kind]["called malignant"]
            assert hits / count >= 0.85, (name, kind)  # the goal is 0.9; a share of 110 phantoms is known to +-0.06
    for kinds in document["random"].values():
        assert max(kind["rank_correlation"] for kind in kinds.values()) < 0.4
