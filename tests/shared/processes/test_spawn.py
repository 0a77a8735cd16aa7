"""Worker processes import nothing from the working folder, which may hold a user's files of any name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAP = "import os\nopen(os.path.join(os.path.dirname(__file__), 'WAS-RUN'), 'w').close()\n"
NAMES = ("types", "numpy", "random", "string", "wardround", "resource", "signal")
SPAWN = """
import sys
sys.path[:] = {path!r}

if __name__ == "__main__":
    from wardround.processes.spawn import FreshContext
    context = FreshContext()
    process, lock = context.Process(target=print, args=("worked",)), context.Lock()  # the lock starts a tracker
    process.start()
    process.join(60)
    sys.exit(process.exitcode)
"""
PRV = """
import sys
sys.path[:] = {path!r}
from wardround.accounting import GaussianEvent, spent_prv
print("worked" if spent_prv([GaussianEvent(noise_multiplier=1.0, sampling_rate=0.1, steps=10)], 1e-5) else "failed")
"""


@pytest.mark.parametrize("script", [SPAWN, PRV])
def test_a_process_runs_no_file_of_the_working_folder(tmp_path: Path, script: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(TRAP, encoding="utf-8")
    (tmp_path / "script.py").write_text(script.format(path=[path for path in sys.path if path]), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "worked\n", done.stderr
    assert not (folder / "WAS-RUN").exists()
