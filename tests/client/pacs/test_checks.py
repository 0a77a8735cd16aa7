"""The checks of `doctor` end with their time, whatever the archive sends."""

from __future__ import annotations

import time
from datetime import date
from itertools import repeat
from pathlib import Path

import pytest
from builders.archive import archive, small_ct, write_site
from builders.web_service import HEAD, QUERY, service

from wardround.operations.health_checks import Check
from wardround_client.pacs.checks import archives
from wardround_client.site.config import SiteConfig, load_site_config

TODAY = date(2024, 1, 5)
TIME_OVER = "archive: the time limit is reached"


def checks_of(site: Path, config: SiteConfig) -> list[Check]:
    """The checks, each within a second and what closing a connection takes."""
    begun = time.monotonic()
    found = list(archives(site, config, 1, TODAY))
    assert time.monotonic() - begun < 8
    return found


@pytest.fixture
def pacs():
    with archive(small_ct(1, 1)) as one:
        yield one


@pytest.fixture
def config(tmp_path, pacs) -> SiteConfig:
    return load_site_config(write_site(tmp_path / "site", pacs) / "site.toml")


def test_an_archive_that_replies_is_ok_and_its_settings_are_not_read_again(tmp_path, config):
    (check,) = checks_of(tmp_path / "another", config)
    assert check.state == "ok" and "answers an echo and a query (1 study of today)" in check.found


def test_an_archive_that_sends_answers_for_ever_is_a_fault(tmp_path, config, pacs):
    pacs.found = lambda query: repeat(pacs.objects["1.2.3.1.1.1"])
    (check,) = checks_of(tmp_path, config)
    assert check.state == "fault" and check.found.startswith(TIME_OVER)


def test_a_web_service_that_trickles_is_a_fault(tmp_path, config):
    with service(HEAD + QUERY + b"\r\nContent-Length: 100000\r\n\r\n", b" ") as node:
        (check,) = checks_of(tmp_path, config.model_copy(update={"pacs": {"archive": node.config}}))
    assert check.state == "fault" and check.found.startswith(TIME_OVER)
