"""A hospital's folder: its keys are made once and never leave, the CA is pinned, and `doctor` finds faults."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wardround.errors import UsageError, WardroundError
from wardround.identity import read_request
from wardround.operations.tls_probe import presented_certificate
from wardround.storage import atomic
from wardround_client.cli.main import app
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site import doctor
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_client.site.enrolment import enrol
from wardround_server.operations.folder import found

SECRETS = ("keys/site_key", "keys/pseudonym.key")


def said(*words: object, typed: str | None = None) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], input=typed, env={"COLUMNS": "120"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def federation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "fed"
    found(folder, "localhost", "test", 9092, None, datetime.now(UTC))
    return folder


@pytest.fixture
def site(tmp_path: Path, federation: Path) -> Path:
    enrol(tmp_path / "north", "north", "localhost:9092", federation / "ca/ca.crt")
    return tmp_path / "north"


def contents(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime_ns) for p in files}


def stray(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*partial*")]


# Keys and pin


def test_keys_are_the_owners_alone_and_are_in_no_output_request_or_other_file(tmp_path: Path, federation: Path) -> None:
    words = ("init", "--server", "localhost:9092", "--name", "north", "--ca", federation / "ca/ca.crt")
    told = said(*words, "--site", tmp_path / "s") + said("init", "--site", tmp_path / "s", "--json")
    told += said("doctor", "--site", tmp_path / "s", "--timeout", 1)
    for secret in SECRETS:
        path = tmp_path / "s" / secret
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        forms = [content, content.hex().encode(), base64.b64encode(content)]
        if secret == "keys/site_key":
            forms += content.splitlines()[2:-2]
            assert content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        others = b"".join(what for name, (what, _, _) in contents(tmp_path / "s").items() if name != secret)
        assert [form for form in forms if form in told.encode() + others] == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == (tmp_path / "s/keys").stat().st_mode & 0o777 == 0o700


def test_the_request_holds_the_public_key_and_what_is_read_out_by_telephone(site: Path) -> None:
    request = read_request(site / "north.enrol.json")
    assert set(json.loads((site / "north.enrol.json").read_text())) == {
        "wardround_enrolment", "name", "public_key", "fingerprint",
    }  # fmt: skip
    kind, blob, *_ = (site / "keys/site_key.pub").read_text().split()
    assert kind == "ecdsa-sha2-nistp384" and request.public_key.split()[:2] == [kind, blob]
    assert request.fingerprint == hashlib.sha256(base64.b64decode(blob)).hexdigest()
    assert request.fingerprint in said("init", "--site", site).replace(" ", "")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_openssh_reads_the_key_and_sees_the_same_fingerprint(site: Path) -> None:
    command = ["ssh-keygen", "-y", "-f", str(site / "keys/site_key")]
    public = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert public.split()[:2] == (site / "keys/site_key.pub").read_text().split()[:2]


def test_two_sites_share_no_key(tmp_path: Path, federation: Path) -> None:
    for name in ("a", "b"):
        enrol(tmp_path / name, name, "localhost:9092", federation / "ca/ca.crt")
    for secret in SECRETS:
        assert (tmp_path / "a" / secret).read_bytes() != (tmp_path / "b" / secret).read_bytes()


def test_a_second_init_changes_no_byte_and_says_the_fingerprints_again(site: Path, federation: Path) -> None:
    before = contents(site)
    first = said("init", "--site", site, "--json")
    words = ("--server", "localhost:9092", "--name", "north", "--ca", federation / "ca/ca.crt")
    assert json.loads(said("init", *words, "--site", site, "--json")) == json.loads(first) | {"made": []}
    assert contents(site) == before


def test_another_ca_name_or_server_is_refused_and_changes_nothing(site: Path, tmp_path: Path, federation: Path) -> None:
    found(tmp_path / "evil", "localhost", "test", 9092, None, datetime.now(UTC))
    before = contents(site)
    with pytest.raises(UsageError, match="differs from the CA pinned"):
        said("init", "--ca", tmp_path / "evil/ca/ca.crt", "--site", site)
    with pytest.raises(UsageError, match="this site is called north"):
        said("init", "--name", "south", "--site", site)
    with pytest.raises(UsageError, match="its server is localhost:9092"):
        said("init", "--server", "evil.example:9092", "--site", site)
    assert contents(site) == before
    shutil.copy(tmp_path / "evil/ca/ca.crt", site / "keys/ca.crt")
    with pytest.raises(UsageError, match="is not the CA pinned in site.toml"):
        said("init", "--site", site)


@pytest.mark.parametrize("step", range(3))
def test_an_init_killed_at_any_step_is_finished_by_the_next_one(
    tmp_path: Path, federation: Path, monkeypatch, step: int
) -> None:
    steps = iter(range(10))

    def dies(function):
        def call(*arguments):
            if next(steps) == step:
                raise KeyboardInterrupt
            function(*arguments)

        return call

    asked = (tmp_path / "s", "north", "localhost:9092", federation / "ca/ca.crt")
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", dies(atomic.os.replace))
        patch.setattr(atomic.os, "rename", dies(atomic.os.rename))
        with pytest.raises(KeyboardInterrupt):
            enrol(*asked)
    before = {name: what for name, what in contents(tmp_path / "s").items() if "partial" not in name}
    enrol(*asked)
    after = contents(tmp_path / "s")
    assert all(after[name] == what for name, what in before.items())
    assert set(after) >= {"site.toml", *SECRETS, "keys/ca.crt", "north.enrol.json"} and not stray(tmp_path / "s")


@pytest.mark.parametrize("lost", ["keys", "keys/site_key", "keys/ca.crt", "keys/site_key.pub"])
def test_lost_keys_are_asked_back_and_not_made_anew(site: Path, federation: Path, lost: str) -> None:
    shutil.rmtree(site / lost) if lost == "keys" else (site / lost).unlink()
    before = contents(site)
    with pytest.raises(UsageError, match="back from a backup"):
        said("init", "--ca", federation / "ca/ca.crt", "--site", site)
    assert contents(site) == before


def test_the_first_site_toml_allows_nothing_to_leave_beside_the_weights(site: Path, federation: Path) -> None:
    config = load_site_config(site / "site.toml")
    assert (config.release.evaluation, config.release.per_site, config.privacy.allow_no_privacy) == (
        "off",
        False,
        False,
    )
    assert config.privacy.epsilon_cap <= 8 and config.privacy.delta_cap <= 1e-4
    der = ssl.PEM_cert_to_DER_cert((federation / "ca/ca.crt").read_text())
    assert config.server.ca_sha256 == hashlib.sha256(der).hexdigest()


def test_the_first_site_toml_shows_every_key_that_there_is(site: Path) -> None:
    text = (site / "site.toml").read_text()
    for section in ("server", "privacy", "release", "compute"):
        part = text.split(f"[{section}]")[1].split("\n[")[0]
        kind = SiteConfig.model_fields[section].annotation
        kind = kind if hasattr(kind, "model_fields") else kind.__args__[0]
        shown = set(re.findall(r"^(?:# )?(\w+) = ", part, flags=re.MULTILINE))
        assert shown == set(kind.model_fields)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["init"], "--server, --name, --ca missing"),
        (["init", "--server", "a", "--name", "n", "--ca", "ca.crt"], "write HOST:PORT"),
        (["init", "--server", "a:0", "--name", "n", "--ca", "ca.crt"], "write HOST:PORT"),
        (["init", "--server", "a:1", "--name", "n/m", "--ca", "ca.crt"], "up to 63 letters"),
        (["init", "--server", "a:1", "--name", "n", "--ca", "none.crt"], "none.crt: does not exist"),
        (["init", "--server", "a:1", "--name", "n", "--ca", "bad.crt"], "does not contain exactly one certificate"),
        (["init", "--site", "full", "--server", "a:1", "--name", "n", "--ca", "ca.crt"], "contains other files"),
        (["doctor"], "is not a site's folder"),
        (["ingest", ".", "--study", "x"], "is not a site's folder"),
        (["forget", "p"], "is not a site's folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, federation: Path, words: list[str], line: str
) -> None:
    shutil.copy(federation / "ca/ca.crt", tmp_path / "ca.crt")
    (tmp_path / "bad.crt").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").touch()
    (tmp_path / "s").mkdir()
    words = words if "--site" in words else [*words, "--site", "s"]
    command = [sys.executable, "-m", "wardround_client.cli.main", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert len(done.stderr.splitlines()) == 1 and line in done.stderr
    assert list((tmp_path / "s").iterdir()) == []


# The handshake


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of 127.0.0.1 where every connection gets `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=guarded, args=(plain,), daemon=True).start()

        def guarded(plain: socket.socket) -> None:
            with contextlib.suppress(OSError), plain:
                answer(plain)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def tls(folder: Path) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls/server.crt", folder / "tls/server.key")

    def answer(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as connection:
            connection.recv(1)

    return answer


def proxy_to(port: int, asked: list[bytes], status: bytes = b"200 Connection established"):
    def answer(plain: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += plain.recv(1)
        asked.append(request.split(b"\r\n")[0])
        plain.sendall(b"HTTP/1.1 " + status + b"\r\nVia: x\r\n\r\n")
        if not status.startswith(b"200"):
            return
        with socket.create_connection(("127.0.0.1", port)) as onward:
            back = threading.Thread(target=pump, args=(onward, plain), daemon=True)
            back.start()
            pump(plain, onward)

    return answer


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(4096):
            target.sendall(piece)


def test_a_proxy_is_asked_to_pass_the_handshake_on(federation: Path) -> None:
    ca, asked = (federation / "ca/ca.crt").read_text(), []
    with listening(tls(federation)) as port, listening(proxy_to(port, asked)) as proxy:
        assert presented_certificate("localhost:9092", ca, f"127.0.0.1:{proxy}", 5)
        assert asked == [b"CONNECT localhost:9092 HTTP/1.1"]
    refusing = proxy_to(0, asked, b"403 Forbidden")
    with listening(refusing) as proxy, pytest.raises(WardroundError, match="did not connect to .* answer was 403"):
        presented_certificate("localhost:9092", ca, f"127.0.0.1:{proxy}", 5)


@pytest.mark.parametrize("kind", ["silent", "talking", "closing", "dripping"])
def test_a_server_that_is_none_is_told_in_one_line_and_in_time(federation: Path, kind: str) -> None:
    def answer(plain: socket.socket) -> None:
        if kind == "talking":
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        if kind == "dripping":
            plain.sendall(b"\x16\x03\x03\x40\x00\x02")  # a long answer of TLS, whose bytes come one at a time
            for _ in range(100):
                plain.sendall(b"\x00")
                time.sleep(0.2)
        if kind in ("silent", "talking"):
            plain.recv(10_000)
            time.sleep(20)

    started = time.monotonic()
    with listening(answer) as port, pytest.raises(WardroundError) as error:
        presented_certificate(f"127.0.0.1:{port}", (federation / "ca/ca.crt").read_text(), None, 1.0, "localhost")
    assert time.monotonic() - started < 5 and "\n" not in str(error.value)


# Doctor


def checks(site: Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.state, check.found) for check in doctor.examine(site, 3.0)}


@contextlib.contextmanager
def served(site: Path, federation: Path) -> Iterator[None]:
    """The site's server answers at the port that its site.toml names."""
    with listening(tls(federation)) as port:
        path = site / "site.toml"
        path.write_text(path.read_text().replace("localhost:9092", f"localhost:{port}"))
        yield


