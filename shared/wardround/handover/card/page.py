"""Print a model card as one self-contained HTML page: no script, and nothing that a browser would load."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardround.handover.card.blocks import Card

TEMPLATES = Path(__file__).parent / "templates"


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
