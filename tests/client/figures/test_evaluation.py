"""For whom a model works at a site: the groups, what is suppressed, what is shown beside, and that it stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from builders.broadcasts import broadcast_of
from builders.exported import FIGURES
from builders.packages import edit_record, write_package
from builders.personal import KEY, LABELS, site_folder, study_of
from builders.randomness import KnownRandom
from typer.testing import CliRunner

from wardround.study.load import Study
from wardround.wire.evaluation import evaluation_round
from wardround.wire.packets import LedgerHead, pack_answer
from wardround_client.cli.main import app
from wardround_client.figures import evaluation
from wardround_client.figures.page import HTML_FILE, JSON_FILE, SUPPRESSED
from wardround_client.figures.scores import scored
from wardround_client.ledger.ledger import Ledger
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import answer
from wardround_client.site.paths import EVALUATIONS, LEDGER_FILE
from wardround_client.site.site import open_site
from wardround_client.sources.cohort import CohortRow, open_cohort, pseudonym, write_cohort


class Replayed(KnownRandom):
    """Known numbers that a site takes for secret ones: the same run twice."""

    secret = True


CALIBRATION = FIGURES["fitted_calibration"]


def write_patients(folder: Path, patients: int = 240, extra: bool = True) -> None:
    """Images whose brightness tells the label, one a patient: 4 in 5 women, a few from a scanner of their own."""
    dice, rows, images = np.random.default_rng(0), [], []
    for n in range(patients):
        columns = {
            "hu": "0", "sex": "male" if n % 10 < 2 else "female", "age": "", "scanner": "GE" if n % 60 else "Siemens",
            "slice_thickness": "", "lesion_size": "under 6 mm" if n % 3 else "CANARY^Jane",
        }  # fmt: skip
        label = n // 2 % 2
        rows.append(CohortRow(pseudonym=pseudonym(KEY, str(n)), label=label, extra=columns if extra else {}))
        images.append(np.clip(dice.normal(90 + 60 * label, 40, (1, 64, 64)), 0, 255).astype(np.uint8))
    write_cohort(folder / "cohort", rows, images, row_shape=(1, 64, 64), label_names=LABELS, site_key=KEY)


def site_with(tmp_path: Path, study: Study, **kind) -> Path:
    folder = site_folder(tmp_path / "site", study)
    write_patients(folder, **kind)
    return folder


def package_of(tmp_path: Path, study: Study, run: str = "run", **changes) -> Path:
    folder = write_package(tmp_path / f"model-{run}", study)
    edit_record(folder, run=run, **changes)
    return folder


def evaluated(model: Path, site: Path, *words: str) -> dict:
    done = CliRunner().invoke(app, ["evaluate", str(model), "--site", str(site), "--json", *words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.output)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_groups_that_the_cohort_knows_are_shown_and_small_ones_are_not(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    found = evaluated(package_of(tmp_path, study), site_with(tmp_path, study))
    tables = {table["attribute"]: table["groups"] for table in found["tables"]}
    assert list(tables) == ["sex", "scanner", "lesion_size"] and found["missing"] == ["age", "slice_thickness"]
    women, men = tables["sex"]["female"], tables["sex"]["male"]
    assert women["patients"] + men["patients"] == found["everyone"]["patients"] > 100
    assert tables["scanner"] == {"GE": None, "Siemens": None}, "one small group, and the other one would tell it"
    assert set(tables["lesion_size"]) == {"under 6 mm", "not known"}, "a text that is no band is not known"
    assert women["thresholds"][0]["threshold"] == 0.5 and women["auc"] is not None
    assert women["observed"]["low"] < women["observed"]["value"] < women["observed"]["high"]


def test_the_page_says_what_is_suppressed_and_names_no_patient(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    site, model = site_with(tmp_path, study), package_of(tmp_path, study, run="<b>run</b>")
    done = CliRunner().invoke(app, ["evaluate", str(model), "--site", str(site)])
    assert done.exit_code == 0 and SUPPRESSED in done.output and "no ε covers" in done.output.replace("\n", " ")
    (folder,) = (site / EVALUATIONS).iterdir()
    page = (folder / HTML_FILE).read_text()
    assert SUPPRESSED in page and "&lt;b&gt;" in page and "<b>run" not in page
    for text in (page, (folder / JSON_FILE).read_text(), done.output):
        assert "CANARY" not in text and pseudonym(KEY, "1") not in text
    assert (folder / HTML_FILE).stat().st_mode & 0o077 == 0


def test_nothing_is_charged_sent_or_changed(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    site = site_with(tmp_path, study)
    answer(broadcast_of(study), open_site(site))
    before = files_of(site)
    evaluated(package_of(tmp_path, study), site, "--out", str(tmp_path / "elsewhere"))
    assert files_of(site) == before
    assert len(Ledger(site / LEDGER_FILE).attempts()) == 1
    assert set(files_of(tmp_path / "elsewhere")) == {JSON_FILE, HTML_FILE}


def test_the_federations_threshold_and_calibration_are_used(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    site = site_with(tmp_path, study)
    plain = evaluated(package_of(tmp_path, study), site)
    model = package_of(tmp_path, study, run="calibrated", federated_test=FIGURES, calibration=CALIBRATION)
    found = evaluated(model, site)
    assert [one["threshold"] for one in found["everyone"]["thresholds"]] == [0.6]
    assert found["calibrated"] and not plain["calibrated"]
    assert found["everyone"]["auc"] == plain["everyone"]["auc"]
    assert found["everyone"]["predicted"] != plain["everyone"]["predicted"]


def test_the_personalised_model_and_another_one_are_shown_beside_on_the_same_patients(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}}, epsilon=100.0, learning_rate=20.0)
    site, model = site_with(tmp_path, study), package_of(tmp_path, study)
    answer(broadcast_of(study), open_site(site))
    assert evaluated(model, site)["others"] == []
    done = CliRunner().invoke(app, ["personalise", str(model), "--site", str(site), "--json"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    made = json.loads(done.output)
    found = evaluated(model, site, "--beside", str(package_of(tmp_path, study, run="other")))
    personal, other = found["others"]
    assert (personal["name"], other["name"]) == ("personalised", "other model")
    assert personal["everyone"]["auc"] == pytest.approx(made["personalised"]["auc"])
    assert personal["everyone"]["difference"]["value"] == pytest.approx(-made["difference"]["value"])
    assert other["everyone"]["difference"]["value"] == 0
    assert set(personal["groups"]["sex"]) == {"female", "male"} and personal["groups"]["scanner"] == {}


def test_a_cohort_prepared_before_the_attributes_still_opens_and_says_what_is_missing(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    found = evaluated(package_of(tmp_path, study), site_with(tmp_path, study, extra=False))
    assert found["tables"] == [] and len(found["missing"]) == 5 and found["everyone"]["patients"] > 100


def test_too_few_patients_have_no_figure_and_none_is_one_line(tmp_path: Path) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    site, model = site_with(tmp_path, study, patients=10), package_of(tmp_path, study)
    found = evaluated(model, site)
    assert found["everyone"] is None and all(one is None for t in found["tables"] for one in t["groups"].values())
    for path in sorted((site / "cohort").iterdir()):
        path.unlink()
    done = CliRunner().invoke(app, ["evaluate", str(model), "--site", str(site)])
    assert "no held-out patient" in str(done.exception)


def test_a_model_of_another_task_or_for_other_images_is_refused(tmp_path: Path) -> None:
    study, other = study_of(), study_of({"study": {"rounds": 2}, "data": {"image_size": 32}})
    site = site_with(tmp_path, study)
    sampler = study_of(
        {"study": {"task": "synthesis", "rounds": 2}, "model": {"name": "phantom-sampler"}}, personal=False
    )
    done = CliRunner().invoke(app, ["evaluate", str(package_of(tmp_path, sampler, "sampler")), "--site", str(site)])
    assert "is a model of synthesis" in str(done.exception)
    words = ["evaluate", str(package_of(tmp_path, study)), "--beside", str(package_of(tmp_path, other, "small"))]
    done = CliRunner().invoke(app, [*words, "--site", str(site)])
    assert "reads other images" in str(done.exception)


def test_only_held_out_patients_are_read(tmp_path: Path, monkeypatch) -> None:
    study = study_of({"evaluation": {"holdout": 0.5}, "study": {"rounds": 2}})
    site, seen = site_with(tmp_path, study), []

    def noted(network, held_out, device, calibration=None):
        seen.append(held_out)
        return scored(network, held_out, device, calibration)

    monkeypatch.setattr(evaluation, "scored", noted)
    evaluated(package_of(tmp_path, study), site)
    cohort = open_cohort(site / "cohort")
    held_out_P = cohort.holdout_rank_P < 0.5
    (rows,) = seen
    assert set(rows.patient_N.tolist()) == set(np.flatnonzero(held_out_P).tolist())
    assert rows.extra["sex"] == tuple(np.array(cohort.extra["sex"])[held_out_P[cohort.patient_N]])


def test_no_reply_depends_on_what_a_cohort_knows_of_its_patients(tmp_path: Path) -> None:
    """The same round at two sites whose tables differ in these columns alone: the same bytes and the same charge."""
    study, replies = study_of({"study": {"rounds": 2}, "evaluation": {"epsilon": 1.0, "holdout": 0.5}}), []
    for extra in (True, False):
        folder = site_folder(tmp_path / str(extra), study)
        write_patients(folder, extra=extra)
        site = dataclasses.replace(open_site(folder), randomness=Replayed(b"the same"))
        reply = answer(broadcast_of(study), site)
        counts_2B = release_scores(broadcast_of(study, evaluation_round(study)), site).counts_2B
        packet = pack_answer(
            broadcast_of(study), dataclasses.replace(reply, head=LedgerHead(entries=1, sha256="0" * 64))
        )
        replies.append((packet.tensors, counts_2B.tolist(), site.ledger.events(), set(packet.header)))
    assert replies[0] == replies[1]
