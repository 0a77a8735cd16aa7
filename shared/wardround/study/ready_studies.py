"""The ready studies that ship with the package: `studies/` of the repository, installed as `wardround/study/ready/`.

In a checkout `ready` is a link to `studies/`, so that each file exists once and users find it at the top level.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def ready_folder() -> Path:
    """Return the folder of the ready studies, wherever the package is installed."""
    return Path(str(files("wardround.study") / "ready")).resolve()


def ready_study(name: str) -> Path:
    """Return the file of a ready study, for instance "demo"."""
    return ready_folder() / f"{name}.toml"
