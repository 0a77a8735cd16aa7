"""Flower's list of nodes follows the registry: every enrolled key is let in, every other one is let in no more.

Flower knows a node by its number and does not list names or keys, so `flower/nodes.json` keeps which number each key
got. The file says that a key is about to be registered before it is: after a kill in between, the one node that nobody
knows is that key's. Flower never takes a key twice: one that was shut out stays out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from wardround.errors import WardroundError
from wardround.identity import key_fingerprint
from wardround_server.flower.superlink import SuperLink
from wardround_server.operations.paths import NODES_FILE
from wardround_server.runs.folder import write_text

UNREGISTERED, USED_UP = "unregistered", "already in use"  # Flower's words

log = logging.getLogger(__name__)


def keep_nodes(superlink: SuperLink, sites: Mapping[str, str]) -> None:
    """Bring Flower's nodes to the sites (name: public key) that may take part now.

    Those who are out go first. A key that Flower took once before is logged with its site's name and does not keep the
    others out. Raises `WardroundError` where the SuperLink does not answer: then the same call goes on where it was.
    """
    names = {key_fingerprint(key): name for name, key in sites.items()}
    path = superlink.folder / NODES_FILE
    number_of = _read(path)
    there = {str(node["node-id"]) for node in superlink.nodes() if node["status"] != UNREGISTERED}
    unknown = there - set(number_of.values())
    pending = [fingerprint for fingerprint, number in number_of.items() if number is None]
    if len(pending) == len(unknown) == 1:  # registered, and killed before that was written down
        number_of[pending[0]] = unknown.pop()
        _write(path, number_of)
    kept = {number_of[fingerprint] for fingerprint in names if number_of.get(fingerprint) in there}
    for number in sorted(there - kept):
        superlink.unregister(number)
        log.info("node %s is no longer admitted", number)
    for fingerprint, name in names.items():
        if number_of.get(fingerprint) not in there:
            _let_in(superlink, path, number_of, fingerprint, name, sites[name])


def _let_in(
    superlink: SuperLink, path: Path, number_of: dict[str, str | None], fingerprint: str, name: str, key: str
) -> None:
    number_of[fingerprint] = None
    _write(path, number_of)
    try:
        number_of[fingerprint] = superlink.register(name, key)
    except WardroundError as error:
        if USED_UP not in str(error):
            raise  # perhaps it was registered all the same: the next call finds the node
        del number_of[fingerprint]
        log.warning(
            "site %s cannot be admitted: its key was registered with Flower before; the site needs a new key", name
        )
    else:
        log.info("site %s is admitted with its key", name)
    _write(path, number_of)


def _read(path: Path) -> dict[str, str | None]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="ascii")))
    except (OSError, ValueError, TypeError):
        raise WardroundError(f"{path}: cannot be read; restore flower/ from a backup") from None


def _write(path: Path, number_of: Mapping[str, str | None]) -> None:
    write_text(path, json.dumps(number_of, indent=1) + "\n")
