"""The figures of predictions on real nodules keep their bars: calibration, coverage of label sets, and refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

DATA = Path(os.environ.get("WARDROUND_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "lidc_nodules").is_dir(), reason="needs the LIDC pack: set WARDROUND_TEST_DATA")
def test_predictions_keep_their_bars() -> None:
    command = [sys.executable, str(ROOT / "bench" / "predictions.py"), "--draws", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    for epsilon in ("8.0", "2.0"):
        figures = document["calibration"][epsilon]
        assert figures["ece_images_calibrated"] <= 0.05 < figures["ece_images"]
        assert figures["coverage"] == pytest.approx(0.9, abs=0.02)
    refused = document["refused"]
    assert max(refused.pop("LIDC nodules"), refused.pop("fresh phantoms")) <= 0.05
    assert min(refused.values()) >= 0.94
