"""A list of identifiers is read, or refused in one line that quotes none of them."""

from __future__ import annotations

import pytest

from wardround.errors import DataError
from wardround_client.pacs.identifiers import is_uid, read_list


@pytest.mark.parametrize(
    "text, right", [("1.2.840", True), ("1" * 64, True), ("1" * 65, False), ("1.", False), (1, False)]
)
def test_a_uid_is_digits_and_points(text, right):
    assert is_uid(text) is right


def test_a_list_has_its_rows_and_may_have_other_columns(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("x,StudyInstanceUID\na,1.2\nb,\nc,1.3\n")
    assert read_list(path, "StudyInstanceUID") == ((2, "1.2"), (4, "1.3"))


@pytest.mark.parametrize(
    "text, says",
    [
        ("x\n1\n", "needs a column AccessionNumber"),
        ("AccessionNumber\nA*\n", "row 2: is not a valid AccessionNumber"),
        ("AccessionNumber\n1.2E+17\n", "row 2: looks like a number"),
        ("AccessionNumber,x\n,1\n", "lists nothing"),
    ],
)
def test_a_wrong_list_is_one_clear_line_that_quotes_no_cell(tmp_path, text, says):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_list(path, "AccessionNumber")
    assert "A*" not in str(caught.value)
