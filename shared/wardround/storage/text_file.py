"""Text files written by people: UTF-8 in every locale, with or without a byte order mark.

A file's name need not be UTF-8 at all. Python represents its other bytes by lone surrogates, which no text file can
contain: `path_text` and `path_key` give the two forms of a path that can be written.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotTextError(ValueError):
    """A file is not UTF-8 text. The message says where it fails and what to do, and quotes nothing of it."""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without its byte order mark; every line ends with a newline character alone.

    Raises:
        OSError: The file cannot be read.
        NotTextError: The file is not UTF-8 text.
    """
    content = path.read_bytes()
    if content.startswith(_UTF_16):
        raise NotTextError("it is UTF-16 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotTextError(f"line {line} is not UTF-8 text; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def path_text(path: str | bytes | os.PathLike[str]) -> str:
    """Return a path as text for a person: the bytes of its name that are not UTF-8 are shown as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def path_key(path: str | os.PathLike[str]) -> str:
    """Return the same text for a path in every locale, as a key of a record in JSON; `json.dumps` escapes it."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")
