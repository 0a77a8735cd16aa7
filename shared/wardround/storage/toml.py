"""Strict reading of a configuration file: every fault becomes a one-line error that names file and field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from wardround.errors import UsageError

C = TypeVar("C", bound=BaseModel)


def read_toml(path: Path, kind: type[C]) -> C:
    """Read a TOML file as a model of type `kind`. Raises `UsageError` if the file or one of its fields is invalid."""
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
