"""`wardround-site ingest` and `forget`: both use the site's own key, and no output contains a name."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from builders.studies import STUDY
from PIL import Image
from typer.testing import CliRunner

from wardround.errors import DataError, StudyError, UsageError
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.load import load_study
from wardround_client.cli.main import app
from wardround_client.site.enrolment import enrol, pseudonym_key
from wardround_client.site.site import open_cohort_of
from wardround_client.sources.cohort import open_cohort, pseudonym
from wardround_client.sources.opt_out import opted_out
from wardround_client.studies.store import store_approved
from wardround_server.operations.folder import found

CANARY = "CANARY-4711"


def run(*words: object, typed: str | None = None) -> tuple[int, str]:
    """Exit code and output; an error on purpose is raised."""
    done = CliRunner().invoke(app, [*map(str, words)], input=typed, env={"COLUMNS": "120"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture
def site(tmp_path: Path) -> Path:
    found(tmp_path / "fed", "localhost", "test", 9092, None, datetime.now(UTC))
    enrol(tmp_path / "north", "north", "localhost:9092", tmp_path / "fed/ca/ca.crt")
    (tmp_path / "t.toml").write_text(STUDY)
    return tmp_path / "north"


def pictures(folder: Path, names: list[str]) -> None:
    generator = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (64, 64), dtype=np.uint8)).save(folder / name)


def manifest(folder: Path, sites: tuple[str, ...] = ("north",)) -> Path:
    """Six patients of two pictures each; one of them has a name that must appear nowhere."""
    names = [f"{number}.png" for number in range(12)]
    pictures(folder, names)
    patients = [CANARY, "p1", "p2", "p3", "p4", "p5"]
    lines = ["file,patient_id,site,label"]
    for number, name in enumerate(names):
        patient = number % 6
        label = ("benign", "malignant")[patient % 2]
        lines.append(f"{name},{patients[patient]},{sites[patient % len(sites)]},{label}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + path.name.encode() for path in folder.rglob("*") if path.is_file())


def test_ingest_makes_the_cohort_under_the_sites_own_key_and_names_nobody(site: Path, tmp_path: Path) -> None:
    data = manifest(tmp_path / CANARY.lower())
    before = everything_in(data)
    code, told = run("ingest", data, "--study", tmp_path / "t.toml", "--workers", 1, "--site", site)
    assert code == 0 and "6 patients, 12 images; 12 decoded now" in told
    assert f"Quality report: {site / 'cohort' / 'quality.html'}" in told and (site / "cohort/quality.html").is_file()
    names = set(open_cohort(site / "cohort").pseudonyms)
    assert pseudonym(pseudonym_key(site), CANARY) in names
    assert CANARY not in told and CANARY.encode() not in everything_in(site)
    assert everything_in(data) == before
    report = json.loads(run("ingest", data, "--study", tmp_path / "t.toml", "--site", site, "--json")[1])
    assert (report["decoded"], report["reused"], report["quality"]["site"]) == (0, 12, "north")


def test_a_study_is_found_by_its_hash_and_an_altered_one_is_refused(site: Path, tmp_path: Path) -> None:
    data = manifest(tmp_path / "data")
    sha256 = store_approved(site, load_study(tmp_path / "t.toml"))
    assert run("ingest", data, "--study", sha256[:8], "--workers", 1, "--site", site)[0] == 0
    with pytest.raises(StudyError, match="no study here has the hash"):
        run("ingest", data, "--study", "0" * 12, "--site", site)
    with pytest.raises(StudyError, match="no such study file"):
        run("ingest", data, "--study", "none.toml", "--site", site)
    path = site / "studies" / f"{sha256}.json"
    (site / "proposals").mkdir()
    os.rename(path, site / "proposals" / path.name)
    assert run("ingest", data, "--study", sha256, "--workers", 1, "--site", site)[0] == 0
    path = site / "proposals" / path.name
    path.write_text(path.read_text().replace("malignant", "malign"))
    with pytest.raises(StudyError, match="was altered"):
        run("ingest", data, "--study", sha256, "--site", site)


def test_pictures_without_patients_are_refused_without_an_explicit_word(site: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "data", [f"{label}/{number}.png" for label in ("benign", "malignant") for number in range(3)])
    words = ("ingest", tmp_path / "data", "--study", tmp_path / "t.toml", "--workers", 1, "--site", site)
    with pytest.raises(DataError, match="it is unknown which pictures belong to the same patient"):
        run(*words)
    assert not (site / "cohort").exists()
    assert run(*words, "--image-is-patient")[0] == 0
    assert open_cohort(site / "cohort").patient_count == 6


def test_the_data_of_several_hospitals_are_refused(site: Path, tmp_path: Path) -> None:
    data = manifest(tmp_path / "data", sites=("north", "south"))
    with pytest.raises(DataError, match="the data of several sites") as error:
        run("ingest", data, "--study", tmp_path / "t.toml", "--site", site)
    assert "--sites" not in str(error.value)
    with pytest.raises(DataError, match="no such folder"):
        run("ingest", tmp_path / "none", "--study", tmp_path / "t.toml", "--site", site)


def test_another_key_of_pseudonyms_is_another_patient_and_a_damaged_one_is_refused(site: Path, tmp_path: Path) -> None:
    (site / "keys/pseudonym.key").write_bytes(b"short")
    for words in (("ingest", manifest(tmp_path / "data"), "--study", tmp_path / "t.toml"), ("forget", "p1", "--yes")):
        with pytest.raises(UsageError, match="is damaged; put it back"):
            run(*words, "--site", site)


@pytest.mark.parametrize("way", ["argument", "typed"])
def test_a_patient_who_objects_is_gone_for_good_and_not_named(site: Path, tmp_path: Path, way: str) -> None:
    data = manifest(tmp_path / "data")
    words = ("ingest", data, "--study", tmp_path / "t.toml", "--workers", 1, "--site", site)
    run(*words)
    given = ("forget", CANARY) if way == "argument" else ("forget", "-")
    code, told = run(*given, "--yes", "--site", site, typed=None if way == "argument" else f"{CANARY}\n")
    gone = pseudonym(pseudonym_key(site), CANARY)
    assert code == 0 and "prepared images or records removed: 2" in told and CANARY not in told
    assert opted_out(site) == {gone} and gone not in open_cohort(site / "cohort").pseudonyms
    run(*words)
    assert (
        gone not in open_cohort_of(site, load_study(tmp_path / "t.toml")).pseudonyms
        and open_cohort(site / "cohort").patient_count == 5
    )
    assert CANARY.encode() not in everything_in(site)
    again = json.loads(run("forget", CANARY, "--yes", "--site", site, "--json")[1])
    assert again == {"already": True, "rows_removed": 0, "similar": 0, "earlier_identity": False}
    (entry,) = verified(site / AUDIT_FILE).entries
    assert (entry["event"], entry["count"]) == ("forgot", 1)


def test_forgetting_asks_first(site: Path) -> None:
    for words in (("forget", CANARY), ("forget", CANARY, "--json")):
        with pytest.raises(UsageError, match="with --yes") as error:
            run(*words, "--site", site)
        assert CANARY not in str(error.value)
    assert opted_out(site) == frozenset()


def test_a_patient_nobody_knows_is_entered_and_the_number_is_asked_to_be_compared(site: Path) -> None:
    code, told = run("forget", "p9", "--issuer", "clinic", "--yes", "--site", site)
    assert code == 0 and "compare the ID with the data" in told
    assert opted_out(site) == {pseudonym(pseudonym_key(site), "p9", *issuer) for issuer in ((), ("clinic",))}


def test_ingest_ends_with_what_became_of_the_files_and_fails_if_most_cannot_be_read(site: Path, tmp_path: Path) -> None:
    data, study = manifest(tmp_path / "data"), tmp_path / "t.toml"
    lines = (data / "manifest.csv").read_text(encoding="utf-8").splitlines()
    (data / "cut.png").write_bytes((data / "1.png").read_bytes()[:50])
    pictures(data, ["extra.png"])
    (data / "manifest.csv").write_text("\n".join([*lines, "cut.png,p6,north,benign", "extra.png,p7,north,unsure"]))
    words = ("ingest", data, "--study", study, "--workers", 1, "--site", site)
    code, told = run(*words)
    assert code == 0 and "put aside: the file cannot be read as an image" in told
    assert "left out: rows whose label is not in the study" in told
    for number in range(20):
        (data / f"bad{number}.png").write_bytes((data / "1.png").read_bytes()[:50])
    more = [f"bad{number}.png,q{number},north,benign" for number in range(20)]
    (data / "manifest.csv").write_text("\n".join([*lines, *more]))
    with pytest.raises(DataError, match=r"more files could not be read \(20\) than images are used \(12\)"):
        run(*words)
    assert open_cohort(site / "cohort").patient_count == 6


def test_a_sites_own_folder_is_no_data(site: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="north: lies inside .*, so its own files would be taken for data"):
        run("ingest", tmp_path, "--study", tmp_path / "t.toml", "--site", site)
