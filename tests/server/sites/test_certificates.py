"""A federation's certificates and list of sites: verified in real TLS handshakes, made once, renewed in place."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders.keys import public_key
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer.testing import CliRunner

from wardround.errors import AuditError, UsageError, WardroundError
from wardround.identity import key_fingerprint, request_for, sha256_hex
from wardround.operations.tls_probe import presented_certificate
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.storage import atomic
from wardround.web.config import ConsoleConfig
from wardround_server.cli.main import app
from wardround_server.operations.config import ServerSection, load_server_config
from wardround_server.operations.doctor import examine
from wardround_server.operations.folder import found, renew, whole
from wardround_server.sites.certificates import check_site_key, facts_of, new_authority, read_hosts, server_certificate
from wardround_server.sites.registry import Registry

NOW = datetime.now(UTC)
HOSTS = "fed.example.org,localhost,127.0.0.1"


def federation(folder: Path, hosts: str | None = HOSTS, given: tuple[Path, Path] | None = None, now: datetime = NOW):
    return found(folder, hosts, "test", 9092, given, now)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A TLS server with the folder's certificate on a port of 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls/server.crt", folder / "tls/server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1]


def ca_of(folder: Path) -> str:
    return (folder / "ca/ca.crt").read_text()


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file with its bytes, mode and time of change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in files
    }


def said(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


# Certificates


def test_who_pins_the_ca_reaches_the_server_by_each_of_its_names_and_by_no_other(tmp_path: Path) -> None:
    federation(tmp_path / "fed")
    with serving(tmp_path / "fed") as port:
        for name in HOSTS.split(","):
            shown = presented_certificate(f"127.0.0.1:{port}", ca_of(tmp_path / "fed"), None, 5, name)
            assert sha256_hex(shown) == facts_of((tmp_path / "fed/tls/server.crt").read_bytes(), "").sha256
        for name in ("example.org", "127.0.0.2", "evil.example.org"):
            with pytest.raises(WardroundError, match="certificate is refused.*match"):
                presented_certificate(f"127.0.0.1:{port}", ca_of(tmp_path / "fed"), None, 5, name)


def test_a_server_under_another_ca_is_refused_though_it_has_the_same_names(tmp_path: Path) -> None:
    federation(tmp_path / "ours")
    federation(tmp_path / "theirs")
    with serving(tmp_path / "theirs") as port, pytest.raises(WardroundError, match="certificate is refused"):
        presented_certificate(f"localhost:{port}", ca_of(tmp_path / "ours"), None, 5)


def test_grpc_which_flower_uses_takes_the_certificate(tmp_path: Path) -> None:
    import grpc

    federation(tmp_path / "fed")
    pair = (tmp_path / "fed/tls/server.key").read_bytes(), (tmp_path / "fed/tls/server.crt").read_bytes()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    federation(tmp_path / "other")
    try:
        for folder, reached in (("fed", True), ("other", False)):
            credentials = grpc.ssl_channel_credentials((tmp_path / folder / "ca/ca.crt").read_bytes())
            with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
                ready = grpc.channel_ready_future(channel)
                with contextlib.nullcontext() if reached else pytest.raises(grpc.FutureTimeoutError):
                    ready.result(timeout=10 if reached else 1)
    finally:
        server.stop(None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    federation(tmp_path)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "fed.example.org"]
    command += ["-CAfile", tmp_path / "ca/ca.crt", tmp_path / "tls/server.crt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_ca_signs_servers_and_no_further_ca_and_a_certificate_does_not_outlive_it(tmp_path: Path) -> None:
    state = federation(tmp_path)
    ca, certificate = (
        x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca/ca.crt", "tls/server.crt")
    )
    rules = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (rules.ca, rules.path_length) == (True, 0)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert state.certificate.not_after - NOW < timedelta(days=398)
    authority = new_authority("short", NOW - timedelta(days=3640))
    late = server_certificate(authority, (tmp_path / "tls/server.key").read_bytes(), ("a.example",), NOW, 397)
    assert facts_of(late, "").not_after <= facts_of(authority.certificate_pem, "").not_after
    with pytest.raises(UsageError, match="can no longer sign certificates"):
        server_certificate(authority, authority.key_pem, ("a.example",), NOW + timedelta(days=20), 397)


@pytest.mark.parametrize("text", ["", "a_b.example", "*.example.org", "-a.example", "1.2.3", "a..b", "a b", "a,,b"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a DNS name"):
        read_hosts(text)


def test_hosts_are_taken_once_each_and_in_lower_case() -> None:
    assert read_hosts("Fed.Example.org., ::1,10.0.0.1,fed.example.org") == ("fed.example.org", "::1", "10.0.0.1")


# Made once


def test_a_second_init_changes_no_byte(tmp_path: Path) -> None:
    first = federation(tmp_path)
    before = contents(tmp_path)
    for hosts in (HOSTS, None):
        again = federation(tmp_path, hosts)
        assert again.made == () and again.authority == first.authority
    with pytest.raises(UsageError, match="change host and more_hosts"):
        federation(tmp_path, "elsewhere.example.org")
    assert contents(tmp_path) == before
    assert {mode & 0o777 for _, mode, _ in before.values()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "ca", tmp_path / "tls")} == {0o700}


@pytest.mark.parametrize("step", range(3))
def test_an_init_killed_at_any_step_is_finished_by_the_next_one(tmp_path: Path, monkeypatch, step: int) -> None:
    steps = iter(range(10))

    def dies(function):
        def call(*arguments):
            if next(steps) == step:
                raise KeyboardInterrupt
            function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", dies(atomic.os.replace))
        patch.setattr(atomic.os, "rename", dies(atomic.os.rename))
        with pytest.raises(KeyboardInterrupt):
            federation(tmp_path)
    before = contents(tmp_path)
    federation(tmp_path)
    after = contents(tmp_path)
    assert {name for name in before if "partial" not in name} <= set(after)
    assert all(after[name] == what for name, what in before.items() if "partial" not in name)
    assert whole(tmp_path) and not list(tmp_path.glob(".*partial"))


def test_renewal_keeps_the_ca_and_the_key_and_takes_new_names_from_the_file(tmp_path: Path) -> None:
    first = federation(tmp_path)
    before = contents(tmp_path)
    path = tmp_path / "server.toml"
    path.write_text(path.read_text().replace("more_hosts = [", 'more_hosts = ["new.example.org", '))
    later = renew(tmp_path, None, NOW + timedelta(days=300))
    changed = {name for name, what in contents(tmp_path).items() if what != before[name]}
    assert changed == {"server.toml", "tls/server.crt"}
    assert later.authority == first.authority and "new.example.org" in later.certificate.hosts
    assert later.certificate.not_after == first.certificate.not_after + timedelta(days=300)
    renew(tmp_path, None, NOW)
    with serving(tmp_path) as port:
        assert presented_certificate(f"127.0.0.1:{port}", ca_of(tmp_path), None, 5, "new.example.org")


@pytest.mark.parametrize("lost", ["ca", "ca/ca.crt", "tls/server.crt"])
def test_what_was_lost_is_asked_back_and_not_made_anew(tmp_path: Path, lost: str) -> None:
    federation(tmp_path)
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="is missing; restore it from a backup"):
        federation(tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="contains other files"):
        federation(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def group_ca(folder: Path, name: str = "group") -> tuple[Path, Path]:
    authority, folder = new_authority(name, NOW), folder / name
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.certificate_pem)
    (folder / "ca.key").write_bytes(authority.key_pem)
    return folder / "ca.crt", folder / "ca.key"


def test_a_groups_own_ca_signs_and_its_key_is_not_kept(tmp_path: Path) -> None:
    given = group_ca(tmp_path)
    federation(tmp_path / "fed", given=given)
    key = given[1].read_bytes()
    assert ca_of(tmp_path / "fed") == given[0].read_text() and whole(tmp_path / "fed")
    assert not (tmp_path / "fed/ca/ca.key").exists()
    assert not [name for name, (content, _, _) in contents(tmp_path / "fed").items() if key in content]
    with pytest.raises(UsageError, match="give --ca CERT KEY to renew"):
        renew(tmp_path / "fed", None, NOW)
    with pytest.raises(UsageError, match="is not the CA given by --ca; sites have pinned"):
        renew(tmp_path / "fed", group_ca(tmp_path, "other"), NOW)
    assert renew(tmp_path / "fed", given, NOW).made == ("tls/server.crt",)


@pytest.mark.parametrize("fault", ["no CA", "another's key", "no PEM", "intermediate", "missing"])
def test_a_ca_that_cannot_serve_is_refused_before_anything_is_written(tmp_path: Path, fault: str) -> None:
    certificate, key = group_ca(tmp_path)
    if fault == "no CA":
        federation(tmp_path / "server")
        certificate, key = tmp_path / "server/tls/server.crt", tmp_path / "server/tls/server.key"
    elif fault == "another's key":
        key = group_ca(tmp_path, "other")[1]
    elif fault == "no PEM":
        certificate.write_bytes(b"nothing")
    elif fault == "intermediate":
        root = x509.load_pem_x509_certificate(certificate.read_bytes())
        signer = serialization.load_pem_private_key(key.read_bytes(), None)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([]), subject_name=root.subject, public_key=signer.public_key(), serial_number=1,
            not_valid_before=NOW, not_valid_after=NOW + timedelta(days=9),
        ).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)  # fmt: skip
        signed = builder.sign(signer, root.signature_hash_algorithm)
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    else:
        key = tmp_path / "none"
    with pytest.raises(UsageError, match="--ca|cannot be read"):
        federation(tmp_path / "fed", given=(certificate, key))
    assert contents(tmp_path / "fed") == {}


# server.toml


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fleet_port", "fleet_prot", "fleet_prot"),
        ("control_port = 9093", "control_port = 9092", "must differ"),
        ("certificate_days = 397", "certificate_days = 0", "certificate_days"),
        ('name = "test"', 'name = "te st"', "server.name"),
        ("[server]", "[server", "not a TOML file"),
        ("listen =", "# ", "ok"),
    ],
)
def test_server_toml_is_read_strictly_and_names_the_field(tmp_path: Path, old: str, new: str, words: str) -> None:
    federation(tmp_path)
    path = tmp_path / "server.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    if words == "ok":
        assert load_server_config(tmp_path).server.listen == "0.0.0.0"
        return
    with pytest.raises(UsageError, match=words) as error:
        load_server_config(tmp_path)
    assert str(path) in str(error.value)


def test_the_first_server_toml_shows_every_key_that_there_is(tmp_path: Path) -> None:
    federation(tmp_path)
    text = (tmp_path / "server.toml").read_text()
    for section, model in (("server", ServerSection), ("console", ConsoleConfig)):
        (part,) = re.findall(rf"^\[{section}\]$(.*?)(?=^\[|\Z)", text, flags=re.MULTILINE | re.DOTALL)
        shown = re.findall(r"^(?:# )?(\w+) = ", part, flags=re.MULTILINE)
        assert sorted(shown) == sorted(model.model_fields)


# Sites


def enrolled(folder: Path, name: str = "north", key: str | None = None) -> str:
    key = key or public_key()
    Registry(folder).add(name, key)
    return key


def test_a_key_has_one_name_and_a_name_one_key(tmp_path: Path) -> None:
    federation(tmp_path)
    key = enrolled(tmp_path)
    assert Registry(tmp_path).add("north", key) == Registry(tmp_path).sites()[0]
    with pytest.raises(UsageError, match="already enrolled as north"):
        enrolled(tmp_path, "south", key)
    with pytest.raises(UsageError, match="enrolled with another key"):
        enrolled(tmp_path, "north")
    assert [(site.name, site.fingerprint) for site in Registry(tmp_path).sites()] == [("north", key_fingerprint(key))]


def test_a_revoked_key_never_comes_back_and_its_name_may_have_a_new_one(tmp_path: Path) -> None:
    federation(tmp_path)
    old = enrolled(tmp_path)
    assert Registry(tmp_path).end("north", "revoked").revoked_at is not None
    assert Registry(tmp_path).sites() == []
    for name in ("north", "other"):
        with pytest.raises(UsageError, match="was revoked on"):
            enrolled(tmp_path, name, old)
    new = enrolled(tmp_path)
    assert [site.fingerprint for site in Registry(tmp_path).sites()] == [key_fingerprint(new)]
    Registry(tmp_path).end("north", "removed")
    for key, how in ((old, "revoked"), (new, "removed")):
        with pytest.raises(UsageError, match=f"was {how} on"):
            enrolled(tmp_path, "north", key)
    assert [site.ended for site in Registry(tmp_path).sites(revoked=True)] == ["revoked", "removed"]


def test_of_many_who_ask_for_one_name_at_once_one_gets_it(tmp_path: Path) -> None:
    federation(tmp_path)
    keys = [public_key() for _ in range(8)]

    def ask(key: str) -> bool:
        with contextlib.suppress(UsageError):
            Registry(tmp_path).add("north", key)
            return True
        return False

    with futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(ask, keys)) == [False] * 7 + [True]
    assert len(Registry(tmp_path).sites()) == 1


def test_looking_at_the_sites_makes_no_registry_anywhere(tmp_path: Path) -> None:
    federation(tmp_path / "fed")
    assert json.loads(said("sites", "list", "--server", tmp_path / "fed", "--json")) == []
    assert not (tmp_path / "fed/registry.sqlite3").exists()
    with pytest.raises(UsageError, match="is not a server's folder"):
        said("sites", "list", "--server", tmp_path)


def request_file(folder: Path, key: str | None = None, **changes: object) -> Path:
    content = json.loads(request_for("north", key or public_key()).model_dump_json()) | changes
    path = folder / "north.enrol.json"
    path.write_text(json.dumps(content))
    return path


def test_a_site_is_added_only_with_the_fingerprint_that_was_read_out(tmp_path: Path) -> None:
    federation(tmp_path)
    request = request_file(tmp_path)
    fingerprint = json.loads(request.read_text())["fingerprint"]
    for wrong in ("0" * 64, fingerprint[:-1], fingerprint[:16], ""):
        with pytest.raises(UsageError, match="fingerprint differs|64 digits"):
            said("sites", "add", request, "--server", tmp_path, "--fingerprint", wrong)
    with pytest.raises(UsageError, match="--fingerprint is missing"):
        said("sites", "add", request, "--server", tmp_path)
    assert Registry(tmp_path).sites() == []
    read_out = " ".join(fingerprint[i : i + 4] for i in range(0, 64, 4)).upper()
    said("sites", "add", request, "--server", tmp_path, "--fingerprint", read_out, "--name", "polar")
    (site,) = json.loads(said("sites", "list", "--server", tmp_path, "--json"))
    assert (site["name"], site["fingerprint"]) == ("polar", fingerprint)
    assert "polar" in said("sites", "list", "--server", tmp_path)
    said("sites", "revoke", "polar", "--yes", "--server", tmp_path)
    assert "revoked" in said("sites", "list", "--server", tmp_path)
    with pytest.raises(UsageError, match="with --yes"):
        said("sites", "remove", "polar", "--server", tmp_path)


def decisions(folder: Path) -> list[tuple[str, str, str | None]]:
    entries = verified(folder / AUDIT_FILE).entries
    return [(entry["decision"], entry["site"], entry.get("who")) for entry in entries]


def test_who_lets_a_site_in_or_shuts_it_out_is_in_the_audit_log(tmp_path: Path) -> None:
    federation(tmp_path)
    request = request_file(tmp_path)
    add = ("sites", "add", request, "--fingerprint", json.loads(request.read_text())["fingerprint"])
    for _ in range(2):  # the second time nothing happens, and nothing is written down
        said(*add, "--by", "Ada Lovelace", "--server", tmp_path)
    said("sites", "remove", "north", "--yes", "--server", tmp_path)
    with pytest.raises(UsageError, match="was removed"):
        said(*add, "--server", tmp_path)
    enrolled(tmp_path)
    said("sites", "revoke", "north", "--yes", "--by", "Ada Lovelace", "--server", tmp_path)
    with pytest.raises(UsageError, match="--by: give the name of a person"):
        said("sites", "remove", "north", "--yes", "--by", "/etc/4711", "--server", tmp_path)
    ada = "Ada Lovelace"
    assert decisions(tmp_path) == [
        ("added", "north", ada), ("removed", "north", None), ("revoked", "north", ada),
    ]  # fmt: skip


def test_where_the_audit_log_cannot_be_written_nobody_is_let_in_and_a_stolen_key_still_goes_out(tmp_path: Path) -> None:
    federation(tmp_path)
    enrolled(tmp_path, "south")
    (tmp_path / AUDIT_FILE).mkdir()
    request = request_file(tmp_path)
    fingerprint = json.loads(request.read_text())["fingerprint"]
    for words in (("add", request, "--fingerprint", fingerprint), ("revoke", "south", "--yes")):
        with pytest.raises(AuditError, match="cannot be written"):
            said("sites", *words, "--server", tmp_path)
    assert Registry(tmp_path).sites() == []


def not_on_the_curve() -> str:
    """A public key whose point lies beside P-384."""
    import base64

    kind, text = public_key().split()
    blob = bytearray(base64.b64decode(text))
    blob[-1] ^= 1
    return f"{kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"public_key": public_key()}, "its fingerprint does not match its key"),
        ({"fingerprint": "0" * 64}, "its fingerprint does not match its key"),
        ({"name": "../north"}, "name is missing, unknown or wrong"),
        ({"name": "a\nb"}, "name is missing, unknown or wrong"),
        ({"extra": 1}, "extra is missing, unknown or wrong"),
        ({"wardround_enrolment": 2}, "wardround_enrolment is missing"),
        ({"public_key": "x" * 5000}, "too long"),
    ],
)
def test_an_altered_request_is_refused_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    federation(tmp_path)
    request = request_file(tmp_path, **changes)
    with pytest.raises(UsageError, match=words) as error:
        said("sites", "add", request, "--server", tmp_path, "--fingerprint", "0" * 64)
    assert "\n" not in str(error.value) and Registry(tmp_path).sites() == []


def test_only_a_real_key_on_p384_is_taken() -> None:
    check_site_key(public_key())
    with pytest.raises(UsageError, match="cannot be read"):
        check_site_key(not_on_the_curve())
    for other in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(UsageError, match="not an elliptic-curve key on P-384"):
            check_site_key(public_key(other))
        with pytest.raises(UsageError, match="not a public key of type"):
            key_fingerprint(public_key(other))


@pytest.mark.parametrize("damage", ["a compressed point", "an empty point", "no such kind", "not ASCII"])
def test_a_damaged_key_is_refused_in_one_line_whatever_the_library_raises(damage: str) -> None:
    kind, text, *_ = public_key().split()
    raw = base64.b64decode(text)
    start = len(raw) - 97  # the point: one byte for its form, then x and y of 48 bytes each
    line = {
        "a compressed point": f"{kind} {base64.b64encode(raw[:start] + bytes([3]) + raw[start + 1 :]).decode()}",
        "an empty point": f"{kind} {base64.b64encode(raw[: start - 4] + bytes(4)).decode()}",
        "no such kind": f"ssh-none {text}",
        "not ASCII": f"{kind} {text}é",
    }[damage]
    with pytest.raises(UsageError, match="public key cannot be read"):
        check_site_key(line)


# Doctor


def states(folder: Path) -> dict[str, str]:
    return {check.name: check.state for check in examine(folder)}


def with_free_ports(folder: Path) -> None:
    path, text = folder / "server.toml", (folder / "server.toml").read_text()
    with contextlib.ExitStack() as stack:
        for name in ("fleet_port = 9092", "control_port = 9093"):
            free = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            text = text.replace(name, f"{name.split()[0]} = {free}")
    path.write_text(text.replace('0.0.0.0"\n', '127.0.0.1"\n'))


def test_the_doctor_is_content_with_a_new_server_and_changes_nothing(tmp_path: Path) -> None:
    federation(tmp_path)
    with_free_ports(tmp_path)
    before = contents(tmp_path)
    found_ = states(tmp_path)
    assert [name for name, state in found_.items() if state == "fault" and name != "disk"] == []
    assert found_["sites"] == "note" and found_["certificate"] == "ok"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fault", ["files", "certificate", "CA", "names", "soon", "mixed", "missing"])
def test_the_doctor_finds(tmp_path: Path, fault: str) -> None:
    federation(tmp_path, now=NOW - timedelta(days={"certificate": 500, "CA": 3700, "soon": 380}.get(fault, 0)))
    with_free_ports(tmp_path)
    place = {"names": "certificate", "soon": "certificate", "mixed": "certificate", "missing": "files"}
    name, state = place.get(fault, fault), "fault"
    if fault == "files":
        (tmp_path / "tls/server.key").chmod(0o640)
    elif fault == "names":
        path = tmp_path / "server.toml"
        path.write_text(path.read_text().replace("fed.example.org", "moved.example.org"))
    elif fault == "soon":
        state = "note"
    elif fault == "mixed":
        federation(tmp_path / "other")
        shutil.copy(tmp_path / "other/tls/server.key", tmp_path / "tls/server.key")
    elif fault == "missing":
        (tmp_path / "tls/server.key").unlink()
    assert states(tmp_path)[name] == state
    if state == "fault":
        done = CliRunner().invoke(app, ["doctor", "--server", str(tmp_path), "--json"])
        assert done.exit_code == 1
        (check,) = [check for check in json.loads(done.output)["checks"] if check["name"] == name]
        assert check["todo"]


def test_the_doctor_tells_our_server_at_its_port_from_another_program(tmp_path: Path) -> None:
    federation(tmp_path / "fed")
    federation(tmp_path / "other")
    for folder, state in (("fed", "ok"), ("other", "fault")):
        with serving(tmp_path / folder) as port:
            path = tmp_path / "fed/server.toml"
            text = path.read_text()
            path.write_text(
                text.replace("fleet_port = 9092", f"fleet_port = {port}").replace('0.0.0.0"\n', '127.0.0.1"\n')
            )
            assert states(tmp_path / "fed")["ports"] == state
            path.write_text(text)


# The command line


@pytest.mark.parametrize(
    ("words", "exit_code", "line"),
    [
        (["init", "new"], 2, "--host is missing"),
        (["init", "new", "--host", "a_b"], 2, "neither a DNS name"),
        (["init", "new", "--renew"], 2, "is not a server's folder"),
        (["init", "new", "--host", "a.example", "--ca", "x", "y"], 2, "x: cannot be read"),
        (["doctor"], 2, "is not a server's folder"),
        (["sites", "add", "none.json"], 2, "is not a server's folder"),
        (["sites", "remove", "north", "--yes", "--server", "fed"], 2, "no such site"),
        (["sites", "add", "none.json", "--server", "fed"], 2, "none.json: cannot be read"),
        (["backup", "b.tar"], 2, "is not a server's folder"),
        (["restore", "none.tar", "--server", "new"], 2, "none.tar: cannot be restored"),
        (["init", "/proc/none", "--host", "a.example"], 2, "cannot be written"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_its_exit_code(tmp_path: Path, words: list[str], exit_code: int, line: str) -> None:
    federation(tmp_path / "fed")
    command = [sys.executable, "-m", "wardround_server.cli.main", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code and done.stdout == "", done.stderr
    assert len(done.stderr.splitlines()) == 1 and line in done.stderr
    assert not [path for path in tmp_path.glob("new*") if list(path.rglob("*"))]


def test_init_says_the_fingerprint_of_the_ca_and_no_key(tmp_path: Path) -> None:
    told = said("init", tmp_path / "fed", "--host", HOSTS)
    facts = json.loads(said("init", tmp_path / "fed", "--json"))
    der = ssl.PEM_cert_to_DER_cert(ca_of(tmp_path / "fed"))
    assert facts["ca_sha256"] == sha256_hex(der) and facts["ca_sha256"] in told.replace(" ", "")
    for key in ("ca/ca.key", "tls/server.key"):
        body = (tmp_path / "fed" / key).read_text().splitlines()[1]
        assert body not in told and body not in json.dumps(facts)
