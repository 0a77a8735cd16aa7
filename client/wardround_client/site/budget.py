"""A site's cap and its ledger, opened for reading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wardround.errors import LedgerError
from wardround_client.site.paths import CONFIG_FILE, LEDGER_FILE

if TYPE_CHECKING:
    from wardround_client.ledger.ledger import Cap, Ledger


def opened_ledger(site: Path) -> Ledger:
    """Open the site's ledger.

    If there is none yet, the result is an empty ledger in memory, because a read must not create the file.

    Raises:
        LedgerError: The ledger's file is missing although its .head file exists.
    """
    from wardround_client.ledger.ledger import Ledger

    path = site / LEDGER_FILE
    if path.exists():
        return Ledger(path)
    if path.with_suffix(".head").exists():
        raise LedgerError(f"{path}: is missing, but ledger.head shows that it existed; put the newest copy back")
    return Ledger(None)


def cap_of_site(site: Path) -> Cap:
    """Return the cap from the site's site.toml."""
    from wardround_client.site.config import load_site_config

    return load_site_config(site / CONFIG_FILE).privacy.cap()
