"""The file of decisions about one study: decisions/HASH.json, a list of {decision, who, at}; the last one counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wardround.errors import UsageError

DECISIONS = "decisions"


def read_decisions(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """Every decision about a study, oldest first; none where nobody decided. Raises `UsageError` for a damaged file."""
    path = folder / DECISIONS / f"{sha256}.json"
    try:
        decisions = json.loads(path.read_text(encoding="utf-8"))
        return [{key: str(one[key]) for key in ("decision", "who", "at")} for one in decisions]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"{path}: cannot be read as a list of decisions; restore it, the audit log says what it held"
        ) from None


def last_decision(folder: Path, sha256: str) -> str | None:
    """The decision that counts, or None."""
    decisions = read_decisions(folder, sha256)
    return decisions[-1]["decision"] if decisions else None
