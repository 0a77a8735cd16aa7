"""Text that a peer wrote, on its way to a terminal, a log or a page: which characters it may have, and how others show.

A terminal obeys escape sequences (ECMA-48), a C1 control does the same in one character, and a bidirectional override
or an invisible character makes a text look like another one. The schema of a study refuses all of them; what is printed
is escaped besides, wherever it comes from.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Python calls unprintable what Unicode calls Other or Separator: Cc, Cf, Cs, Co, Cn, Zl, Zp, every space but U+0020.
# These are printable by that rule and show nothing all the same (Unicode 15.1, Default_Ignorable_Code_Point, and the
# blank Braille pattern).
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_printable(text: str) -> bool:
    """True where every character shows as itself, in one line and in the order written."""
    return text.isprintable() and not _INVISIBLE.search(text)


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
