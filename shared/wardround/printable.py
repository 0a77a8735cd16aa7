"""Safe display of a peer's text in a terminal, a log or a page: allowed characters, and the escaping of all others.

A terminal executes escape sequences (ECMA-48), a C1 control has the same effect in one character, and a bidirectional
override or an invisible character makes a text look like another one. If a terminal draws a character wider than this
program counts, the line breaks elsewhere and the rest of the text begins in column 0, where the program's own words
begin. The schema of a study therefore allows few characters (`is_plain`), and all printed text is escaped as well,
whatever its source.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from typing import Any

# Python treats the Unicode categories Other and Separator as unprintable: Cc, Cf, Cs, Co, Cn, Zl, Zp, every space but
# U+0020. The following characters are printable by that rule, but are invisible, combine with their neighbours, or have
# a width on which programs disagree: jamo, fillers, the blank Braille pattern, halves of flags, the colours of emoji.
_DOUBTFUL = (
    *((0x1100, 0x11FF), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800), (0x3164, 0x3164), (0xA960, 0xA97F)),
    *((0xD7B0, 0xD7FF), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x13430, 0x1345F), (0x1F1E6, 0x1F1FF)),
    *((0x1F3FB, 0x1F3FF), (0xE0000, 0xE0FFF)),
)
_MARKS = ("Mn", "Mc", "Me")
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_LETTERS = ("Lu", "Ll", "Lt", "Lo")
# The two ASCII characters left out are stand-alone accents (Sk).
_ASCII = frozenset(map(chr, range(0x20, 0x7F))) - set("^`")


@functools.lru_cache(maxsize=4096)
def _shows(one: str) -> bool:
    """Return whether a character takes one or two cells in every terminal and keeps its position in the line."""
    return (
        one.isprintable()
        and not any(first <= ord(one) <= last for first, last in _DOUBTFUL)
        and unicodedata.category(one) not in _MARKS
        and unicodedata.bidirectional(one) not in _RIGHT_TO_LEFT
    )


@functools.lru_cache(maxsize=4096)
def _is_plain_letter(one: str) -> bool:
    """Return whether a character is a letter of a script in use; beyond the first plane only Chinese ones are."""
    in_use = ord(one) < 0x10000 or 0x20000 <= ord(one) < 0x40000
    return in_use and _shows(one) and unicodedata.category(one) in _LETTERS


def is_printable(text: str) -> bool:
    """Return whether every character of a text is displayed as itself, in one line and in the order written."""
    return text.isprintable() and (text.isascii() or all(map(_shows, text)))


def is_plain(text: str) -> bool:
    """Return whether a text looks the same everywhere.

    Allowed are composed letters written from left to right, the digits 0 to 9, the punctuation of ASCII without ^ and
    `, and single spaces between them.
    """
    return (
        all(one in _ASCII or (not one.isascii() and _is_plain_letter(one)) for one in text)
        and unicodedata.is_normalized("NFC", text)
        and text == text.strip(" ")
        and "  " not in text
    )


def cells(text: str) -> int:
    """Return the largest number of columns that a printable text may take.

    Characters of ambiguous width (UAX #11) take two columns in some terminals, and so do symbols and numerals that a
    later version of Unicode made wider.
    """
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(one: str) -> int:
    wide = unicodedata.east_asian_width(one) in "WFA" or unicodedata.category(one) in ("So", "No")
    return 2 if wide else 1


def lines_of(text: str, width: int) -> list[str]:
    """Wrap a printable text into lines of at most `width` columns, at spaces and within words that are too long."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cells(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for one in word:
            if cells(lines[-1] + one) > width and lines[-1]:
                lines.append("")
            lines[-1] += one
    return lines


def escaped(text: str) -> str:
    """Replace every character of `text` that is not printable by its escape, such as `\\x1b` or `\\u202e`."""
    if is_printable(text):
        return text
    return "".join(one if is_printable(one) else ascii(one)[1:-1] for one in text)


def quoted(text: str) -> str:
    """Escape `text` and put it between quotation marks, so that it cannot be mistaken for the words around it."""
    marked = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped(marked)}"'


def json_line(content: Any) -> str:
    """Encode `content` as one line of JSON in which every character is printable; decoding returns the original."""
    text = json.dumps(content, ensure_ascii=False)
    if is_printable(text):
        return text
    return "".join(one if is_printable(one) else json.dumps(one)[1:-1] for one in text)
