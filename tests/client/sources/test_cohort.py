"""The cohort: it is read as it was written, a partly written one cannot be opened, and it contains no names."""

import hashlib
import json

import numpy as np
import pytest

from wardround.errors import DataError
from wardround_client.sources.cohort import (
    CohortRow,
    Rows,
    holdout_rank,
    open_cohort,
    pseudonym,
    row_hashes,
    select_patients,
    values_sha256,
    write_cohort,
)

KEY = b"k" * 32
LABELS = ("benign", "malignant")


def make_cohort(folder, patients=(0, 0, 1, 2), labels=(0, 1, -1, 1), seed=0, prepared_by="v1"):
    images = np.random.default_rng(seed).integers(0, 256, (len(patients), 1, 8, 8), dtype=np.uint8)
    pairs = zip(patients, labels, strict=True)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{p}"), label=label, extra={"hu": f"{p > 0:d}"}) for p, label in pairs]
    key = write_cohort(
        folder, rows, iter(images), row_shape=(1, 8, 8), label_names=LABELS, site_key=KEY, prepared_by=prepared_by
    )
    return images, key


def test_an_opened_cohort_is_what_was_written(tmp_path):
    images, key = make_cohort(tmp_path / "cohort")
    cohort = open_cohort(tmp_path / "cohort")
    assert np.array_equal(cohort.values_N, images) and cohort.key == key
    assert cohort.labels_N.tolist() == [0, 1, -1, 1] and cohort.labels_N.dtype == np.int16
    assert cohort.patient_N.tolist() == [0, 0, 1, 2] and cohort.patient_N.dtype == np.int32
    assert cohort.extra == {"hu": ("0", "0", "1", "1")}
    assert cohort.pseudonyms == tuple(pseudonym(KEY, f"p{p}") for p in range(3))
    assert cohort.holdout_rank_P.tolist() == [holdout_rank(KEY, name) for name in cohort.pseudonyms]


def test_arrays_of_a_cohort_cannot_be_changed(tmp_path):
    make_cohort(tmp_path)
    cohort = open_cohort(tmp_path)
    part = select_patients(cohort, np.array([True, False, True]))
    for array in (cohort.values_N, cohort.labels_N, part.values_N):
        with pytest.raises((ValueError, TypeError)):
            array[0] = 1


def test_chosen_rows_are_read_one_by_one_and_are_the_array_they_stand_for():
    whole = np.arange(60, dtype=np.uint8).reshape(10, 2, 3)
    some = Rows(Rows(whole, np.array([9, 1, 4, 7, 0])), np.array([3, 0, 2]))
    same = whole[[7, 9, 4]]
    assert some.shape == same.shape and some.dtype == same.dtype and len(some) == 3
    assert np.array_equal(some, same) and np.array_equal(some[1], same[1]) and np.array_equal(some[1:], same[1:])
    assert np.array_equal(some[np.array([2, 0])], same[[2, 0]])
    assert np.array_equal(some[np.array([True, False, True])], same[[0, 2]])
    some[0][:] = 0
    assert whole[7].any()


def test_the_key_follows_pixels_and_preparation_and_not_labels_or_site(tmp_path):
    _, key = make_cohort(tmp_path / "a")
    assert make_cohort(tmp_path / "b", labels=(1, 0, 0, 0))[1] == key
    assert make_cohort(tmp_path / "c", seed=1)[1] != key
    assert make_cohort(tmp_path / "d", prepared_by="v2")[1] != key


@pytest.mark.parametrize("damage", ["no_seal", "no_images", "short_images", "other_table", "broken_seal", "schema"])
def test_a_half_written_or_altered_cohort_never_opens(tmp_path, damage):
    make_cohort(tmp_path)
    images, seal, table = tmp_path / "values.npy", tmp_path / "cohort.json", tmp_path / "table.csv"
    if damage == "no_seal":
        seal.unlink()
    elif damage == "no_images":
        images.unlink()
    elif damage == "short_images":
        images.write_bytes(images.read_bytes()[:-1])
    elif damage == "other_table":
        table.write_text(table.read_text().replace("benign", "malignant"))
    elif damage == "broken_seal":
        seal.write_text(seal.read_text()[:40])
    else:
        seal.write_text(json.dumps({**json.loads(seal.read_text()), "schema": 99}))
    with pytest.raises(DataError, match="run ingest"):
        open_cohort(tmp_path)


