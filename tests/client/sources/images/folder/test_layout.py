"""Layouts are recognised, splits are by patient, and invalid folders are reported in one line without any name."""

import csv
import os

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from wardround.errors import DataError
from wardround.sources.images.study import ImageData
from wardround_client.sources.images.folder.files import list_files
from wardround_client.sources.images.folder.layout import ONE_IMAGE_ONE_PATIENT, discover, shared_patients

DATA = ImageData(image_size=16, labels=("normal", "cancer"), modality="any")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)).save(path, format="PNG")


def manifest(folder, rows, header=("file", "patient_id", "site", "label"), pictures=True):
    folder.mkdir(parents=True, exist_ok=True)
    if pictures:
        for index, row in enumerate(rows):
            picture(folder / row[0], index)
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


GOOD = [("a.png", "p1", "A", "normal"), ("b.png", "p1", "A", "cancer"), ("c.png", "p2", "B", "cancer")]


def test_a_manifest_names_files_patients_sites_and_labels(tmp_path):
    rows = [*GOOD, ("d.png", "p2", "B", "unsure"), ("e.png", "p3", "B", "")]
    first, second = discover(manifest(tmp_path / "data", rows), DATA)
    assert (first.name, second.name, first.layout) == ("A", "B", "manifest")
    assert [file.label for file in first.files] == [0, 1] and [file.label for file in second.files] == [1, -1]
    assert (first.left_out, second.left_out) == (0, 1) and not first.assumptions


@pytest.mark.parametrize("delimiter, encoding", [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_tables_as_spreadsheets_write_them(tmp_path, delimiter, encoding):
    manifest(tmp_path, GOOD)
    text = (tmp_path / "manifest.csv").read_text().replace(",", delimiter)
    (tmp_path / "manifest.csv").write_text(text.replace("file", " File "), encoding=encoding)
    assert [source.name for source in discover(tmp_path, DATA)] == ["A", "B"]


def pool(folder, patients=10):
    rows = [(f"{p}_{i}.png", f"patient {p}", ("normal", "cancer")[p % 2]) for p in range(patients) for i in range(3)]
    return manifest(folder, rows, ("file", "patient_id", "label"))


def test_a_pool_is_split_by_patient_evenly_and_the_same_every_time(tmp_path):
    folder = pool(tmp_path / "data")
    sites = discover(folder, DATA, 3)
    assert [source.name for source in sites] == ["site-1", "site-2", "site-3"]
    groups = [{file.patient_id for file in source.files} for source in sites]
    assert sorted(map(len, groups)) == [3, 3, 4] and len(set.union(*groups)) == 10
    assert sum(len(source.files) for source in sites) == 30
    assert discover(folder, DATA, 3) == sites
    (single,) = discover(folder, DATA)
    assert single.name == "data" and len(single.files) == 30


def test_folders_of_classes_are_one_pool_and_say_what_they_assume(tmp_path):
    for index in range(4):
        picture(tmp_path / f"data/Normal/{index}.png", index)
        picture(tmp_path / f"data/cancer/deep/{index}.png", 10 + index)
    picture(tmp_path / "data/other/x.png", 99)
    (tmp_path / "data/cancer/notes.txt").write_text("passed over")
    sites = discover(tmp_path / "data", DATA, 2)
    assert all(source.patients_are_assumed for source in sites)
    assert ONE_IMAGE_ONE_PATIENT in sites[0].assumptions
    assert sorted(file.label for source in sites for file in source.files) == [0] * 4 + [1] * 4
    assert sum(source.left_out for source in sites) == 1 and sum(source.skipped for source in sites) == 1


def test_a_folder_a_site_holding_folders_of_classes(tmp_path):
    for number, site in enumerate(("north", "south")):
        picture(tmp_path / site / "normal/a.png", 2 * number)
        picture(tmp_path / site / "cancer/a.png", 2 * number + 1)
    picture(tmp_path / "west/a.png", 9)
    manifest(tmp_path / "west", [("a.png", "p1", "cancer")], ("file", "patient_id", "label"))
    assert [(source.name, source.layout) for source in discover(tmp_path, DATA)] == [
        ("north", "classes"),
        ("south", "classes"),
        ("west", "manifest"),
    ]


def test_the_same_picture_in_two_folders_is_the_same_patient(tmp_path):
    picture(tmp_path / "data/normal/a.png", 1)
    picture(tmp_path / "data/cancer/b.png", 1)
    picture(tmp_path / "data/cancer/c.png", 2)
    (source,) = discover(tmp_path / "data", DATA)
    assert len({file.patient_id for file in source.files}) == 2


def test_patients_in_both_of_two_folders_are_counted(tmp_path):
    train = discover(pool(tmp_path / "train"), DATA)
    rows = [("a.png", "patient 3", "normal"), ("b.png", "stranger", "cancer")]
    test = discover(manifest(tmp_path / "test", rows, ("file", "patient_id", "label")), DATA)
    assert shared_patients(train, test) == 1 and shared_patients(test, test) == 2


def test_files_come_in_the_same_order_everywhere(tmp_path):
    for name in ("b/1.png", "a/2.png", "a.png", "B/3.png", ".hidden.png", "Thumbs.db", "a/readme.md"):
        picture(tmp_path / name)
    listing = list_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in listing.files] == [
        "B/3.png", "a.png", "a/2.png", "b/1.png"
    ]  # fmt: skip
    assert listing.skipped == 3 and listing.broken_links == 0


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "~snapshot",
        "System Volume Information",
        "__MACOSX",
        "@__thumb",
    ],
)
def test_what_a_network_storage_adds_is_passed_over_and_counted(tmp_path, name):
    """Thumbnails became patients, and deleted studies came back."""
    for number, site in enumerate(("north", "south")):
        picture(tmp_path / f"{site}/normal/{site}.png", 10 + number)
        picture(tmp_path / f"{site}/cancer/{site}.png", 20 + number)
        picture(tmp_path / f"{site}/normal/{name}/thumb.png", 7)
    picture(tmp_path / f"{name}/normal/old.png", 8)
    picture(tmp_path / f"{name}/cancer/old.png", 9)
    sites = discover(tmp_path, DATA)
    assert [source.name for source in sites] == ["north", "south"]
    assert all(len(source.files) == 2 and source.skipped == 1 for source in sites)


