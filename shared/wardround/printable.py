"""Text that a peer wrote, on its way to a terminal, a log or a page: which characters it may have, and how others show.

A terminal obeys escape sequences (ECMA-48), a C1 control does the same in one character, and a bidirectional override
or an invisible character makes a text look like another one. A character that a terminal draws wider than we count
breaks a line where we did not, and the rest of a text begins in column 0, as words of ours do. The schema of a study
takes few characters (`is_plain`); what is printed is escaped besides, wherever it comes from.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from typing import Any

# Python calls unprintable what Unicode calls Other or Separator: Cc, Cf, Cs, Co, Cn, Zl, Zp, every space but U+0020.
# These are printable by that rule and all the same show nothing, or join what stands beside them, or have a width that
# programs do not agree on: jamo, fillers, the blank Braille pattern, halves of flags, the colours of emoji.
_DOUBTFUL = (
    *((0x1100, 0x11FF), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800), (0x3164, 0x3164), (0xA960, 0xA97F)),
    *((0xD7B0, 0xD7FF), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x13430, 0x1345F), (0x1F1E6, 0x1F1FF)),
    *((0x1F3FB, 0x1F3FF), (0xE0000, 0xE0FFF)),
)
_MARKS = ("Mn", "Mc", "Me")
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_LETTERS = ("Lu", "Ll", "Lt", "Lo")
# What is left of ASCII are two accents that stand alone (Sk).
_ASCII = frozenset(map(chr, range(0x20, 0x7F))) - set("^`")


@functools.lru_cache(maxsize=4096)
def _shows(one: str) -> bool:
    """True for a character that takes one or two cells, whoever counts, and keeps its place."""
    return (
        one.isprintable()
        and not any(first <= ord(one) <= last for first, last in _DOUBTFUL)
        and unicodedata.category(one) not in _MARKS
        and unicodedata.bidirectional(one) not in _RIGHT_TO_LEFT
    )


@functools.lru_cache(maxsize=4096)
def _is_plain_letter(one: str) -> bool:
    """True for a letter of a script that is in use: those beyond the first plane are Chinese ones, or historic."""
    in_use = ord(one) < 0x10000 or 0x20000 <= ord(one) < 0x40000
    return in_use and _shows(one) and unicodedata.category(one) in _LETTERS


def is_printable(text: str) -> bool:
    """True where every character shows as itself, in one line and in the order written."""
    return text.isprintable() and (text.isascii() or all(map(_shows, text)))


def is_plain(text: str) -> bool:
    """True for words that look the same everywhere: composed letters written from left to right, the digits 0 to 9, the
    punctuation of ASCII, and single spaces between them.
    """
    return (
        all(one in _ASCII or (not one.isascii() and _is_plain_letter(one)) for one in text)
        and unicodedata.is_normalized("NFC", text)
        and text == text.strip(" ")
        and "  " not in text
    )


def cells(text: str) -> int:
    """How many columns a printable text takes at most: letters whose width is ambiguous (UAX #11) take two of some
    terminals, and so do symbols and numerals that Unicode made wider in a later version.
    """
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(one: str) -> int:
    wide = unicodedata.east_asian_width(one) in "WFA" or unicodedata.category(one) in ("So", "No")
    return 2 if wide else 1


def lines_of(text: str, width: int) -> list[str]:
    """A printable text in lines of at most `width` columns, broken at its spaces and inside of longer words."""
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
    """`text` with every character that is not printable written out, as `\\x1b` or `\\u202e`."""
    if is_printable(text):
        return text
    return "".join(one if is_printable(one) else ascii(one)[1:-1] for one in text)


def quoted(text: str) -> str:
    """`text` escaped and between quotation marks, so that nobody takes a part of it for the words around it."""
    marked = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped(marked)}"'


def json_line(content: Any) -> str:
    """`content` as one line of JSON in which every character is printable; any reader of JSON gives the original."""
    text = json.dumps(content, ensure_ascii=False)
    if is_printable(text):
        return text
    return "".join(one if is_printable(one) else json.dumps(one)[1:-1] for one in text)
