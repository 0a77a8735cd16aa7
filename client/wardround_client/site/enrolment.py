"""A site's keys, its first `site.toml` and its request to take part. Keys are made here and never leave the site.

The site's key is EC P-384 in OpenSSH's format; the key of pseudonyms is 32 random bytes. `paths.py` defines the file
names.

`keys/` is created complete, in one rename. If a call is killed, the next call completes it, and no key is made twice.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.errors import UsageError, WardroundError
from wardround.identity import REQUEST_SUFFIX, SITE_NAME, key_fingerprint, request_for, sha256_hex
from wardround.operations.tls_probe import split_address
from wardround.storage.atomic import write_folder, write_private
from wardround.storage.disk_errors import cause
from wardround.storage.folders import own_folder
from wardround.web.config import console_text
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_client.site.paths import (
    CA_CERTIFICATE,
    COHORT,
    CONFIG_FILE,
    KEYS,
    LEDGER_FILE,
    PSEUDONYM_KEY,
    PUBLIC_KEY,
    SITE_KEY,
    STUDIES,
)

PSEUDONYM_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """The identity of a site, and the parts of its folder that this call made."""

    config: SiteConfig
    key_sha256: str
    ca_sha256: str
    ca_not_after: datetime
    request: Path
    made: tuple[str, ...]


def enrol(folder: Path, name: str | None, address: str | None, ca: Path | None, proxy: str | None = None) -> Enrolment:
    """Create the missing parts of a site's folder, and change no others.

    Raises:
        UsageError: A required value is not given, the folder belongs to another name, server or CA, or a key was lost.
    """
    own_folder(folder, CONFIG_FILE)
    made = []
    if not (folder / CONFIG_FILE).exists():
        if address is None or name is None or ca is None:
            given = {"--server": address, "--name": name, "--ca": ca}
            missing = [option for option, value in given.items() if value is None]
            raise UsageError(
                f"{', '.join(missing)} missing: a new site needs its name, the server's address and its CA"
            )
        text = config_text(name, address, _certificate(_read(ca), str(ca)), proxy)
        write_private(folder / CONFIG_FILE, text.encode())
        made.append(CONFIG_FILE)
    config = load_site_config(folder / CONFIG_FILE)
    _same(folder, config, name, address, ca)
    if not (folder / KEYS).exists():
        _refuse_lost_keys(folder, config)
        if ca is None:
            raise UsageError("--ca is missing: the file of the server's CA")
        write_folder(folder / KEYS, _new_keys(config.name, _read(ca)))
        made.append(KEYS)
    certificate = pinned_ca(folder, config)
    public_key = _read(folder / PUBLIC_KEY).decode("ascii", "replace")
    if not (folder / SITE_KEY).exists():
        raise UsageError(f"{folder / SITE_KEY}: is missing; put it back from a backup, or enrol again in a new folder")
    request = folder / f"{config.name}{REQUEST_SUFFIX}"
    if not request.exists():
        content = request_for(config.name, public_key).model_dump_json(indent=1) + "\n"
        write_private(request, content.encode(), mode=0o644)  # public: it is sent to the operator
        made.append(request.name)
    return Enrolment(
        config=config,
        key_sha256=key_fingerprint(public_key),
        ca_sha256=certificate_sha256(certificate),
        ca_not_after=certificate.not_valid_after_utc,
        request=request,
        made=tuple(made),
    )


def pinned_ca(folder: Path, config: SiteConfig) -> x509.Certificate:
    """Return the server's CA, after comparing its fingerprint with the pinned one.

    Raises:
        UsageError: The CA is a different one.
    """
    if config.server is None:
        raise UsageError(f"{folder / CONFIG_FILE}: has no [server] section; `wardround-site init` writes it")
    certificate = _certificate(_read(folder / CA_CERTIFICATE), CA_CERTIFICATE)
    if certificate_sha256(certificate) != config.server.ca_sha256:
        raise UsageError(f"{folder / CA_CERTIFICATE}: is not the CA pinned in {CONFIG_FILE}; put the correct file back")
    return certificate


def certificate_sha256(certificate: x509.Certificate) -> str:
    """Return the fingerprint of a certificate."""
    return sha256_hex(certificate.public_bytes(serialization.Encoding.DER))


def pseudonym_key(folder: Path) -> bytes:
    """Return the site's key of pseudonyms.

    Raises:
        UsageError: The key is missing or damaged. A new key would change every pseudonym.
    """
    key = _read(folder / PSEUDONYM_KEY)
    if len(key) != PSEUDONYM_KEY_BYTES:
        raise UsageError(f"{folder / PSEUDONYM_KEY}: is damaged; put it back from a backup")
    return key


def config_text(name: str, address: str, ca: x509.Certificate, proxy: str | None) -> str:
    """Return a first `site.toml`, under which nothing leaves the site that the hospital did not allow.

    Raises:
        UsageError: A value is invalid.
    """
    split_address(address)
    if proxy is not None:
        split_address(proxy)
    if not re.fullmatch(SITE_NAME, name):
        raise UsageError(f"--name {name}: up to 63 letters, digits, dots, hyphens and underscores")
    proxy_line = f'proxy = "{proxy}"' if proxy else '# proxy = "proxy.hospital.example:3128"'
    return f"""\
