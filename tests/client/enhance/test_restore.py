"""`wardround-site enhance`: restored images are written beside their source, never over it, and are marked as such."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from wardround.errors import DataError, ModelError
from wardround.storage import atomic
from wardround.storage.checkpoint import save_checkpoint
from wardround.tasks.reconstruction.restorer import Restorer
from wardround_client.cli.main import app
from wardround_client.enhance import restore as module
from wardround_client.enhance.restore import enhance, load_restoring_model, restore
from wardround_client.sources.images.folder.files import list_files


def model_file(folder: Path, **section) -> Path:
    path = folder / "model.safetensors"
    manifest = {
        "kind": "model", "study": "sharper", "study_sha256": "ab" * 32, "released": "trained",
        "reconstruction": section, "window_hu": [-1000, 400],
        "privacy": {"epsilon": 7.9, "delta": 1e-4, "unit": "patient"},
    }  # fmt: skip
    save_checkpoint(path, {name: t.numpy() for name, t in Restorer().state_dict().items()}, manifest)
    return path


def picture(path: Path, rows: int = 37, columns: int = 50) -> Path:
    y, x = np.mgrid[:rows, :columns]
    Image.fromarray(((3 * x + 2 * y) % 256).astype(np.uint8)).save(path)
    return path


def dicom(path: Path) -> Path:
    """pydicom's own small CT, with a name in it."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.PatientName = "CANARY^PATIENT"
    dataset.save_as(path)
    return path


def test_a_picture_is_restored_beside_its_source_which_stays_as_it_was(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="super-resolution", factor=4))
    source = picture(tmp_path / "scan.png")
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    done = enhance(source, model)
    assert done.written == (tmp_path / "scan.restored.png",) and not done.refused
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before
    with Image.open(done.written[0]) as restored:
        assert restored.size == (200, 148) and restored.mode == "L"
        assert "NOT FOR DIAGNOSTIC USE" in restored.text["derived"]
        assert restored.text["study"].startswith("sharper abababab")
        assert "epsilon 7.9 per patient" in restored.text["privacy"]
        assert (
            restored.text["model_sha256"] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
        )
    with pytest.raises(DataError, match="already exists and is not overwritten; choose another --out"):
        enhance(source, model)


def test_a_dicom_file_becomes_a_derived_secondary_capture_of_the_same_patient_in_a_new_series(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="super-resolution", factor=2))
    source = dicom(tmp_path / "scan.dcm")
    before, original = source.read_bytes(), pydicom.dcmread(source)
    (target,) = enhance(source, model).written
    derived = pydicom.dcmread(target)
    assert source.read_bytes() == before
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY"]
    assert derived.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (derived.PatientID, derived.StudyInstanceUID) == (original.PatientID, original.StudyInstanceUID)
    assert derived.SeriesInstanceUID != original.SeriesInstanceUID
    assert derived.SOPInstanceUID != original.SOPInstanceUID
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    for said in ("NOT FOR DIAGNOSTIC USE", "sharper", "epsilon 7.9", "model_sha256"):
        assert said in derived.DerivationDescription
    assert derived.pixel_array.shape == (2 * original.Rows, 2 * original.Columns)
    assert float(derived.PixelSpacing[0]) == pytest.approx(float(original.PixelSpacing[0]) / 2, rel=1e-4)


def test_a_folder_is_restored_file_by_file_and_what_cannot_be_is_named_with_its_reason(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="blur"))
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    picture(data / "one.png")
    dicom(data / "two.dcm")
    (data / "cut.png").write_bytes((data / "one.png").read_bytes()[:60])
    (data / "notes.doc").write_bytes(b"no image")
    done = enhance(data, model, out)
    assert sorted(path.name for path in done.written) == ["one.restored.png", "two.restored.dcm"]
    assert sorted(path.name for path, _ in done.refused) == ["cut.png", "notes.doc"]
    assert all("\n" not in reason and "CANARY" not in reason for _, reason in done.refused)
    assert sorted(path.name for path in data.iterdir()) == ["cut.png", "notes.doc", "one.png", "two.dcm"]


def test_missing_data_need_a_mask_and_what_is_known_is_not_asked_for(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="missing"))
    source = picture(tmp_path / "scan.png", 40, 40)
    with pytest.raises(DataError, match="--mask"):
        enhance(source, model)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (target,) = enhance(source, model, mask=tmp_path / "mask.png").written
    with Image.open(target) as restored, Image.open(source) as original:
        known = mask == 0
        assert np.array_equal(np.asarray(restored)[known], np.asarray(original)[known])  # a fresh network adds nothing