def test_broken_links_are_counted(tmp_path):
    picture(tmp_path / "normal/a.png", 1)
    picture(tmp_path / "cancer/b.png", 2)
    (tmp_path / "normal/gone.png").symlink_to(tmp_path / "normal/missing.png")
    (source,) = discover(tmp_path, DATA)
    assert source.broken_links == 1 and len(source.files) == 2


def test_a_table_of_labels_decides_and_not_the_names_of_folders(tmp_path):
    """Patients in folders 0, 1, 2 and labels 0 and 1: the folders were taken for the labels."""
    data = ImageData(image_size=16, labels=("0", "1"), modality="any")
    for patient in range(4):
        (tmp_path / f"data/{patient}").mkdir(parents=True)
        (tmp_path / f"data/{patient}/a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(DataError, match="named as labels of the study and 2 are not"):
        discover(tmp_path / "data", data)
    (tmp_path / "data/labels.csv").write_text("PatientID,label\n10,0\n11,1\n")
    (source,) = discover(tmp_path / "data", data)
    assert source.layout == "dicom" and source.labels is not None


def test_a_part_of_the_names_decides_nothing(tmp_path):
    picture(tmp_path / "normal/a.png", 1)
    picture(tmp_path / "cancr/b.png", 2)
    with pytest.raises(DataError, match="1 are not .no folder is named cancer"):
        discover(tmp_path, DATA)


def test_a_label_of_the_study_that_nothing_has_is_an_error(tmp_path):
    three = ImageData(image_size=16, labels=("normal", "benign", "cancer"), modality="any")
    rows = [("a.png", "p1", "normal"), ("b.png", "p2", "cancer"), ("c.png", "p3", "benine")]
    manifest(tmp_path, rows, ("file", "patient_id", "label"))
    for every_label in (True, False):
        with pytest.raises(DataError, match="no image has the label benign of the study; 1 files or rows"):
            discover(tmp_path, three, every_label=every_label)


def test_one_hospital_may_lack_a_rare_class_and_a_whole_federation_may_not(tmp_path):
    three = ImageData(image_size=16, labels=("normal", "rare", "cancer"), modality="any")
    rows = [("a.png", "p1", "normal"), ("b.png", "p2", "cancer")]
    manifest(tmp_path, rows, ("file", "patient_id", "label"))
    assert len(discover(tmp_path, three, 1, every_label=False)) == 1
    with pytest.raises(DataError, match="no image has the label rare"):
        discover(tmp_path, three)


def test_labels_are_compared_alike_in_tables_and_folders(tmp_path):
    rows = [("a.png", "p1", "Normal "), ("b.png", "p2", "CANCER")]
    (source,) = discover(manifest(tmp_path / "table", rows, ("file", "patient_id", "label")), DATA)
    assert [file.label for file in source.files] == [0, 1] and not source.left_out
    picture(tmp_path / "folders/Normal/a.png", 1)
    picture(tmp_path / "folders/CANCER/b.png", 2)
    (source,) = discover(tmp_path / "folders", DATA)
    assert sorted(file.label for file in source.files) == [0, 1]


def test_the_parts_of_a_split_are_no_hospitals_and_a_copy_inside_is_left_out(tmp_path):
    """As the public chest X-rays of children unpack: train, test, val, a copy of all of it, and what a Mac adds."""
    root = tmp_path / "chest_xray"
    for number, part in enumerate(("train", "test", "val")):
        for label in ("NORMAL", "cancer"):
            for folder in (root, root / "chest_xray", root / "__MACOSX"):
                picture(folder / part / label / f"{part}.png", 2 * number + (label == "NORMAL"))
    sites = discover(root, DATA, 2)
    assert len(sites) == 2 and sum(len(source.files) for source in sites) == 6
    picture(root / "chest_xray/train/NORMAL/only here.png", 77)
    with pytest.raises(DataError):
        discover(root, DATA, 2)  # no copy, so it is unclear what it is
    (root / "chest_xray/train/NORMAL/only here.png").unlink()
    text = " ".join(sites[0].assumptions)
    assert "the folders test and train and val are taken as one pool" in text and "(6 files)" in text


@pytest.mark.parametrize(
    "name, header, section",
    [
        ("annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", "LUNA16"),
        ("stage_2_train_labels.csv", "patientId,x,y,width,height,Target", "RSNA"),
        ("Data_Entry_2017.csv", "Image Index,Finding Labels,Follow-up #,Patient ID", "NIH ChestX-ray14"),
    ],
)
def test_tables_of_public_collections_are_named_with_the_way_to_go(tmp_path, name, header, section):
    picture(tmp_path / "images/a.png")
    (tmp_path / name).write_text(header + "\n")
    with pytest.raises(DataError, match=f"{name}: is .*section '{section}'"):
        discover(tmp_path, DATA)
    assert section in (ROOT / "docs/data.md").read_text()


def test_a_name_with_accents_is_found_in_either_unicode_form(tmp_path):
    composed, decomposed = "r\u00f6ntgen.png", "ro\u0308ntgen.png"
    rows = [(composed, "p1", "normal"), ("b.png", "p2", "cancer")]
    manifest(tmp_path, rows, ("file", "patient_id", "label"), pictures=False)
    picture(tmp_path / decomposed, 1)
    picture(tmp_path / "b.png", 2)
    (source,) = discover(tmp_path, DATA)
    assert {file.path.name for file in source.files} == {decomposed, "b.png"}


def edit_manifest(folder, old, new):
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(old, new))


