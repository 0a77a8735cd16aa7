"""Create a server's folder, and renew its certificate on request.

`paths.py` lists the files of the folder. `ca/` and `tls/` appear complete, in one rename each, so that repeating a
killed call finishes the work. Existing files are never overwritten, except the certificate that `renew` replaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from wardround.errors import UsageError
from wardround.storage.atomic import write_folder, write_private
from wardround.storage.disk_errors import cause
from wardround.storage.folders import own_folder
from wardround_server.operations.config import ServerConfig, config_text, load_server_config
from wardround_server.operations.paths import (
    CA,
    CA_CERTIFICATE,
    CA_KEY,
    CONFIG_FILE,
    REGISTRY_FILE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    TLS,
)
from wardround_server.sites.certificates import (
    Authority,
    CertificateFacts,
    belongs_together,
    facts_of,
    given_authority,
    new_authority,
    new_key_pem,
    read_hosts,
    server_certificate,
)


@dataclass(frozen=True, kw_only=True)
class Founding:
    """The state of the folder after `found` or `renew`, and the parts that this call made."""

    config: ServerConfig
    authority: CertificateFacts
    certificate: CertificateFacts
    made: tuple[str, ...]


def found(
    folder: Path, hosts: str | None, name: str, fleet_port: int, given: tuple[Path, Path] | None, now: datetime
) -> Founding:
    """Create the missing parts of a server's folder; existing parts stay unchanged.

    `given` is the certificate and key file of an existing CA. Raises `UsageError` if the folder contains other files,
    if `hosts` or the given CA differ from those in the folder, or if a part of the folder was lost.
    """
    own_folder(folder, CONFIG_FILE)
    made = []
    if not (folder / CONFIG_FILE).exists():
        if hosts is None:
            raise UsageError("--host is missing: give the name or address under which hospitals reach this server")
        authority = _read_given(given, now) if given else None  # before anything is written
        write_private(folder / CONFIG_FILE, config_text(name, read_hosts(hosts), fleet_port).encode())
        made.append(CONFIG_FILE)
    config = load_server_config(folder)
    if hosts is not None and read_hosts(hosts) != config.server.hosts:
        raise UsageError(
            f"{folder / CONFIG_FILE}: its names are {', '.join(config.server.hosts)}; change host and more_hosts "
            f"there, then run init with --renew"
        )
    authority = _authority(folder, given, config, now, made)
    if not (folder / TLS).exists():
        if authority is None:
            raise UsageError(
                f"{folder / CA_KEY}: is not in this folder; give --ca CERT KEY to create the server's certificate"
            )
        key_pem = new_key_pem()
        certificate_pem = _signed(authority, key_pem, config, now)
        write_folder(folder / TLS, _named({SERVER_KEY: key_pem, SERVER_CERTIFICATE: certificate_pem}))
        made.append(TLS)
    return _state(folder, config, made)


def renew(folder: Path, given: tuple[Path, Path] | None, now: datetime) -> Founding:
    """Sign a new certificate for the server's key and the names in `server.toml`, under the same CA.

    Raises `UsageError` if a file of CA or server is missing, or the CA's key is neither in the folder nor given.
    """
    config = load_server_config(folder)
    if not (folder / TLS).is_dir() or not (folder / CA).is_dir():
        raise UsageError(f"{folder}: has no certificate to renew; run init without --renew")
    authority = _authority(folder, given, config, now, [])
    if authority is None:
        raise UsageError(f"{folder / CA_KEY}: is not in this folder; give --ca CERT KEY to renew")
    certificate_pem = _signed(authority, _read(folder, SERVER_KEY), config, now)
    write_private(folder / SERVER_CERTIFICATE, certificate_pem)
    return _state(folder, config, [SERVER_CERTIFICATE])


def whole(folder: Path) -> bool:
    """Return whether CA, server certificate and server key belong together. Raises `UsageError` if one is missing."""
    return belongs_together(*(_read(folder, name) for name in (CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY)))


def _authority(
    folder: Path, given: tuple[Path, Path] | None, config: ServerConfig, now: datetime, made: list[str]
) -> Authority | None:
    """Return the CA with its key, creating or copying the CA if there is none; None if its key is not available."""
    known = None if given is None else _read_given(given, now)
    if not (folder / CA).exists():
        if (folder / TLS).exists() or (folder / REGISTRY_FILE).exists():
            raise UsageError(
                f"{folder / 'ca'}: is missing; restore it from a backup, because sites have pinned that CA"
            )
        if known is not None:
            write_folder(folder / CA, _named({CA_CERTIFICATE: known.certificate_pem}))
        else:
            known = new_authority(config.server.name, now)
            write_folder(folder / CA, _named({CA_CERTIFICATE: known.certificate_pem, CA_KEY: known.key_pem}))
        made.append(CA)
        return known
    certificate_pem = _read(folder, CA_CERTIFICATE)
    if known is not None:
        here, there = facts_of(certificate_pem, CA_CERTIFICATE), facts_of(known.certificate_pem, "--ca")
        if here.sha256 != there.sha256:
            raise UsageError(
                f"{folder / CA_CERTIFICATE}: is not the CA given by --ca; sites have pinned this one, so give its files"
            )
        return known
    if not (folder / CA_KEY).exists():
        return None
    return Authority(certificate_pem=certificate_pem, key_pem=_read(folder, CA_KEY))


def _named(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files by their names within their own folder."""
    return {Path(path).name: content for path, content in files.items()}


def _read_given(given: tuple[Path, Path], now: datetime) -> Authority:
    try:
        return given_authority(given[0].read_bytes(), given[1].read_bytes(), now)
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {cause(error)}") from None


def _signed(authority: Authority, key_pem: bytes, config: ServerConfig, now: datetime) -> bytes:
    return server_certificate(authority, key_pem, config.server.hosts, now, config.server.certificate_days)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{folder / name}: is missing; restore it from a backup, because sites rely on the old one"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder / name}: cannot be read: {cause(error)}") from None


def _state(folder: Path, config: ServerConfig, made: list[str]) -> Founding:
    return Founding(
        config=config,
        authority=facts_of(_read(folder, CA_CERTIFICATE), CA_CERTIFICATE),
        certificate=facts_of(_read(folder, SERVER_CERTIFICATE), SERVER_CERTIFICATE),
        made=tuple(made),
    )
