"""Ingest: correct and reproducible pixels, no repeated decoding, no loss by a kill, and unchanged sources."""

import csv
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest
from builders.pictures import KEY, LABELS, manifest, many, pixels, run, study
from paths import ROOT
from PIL import Image

from wardround.errors import DataError
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.sources.images.folder.layout import discover
from wardround_client.sources.images.ingest import ingest
from wardround_client.sources.images.quality.gate import Candidate, gate
from wardround_client.sources.images.quality.reasons import REASONS


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as workers:
        yield workers


def test_pictures_of_the_right_size_arrive_bit_by_bit(tmp_path, pool):
    rows = many()
    for index, region in enumerate(("whole", "centre", "marked")):
        report = run(manifest(tmp_path / "data", rows), tmp_path / f"out{index}", pool, region=region)
        cohort = open_cohort(tmp_path / f"out{index}")
        assert np.array_equal(cohort.values_N[:, 0], np.stack([row[3] for row in rows]))
        assert cohort.labels_N.tolist() == [i % 2 for i in range(40)] and set(cohort.extra["hu"]) == {"0"}
        assert cohort.patient_N.tolist() == [i // 4 for i in range(40)] and report.key == cohort.key


def test_whole_keeps_the_aspect_and_centre_keeps_the_scale(tmp_path, pool):
    wide = np.full((16, 64), 200, dtype=np.uint8)
    wide[:, 28:36] = 100
    rows = [("a.png", "p", "benign", wide), ("b.png", "q", "malignant", pixels(1, (40, 40)))]
    folder = manifest(tmp_path / "data", rows)
    run(folder, tmp_path / "whole", pool, region="whole")
    whole = open_cohort(tmp_path / "whole").values_N[0, 0]
    assert (whole[:5] == 0).all() and (whole[11:] == 0).all() and (whole[6:10, :6] == 200).all()
    run(folder, tmp_path / "centre", pool, region="centre")
    centre = open_cohort(tmp_path / "centre").values_N
    assert np.array_equal(centre[0, 0], wide[:, 24:40]) and np.array_equal(centre[1, 0], rows[1][3][12:28, 12:28])


def test_colour_becomes_luminance_or_stays_three_channels(tmp_path, pool):
    colour = pixels(1, (16, 16, 3))
    rows = [("a.png", "p", "benign", colour), ("b.png", "q", "malignant", pixels(2))]
    folder = manifest(tmp_path / "data", rows)
    run(folder, tmp_path / "rgb", pool, channels="rgb")
    rgb = open_cohort(tmp_path / "rgb").values_N
    assert np.array_equal(rgb[0], colour.transpose(2, 0, 1)) and (rgb[1] == rows[1][3]).all()
    run(folder, tmp_path / "grey", pool)
    grey = open_cohort(tmp_path / "grey").values_N[0, 0]
    assert np.abs(grey - colour @ [0.299, 0.587, 0.114]).max() <= 0.51


def test_deep_turned_and_transparent_pictures_are_read_sensibly(tmp_path, pool):
    ramp = (np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).astype(np.uint16)
    rows = [("deep.png", "p", "benign", ramp), ("turned.jpg", "q", "malignant", pixels(1))]
    folder = manifest(tmp_path / "data", rows)
    half = np.zeros((32, 32), np.uint8)
    half[:16] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(half).save(folder / "turned.jpg", exif=exif, quality=95)
    run(folder, tmp_path / "out", pool)
    deep, turned = open_cohort(tmp_path / "out").values_N[:, 0].astype(int)
    assert deep.ravel()[0] == 0 and deep.ravel()[-1] == 255 and (np.diff(deep.ravel()) >= 0).all()
    assert turned[:, 8:].min() > 200 and turned[:, :8].max() < 50


def test_order_and_key_do_not_depend_on_workers_or_names_of_folders(tmp_path, pool):
    keys = {run(manifest(tmp_path / "one", many()), tmp_path / "out1", pool).key}
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (source,) = discover(tmp_path / "two", study())
    keys.add(ingest(source, study(), tmp_path / "out2", KEY, workers=1).key)
    assert len(keys) == 1
    for name in ("values.npy", "table.csv", "quality.json"):
        one, two = (tmp_path / out / name for out in ("out1", "out2"))
        assert one.read_bytes().replace(b'"one"', b"") == two.read_bytes().replace(b'"two"', b"")


def test_the_second_ingest_decodes_nothing_and_writes_nothing(tmp_path, pool):
    bad = [("same.png", "patient 0", "benign", pixels(0)), ("bad.png", "patient 1", "benign", b"\x89PNG\r\n\x1a\n")]
    folder = manifest(tmp_path / "data", [*many(), *bad])
    first = run(folder, tmp_path / "out", pool)
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("values.npy", "cohort.json")}
    second = run(folder, tmp_path / "out", pool)
    assert (first.decoded, second.decoded, second.reused) == (41, 0, 41) and second.key == first.key
    assert second.quality == first.quality
    assert written == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in written}


