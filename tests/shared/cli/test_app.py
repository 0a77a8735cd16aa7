"""The common behaviour of the three programs: a stop is reported in one line, and never interrupts an import."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PROGRAM = """
import os, signal
from wardround.cli.app import program, run_program

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


STARTED = """
import os, signal, time
from wardround.cli.app import program, run_program
from wardround.processes.spawn import FreshContext

class Piece:
    def __getstate__(self):  # the worker is being told what it needs
        os.kill(os.getpid(), signal.Signals({number}))
        time.sleep(0.2)
        return {{"told": "all"}}

def work(piece):
    print(piece.told, flush=True)

app = program("try-this", "A program.")

@app.command()
def other():
    pass

@app.command()
def start():
    process = FreshContext().Process(target=work, args=(Piece(),))
    try:
        process.start()
        time.sleep(30)
    finally:
        process.join(30)

if __name__ == "__main__":
    run_program(app, "try-this", full_disk="full")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_until_a_worker_has_been_told_all_it_needs(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(STARTED.format(number=int(number)))
    done = subprocess.run([sys.executable, script, "start"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "all\n", "try-this: stopped\n")


PRINTING = """
import errno, os, sys
from wardround.cli.app import literal_console, print_table, program, run_program

app = program("try-this", "A program.")

@app.command()
def show(path: str):
    print(f"ε = 1 in {path}")
    literal_console().print(f"Report: {path}/[bold]/:smile:")
    print_table(("site", "ε"), [("K[i]ln", path)])

@app.command()
def write(name: str):
    number = getattr(errno, name)
    raise OSError(number, os.strerror(number), "results/model")

run_program(app, "try-this", full_disk="full")
"""
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def printed(tmp_path, *words, **environment):
    (tmp_path / "script.py").write_text(PRINTING, encoding="utf-8")
    command = [sys.executable, tmp_path / "script.py", *words]
    return subprocess.run(command, capture_output=True, timeout=60, env={**os.environ, **environment})


@pytest.mark.parametrize("environment", [{}, C_LOCALE, {"PYTHONIOENCODING": "latin-1"}])
def test_every_text_can_be_printed_in_every_terminal_and_markup_is_text(tmp_path, environment):
    done = printed(tmp_path, "show", b"K\xf6ln", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    first, second, *table = done.stdout.decode("latin-1").splitlines()
    assert first.endswith(" = 1 in K\\udcf6ln")
    assert second == "Report: K\\udcf6ln/[bold]/:smile:"
    assert "K[i]ln" in table[-1] and "K\\udcf6ln" in table[-1]


@pytest.mark.parametrize(
    "name, message",
    [
        ("ENOSPC", "full"),
        ("EROFS", "results/model: Read-only file system; choose another folder, or have this one mounted writable"),
        ("EACCES", "results/model: Permission denied; choose another folder, or change its owner or permissions"),
    ],
)
def test_an_error_of_the_disk_is_one_line_that_names_the_file(tmp_path, name, message):
    done = printed(tmp_path, "write", name)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", f"try-this: {message}\n".encode())


def markup_in(path: Path) -> list[str]:
    """The places of a file where Rich would read a path as markup."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            literal = any(word.arg == "markup" and ast.unparse(word.value) == "False" for word in node.keywords)
            if node.func.id in ("Console", "TextColumn") and not literal:
                found.append(f"{path.name}:{node.lineno}")
    return found


def test_no_console_and_no_bar_reads_a_path_as_markup(tmp_path):
    packages = ("shared/wardround", "client/wardround_client", "server/wardround_server", "simulation")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100 and [place for path in files for place in markup_in(path)] == []
    (tmp_path / "x.py").write_text("Console().print(path)\n", encoding="utf-8")
    assert markup_in(tmp_path / "x.py")
