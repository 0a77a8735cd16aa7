"""Where the tests find the repository's own files."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
STUDIES = ROOT / "studies"
HOSTILE = TESTS / "hostile"  # programs of an attacker, started by tests
