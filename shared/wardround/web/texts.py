"""The words of the pages, in English and German: TOML files with the same keys in each language.

Texts that come from elsewhere exist in English where they come from, and some of them here in other languages as well
(`codes.de.toml`). The others are shown as they are: the description of a study, which a person approves word by word,
findings of health checks, and log entries.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wardround.wire.reply_codes import code_text

LANGUAGES = {"en": "English", "de": "Deutsch"}
DEFAULT = "en"
SHARED = Path(__file__).with_name("texts")

Translate = Callable[..., str]


def load_texts(*folders: Path) -> dict[str, dict[str, str]]:
    """Read the texts of all folders (LANGUAGE.toml in each) by language and key, such as `login.title`."""
    texts: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        found: dict[str, str] = {}
        for folder in folders:
            content = tomllib.loads((folder / f"{language}.toml").read_text(encoding="utf-8"))
            found |= {f"{section}.{key}": text for section, part in content.items() for key, text in part.items()}
        texts[language] = found
    return texts


@functools.cache
def translations(path: Path, language: str) -> Mapping[str, Mapping[str, str]]:
    """Read `PATH.LANGUAGE.toml`, texts that exist in English elsewhere; empty for a language without the file."""
    file = path.with_name(f"{path.name}.{language}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def code_in(language: str, code: str) -> str:
    """Return why a reply does not count, in a language; in English where there is no translation."""
    return translations(SHARED / "codes", language).get("code", {}).get(code) or code_text(code)


def translator(texts: Mapping[str, str]) -> Translate:
    """Return the function that templates call as `t("login.title")`; values are filled in by name.

    Raises `KeyError` for a key that does not exist.
    """

    def translate(key: str, **values: Any) -> str:
        return texts[key].format(**values) if values else texts[key]

    return translate


def choose_language(asked: str | None, cookie: str | None, accepted: str) -> str:
    """Return the language: the one asked for in the address, of the cookie, or the browser's first known one."""
    for one in (asked, cookie):
        if one is not None and one in LANGUAGES:
            return one
    return next((code for code in _preferred(accepted) if code in LANGUAGES), DEFAULT)


def _preferred(accepted: str) -> Sequence[str]:
    """Read an Accept-Language header in its order; weights are in descending order in all browsers."""
    return [part.partition(";")[0].strip().lower()[:2] for part in accepted[:200].split(",")]