def test_only_what_changed_is_decoded_again(tmp_path, pool):
    rows = many()
    folder = manifest(tmp_path / "data", rows)
    first = run(folder, tmp_path / "out", pool)
    new = [("07.png", "patient 1", "malignant", pixels(700)), ("new.png", "x", "benign", pixels(701))]
    manifest(folder, [*rows[1:7], new[0], *rows[8:], new[1]])
    (folder / "20.png").rename(folder / "twenty.png")
    text = (folder / "manifest.csv").read_text().replace("20.png,patient 5,benign", "twenty.png,patient 5,malignant")
    (folder / "manifest.csv").write_text(text)
    second = run(folder, tmp_path / "out", pool)
    assert second.decoded == 2 and second.key != first.key
    fresh = run(folder, tmp_path / "fresh", pool)
    assert fresh.key == second.key and fresh.decoded == 40
    for name in ("values.npy", "table.csv", "cohort.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    other_settings = run(folder, tmp_path / "out", pool, channels="rgb")
    assert other_settings.decoded == 40 and open_cohort(tmp_path / "out").values_N.shape == (40, 3, 16, 16)


def test_pixels_that_the_gate_refused_come_back_when_the_fault_is_mended(tmp_path, pool):
    rows = [*many(8), ("twin.png", "stranger", "benign", pixels(0))]
    folder = manifest(tmp_path / "data", rows)
    assert run(folder, tmp_path / "out", pool).quality.quarantined == {"two_patients": 2}
    manifest(folder, rows[:8])
    mended = run(folder, tmp_path / "out", pool)
    assert mended.quality.rows == 8 and mended.decoded == 1
    assert np.array_equal(open_cohort(tmp_path / "out").values_N[0, 0], pixels(0))


def test_a_worker_killed_in_the_middle_changes_nothing(tmp_path):
    folder = manifest(tmp_path / "data", many(200))
    (source,) = discover(folder, study())
    kills = []

    def kill_one(done, total):
        if done in (20, 230):
            kills.append(done)
            os.kill(active_children()[0].pid, signal.SIGKILL)

    with WorkerPool(2) as own:
        report = ingest(source, study(), tmp_path / "out", KEY, workers=2, pool=own, progress=kill_one)
    assert kills == [20, 230] and report.quality.rows == 200 and not report.quality.quarantined


def test_a_killed_ingest_leaves_no_cohort_that_opens_wrongly_and_the_next_one_mends_it(tmp_path, pool):
    folder = manifest(tmp_path / "data", many())
    run(folder, tmp_path / "out", pool)
    key = open_cohort(tmp_path / "out").key
    program = (
        "import os, sys, signal; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from wardround.sources.images.study import ImageData\n"
        "from wardround_client.sources.images.folder.layout import discover\n"
        "from wardround_client.sources.images.ingest import ingest\n"
        "if __name__ == '__main__':\n"
        f"    data = ImageData(image_size=16, labels={LABELS!r}, modality='any', channels='rgb')\n"
        f"    root = Path(sys.argv[1]); (source,) = discover(root / 'data', data)\n"
        "    die = lambda done, total: done > 60 and os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    ingest(source, data, root / 'out', {KEY!r}, workers=1, progress=die)\n"
    )
    script = tmp_path / "dies.py"
    script.write_text(program)
    roots = [str(ROOT / name) for name in ("shared", "client")]
    ended = subprocess.run([sys.executable, str(script), str(tmp_path), *roots], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert open_cohort(tmp_path / "out").key == key  # the old one, whole
    assert run(folder, tmp_path / "out", pool, channels="rgb").quality.rows == 40


def test_sources_are_never_written_and_may_be_read_only(tmp_path, pool):
    folder = manifest(tmp_path / "data", many(8))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~0o222)
    run(folder, tmp_path / "out", pool)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    folder.chmod(0o755)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_progress_ends_at_its_total(tmp_path, pool):
    steps = []
    run(manifest(tmp_path / "data", many(8)), tmp_path / "out", pool, progress=lambda *step: steps.append(step))
    assert [done for done, _ in steps] == list(range(1, 17)) and steps[-1] == (16, 16)


def test_a_disk_too_small_is_told_before_anything_is_decoded(tmp_path, pool, monkeypatch):
    folder = manifest(tmp_path / "data", many())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1000))
    with pytest.raises(DataError, match=r"40 rows need [\d.]+ GB on this disk, but only [\d.]+ GB are free"):
        run(folder, tmp_path / "out", pool, image_size=1024)