def test_a_failed_rewrite_leaves_the_old_cohort(tmp_path):
    images, key = make_cohort(tmp_path)
    with pytest.raises(ValueError):
        write_cohort(
            tmp_path,
            [CohortRow(pseudonym="0" * 64, label=0)] * 2,
            iter(images[:1]),
            row_shape=(1, 8, 8),
            label_names=LABELS,
            site_key=KEY,
        )
    assert open_cohort(tmp_path).key == key


def test_selecting_patients_keeps_exactly_their_images(tmp_path):
    images, _ = make_cohort(tmp_path)
    cohort = open_cohort(tmp_path)
    part = select_patients(cohort, np.array([False, True, True]))
    assert np.array_equal(part.values_N, images[2:]) and part.patient_N.tolist() == [0, 1]
    assert part.pseudonyms == cohort.pseudonyms[1:] and part.labels_N.tolist() == [-1, 1]
    assert part.holdout_rank_P.tolist() == cohort.holdout_rank_P[1:].tolist()
    other = select_patients(cohort, np.array([True, True, False]))
    assert len({part.key, other.key, cohort.key}) == 3
    assert select_patients(cohort, np.ones(3, bool)).key == cohort.key
    with pytest.raises(ValueError):
        select_patients(cohort, np.array([0, 1, 2]))


def test_pseudonyms_depend_on_key_patient_and_issuer_and_not_on_padding():
    patients = [("ab", ""), ("ab", "c"), ("a", "bc"), ("abc", "")]
    names = {pseudonym(key, *patient) for key in (KEY, b"x" * 32) for patient in patients}
    assert len(names) == 8
    assert pseudonym(KEY, "ab ", "c\0") == pseudonym(KEY, "ab", "c")
    assert "ab" not in pseudonym(KEY, "CANARY") and len(pseudonym(KEY, "CANARY")) == 64


def test_holdout_ranks_are_uniform_and_permanent():
    ranks = np.array([holdout_rank(KEY, pseudonym(KEY, str(i))) for i in range(4000)])
    assert ranks.min() >= 0 and ranks.max() < 1
    assert np.abs(np.histogram(ranks, 10, (0, 1))[0] - 400).max() < 90
    assert holdout_rank(KEY, "a") == holdout_rank(KEY, "a") != holdout_rank(b"other" * 8, "a")


def test_rows_may_have_any_shape_and_dtype(tmp_path):
    series = np.random.default_rng(0).normal(size=(3, 48, 37)).astype(np.float32)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"p{number}"), label=-1) for number in range(3)]
    settings = {"row_shape": (48, 37), "dtype": np.float32, "label_names": LABELS, "site_key": KEY}
    key = write_cohort(tmp_path, rows, iter(series), **settings)
    cohort = open_cohort(tmp_path)
    assert cohort.values_N.dtype == np.float32 and np.array_equal(cohort.values_N, series) and cohort.extra == {}
    assert row_hashes(tmp_path) == [values_sha256(one) for one in series]
    assert write_cohort(tmp_path / "other", rows, iter(series.view(np.int32)), **{**settings, "dtype": np.int32}) != key
    with pytest.raises(ValueError, match="float32"):
        write_cohort(tmp_path, rows, iter(series.astype(float)), **settings)


def test_a_cohort_of_schema_1_opens_with_the_same_key_and_is_replaced_by_the_next_one(tmp_path):
    images, key = make_cohort(tmp_path)
    (tmp_path / "values.npy").rename(tmp_path / "images.npy")
    table = (tmp_path / "table.csv").read_text().replace("values_sha256", "pixels_sha256").encode()
    (tmp_path / "table.csv").write_bytes(table)
    seal = json.loads((tmp_path / "cohort.json").read_bytes())
    shape, _ = seal.pop("shape"), seal.pop("dtype")
    old = {**seal, "schema": 1, "shape_NCHW": shape, "table_sha256": hashlib.sha256(table).hexdigest()}
    (tmp_path / "cohort.json").write_text(json.dumps(old))
    cohort = open_cohort(tmp_path)
    assert cohort.key == key and np.array_equal(cohort.values_N, images) and cohort.extra["hu"][2] == "1"
    assert row_hashes(tmp_path) == [values_sha256(one) for one in images]
    assert make_cohort(tmp_path)[1] == key and not (tmp_path / "images.npy").exists()
