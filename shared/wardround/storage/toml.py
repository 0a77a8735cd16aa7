"""Strict reading of a configuration file: every fault becomes a one-line error that names file and field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wardround.errors import UsageError
from wardround.printable import escaped
from wardround.storage.disk_errors import cause
from wardround.storage.text_file import read_text

C = TypeVar("C", bound=BaseModel)
MOST_OF_A_KEY = 64  # characters of a key that a message quotes, since an unknown key may have any length


def read_toml(path: Path, kind: type[C]) -> C:
    """Read a TOML file as a model of type `kind`. Raises `UsageError` if the file or one of its fields is invalid."""
    try:
        return kind.model_validate(toml_content(path))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(escaped(str(part)[:MOST_OF_A_KEY]) for part in fault["loc"])
        raise UsageError(f"{path}: {place}: {fault['msg']}") from None


def toml_content(path: Path, fault: type[UsageError] = UsageError) -> dict[str, Any]:
    """Read a TOML file as nested dicts, with or without a byte order mark.

    Raises an error of type `fault`, one line, if the file cannot be read or is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise fault(f"{path}: cannot be read: {cause(error)}") from None
    except RecursionError:
        raise fault(f"{path}: not a TOML file: its values are nested too deeply") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise fault(f"{path}: not a TOML file: {escaped(str(error))}") from None
