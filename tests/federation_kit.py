"""A federation's folders for tests: certificates, keys, and hospitals with a few synthetic patients."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import socket
from pathlib import Path

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def private_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    return path


def _pem(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_certificates(server: Path) -> str:
    """A CA and a certificate for this machine; returns the SHA-256 of the CA's."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Wardround test CA")])

    def signed(name, public_key, ca, names):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=30))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(ca_key, hashes.SHA384())

    ca = signed(ca_name, ca_key.public_key(), True, [])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    own = signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key(), False, names)
    private_file(server / "ca" / "ca.key", _pem(ca_key))
    private_file(server / "ca" / "ca.crt", ca.public_bytes(serialization.Encoding.PEM))
    private_file(server / "tls" / "server.key", _pem(key))
    private_file(server / "tls" / "server.crt", own.public_bytes(serialization.Encoding.PEM))
    return hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest()


def make_site_key(folder: Path) -> Path:
    """A hospital's key; returns the public part's path."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    private_file(folder / "keys" / "site_key", private)
    return private_file(folder / "keys" / "site_key.pub", public + b"\n")


def write_patients(folder: Path, seed: int, patients: int = 8, size: int = 32) -> None:
    """A cohort of grey images, two a patient, in which the second label is a bright square."""
    from wardround_client.data.cohort import CohortRow, pseudonym, write_cohort

    key, rows, images = b"k" * 32, [], []
    generator = np.random.default_rng(seed)
    for number in range(2 * patients):
        label = number // 2 % 2
        image = generator.integers(0, 120, (1, size, size), dtype=np.uint8)
        image[:, 8:20, 8:20] += np.uint8(90 * label)
        images.append(image)
        rows.append(CohortRow(pseudonym=pseudonym(key, f"{seed}-{number // 2}"), label=label))
    names = ("benign", "malignant")
    write_cohort(folder / "cohort", rows, iter(images), shape_CHW=(1, size, size), label_names=names, site_key=key)


def make_site(folder: Path, fleet_port: int, runtime_port: int, ca: Path, ca_sha256: str, seed: int) -> Path:
    """A hospital's folder that is ready to start; returns the path of its public key."""
    folder.mkdir(mode=0o700, parents=True)
    public = make_site_key(folder)
    private_file(folder / "keys" / "ca.crt", ca.read_bytes())
    write_patients(folder, seed)
    (folder / "site.toml").write_text(
        f'name = "{folder.name}"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-5\nallow_no_privacy = true\n'
        f'[server]\naddress = "127.0.0.1:{fleet_port}"\nca_sha256 = "{ca_sha256}"\nruntime_port = {runtime_port}\n'
    )
    return public
