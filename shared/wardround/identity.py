"""Identity: fingerprints that two people can compare by telephone, and a site's enrolment request.

A fingerprint is the SHA-256 of the binary part of a public key, or of a certificate in DER form, in hex. Two people
compare the 64 digits; an attacker who replaces the file in transit would need a second key with the same hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import UsageError
from wardround.storage.disk_errors import cause

SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
SHA256 = r"^[0-9a-f]{64}$"
KEY_KIND = "ecdsa-sha2-nistp384"
REQUEST_SUFFIX = ".enrol.json"
REQUEST_BYTES = 4096  # several times the size of a request


class EnrolmentRequest(BaseModel):
    """A site's request to the operator: its name, its public key (one line, OpenSSH) and the key's fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    wardround_enrolment: Literal[1] = 1
    name: Annotated[str, Field(pattern=SITE_NAME)]
    public_key: Annotated[str, Field(max_length=400)]
    fingerprint: Annotated[str, Field(pattern=SHA256)]


def request_for(name: str, public_key: str) -> EnrolmentRequest:
    """Build the request of a site with this public key. Raises `UsageError` if the key is not of the right kind."""
    return EnrolmentRequest(name=name, public_key=public_key, fingerprint=key_fingerprint(public_key))


def read_request(path: Path) -> EnrolmentRequest:
    """Read and validate an untrusted request. Raises a one-line `UsageError` that does not quote its content."""
    try:
        with open(path, "rb") as file:
            content = file.read(REQUEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {cause(error)}") from None
    return parse_request(content, str(path))


def parse_request(content: bytes, source: str) -> EnrolmentRequest:
    """Validate the content of an untrusted request; `source` names it in errors. Raises as `read_request` does."""
    if len(content) > REQUEST_BYTES:
        raise UsageError(f"{source}: is too long for an enrolment request")
    try:
        request = EnrolmentRequest.model_validate_json(content)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
        raise UsageError(f"{source}: not an enrolment request: {place} is missing, unknown or wrong") from None
    if key_fingerprint(request.public_key) != request.fingerprint:
        raise UsageError(
            f"{source}: its fingerprint does not match its key, so it is damaged or altered; ask for it again"
        )
    return request


def key_fingerprint(public_key: str) -> str:
    """Return the SHA-256 in hex of an OpenSSH public key's binary part.

    `cut -d' ' -f2 FILE | base64 -d | sha256sum` prints the same digits. Raises `UsageError` if the line is not an EC
    P-384 key. Only the server, which uses the key, checks that the point lies on the curve.
    """
    words = public_key.split()
    if len(words) not in (2, 3) or words[0] != KEY_KIND or "\n" in public_key.strip():
        raise UsageError(f"not a public key of type {KEY_KIND} on one line")
    try:
        return sha256_hex(base64.b64decode(words[1], validate=True))
    except (binascii.Error, ValueError):
        raise UsageError("the public key is damaged") from None


def sha256_hex(content: bytes) -> str:
    """Return the SHA-256 in hex, for example of a key's binary part or of a certificate in DER form."""
    return hashlib.sha256(content).hexdigest()


def in_groups(fingerprint: str) -> str:
    """Format a fingerprint for reading aloud, in groups of four digits."""
    return " ".join(fingerprint[start : start + 4] for start in range(0, len(fingerprint), 4))


def typed_fingerprint(text: str) -> str:
    """Normalise a typed fingerprint; white space, colons, hyphens and capitals are allowed.

    Raises `UsageError` unless it has 64 hex digits, because a partial comparison proves nothing.
    """
    plain = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(SHA256, plain):
        raise UsageError(f"a fingerprint has 64 digits of 0-9 and a-f; {len(plain)} characters were given")
    return plain
