"""`wardround-server console`: the web console of the operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wardround.cli.console import console_app

if TYPE_CHECKING:
    from wardround.web.app import WebConsole
    from wardround.web.config import ConsoleConfig


def _config_of(server: Path) -> ConsoleConfig:
    from wardround_server.operations.config import load_server_config

    return load_server_config(server).console


def _console_of(server: Path, config: ConsoleConfig) -> WebConsole:
    from wardround_server.console.app import console_of

    return console_of(server, config)


app = console_app("wardround-server", "--server", "federation", _config_of, _console_of)