def test_two_ingests_into_one_folder_do_not_mix(tmp_path, pool):
    folder = manifest(tmp_path / "data", many(8))
    inner = []

    def intrude(done, total):
        if done == 1:
            with pytest.raises(DataError, match="another ingest is running"):
                run(folder, tmp_path / "out", None)
            inner.append(done)

    run(folder, tmp_path / "out", pool, progress=intrude)
    assert inner == [1]


def test_a_site_without_a_fit_image_is_one_line_and_its_report_is_there(tmp_path, pool):
    rows = [("CANARY.png", "p", "benign", b"no picture"), ("b.png", "q", "malignant", np.full((16, 16), 7, np.uint8))]
    with pytest.raises(DataError, match="none of the 2 files of data can be used") as raised:
        run(manifest(tmp_path / "data", rows), tmp_path / "out", pool)
    assert "CANARY" not in str(raised.value)
    written = json.loads((tmp_path / "out/quality.json").read_text())
    assert written["quarantined"] == {"blank": 1, "unreadable": 1}
    assert written["accounted"]["put_aside"] == 2 and sum(written["accounted"].values()) == written["files"]


def test_the_gate_keeps_one_of_twins_and_none_of_a_contradiction():
    def made(patient, label, content, source=None):
        return Candidate(pseudonym=patient, label=label, pixels_sha256=content, source_sha256=source or content)

    assert gate([made("p", -1, "x"), made("p", 1, "x"), made("p", 1, "x")]) == ["duplicate", "", "duplicate"]
    assert gate([made("p", 0, "x"), made("p", 1, "x"), made("p", 0, "y")]) == ["two_labels", "two_labels", ""]
    assert gate([made("p", 0, "x"), made("q", 0, "x")]) == ["two_patients"] * 2
    assert gate([made("p", 0, "x", "s"), made("q", 0, "y", "s")]) == ["two_patients"] * 2
    assert gate([made("p", 0, "x", "s"), made("p", 1, "y", "s")]) == ["", ""]
    assert gate([]) == []


def test_one_file_listed_under_two_patients_or_two_labels(tmp_path, pool):
    rows = [*many(4), ("00.png", "stranger", "benign", pixels(0)), ("01.png", "patient 0", "benign", pixels(1))]
    report = run(manifest(tmp_path / "data", rows), tmp_path / "out", pool)
    assert report.quality.quarantined == {"two_patients": 2, "two_labels": 2} and report.quality.rows == 2


def test_the_report_is_for_people_and_holds_no_path(tmp_path, pool):
    rows = [*many(), ("CANARY <b>.png", "CANARY patient", "benign", b"\x89PNG\r\n\x1a\n broken")]
    run(manifest(tmp_path / "data", rows), tmp_path / "out", pool)
    html = (tmp_path / "out/quality.html").read_text()
    assert "CANARY" not in html and REASONS["unreadable"].title in html and REASONS["unreadable"].advice in html
    assert not re.search(r"(src|href)\s*=|url\(|@import|<script", html)
    with open(tmp_path / "out/quarantine.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["path"] == "CANARY <b>.png" and line["reference"] in html
    assert stat.S_IMODE((tmp_path / "out/quarantine.csv").stat().st_mode) == 0o600


def test_every_reason_is_explained_in_the_documentation_and_none_suggests_removal():
    text = (ROOT / "docs/data.md").read_text()
    for code, reason in REASONS.items():
        assert f"`{code}`" in text, code
        assert not re.search(r"delet|remov|exclud|discard", reason.title + reason.advice, re.IGNORECASE), code
