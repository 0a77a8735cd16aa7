"""A resumed run has the notes of every round, whatever a kill left in the file."""

import math

from wardround.tasks.round_notes import append_note, read_notes


def test_notes_are_read_as_written_and_a_number_that_is_not_finite_too(tmp_path):
    path = tmp_path / "curve.jsonl"
    append_note(path, 1, {"auc": 0.5, "low": None})
    append_note(path, 2, {"auc": math.inf, "low": math.nan})
    notes = read_notes(path)
    assert notes[1] == {"auc": 0.5, "low": None} and notes[2]["auc"] == math.inf and math.isnan(notes[2]["low"])


def test_a_line_that_a_kill_cut_short_does_not_hide_the_next_one(tmp_path):
    path = tmp_path / "curve.jsonl"
    append_note(path, 1, {"auc": 0.5})
    with path.open("a") as file:
        file.write('{"round": 2, "au')
    assert list(read_notes(path)) == [1]
    append_note(path, 2, {"auc": 0.6})
    assert read_notes(path) == {1: {"auc": 0.5}, 2: {"auc": 0.6}}


def test_a_round_noted_twice_counts_once_and_a_damaged_file_gives_no_notes(tmp_path):
    path = tmp_path / "curve.jsonl"
    append_note(path, 1, {"auc": 0.5})
    append_note(path, 1, {"auc": 0.7})
    assert read_notes(path) == {1: {"auc": 0.7}}
    path.write_text("[1]\n")
    assert read_notes(path) == {} and read_notes(tmp_path / "none.jsonl") == {}
