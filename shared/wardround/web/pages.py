"""Renders a page: Jinja2 templates of a console and those that both share, with every value escaped.

A value becomes HTML text through Jinja2's escaping, and before that every character that a browser would not show as
itself (control characters, changes of direction, invisible ones) is replaced by its escape, as on the command line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from wardround.printable import escaped
from wardround.text import bytes_text, epsilon_text, seconds_text
from wardround.web.texts import LANGUAGES, load_texts, translator
from wardround.web.texts import SHARED as SHARED_TEXTS

SHARED = Path(__file__).with_name("templates")
STATIC = Path(__file__).with_name("static")
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The templates and texts of one console."""

    environment: Environment
    texts: Mapping[str, Mapping[str, str]]

    def render(self, template: str, language: str, status: int = 200, **facts: Any) -> HTMLResponse:
        """Return the answer with a page in this language. Raises `jinja2.UndefinedError` for a fact that is missing."""
        t = translator(self.texts[language])
        html = self.environment.get_template(template).render(
            t=t, language=language, languages=LANGUAGES, now=time.time(), **facts
        )
        return HTMLResponse(html, status, headers={"content-language": language, "vary": "accept-language, cookie"})


def load_pages(folder: Path) -> Pages:
    """Load the pages of a console's folder, which has `templates/` and `texts/`."""
    environment = Environment(
        loader=FileSystemLoader([folder / "templates", SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": bytes_text, "epsilon": epsilon_text, "duration": seconds_text, "moment": moment, "percent": percent,
        "clock": clock, "lines": lines, "fixed": fixed,
    }  # fmt: skip
    return Pages(environment=environment, texts=load_texts(SHARED_TEXTS, folder / "texts"))


def static_files() -> dict[str, tuple[bytes, str]]:
    """Return the style sheet and scripts by name, with their content type; no other file is ever served."""
    return {
        path.name: (path.read_bytes(), KINDS[path.suffix]) for path in sorted(STATIC.iterdir()) if path.suffix in KINDS
    }


def moment(at: float | str | None) -> str:
    """Format seconds since 1970, or a time as the records have it, as `2026-11-24 21:50 UTC`."""
    if at is None:
        return "–"
    if isinstance(at, str):
        return f"{at[:10]} {at[11:16]} UTC" if len(at) > 15 else at
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def clock(at: float) -> str:
    """Format seconds since 1970 as a time of day with seconds, for what changes while somebody looks."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(at))


def fixed(value: float, decimals: int) -> str:
    """Format a number with all its decimals, so that the parts of a sum stand in one column; infinity as `∞`."""
    return "∞" if math.isinf(value) else f"{value:.{decimals}f}"


def percent(part: float, whole: float) -> float:
    """Return a part in hundredths of the whole, between 0 and 100, for the width of a bar."""
    return round(100 * min(max(part / whole, 0.0), 1.0), 2) if whole > 0 else 0.0


def lines(text: str) -> Markup:
    """Return a text of several lines for a text field or a preformatted part, each line escaped as all values are."""
    return Markup("\n").join(escaped(line) for line in text.splitlines())


def _shown(value: Any) -> Any:
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value
