"""Structured logs: every record is one JSON line with its origin; files are bounded and belong to their owner."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardround.operations.logs import OwnersRotatingFile, at, log_to


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    root, level = logging.getLogger(), logging.getLogger().level
    yield tmp_path / "logs" / "site.log"
    for handler in [one for one in root.handlers if isinstance(one, OwnersRotatingFile)]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_record_names_site_run_and_round_and_only_inside_them(path: Path) -> None:
    log_to(path)
    log = logging.getLogger("test")
    with at(site="north", run="run-1"):
        with at(round=3):
            log.warning("refused: %s", "budget")
        log.info("later")
    log.info("outside")
    inside, later, outside = lines(path)
    assert (inside["site"], inside["run"], inside["round"], inside["level"]) == ("north", "run-1", 3, "warning")
    assert inside["text"] == "refused: budget" and "round" not in later and later["run"] == "run-1"
    assert not {"site", "run", "round"} & set(outside)


def test_a_round_of_one_thread_is_not_the_round_of_another(path: Path) -> None:
    log_to(path)
    with at(round=3):
        thread = threading.Thread(target=lambda: logging.getLogger("other").info("beside"))
        thread.start()
        thread.join()
    assert "round" not in lines(path)[0]


def test_a_text_with_line_ends_and_a_traceback_stay_one_line(path: Path) -> None:
    log_to(path)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception('a "quoted"\nforged": line')
    (record,) = lines(path)
    assert "two\nlines" in record["traceback"] and record["text"] == 'a "quoted"\nforged": line'


def test_files_are_bounded_in_size_and_number_and_nobody_elses(path: Path) -> None:
    log_to(path, max_bytes=2000, kept=3)
    log_to(path, max_bytes=2000, kept=3)
    for number in range(200):
        logging.getLogger("test").info("record %d", number)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["site.log", "site.log.1", "site.log.2", "site.log.3"]
    assert all(file.stat().st_size <= 2000 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert lines(path)[-1]["text"] == "record 199", "asked twice, written once"
    numbers = [record["text"] for file in reversed(files) for record in lines(file)]
    assert len(numbers) == len(set(numbers))


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("")
    path.chmod(0o644)
    log_to(path)
    assert path.stat().st_mode & 0o777 == 0o600
