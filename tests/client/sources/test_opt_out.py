"""After an objection a patient takes part in nothing, and no prepared data of the patient remain at the site."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from builders.objections import GONE, IMAGES_EACH, KEY, PATIENTS, ask, prepare, prepared_site, study_of

from wardround.errors import DataError
from wardround_client.site.paths import OPT_OUT_FILE
from wardround_client.site.site import open_site
from wardround_client.sources.cohort import holdout_rank, open_cohort, pseudonym
from wardround_client.sources.forget import forget, similar_ids
from wardround_client.sources.opt_out import opted_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared_site(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_who_objects_between_two_rounds_is_in_no_later_draw_of_the_running_site(folder) -> None:
    study, site, drawn_from = study_of(), open_site(folder), []
    for round_ in (1, 2):
        ask(site, study, round_)
        (material,) = site.materials.values()
        drawn_from.append(material.index.patients)
        if round_ == 1:
            done = forget(folder, KEY, GONE)
    assert drawn_from == [PATIENTS, PATIENTS - 1]
    assert (done.already, done.rows_removed) == (False, IMAGES_EACH)
    assert [event.steps for event in site.ledger.events()] == [2]  # what was learned before stays accounted for


def test_the_list_alone_keeps_a_patient_out_of_every_draw(folder) -> None:
    """As after a crash between the list and the removal."""
    (folder / OPT_OUT_FILE).write_text(pseudonym(KEY, GONE) + "\n")
    material = open_site(folder).material_of(study_of())
    assert material.index.patients == PATIENTS - 1 and len(material.index.rows_N) == (PATIENTS - 1) * IMAGES_EACH
    done = forget(folder, KEY, GONE)
    assert (done.already, done.rows_removed) == (True, IMAGES_EACH)


def test_nothing_prepared_of_a_patient_is_left_and_the_sources_are_untouched(folder, tmp_path) -> None:
    open_site(folder).material_of(study_of())
    before, cohort = digests(tmp_path / "source"), open_cohort(folder / "cohort")
    name = pseudonym(KEY, GONE)
    theirs_N = cohort.patient_N == cohort.pseudonyms.index(name)
    table = list(csv.DictReader((folder / "cohort" / "table.csv").open()))
    needles = [np.asarray(cohort.values_N[row]).tobytes() for row in np.flatnonzero(theirs_N)]
    needles += [table[row]["values_sha256"].encode() for row in np.flatnonzero(theirs_N)] + [name.encode()]
    others = {n: cohort.values_N[cohort.patient_N == i] for i, n in enumerate(cohort.pseudonyms) if n != name}
    assert list((folder / "cache").glob("features-*"))
    forget(folder, KEY, GONE)
    left = [p for p in folder.rglob("*") if p.is_file() and p.name != OPT_OUT_FILE]
    assert [path for path in left for needle in needles if needle in path.read_bytes()] == []
    assert not list((folder / "cache").glob("features-*"))
    after = open_cohort(folder / "cohort")
    assert set(after.pseudonyms) == set(others) and after.key != cohort.key
    for index, one in enumerate(after.pseudonyms):
        assert (after.values_N[after.patient_N == index] == others[one]).all()
        assert after.holdout_rank_P[index] == holdout_rank(KEY, one)
    assert digests(tmp_path / "source") == before


def test_a_later_ingest_decodes_nothing_of_them_and_says_why(folder, tmp_path) -> None:
    forget(folder, KEY, GONE)
    report = prepare(tmp_path, study_of())
    assert report.decoded == 0 and len(open_cohort(folder / "cohort").pseudonyms) == PATIENTS - 1
    quality = json.loads((folder / "cohort" / "quality.json").read_text())
    assert "opted_out" in json.dumps(quality) and GONE not in json.dumps(quality)


def test_the_last_patient_leaves_no_cohort(folder) -> None:
    for patient in range(PATIENTS):
        forget(folder, KEY, f"p{patient}")
    with pytest.raises(DataError, match="no finished cohort"):
        open_cohort(folder / "cohort")
    assert len(opted_out(folder)) == PATIENTS and forget(folder, KEY, "p0").already


def test_an_unreadable_list_stops_training_and_an_empty_id_is_refused(folder) -> None:
    with pytest.raises(DataError, match="ID is empty"):
        forget(folder, KEY, "  ")
    (folder / OPT_OUT_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="list of objections"):
        open_site(folder).material_of(study_of())


def test_a_similar_id_and_a_cohort_of_the_earlier_identity_are_said(folder) -> None:
    cohort = open_cohort(folder / "cohort")
    assert not cohort.earlier_identity
    done = forget(folder, KEY, f" {GONE.upper()}" if GONE.upper() != GONE else GONE.lower())
    assert done.rows_removed == 0 and done.similar == 1
    seal = json.loads((folder / "cohort/cohort.json").read_text())
    (folder / "cohort/cohort.json").write_text(json.dumps({**seal, "earlier_identity": True}))
    done = forget(folder, KEY, GONE)
    assert done.rows_removed == IMAGES_EACH and done.earlier_identity
    assert open_cohort(folder / "cohort").earlier_identity, "what is left is still of the earlier identity"


def test_other_spellings_of_an_id() -> None:
    assert {"0042", "42"} <= similar_ids("042") and {"a-7".upper(), "A7", "a 7"} <= similar_ids("a-7")
    assert "042" not in similar_ids("042")
