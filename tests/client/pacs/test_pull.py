"""Pulling from a PACS in this process: complete or named, resumed, nothing twice, nothing that was not asked for."""

from __future__ import annotations

import io
import json
import re
import socket
import stat
import time
from itertools import repeat
from pathlib import Path

import pytest
from builders.archive import Archive, archive, small_ct, write_site
from pydicom import dcmread
from typer.testing import CliRunner

from wardround_client.cli.main import app
from wardround_client.pacs import dimse
from wardround_client.pacs import pull as pull_module
from wardround_client.pacs.dimse import DicomFinder
from wardround_client.pacs.manifest import file_name, manifest_path
from wardround_client.pacs.node import PacsError, open_node

WAYS = ("c-move", "c-get")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(pull_module, "PAUSES_S", (0.01, 0.02))


@pytest.fixture
def pacs():
    with archive(*(small_ct(study, number) for study in (1, 2) for number in range(1, 6))) as one:
        yield one


def call(tmp_path: Path, *words: str, node: str = "archive"):
    site = tmp_path / "site"
    given = ["pull", node, "--from", "2024-01-01", "--to", "2024-02-01", "--into-folder", str(tmp_path / "out")]
    return CliRunner().invoke(app, [*given, "--site", str(site), "--json", *words])


def pulled(tmp_path: Path, *words: str) -> dict:
    done = call(tmp_path, *words)
    assert done.stdout, done.exception
    return json.loads(done.stdout)