# The rules of this hospital. The server cannot change them; a study that asks for more is refused.

# The site's name in the federation.
name = "{name}"

[server]
# Where the federation's server is: the only address that this site connects to. Nothing connects to this site.
address = "{address}"
# The fingerprint of the server's CA, compared by telephone. Any other server is refused.
ca_sha256 = "{certificate_sha256(ca)}"
# An HTTP proxy that forwards connections (CONNECT), if your network needs one.
{proxy_line}
# Two ports on this machine itself (127.0.0.1): one between the daemon's own processes, which must differ if two
# sites share a machine, and one for a program that monitors the daemon (0: any free port).
runtime_port = 9094
health_port = 0

[privacy]
# The most that all studies together may spend on a patient of this hospital: the ledger refuses anything more.
# Keep delta_cap well below 1 / (number of patients).
epsilon_cap = 8.0
delta_cap = 1e-4
# Whether studies with epsilon = inf, which give no privacy, are admitted.
allow_no_privacy = false

[release]
# Which figures about held-out patients may leave: "off", "noised" (charged to the ledger) or "exact" (no privacy).
evaluation = "off"
# Whether figures of this hospital alone may be shown, and the number of patients (counted with noise) needed.
per_site = false
minimum_patients = 50

[compute]
# "auto" uses a CUDA GPU if there is one. Nothing here affects privacy.
device = "auto"
# How many processor threads a round may use, and "bfloat16" if the processor is faster with it.
threads = {max(1, (os.cpu_count() or 1) // 2)}
precision = "float32"
{console_text("hospital")}"""


def _new_keys(name: str, ca_pem: bytes) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    openssh = serialization.PrivateFormat.OpenSSH
    private = key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    files = {
        SITE_KEY: private,
        PUBLIC_KEY: public + f" {name}\n".encode(),
        PSEUDONYM_KEY: os.urandom(PSEUDONYM_KEY_BYTES),
        CA_CERTIFICATE: ca_pem,
    }
    return {Path(path).name: content for path, content in files.items()}


def _refuse_lost_keys(folder: Path, config: SiteConfig) -> None:
    """Refuse to make new keys for a site that had keys before.

    With a new key of pseudonyms, every patient would get a new pseudonym.
    """
    later = (f"{config.name}{REQUEST_SUFFIX}", COHORT, LEDGER_FILE, STUDIES)
    if any((folder / name).exists() for name in later):
        raise UsageError(f"{folder / 'keys'}: is missing; put it back from a backup, or enrol again in a new folder")


def _same(folder: Path, config: SiteConfig, name: str | None, address: str | None, ca: Path | None) -> None:
    """Raise `UsageError` if a given value differs from the one in the folder."""
    here = folder / CONFIG_FILE
    if name is not None and name != config.name:
        raise UsageError(f"{here}: this site is called {config.name}; another site needs another folder")
    if config.server is None:
        raise UsageError(f"{here}: has no [server] section, so it is a simulated site; choose another folder")
    if address is not None and address != config.server.address:
        raise UsageError(
            f"{here}: its server is {config.server.address}; if the server moved, change the address in this file"
        )
    if ca is not None and certificate_sha256(_certificate(_read(ca), str(ca))) != config.server.ca_sha256:
        raise UsageError(f"{ca}: differs from the CA pinned in {here}; ask the operator which one is correct")


def _certificate(pem: bytes, source: str) -> x509.Certificate:
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise UsageError(f"{source}: does not contain exactly one certificate in PEM format") from None
    return certificate


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: does not exist; give the correct file, or put it back from a backup") from None
    except OSError as error:
        raise WardroundError(f"{path}: cannot be read: {cause(error)}") from None