def bad_link(folder):
    picture(folder.parent / "outside.png")
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(folder.parent / "outside.png")


BAD_MANIFESTS = {
    "missing column": (lambda f: edit_manifest(f, "patient_id", "patient"), "column patient_id is missing"),
    "missing file": (lambda f: (f / "b.png").unlink(), "row 3: file: no such file"),
    "absolute path": (lambda f: edit_manifest(f, "b.png", f"{f}/b.png"), "row 3: file: the path leaves"),
    "parent path": (lambda f: edit_manifest(f, "b.png", "x/../../b.png"), "row 3: file: the path leaves"),
    "windows path": (lambda f: edit_manifest(f, "b.png", "C:\\b.png"), "row 3: file: the path leaves"),
    "link out": (bad_link, "row 2: file: a link that leads out"),
    "a folder": (lambda f: edit_manifest(f, "b.png", "."), "row 3: file: is not a file"),
    "empty patient": (lambda f: edit_manifest(f, "p1", ""), "row 2: patient_id is empty"),
    "empty site": (lambda f: edit_manifest(f, ",B,", ",,"), "row 4: site is empty"),
    "odd site": (lambda f: edit_manifest(f, ",B,", ",../B,"), "row 4: site: a site's name"),
    "two sites": (lambda f: edit_manifest(f, "p2", "p1"), "rows 2 and 4: one patient at two sites"),
    "one class": (lambda f: edit_manifest(f, "normal", "cancer"), "every label is cancer"),
    "no such label": (lambda f: [edit_manifest(f, o, "x") for o in ("normal", "cancer")], "no row has a label"),
    "short row": (lambda f: edit_manifest(f, "c.png,p2,B,cancer", "c.png,p2"), "row 4: has 2 cells"),
    "open quote": (lambda f: edit_manifest(f, "c.png", '"c.png'), "row 4: "),
    "no rows": (lambda f: (f / "manifest.csv").write_text("file,patient_id,label\n"), "has a header but no rows"),
    "empty": (lambda f: (f / "manifest.csv").write_text(""), "is empty"),
    "latin-1": (lambda f: (f / "manifest.csv").write_bytes(b"file,patient_id,label\n\xe9,\xe9,\xe9\n"), "not UTF-8"),
    "twice a column": (lambda f: edit_manifest(f, "site", "label"), "two columns have the same name"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_one_line_with_file_and_row_and_no_patient(tmp_path, case):
    damage, expected = BAD_MANIFESTS[case]
    rows = [(name, patient.replace("p", "CANARY"), site, label) for name, patient, site, label in GOOD]
    folder = manifest(tmp_path / "data", rows)
    edit_manifest(folder, "CANARY", "p")  # the damages speak of p1 and p2
    damage(folder)
    with pytest.raises(DataError) as raised:
        discover(folder, DATA)
    message = str(raised.value)
    assert expected in message and "\n" not in message and str(folder) in message
    assert "p1" not in message.replace(str(folder), "") and raised.value.exit_code == 2


def test_more_sites_than_patients_or_than_the_data_name(tmp_path):
    with pytest.raises(DataError, match="11 sites need at least 11 patients, but there are 10"):
        discover(pool(tmp_path / "pool"), DATA, 11)
    with pytest.raises(DataError, match="names 2 sites, but --sites is 3"):
        discover(manifest(tmp_path / "named", GOOD), DATA, 3)
    with pytest.raises(DataError, match="at least 1"):
        discover(tmp_path / "named", DATA, 0)
    for site in ("north", "south"):
        for label in DATA.labels:
            picture(tmp_path / f"folders/{site}/{label}/a.png", hash((site, label)) % 1000)
    with pytest.raises(DataError, match="2 sites, but --sites is 3"):
        discover(tmp_path / "folders", DATA, 3)


def test_folders_without_images_say_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        discover(tmp_path / "missing", DATA)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="manifest.csv, folders named normal and cancer, or DICOM"):
        discover(tmp_path / "empty", DATA)
    picture(tmp_path / "flat/a.png")
    with pytest.raises(DataError, match="manifest.csv"):
        discover(tmp_path / "flat", DATA, 1)
    picture(tmp_path / "one/cancer/a.png")
    with pytest.raises(DataError, match="every label is cancer; training also needs images of normal"):
        discover(tmp_path / "one", DATA)


def test_a_link_out_of_the_folder_is_refused_and_its_name_not_told(tmp_path):
    picture(tmp_path / "secret/CANARY.png")
    picture(tmp_path / "data/normal/a.png", 1)
    (tmp_path / "data/cancer").mkdir()
    os.symlink(tmp_path / "secret/CANARY.png", tmp_path / "data/cancer/CANARY.png")
    with pytest.raises(DataError, match="a link that leads out") as raised:
        discover(tmp_path / "data", DATA)
    assert "CANARY" not in str(raised.value)


def test_a_picture_at_two_sites_is_a_patient_at_two_sites(tmp_path):
    for index, site in enumerate(("north", "south")):
        picture(tmp_path / site / "normal/a.png", 7)
        picture(tmp_path / site / "cancer/a.png", index)
    with pytest.raises(DataError, match="one patient is at two sites, north and south"):
        discover(tmp_path, DATA)


BAD_LABELS = {
    "no identifier": ("name,label\nx,cancer\n", "needs the columns SOPInstanceUID, SeriesInstanceUID or PatientID"),
    "no label": ("PatientID\nx\n", "needs the columns"),
    "half a point": ("SOPInstanceUID,x,label\n1,2,cancer\n", "x and y go together"),
    "point of a patient": ("PatientID,x,y,label\n1,2,3,cancer\n", "x and y go together, with SOPInstanceUID"),
    "mm of an image": ("SOPInstanceUID,coordX,coordY,coordZ,label\n1,1,1,1,cancer\n", "with SeriesInstanceUID"),
    "no number": ("SOPInstanceUID,x,y,label\n1,1,CANARY,cancer\n", "row 2: y is not a number"),
    "comma decimals": ("SOPInstanceUID;x;y;label\n1;1,5;2;cancer\n", "row 2: x is not a number"),
    "not finite": ("SOPInstanceUID,x,y,label\n1,1,inf,cancer\n", "row 2: y is not a number"),
    "frame 0": ("SOPInstanceUID,x,y,frame,label\n1,1,1,0,cancer\n", "frame must be a whole number counted from 1"),
    "empty identifier": ("PatientID,label\nx,cancer\n,cancer\n", "row 3: the identifier is empty"),
    "labels of another study": ("PatientID,label\nCANARY,sick\n", "no row has a label of the study"),
    "one class": ("PatientID,label\nx,cancer\n", "every label is cancer"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_label_table_is_one_line_with_the_row(tmp_path, case):
    text, expected = BAD_LABELS[case]
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        discover(tmp_path, DATA)
    assert expected in str(raised.value) and "CANARY" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_study_of_marked_points_needs_points(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    marked = DATA.model_copy(update={"region": "marked"})
    with pytest.raises(DataError, match="no points are given"):
        discover(tmp_path, marked)
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,label\n1,cancer\n2,normal\n")
    with pytest.raises(DataError, match="no points are given"):
        discover(tmp_path, marked)


def test_one_hospital_is_one_site_however_deep_its_folders(tmp_path):
    for patient in ("p1", "p2"):
        path = tmp_path / patient / "study/series/image"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\0" * 128 + b"DICM" + patient.encode())
    (source,) = discover(tmp_path, DATA, 1)
    assert len(source.files) == 2 and source.layout == "dicom"
    assert [source.name for source in discover(tmp_path, DATA)] == ["p1", "p2"]
