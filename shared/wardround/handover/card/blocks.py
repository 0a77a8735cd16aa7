"""The parts of a model card, independent of its format. `formats.py` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block: a paragraph, a list, a table or code. Exactly one field is not empty."""

    paragraph: str = ""
    bullets: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model card. `metadata` has the fields of a Hugging Face model card; `sections` has the text."""

    title: str
    notice: str
    warnings: tuple[str, ...]
    metadata: Mapping[str, Any]
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the empty fields of blocks."""
        sections = [
            {"title": section.title, "blocks": [_filled(block) for block in section.blocks]}
            for section in self.sections
        ]
        return {
            "schema": 1,
            "title": self.title,
            "notice": self.notice,
            "warnings": list(self.warnings),
            "metadata": dict(self.metadata),
            "sections": sections,
        }


def paragraph(text: str) -> Block:
    return Block(paragraph=text)


def bullets(items: Sequence[str]) -> Block:
    return Block(bullets=tuple(items))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    return Block(columns=tuple(columns), rows=tuple(tuple(row) for row in rows))


def _filled(block: Block) -> dict[str, Any]:
    return {name: value for name, value in asdict(block).items() if value}
