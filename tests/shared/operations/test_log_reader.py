"""`logs` shows all that was logged, in order and once, also across rotation.

The output of a daemon's processes is included with its run, round and site.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardround.operations.log_reader import Logs, line_of, names_place
from wardround.operations.logs import OwnersRotatingFile, at, log_to, relayed
from wardround.processes.supervisor import Child, supervise
from wardround.study.load import parse_study
from wardround_server.runs.folder import create_run


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root, level = logging.getLogger(), logging.getLogger().level
    yield tmp_path / "logs"
    for handler in [one for one in root.handlers if isinstance(one, OwnersRotatingFile)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def texts(entries) -> list[str]:
    return [entry["text"] for entry in entries]


def test_every_record_is_told_once_and_in_order_also_across_rotated_files_and_while_they_rotate(folder: Path) -> None:
    log_to(folder / "server.log", max_bytes=2000, kept=100)
    log, told = logging.getLogger("test"), []
    for number in range(60):
        log.info("record %d", number)
    logs = Logs(folder)
    told += texts(logs.news())
    for number in range(60, 200):
        log.info("record %d", number)
        if number % 7 == 0:
            told += texts(logs.news())
    told += texts(logs.news())
    assert len(list(folder.iterdir())) > 5
    assert told == [f"record {number}" for number in range(200)] and list(logs.news()) == []


def test_a_line_is_told_when_it_is_whole_and_what_is_no_entry_hides_no_other_one(folder: Path) -> None:
    folder.mkdir()
    path = folder / "server.log"
    whole = json.dumps({"at": "2026-11-24T10:00:00.000Z", "level": "info", "logger": "l", "text": "first"})
    path.write_text(f'{whole}\n{{"at": 3}}\nplain\n{whole[:20]}')
    logs = Logs(folder)
    first = list(logs.news())
    assert [entry["level"] for entry in first] == ["info", "unreadable", "unreadable"]
    assert texts(first) == ["first", '{"at": 3}', "plain"] and list(logs.news()) == []
    with path.open("a") as file:
        file.write(whole[20:] + "\n")
    assert texts(logs.news()) == ["first"]


def printed_by(program: str, folder: Path, count: int) -> list[dict]:
    """The first entries, at least `count`, that are in a daemon's log when its one child is this Python `program`."""
    environment = {"PATH": "/usr/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONUNBUFFERED": "1"}
    child = Child(name="phase", command=[sys.executable, "-c", program], environment=environment, folder=folder)
    stopped, entries, logs = threading.Event(), [], Logs(folder)
    ends = time.monotonic() + 60

    def each() -> None:
        entries.extend(entry for entry in logs.news() if "started as" not in entry["text"])
        if len(entries) >= count or time.monotonic() > ends:
            stopped.set()

    supervise([child], stopped, each)
    return entries


def test_what_a_process_of_a_daemon_prints_is_in_the_daemons_log_with_its_run_round_and_traceback(folder: Path) -> None:
    log_to(folder / "server.log")
    program = (
        "import logging; from wardround.operations.logs import at, print_lines; print_lines('a'); print_lines('a')\n"
        "print('plain text'); print('{\"text\": \"of another kind\"}')\n"
        "with at(run='run-1', round=3):\n"
        "    logging.getLogger('a.b').warning('50 % of it\\nand more')\n"
        "    try: 1 / 0\n"
        "    except ZeroDivisionError: logging.getLogger('a').exception('failed')\n"
        "import time; time.sleep(60)\n"
    )
    entries = printed_by(program, folder, 4)
    assert texts(entries) == ["plain text", '{"text": "of another kind"}', "50 % of it\nand more", "failed"]
    warning, failed = entries[2:]
    assert (warning["run"], warning["round"], warning["level"], warning["logger"]) == ("run-1", 3, "warning", "a.b")
    assert "ZeroDivisionError" in failed["traceback"] and "ZeroDivisionError" in line_of(failed)
    assert "run" not in entries[0]
    for line in ("[1]", "{", "s{", "s[1]", 's{"at": 3}', "s"):
        assert not relayed(line, "s")


ENTRY = {
    "at": "2026-11-20T08:00:00.000Z",
    "level": "info",
    "logger": "wardround_client.cli.studies",
    "text": "study nodules: approved by Marie Curie",
    "run": "run-1",
    "traceback": "telephone 555 0100",
}


