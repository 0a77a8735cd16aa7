"""Concurrent objections, also during an ingest or a round: none is lost, and no prepared data remain."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from builders.objections import GONE, KEY, PATIENTS, ask, prepared_site, study_of
from builders.studies import STUDY
from typer.testing import CliRunner

from wardround.errors import DataError
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround_client.cli.main import app
from wardround_client.site.paths import OPT_OUT_FILE
from wardround_client.site.site import open_cohort_of, open_site
from wardround_client.sources import claim, cohort
from wardround_client.sources import forget as forgetting
from wardround_client.sources.cohort import SEAL_FILE, open_cohort, pseudonym
from wardround_client.sources.forget import forget, remove_objectors
from wardround_client.sources.images import ingest
from wardround_client.sources.opt_out import opted_out
from wardround_client.training import features

FORK = multiprocessing.get_context("fork")
AT_ONCE = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared_site(tmp_path)


def keyed(site: Path) -> Path:
    (site / "keys").mkdir(exist_ok=True)
    (site / "keys" / "pseudonym.key").write_bytes(KEY)
    return site


def command(site: Path, patient: str) -> int:
    done = CliRunner().invoke(app, ["forget", patient, "--yes", "--site", str(site)])
    return done.exit_code if done.exception is None or isinstance(done.exception, SystemExit) else 1


def _forget(site: Path, patient: str, barrier, pipe) -> None:
    barrier.wait(60)
    pipe.send((patient, command(site, patient)))


def at_once(site: Path, patients: list[str]) -> dict[str, int]:
    """The command's exit code by patient, each in a process of its own, all started in the same moment."""
    barrier, pipes = FORK.Barrier(len(patients)), [FORK.Pipe(duplex=False) for _ in patients]
    for patient, (_, sender) in zip(patients, pipes, strict=True):
        FORK.Process(target=_forget, args=(site, patient, barrier, sender)).start()
    return dict(receiver.recv() for receiver, _ in pipes)


def test_of_eight_objections_at_once_none_is_lost(folder: Path) -> None:
    site, patients = keyed(folder), [f"p{n}" for n in range(AT_ONCE)]
    assert at_once(site, patients) == dict.fromkeys(patients, 0)
    assert opted_out(site) == {pseudonym(KEY, patient) for patient in patients}
    assert not (site / "cohort" / SEAL_FILE).exists(), "every patient of the cohort has objected"
    counts = [entry["count"] for entry in verified(site / AUDIT_FILE).entries if entry["event"] == "forgot"]
    assert counts == list(range(1, AT_ONCE + 1))


def test_objections_at_once_at_a_site_that_has_prepared_nothing(tmp_path: Path) -> None:
    site = keyed(tmp_path)
    (site / "site.toml").write_text('name = "north"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n')
    patients = [f"p{n}" for n in range(AT_ONCE)]
    assert at_once(site, patients) == dict.fromkeys(patients, 0) and len(opted_out(site)) == AT_ONCE