def test_the_doctor_is_content_with_a_new_site_and_changes_nothing(site: Path, federation: Path) -> None:
    with served(site, federation):
        before = contents(site)
        found_ = checks(site)
    assert [name for name, (state, _) in found_.items() if state == "fault" and name != "disk"] == []
    assert found_["cohort"][0] == "note" and "one private step" in found_["device"][1]
    assert "days left" in found_["server"][1] and found_["budget"][1].startswith("ε = 8 of 8")
    assert contents(site) == before


def break_files(site: Path, federation: Path) -> None:
    (site / "keys/site_key").chmod(0o644)


def break_keys(site: Path, federation: Path) -> None:
    other = site.parent / "other"
    enrol(other, "other", "localhost:9092", federation / "ca/ca.crt")
    shutil.copy(other / "keys/site_key.pub", site / "keys/site_key.pub")


def break_ca(site: Path, federation: Path) -> None:
    evil = site.parent / "evil"
    found(evil, "localhost", "test", 9092, None, datetime.now(UTC))
    shutil.copy(evil / "ca/ca.crt", site / "keys/ca.crt")


def break_device(site: Path, federation: Path) -> None:
    if not torch.cuda.is_available():
        path = site / "site.toml"
        path.write_text(path.read_text().replace('device = "auto"', 'device = "cuda"'))


