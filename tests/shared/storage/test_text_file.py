"""Text files of people: UTF-8 with or without a byte order mark, in every locale; and paths that are not UTF-8."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from wardround.errors import StudyError, UsageError
from wardround.storage.text_file import NotTextError, path_key, path_text, read_text
from wardround.storage.toml import toml_content
from wardround.study.load import load_study

C_LOCALE = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PACKAGES = ("shared/wardround", "client/wardround_client", "server/wardround_server", "simulation/wardround_simulation")


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", ""),
        ("Köln\n".encode(), "Köln\n"),
        (b"\xef\xbb\xbfname = 1\n", "name = 1\n"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
    ],
)
def test_text_is_utf_8_with_or_without_a_mark_and_with_any_line_ends(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert read_text(path) == text


@pytest.mark.parametrize(
    "content, message",
    [
        ("name = 'Köln'".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("a\nname = 'Köln'".encode("latin-1"), "line 2 is not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_other_text_is_refused_with_what_to_do_and_is_not_quoted(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(NotTextError, match=message) as caught:
        read_text(path)
    assert "ln" not in str(caught.value)
    with pytest.raises(UsageError, match=f"text: not a TOML file: .*{message}"):
        toml_content(path)


def test_toml_with_a_byte_order_mark_is_read_and_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("a = 1\r\n", encoding="utf-8-sig")
    assert toml_content(path) == {"a": 1}
    for damage in (b"a = ", b"a = \xe4", b"\xff\xfea\0", b"a = [" * 3000, b"a = " + b"9" * 9000):
        path.write_bytes(damage)
        for kind, read in ((UsageError, toml_content), (StudyError, load_study)):
            with pytest.raises(kind, match="t.toml: not a TOML file: ") as caught:
                read(path)
            assert "\n" not in str(caught.value)


def test_a_path_that_is_not_utf_8_has_two_forms_that_can_be_written() -> None:
    path = os.fsdecode(b"/data/K\xf6ln/\xc3\xa4")
    assert path_text(path) == "/data/K\\xf6ln/ä" and path_text("/data/ä") == "/data/ä"
    assert json.loads(json.dumps(path_key(path))) == path_key(path)


def test_a_path_has_the_same_forms_in_the_locale_c() -> None:
    code = "from wardround.storage.text_file import *; print(ascii((path_text(sys.argv[1]), path_key(sys.argv[1]))))"
    path = os.fsdecode("/data/K\u00f6ln".encode() + b"/\xff")
    printed = []
    for environment in (None, {**C_LOCALE, "PYTHONPATH": os.pathsep.join(sys.path)}):
        command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}", path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert printed[0] == printed[1] == ascii((path_text(path), path_key(path))) + "\n"


def opened_without_encoding(path: Path) -> list[str]:
    """The places of a file that read or write text in the encoding of the locale."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            text = True
        elif name in ("open", "fdopen", "TextIOWrapper", "NamedTemporaryFile"):
            of_os = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("os", "Image", "tarfile")
            if of_os and name == "open":
                continue
            method = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) != "os"
            modes = [named["mode"]] if "mode" in named else node.args[0 if method else 1 :][:1]
            text = not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
        else:
            text = name in ("run", "Popen", "check_output") and ("text" in named or "universal_newlines" in named)
        if text and "encoding" not in named:
            found.append(f"{path.relative_to(path.anchor)}:{node.lineno} {name}")
    return found


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale(tmp_path: Path) -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    ours = ("storage/text_file.py",)
    assert len(files) > 100
    assert [place for path in files if not str(path).endswith(ours) for place in opened_without_encoding(path)] == []


@pytest.mark.parametrize(
    "code", ["open(p)", "open(p, 'w')", "p.open(newline='')", "p.read_text()", "p.write_text(t)", "run(c, text=True)"]
)
def test_the_rule_finds_what_breaks_it(tmp_path: Path, code: str) -> None:
    path = tmp_path / "x.py"
    path.write_text(f"{code}\n", encoding="utf-8")
    assert opened_without_encoding(path)
