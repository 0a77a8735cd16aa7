"""What the three programs have in common: a stop is one line, and never comes in the middle of an import."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal
from wardround.command_line import program, run_program

app = program("try-this", "A program.")

@app.command()
def load():
    import native
    print("after", flush=True)

@app.command()
def work():
    os.kill(os.getpid(), signal.Signals({number}))
    print("after", flush=True)

run_program(app, "try-this", full_disk="full")
"""
NATIVE = """
import os, signal, time
os.kill(os.getpid(), signal.Signals({number}))
ends = time.monotonic() + 0.5
while time.monotonic() < ends:  # loading; an exception here would abort a native library
    pass
print("loaded", flush=True)
time.sleep(0.2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command, printed", [("load", "loaded\n"), ("work", "")])
def test_a_stop_is_one_line_and_waits_for_the_end_of_an_import(tmp_path, number, command, printed):
    (tmp_path / "native.py").write_text(NATIVE.format(number=int(number)))
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(number=int(number)).replace('print("after"', 'time.sleep(5); print("after"'))
    script.write_text("import time\n" + script.read_text())
    done = subprocess.run([sys.executable, script, command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, printed, "try-this: stopped\n")


def test_who_was_started_deaf_to_ctrl_c_stays_deaf(tmp_path):
    """As in the background of a shell without job control: Ctrl-C is for what runs in front."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(number=int(signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = subprocess.run([sys.executable, script, "work"], capture_output=True, text=True, timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout) == (0, "after\n")
