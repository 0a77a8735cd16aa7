"""Each message that the table of docs/pacs.md quotes is one that the code can print."""

from __future__ import annotations

import ast
import re

from paths import ROOT

ROOM = ROOT / "client" / "wardround_client" / "pacs"
# What the code fills in: a number, this site's AE title, the texts of the system and of pynetdicom, and its own tasks.
FILLED_IN = re.compile(
    r"…|(?<=0x)[0-9A-F]{4}|WARDROUND|Address already in use|call(?:ed|ing) ae title not recognised"
    r"|send the objects to this site|store the object"
)


def texts() -> str:
    """All strings of the room, with {} for what is filled in."""
    found = []
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_each_message_of_the_table_is_one_of_the_code():
    page = (ROOT / "docs" / "pacs.md").read_text(encoding="utf-8")
    rows = page.partition("| message | meaning | what to do |")[2].splitlines()[2:]
    quoted = [one for row in rows for one in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(quoted) > 15
    known = texts()
    assert "send the objects to this site" in known and "store the object" in known
    assert [one for one in quoted if one not in known and FILLED_IN.sub("{}", one) not in known] == []