def break_cohort(site: Path, federation: Path) -> None:
    (site / "cohort").mkdir()
    (site / "cohort/cohort.json").write_text("{}")


def break_ledger(site: Path, federation: Path) -> None:
    spend(site)
    path = site / "ledger.sqlite3"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":9'))


def spend(site: Path) -> None:
    from wardround.study.load import parse_study

    study = parse_study(doctor.STEP | {"privacy": doctor.STEP["privacy"] | {"epsilon": 8.0}})
    ledger, cap = Ledger(site / "ledger.sqlite3"), load_site_config(site / "site.toml").privacy.cap()
    ledger.hold(study.sha256(), "run-1", plan_from_study(study), cap)
    ledger.reserve(study.sha256(), "run-1", 1, "w", cap=cap)
    ledger.close()


@pytest.mark.parametrize("name", ["files", "keys", "CA", "device", "cohort", "ledger"])
def test_the_doctor_finds_a_fault_and_goes_on(site: Path, federation: Path, name: str) -> None:
    globals()[f"break_{name.lower()}"](site, federation)
    if name == "device" and torch.cuda.is_available():
        pytest.skip("this machine has the GPU that should be missing")
    done = CliRunner().invoke(app, ["doctor", "--site", str(site), "--timeout", "1", "--json"])
    assert done.exit_code == 1
    found_ = {check["name"]: check for check in json.loads(done.output)["checks"]}
    assert found_[name]["state"] == "fault" and found_[name]["todo"]
    assert list(found_)[-1] == "budget" and "\n" not in found_[name]["found"]


