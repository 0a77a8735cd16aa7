"""A pull into the cohort gives the cohort of a pull into a folder and an ingest, and keeps no originals."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from builders.archive import SLICES, SMALL_STUDY, Archive, archive, slices, write_site
from pydicom import Dataset, dcmread
from pydicom.uid import ComprehensiveSRStorage
from typer.testing import CliRunner

from wardround.errors import DataError
from wardround.study.load import load_study
from wardround_client.cli.main import app
from wardround_client.pacs import pull as pull_module
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.images.ahead import Ahead, Origin
from wardround_client.sources.images.decoding.workers import WorkerPool


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(pull_module, "PAUSES_S", (0.01, 0.02))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one worker is started sooner than several


@pytest.fixture
def pacs():
    with archive(*(one for patient in (1, 2, 3) for one in slices(patient))) as here:
        yield here


@pytest.fixture
def site(tmp_path: Path, pacs: Archive) -> Path:
    made = write_site(tmp_path / "site", pacs)
    (made / "keys").mkdir(mode=0o700)
    (made / "keys" / "pseudonym.key").write_bytes(bytes(32))
    (tmp_path / "study.toml").write_text(SMALL_STUDY)
    labels = ["PatientID,label", "CANARY-1,benign", "CANARY-2,malignant", "CANARY-3,benign"]
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    return made


def called(site: Path, *words: str):
    return CliRunner().invoke(app, [*words, "--site", str(site), "--json"])


def pull(site: Path, *words: str):
    place = site.parent
    given = ["pull", "archive", "--from", "2024-01-01", "--to", "2024-02-01", "--labels", str(place / "labels.csv")]
    return called(site, *given, *words)


def into_cohort(site: Path, *words: str):
    return pull(site, "--into", "cohort", "--study", str(site.parent / "study.toml"), *words)


def table(site: Path) -> set[str]:
    return set((site / "cohort" / "table.csv").read_text().splitlines())


def test_the_cohort_is_that_of_a_folder_and_no_original_stays(site, tmp_path):
    done = into_cohort(site)
    assert done.exit_code == 0, done.exception
    report = json.loads(done.stdout)
    assert report["quality"]["images"] == 9 and report["decoded"] == 9
    assert "pulled" not in "".join(path.name for path in site.iterdir() if path.is_dir())
    assert not (site / "pulled.pull.jsonl").exists()
    assert [path for path in site.rglob("*") if path.suffix == ".dcm"] == []
    found = table(site)

    assert pull(site, "--into-folder", str(tmp_path / "folder")).exit_code == 0
    done = called(site, "ingest", str(tmp_path / "folder"), "--study", str(tmp_path / "study.toml"))
    report = json.loads(done.stdout)
    assert report["quality"]["images"] == 9 and report["decoded"] == 0  # the same requests as before
    assert table(site) == found
    assert open_cohort(site / "cohort").patient_count == 3


def test_an_interrupted_pull_keeps_what_is_prepared_and_goes_on(site, pacs):
    pacs.withheld = {"1.2.3.1.2"}
    done = into_cohort(site)
    assert done.exit_code == 1 and not (site / "cohort").exists()
    there = [path.name for path in (site / "pulled").iterdir() if path.suffix == ".dcm"]
    assert len(there) == 2  # of the study that is not complete; the files of the others are gone
    pacs.withheld, pacs.requests = set(), []
    done = into_cohort(site)
    assert done.exit_code == 0, done.exception
    assert [one for one in pacs.requests if one.startswith("move")] == ["move IMAGE 1"]
    assert open_cohort(site / "cohort").patient_count == 3 and not (site / "pulled").exists()


@pytest.mark.slow
def test_a_series_that_grew_after_it_was_prepared_comes_again(site, pacs):
    pacs.withheld = {"1.2.3.1.2"}
    assert into_cohort(site).exit_code == 1
    pacs.withheld = set()
    pacs.add(*slices(1, [SLICES]))
    done = into_cohort(site)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["quality"]["images"] == 10


@pytest.mark.slow
def test_another_request_or_study_takes_nothing_of_an_unfinished_one(site, pacs):
    pacs.withheld = {"1.2.3.1.2"}
    assert into_cohort(site).exit_code == 1
    pacs.withheld = set()
    (site.parent / "list.csv").write_text("StudyInstanceUID\n1.2.2\n1.2.3\n")
    words = ["pull", "archive", "--studies", str(site.parent / "list.csv"), "--into", "cohort"]
    more = ["--study", str(site.parent / "study.toml"), "--labels", str(site.parent / "labels.csv")]
    done = called(site, *words, *more)
    assert done.exit_code == 0, done.exception
    assert open_cohort(site / "cohort").patient_count == 2


def report_on(image: Dataset, label: str) -> bytes:
    """A report (SR) whose one measurement group is about an image, as far as labels are read from it."""

    def item(kind: str, code: str = "", meaning: str = "", **more) -> Dataset:
        made = Dataset()
        made.ValueType = kind
        name = Dataset()
        name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = code or "1", "DCM" if code else "99T", meaning
        made.ConceptNameCodeSequence = [name]
        for keyword, value in more.items():
            setattr(made, keyword, value)
        return made

    value, reference = Dataset(), Dataset()
    value.CodeValue, value.CodingSchemeDesignator, value.CodeMeaning = "2", "99T", label
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    parts = [item("CODE", ConceptCodeSequence=[value]), item("IMAGE", ReferencedSOPSequence=[reference])]
    group = item("CONTAINER", "125007", "Measurement Group", ContentSequence=parts)
    made = dcmread(io.BytesIO(slices(1, [0])[0]))
    del made.PixelData
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{image.SOPInstanceUID}.9"
    made.StudyInstanceUID, made.SeriesInstanceUID = image.StudyInstanceUID, f"{image.StudyInstanceUID}.9"
    made.Modality, made.PatientID, made.ContentSequence = "SR", image.PatientID, [group]
    content = io.BytesIO()
    made.save_as(content, enforce_file_format=True)
    return content.getvalue()


def test_reports_in_the_archive_become_the_labels_of_a_folder(site, pacs, tmp_path):
    first, second = (dcmread(io.BytesIO(slices(patient, [1])[0])) for patient in (1, 2))
    pacs.add(report_on(first, "Benign"), report_on(second, "malignant"))
    words = ["pull", "archive", "--from", "2024-01-01", "--to", "2024-02-01", "--modality", "CT"]
    study = ["--study", str(tmp_path / "study.toml"), "--into-folder", str(tmp_path / "folder")]
    done = called(site, *words, *study, "--labels-from", "sr")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["objects"] == 11
    rows = [f"{one.SOPInstanceUID},,{label}" for one, label in ((first, "benign"), (second, "malignant"))]
    table = (tmp_path / "folder" / "labels.csv").read_text().splitlines()
    assert table[0] == "SOPInstanceUID,frame,label" and sorted(table[1:]) == sorted(rows)
    done = called(site, "ingest", str(tmp_path / "folder"), "--study", str(tmp_path / "study.toml"))
    labelled = [line for line in (site / "cohort" / "table.csv").read_text().splitlines() if "benign" in line]
    assert done.exit_code == 0 and len(labelled) == 1
    done = called(site, *words, *study, "--labels-from", "seg")
    assert "none of 0 SEG objects" in str(done.exception)


def test_an_objection_discards_an_unfinished_pull(site, pacs):
    pacs.withheld = {"1.2.3.1.2"}
    assert into_cohort(site).exit_code == 1 and (site / "pulled" / ".prepared").exists()
    done = called(site, "forget", "CANARY-1", "--yes")
    assert done.exit_code == 0, done.exception
    assert not (site / "pulled").exists()
    pacs.withheld = set()
    assert into_cohort(site).exit_code == 0
    cohort = open_cohort(site / "cohort")
    assert cohort.patient_count == 2 and pseudonym(bytes(32), "CANARY-1") not in cohort.pseudonyms


def test_a_crash_between_the_steps_of_preparing_loses_nothing(tmp_path, site, monkeypatch):
    """Whatever was written before a crash, a later call prepares the same images or finds the files there."""
    folder = tmp_path / "some"
    data = load_study(tmp_path / "study.toml").data
    origin = Origin(data=data, labels=None, key=bytes(32))
    names = [f"{number}.dcm" for number in range(SLICES)]
    from wardround_client.sources.images import ahead as module

    with WorkerPool(1) as pool:
        Ahead(folder, origin)
        for name, content in zip(names, slices(1), strict=True):
            (folder / name).write_bytes(content)
        appended = module.append_lines
        for fails_at in (module.OUTCOMES, module.SCANS):

            def append(path, lines, fails_at=fails_at):
                if path.name == fails_at:
                    raise OSError("crash")
                appended(path, lines)

            monkeypatch.setattr(module, "append_lines", append)
            with pytest.raises(OSError, match="crash"):
                Ahead(folder, origin).prepare(names, pool)
            assert all((folder / name).exists() for name in names)
        monkeypatch.setattr(module, "append_lines", appended)
        Ahead(folder, origin).prepare(names, pool)
    opened = Ahead(folder, origin)
    assert opened.names == set(names) and not any((folder / name).exists() for name in names)
    assert len(opened.images()) == len(opened.row_of) == SLICES
    content = b"".join(path.read_bytes() for path in (folder / ".prepared").iterdir())
    assert b"CANARY" not in content and b"1.2.1.1" not in content


def test_damaged_records_of_preparing_are_one_clear_line(tmp_path, site):
    folder = tmp_path / "some"
    origin = Origin(data=load_study(tmp_path / "study.toml").data, labels=None, key=bytes(32))
    Ahead(folder, origin)
    (folder / ".prepared" / "scans.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match="line 1 is damaged; remove the folder"):
        Ahead(folder, origin)