def test_an_image_is_as_well_restored_in_any_size_as_padded_by_hand(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="low-dose"))
    image = np.asarray(Image.open(picture(tmp_path / "a.png", 40, 48)))
    assert restore(model, image).shape == (40, 48)
    assert restore(model, image[:37, :43]).shape == (37, 43)
    with pytest.raises(DataError, match="a side"):
        restore(model, image[:4])


def test_another_model_is_refused_in_one_line(tmp_path) -> None:
    save_checkpoint(tmp_path / "other.safetensors", {"w": np.zeros(3, np.float32)}, {"kind": "model"})
    with pytest.raises(ModelError, match="not a reconstruction model"):
        load_restoring_model(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        load_restoring_model(tmp_path / "none.safetensors")


def test_the_command_says_what_it_wrote_and_fails_in_one_line(tmp_path) -> None:
    model, source = model_file(tmp_path, degradation="blur"), picture(tmp_path / "scan.png")
    done = CliRunner().invoke(app, ["enhance", str(source), "--model", str(model), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"written": [str(tmp_path / "scan.restored.png")], "refused": []}
    again = CliRunner().invoke(app, ["enhance", str(tmp_path / "nothing"), "--model", str(model)])
    assert isinstance(again.exception, DataError) and "no such file or folder" in str(again.exception)


def blurred(folder: Path):
    return load_restoring_model(model_file(folder, degradation="blur"))


def test_files_of_one_name_in_several_folders_or_formats_each_have_their_result(tmp_path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for series in ("a", "b/deep"):
        (data / series).mkdir(parents=True)
        for name in ("1.png", "1.jpg", "2.png"):
            picture(data / series / name)
        dicom(data / series / "1.dcm")
    done = enhance(data, blurred(tmp_path), out)
    assert len(done.written) == len(set(done.written)) == 8 and not done.refused
    assert all(path.is_file() for path in done.written)
    assert sorted(path.relative_to(out).as_posix() for path in done.written if "deep" in path.parts) == [
        "b/deep/1.dcm.restored.dcm", "b/deep/1.jpg.restored.png", "b/deep/1.png.restored.png", "b/deep/2.restored.png"
    ]  # fmt: skip


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_of_the_same_name_do_not_take_each_others_place(tmp_path) -> None:
    model, data, out = load_restoring_model(model_file(tmp_path, degradation="blur")), tmp_path / "data", tmp_path / "o"
    for number, place in enumerate(("series-1", "series-2", "series-2/more")):
        (data / place).mkdir(parents=True)
        picture(data / place / "IM1.png", 37 + number)
        dicom(data / place / "IM2.dcm")
    for name in ("a.png", "a.jpg", "b.png", "B.PNG"):
        picture(data / name)
    dicom(data / "c.dcm")
    dicom(data / "c")
    sources = names_below(data)
    done = enhance(data, model, out)
    assert not done.refused and len(done.written) == len(sources) == 12
    assert names_below(out) == [
        "B.PNG.restored.png", "a.jpg.restored.png", "a.png.restored.png", "b.png.restored.png",
        "c.dcm.restored.dcm", "c.restored.dcm",
        "series-1/IM1.restored.png", "series-1/IM2.restored.dcm", "series-2/IM1.restored.png",
        "series-2/IM2.restored.dcm", "series-2/more/IM1.restored.png", "series-2/more/IM2.restored.dcm",
    ]  # fmt: skip
    assert names_below(data) == sources
    before = list_files(data).files
    assert len(enhance(data, model).written) == 12  # beside the sources the names do not collide either
    listing = list_files(data)  # an ingest does not take the results for patients' images
    assert listing.files == before and listing.skipped == 12


def test_results_do_not_go_into_the_folder_that_is_read(tmp_path) -> None:
    model, data = load_restoring_model(model_file(tmp_path, degradation="blur")), tmp_path / "data"
    data.mkdir()
    picture(data / "scan.png")
    for out in (data, data / "deep" / "out"):
        with pytest.raises(DataError, match="lies inside .*; choose an --out outside"):
            enhance(data, model, out)
    assert names_below(data) == ["scan.png"]
    assert enhance(data / "scan.png", model, data / "out").written


def frames(path: Path, count: int, announced: int | None = None) -> Path:
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.PixelData = b"".join(np.roll(dataset.pixel_array, n, 0).tobytes() for n in range(count))
    dataset.NumberOfFrames = announced or count
    dataset.save_as(path)
    return path


def test_every_frame_is_restored_and_refers_to_its_own(tmp_path) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="blur"))
    done = enhance(frames(tmp_path / "five.dcm", 5), model, tmp_path / "out")
    assert [path.name for path in done.written] == [f"five.frame-{n}.restored.dcm" for n in range(1, 6)]
    film = enhance(frames(tmp_path / "film.dcm", 12), model, tmp_path / "out")
    assert [path.name for path in film.written][1:10:8] == ["film.frame-02.restored.dcm", "film.frame-10.restored.dcm"]
    read = [pydicom.dcmread(path) for path in done.written]
    assert [one.SourceImageSequence[0].ReferencedFrameNumber for one in read] == [1, 2, 3, 4, 5]
    assert len({one.SOPInstanceUID for one in read}) == 5 and len({one.SeriesInstanceUID for one in read}) == 1
    assert not np.array_equal(read[0].pixel_array, read[3].pixel_array)


def test_frames_that_are_only_announced_and_further_pages_are_named(tmp_path) -> None:
    model, data = load_restoring_model(model_file(tmp_path, degradation="blur")), tmp_path / "data"
    data.mkdir()
    frames(data / "announced.dcm", 2, 20_000)
    frames(data / "negative.dcm", 1, -3)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(
        data / "pages.tif", save_all=True, append_images=[Image.new("L", (20, 20), 9)]
    )
    picture(data / "good.png")
    done = enhance(data, model, tmp_path / "out")
    reasons = {path.name: reason for path, reason in done.refused}
    assert len(done.refused) == 3 and "not read" in reasons["announced.dcm"]
    assert "damaged" in reasons["negative.dcm"] and "several pictures" in reasons["pages.tif"]
    assert "good.restored.png" in names_below(tmp_path / "out")
    words = ["enhance", str(data), "--model", str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and "3 not restored" in result.output


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["scan.png", "scan.dcm"])
def test_a_result_that_cannot_be_written_is_no_damage_and_leaves_nothing(tmp_path, monkeypatch, number, name) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="blur"))
    (tmp_path / "data").mkdir()
    (picture if name.endswith("png") else dicom)(tmp_path / "data" / name)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "link", refuse)
    with pytest.raises(DataError, match=f"cannot be written: {os.strerror(number)}; .*0 images were restored before"):
        enhance(tmp_path / "data", model)
    assert names_below(tmp_path / "data") == [name]