def test_the_doctor_refuses_a_server_under_another_ca_or_past_its_day(site: Path, tmp_path: Path) -> None:
    found(tmp_path / "evil", "localhost", "test", 9092, None, datetime.now(UTC))
    with served(site, tmp_path / "evil"):
        state, words = checks(site)["server"]
        assert state == "fault" and "certificate is refused" in words
    found(tmp_path / "old", "localhost", "test", 9092, None, datetime.now(UTC) - timedelta(days=500))
    enrol(tmp_path / "south", "south", "localhost:9092", tmp_path / "old/ca/ca.crt")
    with served(tmp_path / "south", tmp_path / "old"):
        state, words = checks(tmp_path / "south")["server"]
        assert state == "fault" and "expired" in words


def test_the_doctor_says_what_is_left_of_the_budget(site: Path) -> None:
    spend(site)
    state, words = checks(site)["budget"]
    left = Ledger(site / "ledger.sqlite3").remaining(load_site_config(site / "site.toml").privacy.cap())
    assert words.startswith(f"ε = {left.value:.3g} of 8 left") and left.value < 1


def test_the_doctors_step_is_a_real_one(site: Path, monkeypatch) -> None:
    """Where training fails, or gives the weights back unmoved, the device gets a cross."""
    config = load_site_config(site / "site.toml")

    def fails(*arguments):
        raise RuntimeError("CUDA error: no kernel image is available\nmore lines")

    assert doctor._device(config).state == "ok"
    monkeypatch.setattr(doctor, "train", lambda study, plan, network, weights, *rest: weights)
    assert doctor._device(config).state == "fault"
    monkeypatch.setattr(doctor, "train", fails)
    check = doctor._device(config)
    assert check.state == "fault" and check.found.endswith("no kernel image is available")
