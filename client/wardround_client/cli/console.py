"""`wardround-site console`: the web console of a hospital."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wardround.cli.console import console_app
from wardround_client.site.paths import CONFIG_FILE

if TYPE_CHECKING:
    from wardround.web.app import WebConsole
    from wardround.web.config import ConsoleConfig


def _config_of(site: Path) -> ConsoleConfig:
    from wardround_client.site.config import load_site_config

    return load_site_config(site / CONFIG_FILE).console


def _console_of(site: Path, config: ConsoleConfig) -> WebConsole:
    from wardround_client.console.app import console_of, warm_up

    warm_up()
    return console_of(site, config)


app = console_app("wardround-site", "--site", "hospital", _config_of, _console_of)
