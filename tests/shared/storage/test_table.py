"""Tables as people's programs write them are read, and what is damaged is one line that quotes no cell."""

import pytest

from wardround.errors import DataError
from wardround.storage.table import read_table, refuse_shortened, same_text, spellings_of_number

WANTED = [{"id": "007", "label": "a"}, {"id": "b, c", "label": "ä"}]


@pytest.mark.parametrize(
    "content",
    [
        b'id,label\n007,a\n"b, c",\xc3\xa4\n',
        b'\xef\xbb\xbfid;label\r\n007;a\r\n"b, c";\xc3\xa4\r\n',
        b'\n\n ID \tLabel\n007\ta\n\t\n"b, c"\ta\xcc\x88\n',
        b'sep=;\nid;label\n007;a\n"b, c";\xc3\xa4',
        b'id|label\n007|a \n" b, c"|\xc3\xa4\n\n',
        b'"id","label"\n"007","a"\n"b, c","\xc3\xa4"\n',
    ],
)
def test_tables_of_many_programs_are_the_same_table(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert [cells for _, cells in read_table(path).rows] == WANTED


def test_rows_are_numbered_as_a_spreadsheet_shows_them_and_odd_line_ends_are_part_of_a_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\nid,label\n\n1,"two\nlines"\n2,a\u2028b\n', encoding="utf-8")
    assert read_table(path).rows == (
        (4, {"id": "1", "label": "two\nlines"}),
        (5, {"id": "2", "label": "a\u2028b"}),
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"id,ID\n1,2\n", "two columns have the same name"),
        (b"id,label\n1\n", "row 2: has 1 cells, the header has 2"),
        (b'id,label\n1,a\n2,"b\n', "row 3: is not valid CSV"),
        (b"id,label\n1," + b"x" * 200_000 + b"\n", "row 2: a cell is longer than 100000 characters"),
        (
            "id,label\n1,ä\n".encode("utf-16"),
            "it is UTF-16 text; save it as UTF-8 (in a spreadsheet program: 'CSV UTF-8')",
        ),
        (b"id,label\n1,\xe4\n", "line 2 is not UTF-8 text"),
        (b"PK\3\4rest of a workbook", "is a spreadsheet, not text"),
        (b"id,label\n1,a\0\n2,\0\n", None),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, content, message):
    path = tmp_path / "CANARY.csv"
    path.write_bytes(content)
    if message is None:
        assert len(read_table(path).rows) <= 2
        return
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_in_place_of_a_table_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)


@pytest.mark.parametrize("text", ["1.0E+17", "1E+05", "1,23457E+12", "-4e10"])
def test_an_identifier_that_a_spreadsheet_shortened_is_refused(text):
    with pytest.raises(DataError, match=r"t.csv: row 3: id: looks like a number") as caught:
        refuse_shortened(text, "t.csv: row 3: id")
    assert text not in str(caught.value)


def test_other_identifiers_are_not():
    for text in ("12345", "1.2.840.113619", "E12", "12E", "0x1", "", "1e"):
        refuse_shortened(text, "here")


def test_the_zeros_that_a_spreadsheet_removed():
    assert {"0042", "00042"} <= spellings_of_number("42") and "42" not in spellings_of_number("42")
    assert "42" in spellings_of_number("0042") and "42" in spellings_of_number("42.0")
    assert spellings_of_number("A42") == set() == spellings_of_number("1.2.3")


def test_names_are_compared_without_case_spaces_and_unicode_forms():
    assert same_text(" Ro\u0308ntgen ") == same_text("R\u00d6NTGEN")
