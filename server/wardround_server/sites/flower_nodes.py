"""Keep Flower's list of nodes in line with the registry: enrolled keys are registered, all other keys unregistered.

Flower identifies a node by its id and lists neither names nor keys, so `flower/nodes.json` stores the id that each key
got. A key is entered there before it is registered: if the process is killed in between, the one node missing from the
file belongs to that key. Flower never accepts a key twice, so an unregistered key stays excluded.
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

UNREGISTERED, USED_UP = "unregistered", "already in use"  # texts of Flower

log = logging.getLogger(__name__)


def keep_nodes(superlink: SuperLink, sites: Mapping[str, str]) -> None:
    """Make Flower's nodes match the sites (name -> public key) that may take part now.

    Keys that may no longer take part are unregistered first. If Flower had a key before, the site's name is logged, and
    the other keys are registered nevertheless. Raises `WardroundError` if the SuperLink does not reply; repeating the
    call then completes the work.
    """
    names = {key_fingerprint(key): name for name, key in sites.items()}
    path = superlink.folder / NODES_FILE
    number_of = _read(path)
    there = {str(node["node-id"]) for node in superlink.nodes() if node["status"] != UNREGISTERED}
    unknown = there - set(number_of.values())
    pending = [fingerprint for fingerprint, number in number_of.items() if number is None]
    if len(pending) == len(unknown) == 1:  # the process was killed after registering the key, before storing its id
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
            raise  # the key may have been registered despite the error: the next call finds the node
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