@pytest.mark.parametrize("refused", ["fsync", "replace"])
def test_an_objection_that_the_disk_does_not_take_is_one_line_and_no_success(
    folder: Path,
    monkeypatch,
    refused: str,
) -> None:
    site = keyed(folder)

    def no(*words: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(cohort.os, refused, no)
        with pytest.raises(DataError, match=r"opt_out.txt: .* cannot be written \(No space left on device\)"):
            forget(site, KEY, GONE)
        assert command(site, GONE) != 0
    assert opted_out(site) == frozenset() and command(site, GONE) == 0 and len(opted_out(site)) == 1


def test_the_objection_is_durable_before_anything_else_happens(folder: Path, monkeypatch) -> None:
    """File, name and folder are synced before the removal begins, also where an earlier call entered the patient."""
    story: list[str] = []
    real_sync, real_remove = os.fsync, forgetting._remove_prepared

    def fsync(descriptor: int) -> None:
        story.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(forgetting, "_remove_prepared", lambda *words: story.append("remove") or real_remove(*words))
    forget(folder, KEY, GONE)
    assert story[:3] == [f".{OPT_OUT_FILE}.partial", folder.name, "remove"]
    story.clear()
    assert forget(folder, KEY, GONE).already and story[:2] == [folder.name, "remove"]


def test_an_objection_that_was_not_in_the_audit_log_before_a_kill_is_there_after_the_same_call(folder: Path) -> None:
    site = keyed(folder)
    (site / OPT_OUT_FILE).write_text(pseudonym(KEY, GONE) + "\n")  # killed between the list and the log
    for _ in range(2):
        assert command(site, GONE) == 0
    assert [e["count"] for e in verified(site / AUDIT_FILE).entries if e["event"] == "forgot"] == [1]


def test_who_objects_during_an_ingest_is_in_the_list_at_once_and_in_no_cohort_after_it(
    folder: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    site = keyed(folder)
    (tmp_path / "t.toml").write_text(STUDY)
    real_write, codes = ingest._write, []

    def write(*words: object):
        codes.append(command(site, GONE))  # the ingest has read the list long ago
        assert pseudonym(KEY, GONE) in opted_out(site)
        return real_write(*words)

    monkeypatch.setattr(ingest, "_write", write)
    words = ["ingest", str(tmp_path / "source"), "--study", str(tmp_path / "t.toml"), "--site", str(site), "--json"]
    done = CliRunner().invoke(app, [*words, "--workers", "1"])
    assert done.exit_code == 0 and codes == [1]
    assert pseudonym(KEY, GONE) not in open_cohort(site / "cohort").pseudonyms
    assert open_cohort(site / "cohort").patient_count == PATIENTS - 1
    with (
        claim.claimed_cohort(site / "cohort"),
        pytest.raises(DataError, match="on the list.*is running.*when it ends"),
    ):
        forget(site, KEY, "p4")


def test_an_ingest_that_fails_removes_who_objected_too(folder: Path, tmp_path: Path, monkeypatch) -> None:
    site = keyed(folder)
    (tmp_path / "t.toml").write_text(STUDY)
    (site / OPT_OUT_FILE).write_text("".join(pseudonym(KEY, f"p{n}") + "\n" for n in range(PATIENTS)))
    words = ["ingest", str(tmp_path / "source"), "--study", str(tmp_path / "t.toml"), "--site", str(site)]
    assert CliRunner().invoke(app, [*words, "--workers", "1"]).exit_code != 0  # no file is fit: everybody objects
    assert not (site / "cohort" / "values.npy").exists()


def _forget_all(site: Path, patients: list[str]) -> None:
    for patient in patients:
        forget(site, KEY, patient)


def test_rounds_that_run_while_patients_object_all_succeed(folder: Path) -> None:
    """The cohort is replaced seven times and then removed while it is opened again and again."""
    study, site, seen = study_of(), open_site(folder), []
    ask(site, study, 1)  # what takes long is open now
    objectors = FORK.Process(target=_forget_all, args=(folder, [f"p{n}" for n in range(PATIENTS)]))
    objectors.start()
    while objectors.is_alive():
        seen.append(open_cohort_of(folder, study).patient_count)
    objectors.join()
    assert objectors.exitcode == 0 and len(set(seen)) > 1 and seen == sorted(seen, reverse=True)
    ask(site, study, 2)
    (material,) = site.materials.values()
    assert material.index.patients == 0


def test_a_cohort_is_opened_as_the_old_one_or_the_new_one(folder: Path, monkeypatch) -> None:
    """Whoever opens it in the middle of its replacement waits for the end of it."""
    real, opened = cohort.write_file, []

    def look() -> None:
        opened.append(open_cohort(folder / "cohort").patient_count)

    def seal(path: Path, *words: object) -> None:
        if path.name == SEAL_FILE:
            reader = threading.Thread(target=look)
            reader.start()
            reader.join(0.3)
            assert opened == [], "the seal is missing now"
            readers.append(reader)
        real(path, *words)

    readers: list[threading.Thread] = []
    monkeypatch.setattr(cohort, "write_file", seal)
    forget(folder, KEY, GONE)
    for reader in readers:
        reader.join(10)
    assert opened == [PATIENTS - 1]


def test_no_feature_of_a_patient_who_objects_during_a_round_stays(folder: Path, monkeypatch) -> None:
    """The round computes them from the cohort that it opened, and would keep them after `forget` has removed them."""
    real = features.save_checkpoint

    def save(path: Path, *words: object) -> None:
        monkeypatch.setattr(features, "save_checkpoint", real)
        forget(folder, KEY, GONE)
        real(path, *words)

    monkeypatch.setattr(features, "save_checkpoint", save)
    site = open_site(folder)
    ask(site, study_of(), 1)
    (material,) = site.materials.values()
    assert material.index.patients == PATIENTS - 1
    (kept,) = (folder / "cache").glob("features-*")
    assert open_cohort(folder / "cohort").key[:16] in kept.name


def test_a_removal_that_was_killed_before_the_features_is_finished_by_the_same_call(folder: Path, monkeypatch) -> None:
    site = open_site(folder)
    site.material_of(study_of())

    class Killed(BaseException):
        pass

    def killed(cache: Path) -> None:
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(forgetting, "remove_features", killed)
        forget(folder, KEY, GONE)
    assert list((folder / "cache").glob("features-*"))
    assert forget(folder, KEY, GONE).already and not list((folder / "cache").glob("features-*"))


def test_removing_objectors_without_any_leaves_all_as_it_is(folder: Path) -> None:
    site = open_site(folder)
    site.material_of(study_of())
    before = (folder / "cohort" / SEAL_FILE).read_bytes()
    assert remove_objectors(folder, KEY) == 0
    assert (folder / "cohort" / SEAL_FILE).read_bytes() == before and list((folder / "cache").glob("features-*"))
