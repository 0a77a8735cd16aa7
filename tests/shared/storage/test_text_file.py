"""Text files that people write are UTF-8 in every locale; a byte order mark is welcome."""

import pytest

from wardround.errors import StudyError, UsageError
from wardround.storage.text_file import NotTextError, read_text
from wardround.storage.toml import toml_content
from wardround.study.load import load_study


@pytest.mark.parametrize("content", [b"a\nb\n", b"\xef\xbb\xbfa\r\nb\r\n", b"a\rb\r"])
def test_text_of_every_editor_is_the_same(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    assert read_text(tmp_path / "t") == "a\nb\n"


@pytest.mark.parametrize(
    "content, message",
    [("a".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"), (b"a\nb\n\xe4", "line 3 is not UTF-8 text")],
)
def test_other_encodings_are_named_with_the_line(tmp_path, content, message):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(NotTextError, match=message):
        read_text(tmp_path / "t")


def test_toml_with_a_byte_order_mark_is_read_and_damage_is_one_line(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text("a = 1\r\n", encoding="utf-8-sig")
    assert toml_content(path) == {"a": 1}
    for damage in (b"a = ", b"a = \xe4", b"\xff\xfea\0", b"a = [" * 3000, b"a = " + b"9" * 9000):
        path.write_bytes(damage)
        for kind, read in ((UsageError, toml_content), (StudyError, load_study)):
            with pytest.raises(kind, match="t.toml: not a TOML file: ") as caught:
                read(path)
            assert "\n" not in str(caught.value)
