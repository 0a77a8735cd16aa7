"""The checks of `doctor` for each archive of `site.toml`: an echo, a small query, and the receiving side of C-MOVE."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path

from wardround.operations.health_checks import Check, checked, ok
from wardround_client.pacs.dimse import Activity, DicomFinder, echo
from wardround_client.pacs.node import Node
from wardround_client.pacs.storage_server import receiving
from wardround_client.pacs.web.services import WebFinder
from wardround_client.site.config import SiteConfig

ADVICE = "docs/pacs.md explains each line, and what to enter at the PACS"


def archives(site: Path, config: SiteConfig, timeout_s: float, today: date) -> Iterator[Check]:
    """Check every archive, each way that is set up. The echo and each query may take `timeout_s`."""
    for name, archive in config.pacs.items():
        limited = archive.model_copy(update={"timeout_s": max(1.0, timeout_s)})
        node = Node(name=name, config=limited, site=site)
        if archive.dicom is not None:
            yield _check(f"pacs {name}", partial(_dicom, node, today))
        if archive.web is not None:
            yield _check(f"pacs {name} web", partial(_web, node, today))


def _check(name: str, look: Callable[[], str]) -> Check:
    return checked(name, lambda: ok(name, look()), ADVICE)


def _dicom(node: Node, today: date) -> str:
    echo(node, _ends(node))
    with DicomFinder(node, _ends(node)) as finder:
        found = finder.find("STUDY", {"StudyDate": f"{today:%Y%m%d}"}, ["StudyInstanceUID"])
    text = f"{node.dicom.address} answers an echo and a query ({_amount(len(found.rows), found.limited)} of today)"
    if node.dicom.listen is not None:
        with receiving(node, lambda content: False, Activity(_ends(node))):
            text += f"; {node.dicom.listen} is free to receive"
    return text


def _web(node: Node, today: date) -> str:
    with WebFinder(node, _ends(node)) as finder:
        found = finder.find("STUDY", {"StudyDate": f"{today:%Y%m%d}"}, ["StudyInstanceUID"])
    return f"{node.web.url} answers a query ({_amount(len(found.rows), found.limited)} of today)"


def _ends(node: Node) -> float:
    """Return when one step of a check has to end, on the monotonic clock."""
    return time.monotonic() + node.config.timeout_s


def _amount(rows: int, limited: bool) -> str:
    return f"{rows:,}{' or more' if limited else ''} {'study' if rows == 1 and not limited else 'studies'}"
