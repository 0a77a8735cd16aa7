"""Render a template and its content to one self-contained HTML page, which is written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from wardround.storage.atomic import write_file

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Render `template` to `path` atomically, create the folder if necessary, and return `path`.

    All text is escaped, and a missing entry is an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_html(path, render(template, content))
    return path


def write_html(path: Path, text: str) -> None:
    """Write the text of a page atomically; bytes of file names that are not UTF-8 become escapes."""
    write_file(path, text.encode("utf-8", "backslashreplace"), mode=None)


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return the text of `template`, a page or a part of one. All text is escaped; a missing entry is an error."""
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
    """Return a sentence as HTML: escaped, without line breaks in `ε = 8` or `95 %`, and with e^ε as a power."""
    joined = text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")
    return Markup(str(escape(joined)).replace("e^ε", "e<sup>ε</sup>"))
