"""Print a model card as Markdown, with the metadata of Hugging Face in front, or as one HTML page.

Texts come from sites and from the record of a model, so they are escaped: none becomes markup or HTML. The page is
self-contained, without scripts and without anything that a browser would load.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardround.handover.card.blocks import Block, Card

TEMPLATES = Path(__file__).parent / "templates"

_MARKUP = re.compile(r"([\\`*_{}\[\]#|~!])")


def to_markdown(card: Card) -> str:
    """Return the card as Markdown."""
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in card.metadata.items()), "---", ""]
    lines += [f"# {_text(card.title)}", "", f"**{_text(card.notice)}**", ""]
    for warning in card.warnings:
        lines += [f"> **{_text(warning)}**", ">"]
    if card.warnings:
        lines[-1] = ""
    for section in card.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines[:-1]) + "\n"


def to_html(card: Card) -> str:
    """Return the card as HTML. All text is escaped; a missing field is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("model_card.html").render(card=card)


def _yaml(value: object) -> str:
    """Return a value as JSON on one line, which is also YAML."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _block(block: Block) -> Iterator[str]:
    if block.paragraph:
        yield _text(block.paragraph)
    yield from (f"- {_text(item)}" for item in block.bullets)
    if block.columns:
        yield _row(block.columns)
        yield _row(["---"] * len(block.columns))
        yield from (_row([_text(cell) for cell in row]) for row in block.rows)
    if block.code:
        yield f"```python\n{block.code}\n```"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(text: str) -> str:
    return " ".join(html.escape(_MARKUP.sub(r"\\\1", text), quote=False).split())
