"""The checks of `wardround-server doctor`: files, certificates, ports, sites, versions, clock and disk."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from wardround.errors import WardroundError
from wardround.identity import sha256_hex
from wardround.operations.health_checks import Check, checked, clock, days_left, disk, fault, files_closed, note, ok
from wardround.operations.tls_probe import port_is_free, presented_certificate
from wardround.storage.disk_errors import cause
from wardround.wire.versions import ours
from wardround_server.operations.config import ServerConfig, load_server_config
from wardround_server.operations.folder import whole
from wardround_server.operations.paths import CA_CERTIFICATE, CA_KEY, CONFIG_FILE, SERVER_CERTIFICATE, SERVER_KEY
from wardround_server.sites.certificates import LOOPBACK, facts_of
from wardround_server.sites.registry import Registry
from wardround_server.sites.software import software_of_sites
from wardround_server.tracking.mlflow_store import installed

NEEDED_BYTES = 5 * 10**9  # checkpoints, and Flower's database of three to five models
ANSWER_TIMEOUT_S = 3.0


def examine(folder: Path) -> Iterator[Check]:
    """Yield every check in turn. Raises `UsageError` if the folder is not a server's folder."""
    config = load_server_config(folder)
    yield ok(CONFIG_FILE, f"{config.server.name}, reached as {config.server.host}:{config.server.fleet_port}")
    secrets = [CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY]
    yield files_closed(folder, [*secrets, CA_KEY] if (folder / CA_KEY).exists() else secrets)
    todo = "restore ca/ and tls/ from a backup"
    yield checked("CA", lambda: authority(folder), todo)
    yield checked("certificate", lambda: certificate(folder, config), todo)
    yield checked("ports", lambda: _ports(folder, config), "")
    yield checked("sites", lambda: sites(folder), "restore registry.sqlite3 from a backup")
    yield versions(folder)
    yield clock()
    yield disk(folder, NEEDED_BYTES)
    if config.tracking.mlflow_uri:
        yield tracking(config)


def authority(folder: Path) -> Check:
    """Check the validity period of the CA."""
    facts = facts_of(_read(folder / CA_CERTIFICATE), CA_CERTIFICATE)
    todo = "create a new server folder with a new CA before that date: every site has to pin it"
    return days_left("CA", facts.not_before, facts.not_after, datetime.now(UTC), todo)


def certificate(folder: Path, config: ServerConfig) -> Check:
    """Check the server's certificate: its names, validity period, CA and key."""
    facts, renew = (
        facts_of(_read(folder / SERVER_CERTIFICATE), SERVER_CERTIFICATE),
        f"wardround-server init {folder} --renew",
    )
    if not whole(folder):
        return fault(
            "certificate", "CA, certificate and key do not belong together", "restore ca/ and tls/ from a backup"
        )
    missing = [host for host in config.server.hosts if host not in facts.hosts]
    if missing:
        return fault("certificate", f"lacks the names {', '.join(missing)} of server.toml", renew)
    return days_left("certificate", facts.not_before, facts.not_after, datetime.now(UTC), renew)


def _ports(folder: Path, config: ServerConfig) -> Check:
    server = config.server
    asked = [(server.listen, server.fleet_port), (LOOPBACK, server.control_port)]
    taken = [port for address, port in asked if not port_is_free(address, port)]
    if not taken:
        return ok("ports", f"{', '.join(str(port) for _, port in asked)} are free: the server is not running")
    if server.fleet_port in taken and _is_ours(folder, server.fleet_port):
        return ok("ports", f"the server is running on {server.fleet_port}")
    words = ", ".join(map(str, taken))
    return fault(
        "ports", f"taken by another program: {words}", "choose other ports in server.toml or stop that program"
    )


def _is_ours(folder: Path, port: int) -> bool:
    """Return whether the program on this local port presents the server's certificate.

    It is contacted under the server's first name, as sites do.
    """
    try:
        ca_pem = _read(folder / CA_CERTIFICATE).decode("ascii")
        shown = presented_certificate(f"{LOOPBACK}:{port}", ca_pem, None, ANSWER_TIMEOUT_S, _host(folder))
    except WardroundError:
        return False
    return sha256_hex(shown) == facts_of(_read(folder / SERVER_CERTIFICATE), SERVER_CERTIFICATE).sha256


def _host(folder: Path) -> str:
    return load_server_config(folder).server.host


def sites(folder: Path) -> Check:
    """Check that sites are enrolled."""
    enrolled = Registry(folder).sites()
    if not enrolled:
        return note("sites", "no site is enrolled", "wardround-server sites add REQUEST_FILE")
    return ok("sites", f"{len(enrolled)} enrolled: {', '.join(site.name for site in enrolled)}")


def versions(folder: Path) -> Check:
    """Check whether the sites' software, as of their last replies, is compatible with this server."""
    here, enrolled = ours(), {site.name for site in Registry(folder).sites()}
    known = {site: found for site, found in software_of_sites(folder).items() if site in enrolled}
    faults = [f"{site}: {found.fault}" for site, found in known.items() if found.fault is not None]
    if faults:
        return fault("versions", "; ".join(faults), "upgrade the named side; no site has to be enrolled again")
    others = sorted({found.software.wardround for found in known.values()} - {here.wardround})
    if others:
        words = f"{here}; sites also run wardround {', '.join(others)}, which is compatible"
        return note("versions", words, "no action needed; `wardround-server sites list` shows the version of each site")
    return ok("versions", f"{here}; {len(known)} of {len(enrolled)} sites have reported the same version")


def tracking(config: ServerConfig) -> Check:
    """Check whether MLflow is installed. The store itself is not contacted."""
    if not installed():
        return note("tracking", "MLflow is not installed: runs are not recorded there", "see docs/operator.md")
    return ok("tracking", f"runs are recorded in {config.tracking.mlflow_uri}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WardroundError(f"{path}: cannot be read: {cause(error)}") from None
