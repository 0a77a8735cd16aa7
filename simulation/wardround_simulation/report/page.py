"""One self-contained HTML page from a template and its content, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Renders `template` to `path` (its folder is made); every text is escaped, a missing entry is an error.
    Returns `path`.
    """
    text = render(template, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def render(template: str, content: Mapping[str, Any]) -> str:
    """The text of `template`, or of a part of a page; every text is escaped, a missing entry is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment.get_template(template).render(content)


def prose(text: str) -> Markup:
    """A sentence for the page: escaped, no line break inside `ε = 8` or `95 %`, and e^ε set as a power."""
    joined = text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")
    return Markup(str(escape(joined)).replace("e^ε", "e<sup>ε</sup>"))
