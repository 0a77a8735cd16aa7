"""The names in a site's folder are fixed, because after a change a hospital's ledger or keys would appear lost."""

from __future__ import annotations

from wardround_client.site import paths

NAMES = {
    "CONFIG_FILE": "site.toml",
    "SITE_KEY": "keys/site_key",
    "PUBLIC_KEY": "keys/site_key.pub",
    "PSEUDONYM_KEY": "keys/pseudonym.key",
    "CA_CERTIFICATE": "keys/ca.crt",
    "SERVER_FILE": "server.json",
    "PROPOSALS": "proposals",
    "STUDIES": "studies",
    "DECISIONS": "decisions",
    "ASKED": "asked",
    "COHORT": "cohort",
    "OPT_OUT_FILE": "opt_out.txt",
    "LEDGER_FILE": "ledger.sqlite3",
    "REPLIES": "replies",
    "SITE_LOG": "logs/site.log",
}


def test_a_site_of_an_earlier_version_is_found_under_its_names() -> None:
    assert {name: getattr(paths, name) for name in NAMES} == NAMES


def test_the_table_of_the_module_names_every_file() -> None:
    assert [name for name in NAMES.values() if name not in (paths.__doc__ or "")] == []
