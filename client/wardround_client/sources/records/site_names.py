"""Names of sites from the names of folders, files and cells of a table."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from wardround.errors import DataError
from wardround.identity import SITE_NAME


def names_of_files(paths: Sequence[Path]) -> list[str]:
    """Return the parts in which the names of files differ: processed.cleveland.data is cleveland."""
    names = [re.sub(r"(\.gz)?$", "", path.name) for path in paths]
    names = [name.rpartition(".")[0] for name in names]
    if len(names) < 2:
        return names
    before = len(os.path.commonprefix(names))
    after = len(os.path.commonprefix([name[before:][::-1] for name in names]))
    shorter = [name[before : len(name) - after] for name in names]
    return shorter if all(re.fullmatch(SITE_NAME, name) for name in shorter) else names


def plain_name(text: str) -> str:
    """Return a valid name for a site, with a hyphen for what a name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63] or "site"


def checked_name(text: str, place: str) -> str:
    """Return the name of a site, or raise `DataError` at `place` if it is not valid."""
    if not re.fullmatch(SITE_NAME, text):
        raise DataError(f"{place}: a site's name has up to 63 letters, digits, dots, hyphens and underscores")
    return text
