"""Results go to the one archive that is named, if the hospital allows it, and only if they are marked as research."""

from __future__ import annotations

import io

import pytest
from builders.archive import archive, small_ct, write_site
from pydicom import dcmread
from typer.testing import CliRunner

from wardround.errors import PolicyRefusal, UsageError
from wardround_client.cli.main import app
from wardround_client.pacs import store as store_module
from wardround_client.pacs.node import open_node
from wardround_client.pacs.store import store

ALLOWED = "allow_store = true"
TITLE = "Research prediction - NOT FOR DIAGNOSTIC USE"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(store_module, "PAUSES_S", (0.0, 0.01, 0.02))


@pytest.fixture
def pacs():
    with archive() as one:
        yield one


def result(folder, number=1, **tags):
    """A secondary capture, as far as storing looks at it."""
    dataset = dcmread(io.BytesIO(small_ct(1, number)))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SeriesDescription = TITLE
    for name, value in tags.items():
        setattr(dataset, name, value)
    path = folder / f"picture-{number}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_results_are_stored_as_they_are_and_refusals_are_repeated(tmp_path, pacs):
    node = open_node(write_site(tmp_path / "site", pacs, ALLOWED), "archive")
    paths = [result(tmp_path, number) for number in (1, 2, 3)]
    pacs.refuse_first = 2
    done = store(node, paths)
    assert done.stored == tuple(paths) and not done.failed
    assert {uid: dcmread(path) for path in paths for uid in [dcmread(path).SOPInstanceUID]} == pacs.stored


def test_what_is_not_stored_is_counted_with_its_reason(tmp_path, pacs):
    node = open_node(write_site(tmp_path / "site", pacs, ALLOWED), "archive")
    pacs.refuse_first = 5
    done = store(node, [result(tmp_path, 1), result(tmp_path, 2)])
    assert len(done.stored) == 1 and len(done.failed) == 1
    assert "could not store the object (status 0xA700)" in done.reason


def test_after_its_time_nothing_is_tried_again(tmp_path, pacs, monkeypatch):
    monkeypatch.setattr(store_module, "LEAST_S", 0.0)
    monkeypatch.setattr(store_module, "EACH_S", 0.0)
    node = open_node(write_site(tmp_path / "site", pacs, ALLOWED), "archive")
    pacs.refuse_first = 9
    paths = [result(tmp_path, 1), result(tmp_path, 2)]
    assert store(node, paths).failed == tuple(paths)
    assert pacs.refuse_first >= 8


@pytest.mark.parametrize(
    "tags",
    [{"SeriesDescription": "Chest"}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}],
    ids=["not marked", "an image"],
)
def test_anything_else_is_refused_before_anything_is_sent(tmp_path, pacs, tags):
    node = open_node(write_site(tmp_path / "site", pacs, ALLOWED), "archive")
    with pytest.raises(UsageError, match="marked as research; not stored"):
        store(node, [result(tmp_path, 1), result(tmp_path, 2, **tags)])
    assert not pacs.stored


def test_without_the_hospitals_consent_nothing_is_stored(tmp_path, pacs):
    site = write_site(tmp_path / "site", pacs)
    with pytest.raises(PolicyRefusal, match="allow_store"):
        store(open_node(site, "archive"), [result(tmp_path)])
    words = ["predict", "model", "scans", "--site", str(site), "--store", "archive"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, PolicyRefusal) and not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, words)
    assert "--store needs --out" in str(done.exception)
    assert not pacs.stored
