"""The hospital's daemon: Flower's SuperNode and our executor, kept running until SIGTERM.

Every connection is outgoing, to one port of the server, under TLS with the one CA certificate whose fingerprint was
pinned at enrolment; the hospital authenticates with its own key. The two processes communicate on loopback, with a
secret of this start in a file of mode 0600. The output of both goes to logs/site.log.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from wardround.errors import UsageError
from wardround.flower.environment import flower_environment
from wardround.operations.health import HealthService
from wardround.operations.health_checks import Check, fault, ok
from wardround.operations.logs import log_to
from wardround.processes.spawn import ISOLATED_PYTHON
from wardround.processes.supervisor import Child, sole, supervise
from wardround.records.audit_events import Started, Stopped
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.storage.atomic import write_private
from wardround_client.site.checks import probes_of
from wardround_client.site.config import ServerConfig, SiteConfig, load_site_config
from wardround_client.site.enrolment import pinned_ca
from wardround_client.site.paths import CA_CERTIFICATE, CONFIG_FILE, EXECUTOR_SECRET, FLOWER, SITE_KEY, SITE_LOG


def run_daemon(folder: Path, stopped: threading.Event, ready: Callable[[SiteConfig], None]) -> None:
    """Serve the federation from `folder` until `stopped` is set; afterwards nothing keeps running.

    `ready` is called once, when all requirements of a start have been checked.

    Raises:
        UsageError: The folder is not ready to start: no [server], no key, another CA certificate. The message is one
            line.
        WardroundError: A daemon is already running in the folder.
    """
    folder = folder.resolve()
    config = load_site_config(folder / CONFIG_FILE)
    server = require_server(folder, config)
    require_key(folder)
    pinned_ca(folder, config)
    (folder / FLOWER).mkdir(mode=0o700, exist_ok=True)
    with sole(folder):
        log_to(folder / SITE_LOG)
        supernode, executor = children(folder, server, write_secret(folder / EXECUTOR_SECRET))
        health = HealthService(probes_of(folder, lambda: registered(supernode)), folder, server.health_port)
        audit = AuditLog(folder / AUDIT_FILE)
        audit.append(Started(program="wardround-site", version=version("wardround")))
        health.start()
        try:
            ready(config)
            supervise([supernode, executor], stopped)
        finally:
            health.stop()
            audit.append(Stopped(program="wardround-site", code="asked" if stopped.is_set() else "failed"))


def registered(supernode: Child) -> Check:
    """Check whether the server has admitted this site, as its SuperNode reports."""
    if supernode.is_up:
        return ok("registered", "the server accepts this site's key")
    return fault("registered", "the server has not admitted this site", "ask the operator: wardround-server sites list")


def children(folder: Path, server: ServerConfig, secret: Path) -> list[Child]:
    """Return the two programs: the SuperNode, then the executor that takes its tasks."""
    runtime = f"127.0.0.1:{server.runtime_port}"
    environment = flower_environment(folder / FLOWER, server.proxy)
    supernode = (
        *(*ISOLATED_PYTHON, "-m", "wardround_client.flower.supernode", str(folder), "flower-supernode"),
        *("--superlink", server.address, "--root-certificates", str(folder / CA_CERTIFICATE)),
        *("--auth-supernode-private-key", str(folder / SITE_KEY)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(server.runtime_port)),
    )
    executor = (*ISOLATED_PYTHON, "-m", "wardround_client.flower.executor", str(folder), runtime, str(secret))
    return [
        Child(name="supernode", command=supernode, environment=environment, folder=folder, up_when="SuperNode ID:"),
        Child(name="executor", command=executor, environment=environment, folder=folder),
    ]


def require_server(folder: Path, config: SiteConfig) -> ServerConfig:
    """Return the `[server]` section of site.toml.

    Raises:
        UsageError: This site belongs to no federation yet.
    """
    if config.server is None:
        raise UsageError(f"{folder / 'site.toml'}: no [server] section; `wardround-site init` writes it")
    return config.server


def require_key(folder: Path) -> None:
    """Raise `UsageError` unless the hospital's private key exists and only its owner can read it."""
    path = folder / SITE_KEY
    try:
        mode = path.stat().st_mode
    except OSError:
        raise UsageError(f"{path}: no such key; `wardround-site init` makes it") from None
    if mode & 0o077:
        raise UsageError(f"{path}: other users can read this key; run `chmod 600` on it")


def write_secret(path: Path) -> Path:
    """Write a new secret for this start, readable by this user only, and return its path.

    Raises:
        UsageError: The file cannot be written.
    """
    write_private(path, secrets.token_bytes(32))
    return path
