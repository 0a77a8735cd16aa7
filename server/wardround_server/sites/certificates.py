"""Certificates of a federation: its own authority (CA), the server's certificate, and the check of a site's key.

These are pure functions from bytes to bytes; `operations/folder.py` stores their results. New keys are elliptic-curve
keys on P-384, like those of the sites. Sites pin the CA, so it never changes; the server's certificate is renewed under
it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround.errors import UsageError
from wardround.identity import sha256_hex

AUTHORITY_DAYS = 3650
LOOPBACK = "127.0.0.1"
EARLIER = timedelta(minutes=10)  # a new certificate must be valid for a site whose clock is slow
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA: its certificate and its key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CertificateFacts:
    """The contents of a certificate that this project uses. Times are UTC."""

    sha256: str  # of its DER form
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def new_key_pem() -> bytes:
    """Generate a P-384 private key as PKCS #8 in PEM, without a passphrase, so that the server can start unattended."""
    key = ec.generate_private_key(ec.SECP384R1())
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def new_authority(name: str, now: datetime) -> Authority:
    """Create the federation's own CA: self-signed, valid for ten years, able to sign servers but no further CA."""
    key_pem = new_key_pem()
    key = _private_key(key_pem, "the new key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA"[:64])])
    builder = _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    certificate = builder.sign(key, hashes.SHA384())
    return Authority(certificate_pem=certificate.public_bytes(serialization.Encoding.PEM), key_pem=key_pem)


def given_authority(certificate_pem: bytes, key_pem: bytes, now: datetime) -> Authority:
    """Check and return an existing CA, such as a hospital group's. Raises `UsageError` if it is unsuitable."""
    certificate = _certificate(certificate_pem, "--ca: the certificate")
    key = _private_key(key_pem, "--ca: the key")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise UsageError("--ca: the certificate is not that of a CA (basicConstraints CA:TRUE)")
    if certificate.issuer != certificate.subject:
        raise UsageError("--ca: the certificate is an intermediate one; give the root certificate, which sites pin")
    if key.public_key() != certificate.public_key():
        raise UsageError("--ca: the key does not match the certificate")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise UsageError(f"--ca: not valid today; valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    return Authority(certificate_pem=certificate_pem, key_pem=key_pem)


def server_certificate(authority: Authority, key_pem: bytes, hosts: tuple[str, ...], now: datetime, days: int) -> bytes:
    """Sign a certificate (PEM) for the server's key.

    It names all `hosts` and the loopback address, which the server's own processes use to connect to each other. It
    never outlives its CA. Raises `UsageError` if the CA expires within a day.
    """
    issuer = _certificate(authority.certificate_pem, "the CA's certificate")
    signing_key = _private_key(authority.key_pem, "the CA's key")
    key = _private_key(key_pem, "the server's key")
    days = min(days, (issuer.not_valid_after_utc - now).days)
    if days < 1:
        raise UsageError(
            f"the CA expires on {issuer.not_valid_after_utc:%Y-%m-%d}: it can no longer sign certificates; "
            "create a new server folder with a new CA"
        )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    names = [_general_name(host) for host in dict.fromkeys((*hosts, LOOPBACK))]
    builder = _builder(subject, issuer.subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key())
    builder = builder.add_extension(issuer_key, critical=False)
    return builder.sign(signing_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def facts_of(certificate_pem: bytes, source: str) -> CertificateFacts:
    """Read a certificate. Raises a one-line `UsageError` that names `source`."""
    certificate = _certificate(certificate_pem, source)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = tuple(str(name.value) for name in names)
    except x509.ExtensionNotFound:
        hosts = ()
    return CertificateFacts(
        sha256=sha256_hex(certificate.public_bytes(serialization.Encoding.DER)),
        hosts=hosts,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def belongs_together(authority_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> bool:
    """Return whether the CA signed the server's certificate and the key belongs to that certificate."""
    certificate = _certificate(certificate_pem, "the server's certificate")
    try:
        certificate.verify_directly_issued_by(_certificate(authority_pem, "the CA's certificate"))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return _private_key(key_pem, "the server's key").public_key() == certificate.public_key()


def check_site_key(public_key: str) -> None:
    """Raise `UsageError` unless the line is a valid public key on the curve P-384."""
    try:
        key = serialization.load_ssh_public_key(public_key.encode("ascii"))
    except Exception as error:  # damaged keys make the library raise IndexError, NotImplementedError and others
        raise UsageError(
            f"the site's public key cannot be read ({type(error).__name__}); ask the site for a new request"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UsageError("the site's public key is not an elliptic-curve key on P-384; ask the site for a new request")


def key_pem(public_key: str) -> bytes:
    """Convert a site's public key from OpenSSH's one-line format to PEM, the format in which Flower stores it.

    Raises `UsageError` like `check_site_key`.
    """
    check_site_key(public_key)
    key = serialization.load_ssh_public_key(public_key.encode("ascii"))
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_hosts(text: str) -> tuple[str, ...]:
    """Parse NAME[,NAME…] into unique DNS names in lower case and IP addresses. Raises `UsageError` for any other."""
    found = tuple(dict.fromkeys(_general_name(part.strip()).value for part in text.split(",")))
    return tuple(map(str, found))


def _general_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise UsageError(f"{host or 'an empty name'}: is neither a DNS name (a-z, 0-9, hyphens) nor an IP address")
    return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - EARLIER).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(**allowed: bool) -> x509.KeyUsage:
    kinds = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    more = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**(dict.fromkeys((*kinds, *more), False) | allowed))


def _certificate(pem: bytes, source: str) -> x509.Certificate:
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem)
        return certificate
    except ValueError:
        raise UsageError(f"{source}: must contain exactly one certificate in PEM form") from None


def _private_key(pem: bytes, source: str) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise UsageError(f"{source}: must be a private key in PEM form without a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise UsageError(f"{source}: is neither an elliptic-curve nor an RSA key; use a CA with one of these")
    return key