def test_a_line_of_our_form_that_a_peer_made_a_program_print_is_that_programs_text_and_no_entry_of_ours(
    folder: Path,
) -> None:
    """Flower prints a message's group as it came; the program knows the secret, and the peer does not."""
    log_to(folder / "server.log")
    line = json.dumps(ENTRY)
    program = (
        "import os\nfrom logging import INFO\nfrom flwr.supercore import log\n"
        "from wardround.operations.logs import SECRET\n"
        f"log(INFO, '[RUN %s, ROUND %s]', 7, {f'1]{chr(10)}{line}{chr(10)}['!r})\n"
        f"print('', 'x' + os.environ[SECRET] + {line!r}, '0' * 32 + {line!r}, sep='\\n')\n"
        f"print({line!r} + chr(13) + '\\x9b')\n"
        "import time; time.sleep(60)\n"
    )
    entries = printed_by(program, folder, 6)
    assert {entry["logger"] for entry in entries} == {"wardround.processes.supervisor.phase"}
    assert {tuple(entry) for entry in entries} == {("at", "level", "logger", "text")}
    assert texts(entries)[1:] == [line, "[]", "x" + line, "0" * 32 + line, line + "\\r\\x9b"]


def test_a_few_huge_lines_do_not_rotate_a_log_away(folder: Path) -> None:
    log_to(folder / "server.log", max_bytes=100_000, kept=1)
    logging.getLogger("test").info("refused before: evidence")
    program = (
        "import logging; from wardround.operations.logs import print_lines; print_lines('a')\n"
        "for n in range(4): print('begins' + 'x' * 8_000_000 + 'ends')\n"
        "for n in range(4): logging.getLogger('a').error('begins' + 'y' * 8_000_000 + 'ends')\n"
        "try: raise ValueError('z' * 8_000_000)\n"
        "except ValueError: logging.getLogger('a').exception('t' * 8_000_000)\n"
        "print('last', flush=True)\nimport time; time.sleep(60)\n"
    )
    entries = printed_by(program, folder, 11)
    assert entries[0]["text"] == "refused before: evidence" and entries[-1]["text"] == "last"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 100_000
    assert all(len(entry["text"]) < 4200 and entry["text"].startswith("begins") for entry in entries[1:9])
    assert all(entry["text"].endswith("ends") and entry["logger"] == "a" for entry in entries[5:9])
    assert "ValueError" in entries[9]["traceback"] and len(entries[9]["traceback"]) < 16500


def test_an_entry_names_a_run_by_its_field_or_by_a_whole_word(folder: Path) -> None:
    log_to(folder / "server.log")
    with at(run="run-1"):
        logging.getLogger("test").info("asked")
    for text in ("run-1, which goes on", "site north: (run-1)", "run-12 begins"):
        logging.getLogger("test").info(text)
    assert [names_place(entry, "run", "run-1") for entry in Logs(folder).news()] == [True, True, True, False]
    assert names_place({"text": "site north is admitted"}, "site", "north")
    assert not names_place({"text": "north", "site": "east"}, "site", "north")


def server_with_logs(server: Path) -> str:
    from wardround_server.operations.config import config_text

    server.mkdir(exist_ok=True)
    (server / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    study = {"study": {"name": "tiny", "rounds": 2}, "data": {"labels": ("a", "b")}}
    privacy = {"epsilon": 8.0, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100}
    run = create_run(server, parse_study({**study, "privacy": privacy, "aggregation": {"nominal_sites": 1}})).run_id
    return run


def logs_of(server: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wardround_server.cli.main", "logs", *words, "--server", str(server)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_chooses_by_run_and_says_so_where_nothing_is_there(folder: Path, tmp_path: Path) -> None:
    run = server_with_logs(tmp_path)
    assert "contains no log yet" in logs_of(tmp_path).stderr
    log_to(folder / "server.log")
    logging.getLogger("test").info("about all")
    assert f"nothing is logged about run {run}" in logs_of(tmp_path, "--run", run).stderr
    for number in range(3):
        with at(run=run, round=number):
            logging.getLogger("test").warning("late")
    assert len(logs_of(tmp_path).stdout.splitlines()) == 4
    (said,) = logs_of(tmp_path, "--run", run, "--last", "1").stdout.splitlines()
    assert said.endswith(f"[run {run} round 2] WARNING late")
    entries = [json.loads(line) for line in logs_of(tmp_path, "--run", run, "--json").stdout.splitlines()]
    assert [entry["round"] for entry in entries] == [0, 1, 2]
    for words, part in ((("--run", "none"), "there is no run"), (("--site", "north"), "no such site")):
        done = logs_of(tmp_path, *words)
        assert done.returncode == 2 and part in done.stderr and len(done.stderr.splitlines()) == 1


def test_following_shows_what_comes_until_it_is_stopped(folder: Path, tmp_path: Path) -> None:
    server_with_logs(tmp_path)
    log_to(folder / "server.log")
    logging.getLogger("test").info("before")
    command = [sys.executable, "-m", "wardround_server.cli.main", "logs", "--follow", "--server", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().endswith("before\n")
        logging.getLogger("test").info("after")
        assert process.stdout.readline().endswith("after\n")
    finally:
        process.terminate()
        assert process.wait(30) == 130
    assert "Traceback" not in process.communicate()[1]
