"""One archive of `site.toml`, ready for use: its settings, its TLS contexts, and its password or token from a file.

Secrets are read from files that only their owner can read, never from a command line, and are never printed.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wardround.errors import UsageError, WardroundError
from wardround.operations.tls_probe import split_address
from wardround.storage.disk_errors import cause
from wardround.storage.folders import too_open
from wardround.storage.text_file import NotTextError, path_text, read_text
from wardround_client.site.config import load_site_config
from wardround_client.site.pacs_config import DicomConfig, PacsConfig, WebConfig
from wardround_client.site.paths import CONFIG_FILE

LONGEST_SECRET = 65_536  # characters; tokens of identity providers have a few thousand

Row = dict[str, str]  # the answer of a PACS to a query, by keyword; what it left out is missing
Take = Callable[[bytes], bool]  # takes a received object in the DICOM file format; False: it cannot be kept


class PacsError(WardroundError):
    """A PACS did not reply, refused, or failed. The message names the archive, what failed, and what to do."""


class UnreachableError(PacsError):
    """There was no connection to a PACS at all, or it was rejected: asking for something else will not help."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The answer to a query. `limited` is whether the PACS reported that there is more."""

    rows: list[Row]
    limited: bool = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """An archive by its name in `site.toml`. `site` is the site's folder, to which file names are relative."""

    name: str
    config: PacsConfig
    site: Path = field(repr=False)

    @property
    def dicom(self) -> DicomConfig:
        """Its DICOM section. Raises `UsageError` if there is none."""
        if self.config.dicom is None:
            raise UsageError(f"{self.site / CONFIG_FILE}: pacs.{self.name} has no section dicom; add it, or use web")
        return self.config.dicom

    @property
    def web(self) -> WebConfig:
        """Its web section. Raises `UsageError` if there is none."""
        if self.config.web is None:
            raise UsageError(f"{self.site / CONFIG_FILE}: pacs.{self.name} has no section web; add it, or use c-move")
        return self.config.web

    def error(self, text: str) -> PacsError:
        """Return the error of this archive with a text."""
        return PacsError(f"{self.name}: {text}")

    def out_of_time(self) -> PacsError:
        """Return the error of this archive if the time limit of the call is reached."""
        return self.error("the time limit is reached; run the same command to go on")

    def unreachable(self, text: str) -> UnreachableError:
        """Return the error of this archive if it cannot be used at all."""
        return UnreachableError(f"{self.name}: {text}")


def open_node(site: Path, name: str) -> Node:
    """Return an archive by its name.

    Raises:
        UsageError: `site.toml` is invalid or has no such section.
    """
    archives = load_site_config(site / CONFIG_FILE).pacs
    if name not in archives:
        known = f"it has {', '.join(sorted(archives))}" if archives else "docs/pacs.md shows how to add one"
        raise UsageError(f"{site / CONFIG_FILE}: no section [pacs.{name}]; {known}")
    return Node(name=name, config=archives[name], site=site)


def senders(node: Node) -> frozenset[str]:
    """Return the IP addresses from which the PACS may send objects to this site.

    Raises:
        UsageError: None is given, and the address of the PACS is a name.
    """
    if node.dicom.sends_from:
        return frozenset(str(ipaddress.ip_address(one)) for one in node.dicom.sends_from)
    host, _ = split_address(node.dicom.address)
    try:
        return frozenset({str(ipaddress.ip_address(host))})
    except ValueError:
        raise UsageError(
            f"{node.site / CONFIG_FILE}: pacs.{node.name}.dicom.sends_from: list the IP addresses from which the PACS "
            "sends, because its address is a name"
        ) from None


def client_tls(node: Node) -> ssl.SSLContext | None:
    """Return the TLS context of connections to the PACS; None if it uses no TLS.

    Raises:
        UsageError: A file of certificates or keys is missing, damaged, or readable by others.
    """
    if not node.dicom.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _with_files(node, context)


def server_tls(node: Node) -> ssl.SSLContext | None:
    """Return the TLS context of connections that the PACS opens to this site; it must show a certificate of the CA.

    Raises:
        UsageError: As `client_tls`.
    """
    if not node.dicom.tls:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _with_files(node, context)


def existing(node: Node, name: str) -> Path:
    """Return the path of a file of the site that `site.toml` names. Raises `UsageError` if it is missing."""
    path = node.site / name
    if not path.is_file():
        raise UsageError(f"{path_text(path)}: no such file; correct pacs.{node.name} in {CONFIG_FILE}")
    return path


def own_key(node: Node, name: str) -> Path:
    """Return the path of a key file. Raises `UsageError` if it is missing or readable by others."""
    path = existing(node, name)
    if list(too_open(path)):
        raise UsageError(f"{path_text(path)}: other users can read it; chmod go= {path_text(path)}")
    return path


def read_secret(node: Node, name: str) -> str:
    """Return the password or token in a file, without its line end.

    Raises:
        UsageError: The file is missing, empty, not text, or readable by others.
    """
    path = own_key(node, name)
    try:
        text = read_text(path).strip()
    except OSError as error:
        raise UsageError(f"{path_text(path)}: cannot be read: {cause(error)}") from None
    except NotTextError as error:
        raise UsageError(f"{path_text(path)}: {error}") from None
    if not text or len(text) > LONGEST_SECRET or not text.isprintable():
        raise UsageError(f"{path_text(path)}: must contain the password or token in one line")
    return text


def _with_files(node: Node, context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    config = node.dicom
    try:
        context.load_verify_locations(node.site / (config.ca_file or ""))
    except (OSError, ssl.SSLError):
        raise UsageError(f"{path_text(node.site / (config.ca_file or ''))}: no CA certificate in PEM format") from None
    if config.certificate_file is not None and config.key_file is not None:
        key = own_key(node, config.key_file)
        try:
            context.load_cert_chain(node.site / config.certificate_file, key, password=lambda: "")
        except (OSError, ssl.SSLError):
            raise UsageError(
                f"{path_text(node.site / config.certificate_file)}: no certificate in PEM format that belongs to "
                f"{path_text(key)}, or the key has a password"
            ) from None
    return context