def held(tmp_path: Path) -> set[str]:
    return {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("way", WAYS)
def test_all_objects_come_once_and_as_they_were(tmp_path, pacs: Archive, way):
    write_site(tmp_path / "site", pacs)
    found = pulled(tmp_path, "--way", way)
    assert found["complete"] and found["came"] == found["objects"] == 10 and found["studies"] == 2
    for path in (tmp_path / "out").iterdir():
        stored = dcmread(path)
        assert stored == pacs.objects[stored.SOPInstanceUID]
        assert path.name == file_name(stored.SOPInstanceUID)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(held(tmp_path)) == 10
    assert stat.S_IMODE(manifest_path(tmp_path / "out").stat().st_mode) == 0o600

    pacs.requests.clear()
    again = pulled(tmp_path, "--way", way)
    assert again["complete"] and again["came"] == 0 and again["before"] == 10
    assert not [request for request in pacs.requests if not request.startswith("find")]


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_connection_is_repeated_for_what_is_missing(tmp_path, pacs: Archive, way):
    write_site(tmp_path / "site", pacs)
    pacs.send_at_most = 2
    found = pulled(tmp_path, "--way", way)
    assert found["complete"] and found["came"] == 10 and found["duplicates"] == 0
    assert any("IMAGE 3" in request for request in pacs.requests)


def test_what_the_pacs_withholds_is_named_and_comes_with_the_same_command(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    pacs.withheld = {"1.2.3.2.1.4"}
    done = call(tmp_path)
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["missing"] == 1 and found["came"] == 9 and not found["complete"]
    assert '"1.2.3.2.1.4"' in manifest_path(tmp_path / "out").read_text().splitlines()[-1]
    pacs.withheld = set()
    found = pulled(tmp_path)
    assert found["complete"] and found["came"] == 1 and len(held(tmp_path)) == 10


def test_what_was_not_asked_for_is_refused_and_counted(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    pacs.sends_too = [dcmread(io.BytesIO(small_ct(9, 1)))]
    found = pulled(tmp_path, "--modality", "CT")
    assert found["unasked"] >= 1 and len(held(tmp_path)) == 10
    assert "1.2.3.9.1.1" not in held(tmp_path)


def test_what_comes_twice_is_kept_once_and_counted(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    pacs.sends_too = [pacs.objects["1.2.3.1.1.1"]]
    found = pulled(tmp_path)
    assert found["complete"] and found["came"] == 10 and found["duplicates"] >= 1 and len(held(tmp_path)) == 10


def test_a_study_that_grows_while_it_is_pulled_is_complete(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    pacs.grows = [small_ct(1, 6), small_ct(1, 7)]
    found = pulled(tmp_path)
    assert found["complete"] and found["came"] == 12 and len(held(tmp_path)) == 12


def test_options_select_studies_and_series(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    assert pulled(tmp_path, "--modality", "MR")["objects"] == 0
    assert pulled(tmp_path, "--body-part", "HEAD")["objects"] == 0
    assert pulled(tmp_path, "--description", "AXI")["objects"] == 10
    assert pulled(tmp_path, "--description", "knee")["objects"] == 0


def test_a_list_of_accession_numbers_names_the_rows_without_a_study(tmp_path, pacs: Archive):
    site = write_site(tmp_path / "site", pacs)
    (tmp_path / "list.csv").write_text("AccessionNumber,x\nA1,\nA7,\n")
    words = ["--accessions", str(tmp_path / "list.csv"), "--into-folder", str(tmp_path / "out"), "--site", str(site)]
    done = CliRunner().invoke(app, ["pull", "archive", *words])
    assert done.exit_code == 0 and "The PACS has no study for 1 row of the list (row 3)" in done.stdout
    assert "A7" not in done.stdout and len(held(tmp_path)) == 5


def test_a_file_that_was_removed_is_pulled_again(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    pulled(tmp_path)
    (tmp_path / "out" / file_name("1.2.3.1.1.2")).unlink()
    assert pulled(tmp_path)["came"] == 1 and len(held(tmp_path)) == 10


def test_a_foreign_folder_is_refused(tmp_path, pacs: Archive):
    write_site(tmp_path / "site", pacs)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    done = call(tmp_path)
    assert done.exit_code and "choose a new or an empty folder" in str(done.exception)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_only_the_pacs_may_connect_to_the_receiving_side(tmp_path, pacs: Archive):
    """The PACS sends from 127.0.0.1, which the site does not allow: nothing comes, and the line says why."""
    site = write_site(tmp_path / "site", pacs)
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text + 'sends_from = ["10.1.2.3"]\n')
    done = call(tmp_path)
    assert done.exit_code == 1 and "not in sends_from" in done.stdout
    assert json.loads(done.stdout)["came"] == 0


@pytest.mark.parametrize(
    "change, says",
    [
        (('pacs_ae = "TESTPACS"', 'pacs_ae = "OTHER"'), "rejects the association: called ae title not recogni[sz]ed"),
        (("timeout_s = 2", "timeout = 2"), "pacs.archive.timeout: Extra inputs"),
        (("[pacs.archive.dicom]", "[pacs.other.dicom]"), "pacs.archive"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path, pacs: Archive, change, says):
    site = write_site(tmp_path / "site", pacs)
    path = site / "site.toml"
    path.write_text(path.read_text().replace(*change))
    done = call(tmp_path)
    assert done.exit_code and re.search(says, str(done.exception)) and "\n" not in str(done.exception)


def test_a_pacs_that_is_off_and_one_that_hangs_are_one_clear_line(tmp_path, pacs: Archive):
    site = write_site(tmp_path / "site", pacs)
    path = site / "site.toml"
    with socket.socket() as silent:  # accepts connections and never replies
        silent.bind(("127.0.0.1", 0))
        path.write_text(re.sub(r'(address = "127.0.0.1):\d+', rf"\1:{silent.getsockname()[1]}", path.read_text()))
        done = call(tmp_path)
    assert done.exit_code == 1 and "no connection to 127.0.0.1" in str(done.exception)


def test_an_answer_without_end_ends_with_the_time_limit(tmp_path, pacs: Archive):
    node = open_node(write_site(tmp_path / "site", pacs), "archive")
    pacs.found = lambda query: repeat(pacs.objects["1.2.3.1.1.1"])
    begun = time.monotonic()
    with DicomFinder(node, begun + 0.5) as finder, pytest.raises(PacsError, match="the time limit is reached"):
        finder.find("STUDY", {"StudyDate": "20240105"}, ["StudyInstanceUID"])
    assert time.monotonic() - begun < 10


def test_an_answer_has_a_most_number_of_rows(tmp_path, pacs: Archive, monkeypatch):
    node = open_node(write_site(tmp_path / "site", pacs), "archive")
    for most in (2, 1):
        monkeypatch.setattr(dimse, "MOST_ROWS", most)
        with DicomFinder(node, time.monotonic() + 60) as finder:
            if most == 2:
                assert len(finder.find("STUDY", {"StudyDate": "20240105"}, ["StudyInstanceUID"]).rows) == 2
                continue
            with pytest.raises(PacsError, match="the answer is too long"):
                finder.find("STUDY", {"StudyDate": "20240105"}, ["StudyInstanceUID"])


def test_an_unknown_archive_and_an_unbounded_request_are_refused(tmp_path, pacs: Archive):
    site = write_site(tmp_path / "site", pacs)
    done = call(tmp_path, node="backup")
    assert "no section [pacs.backup]; it has archive" in str(done.exception)
    done = CliRunner().invoke(app, ["pull", "archive", "--into-folder", str(tmp_path / "out"), "--site", str(site)])
    assert "say what to pull" in str(done.exception)
