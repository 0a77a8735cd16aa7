"""What a task's assessment notes after each round, kept in a file beside the checkpoints.

A resumed run continues with the notes of the rounds before it was stopped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardround.storage.jsonl import append_lines, read_lines, trim_lines

ROUND = "round"
Note = dict[str, Any]

log = logging.getLogger(__name__)


def read_notes(path: Path) -> dict[int, Note]:
    """Return the notes of each round, and remove a line that a kill cut short, so that the next one is appended whole.

    A round noted twice, because a run was stopped between the note and the checkpoint, counts as noted last. A damaged
    file gives no notes: they only draw a curve.
    """
    try:
        records = read_lines(path)
        trim_lines(path, records, mode=None)
    except ValueError as error:
        log.warning("%s: %s; the curve begins at this round", path.name, error)
        return {}
    return {
        record[ROUND]: {key: _from_json(value) for key, value in record.items() if key != ROUND}
        for record in records
        if isinstance(record.get(ROUND), int)
    }


def append_note(path: Path, round_: int, note: Mapping[str, Any]) -> None:
    """Append the note of one round; durable on return. A number that is not finite is stored as text.

    Raises:
        OSError: The file cannot be written.
    """
    append_lines(path, [{ROUND: round_, **{key: _to_json(value) for key, value in note.items()}}], mode=None)


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