def test_a_file_system_without_hard_links_is_written_and_nothing_replaced(tmp_path, monkeypatch) -> None:
    model = load_restoring_model(model_file(tmp_path, degradation="blur"))
    source = picture(tmp_path / "scan.png")

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(atomic.os, "link", no_links)
    (target,) = enhance(source, model).written
    before = target.read_bytes()
    assert Image.open(target).size == (50, 37)
    with pytest.raises(DataError, match="already exists"):
        enhance(source, model)
    assert target.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_a_source_that_cannot_be_read_is_told_apart_from_a_damaged_one(tmp_path, monkeypatch) -> None:
    model, data = load_restoring_model(model_file(tmp_path, degradation="blur")), tmp_path / "data"
    data.mkdir()
    bad, damaged = picture(data / "bad.png"), data / "damaged.png"
    damaged.write_bytes(bad.read_bytes()[:60])
    picture(data / "good.png")
    before = module.read_picture

    def read(path: Path) -> np.ndarray:
        if path.name == bad.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return before(path)

    monkeypatch.setattr(module, "read_picture", read)
    reasons = {path.name: reason for path, reason in enhance(data, model, tmp_path / "out").refused}
    assert "cannot be read: Input/output error; check the disk" in reasons["bad.png"]
    assert reasons["damaged.png"].endswith("it is damaged, or cut short")


def test_names_that_are_not_utf_8_are_restored_and_shown(tmp_path) -> None:
    model, data = model_file(tmp_path, degradation="blur"), tmp_path / "data"
    data.mkdir()
    picture(data / "scan.png").rename(data / os.fsdecode(b"K\xf6ln.png"))
    result = CliRunner().invoke(app, ["enhance", str(data), "--model", str(model)])
    assert result.exit_code == 0 and "K\\xf6ln.restored.png" in result.output
    with Image.open(data / os.fsdecode(b"K\xf6ln.restored.png")) as restored:
        assert restored.text["source"] == "K\\xf6ln.png"
