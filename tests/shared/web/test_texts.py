"""The texts of both consoles exist in each language, with the same places for values, and templates use no other."""

from __future__ import annotations

import hashlib
import re
import string
from pathlib import Path

import pytest
from paths import ROOT

from wardround.web.pages import SHARED, STATIC
from wardround.web.texts import LANGUAGES, choose_language, code_in, load_texts, translations, translator
from wardround.web.texts import SHARED as SHARED_TEXTS
from wardround.wire.reply_codes import CODES
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.records.quality.reasons import REASONS as RECORD_REASONS

CONSOLES = [ROOT / "client/wardround_client/console", ROOT / "server/wardround_server/console"]


def values_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("console", CONSOLES, ids=lambda path: path.parent.name)
def test_each_language_has_the_same_keys_and_values(console: Path) -> None:
    texts = load_texts(SHARED_TEXTS, console / "texts")
    assert set(texts) == set(LANGUAGES)
    for language in set(LANGUAGES) - {"en"}:
        assert set(texts[language]) == set(texts["en"])
        for key, text in texts[language].items():
            assert values_of(text) == values_of(texts["en"][key]), key
            assert text.strip() == text and text


@pytest.mark.parametrize("console", CONSOLES, ids=lambda path: path.parent.name)
def test_templates_use_texts_that_exist_and_hold_no_words_of_their_own(console: Path) -> None:
    texts = load_texts(SHARED_TEXTS, console / "texts")["en"]
    for path in (*sorted((console / "templates").iterdir()), *sorted(SHARED.iterdir())):
        template = path.read_text(encoding="utf-8")
        keys = re.findall(r"\bt\('([\w.-]+)'(?! ~)", template)
        assert [key for key in keys if key not in texts] == [], path.name
        prefixes = re.findall(r"\bt\('([\w.-]+)' ~", template)
        assert [one for one in prefixes if not any(key.startswith(one) for key in texts)] == [], path.name
        plain = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", template, flags=re.DOTALL)
        words = set(re.findall(r"[A-Za-z]{3,}", plain)) - {"doctype", "html", "toml", "site"}
        assert not words, f"{path.name}: {words}"


def test_no_template_has_a_script_or_a_style_of_its_own_or_switches_escaping_off() -> None:
    for folder in (SHARED, *(console / "templates" for console in CONSOLES)):
        for path in folder.iterdir():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\|\s*safe|autoescape|Markup|<style|style=|\son\w+=|javascript:", text), path.name
            assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path.name


@pytest.mark.parametrize(
    "asked, cookie, accepted, language",
    [
        (None, None, "", "en"),
        (None, None, "de-AT,de;q=0.9,en;q=0.8", "de"),
        (None, None, "fr-FR, de;q=0.5", "de"),
        (None, "de", "en", "de"),
        ("en", "de", "de", "en"),
        ("../../etc/passwd", "<script>", "x" * 100_000, "en"),
    ],
)
def test_the_language_is_one_that_exists(asked, cookie, accepted: str, language: str) -> None:
    assert choose_language(asked, cookie, accepted) == language


def test_the_vendored_script_is_the_one_of_the_page() -> None:
    content = (STATIC / "htmx.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in (ROOT / "docs/supply-chain.md").read_text(encoding="utf-8")


def test_every_reply_code_and_reason_has_a_translation() -> None:
    for name, codes in (("code", CODES), ("title", REASONS), ("advice", REASONS)):
        stem = SHARED_TEXTS / "codes" if name == "code" else CONSOLES[0] / "texts" / "images_reasons"
        words = translations(stem, "de")[name]
        assert set(words) == set(codes) and all(text.strip() == text and text for text in words.values())
    for name in ("title", "advice"):
        words = translations(CONSOLES[0] / "texts" / "records_reasons", "de")[name]
        assert set(words) == set(RECORD_REASONS) and all(text.strip() == text and text for text in words.values())
    assert code_in("de", "late").startswith("antwortete") and code_in("en", "late").startswith("answered")
    assert code_in("de", "refused:new_reason") == "the site refused: new reason"


def test_a_text_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        translator({"a.b": "x"})("a.c")
