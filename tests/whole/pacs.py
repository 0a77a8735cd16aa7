"""A real Orthanc in a network namespace of its own, which has a loopback device and nothing else.

Orthanc listens on all interfaces and has no setting for it. Programs that talk to it run in the same namespace.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("orthanc", "orthanc-dicomweb", "dicom3tools", "nginx-light")
PLUGINS = Path("/usr/lib/orthanc")
USER, PASSWORD = "wardround", "secret"
HTTP_PORT, DICOM_PORT, SITE_PORT = 18042, 14242, 11112
NUMBERS = itertools.count()
LIMIT_S = 120


def missing() -> str:
    """Install what is needed, and return why it cannot be used, or ""."""
    if os.geteuid() != 0:
        return "needs root: a network namespace and Debian packages"
    web = list(PLUGINS.glob("libOrthancDicomWeb.so*"))
    if not (web and all(shutil.which(program) for program in ("Orthanc", "dciodvfy", "nginx"))):
        if shutil.which("apt-get") is None:
            return f"needs Debian's packages {', '.join(PACKAGES)}"
        command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return f"apt-get cannot install {', '.join(PACKAGES)}: {done.stderr.strip()[-200:]}"
    return ""


@dataclass(frozen=True, kw_only=True)
class Pacs:
    """A running Orthanc.

    `inside` are the words that run a program in its namespace, and `process` is Orthanc itself.
    """

    inside: tuple[str, ...]
    process: subprocess.Popen[bytes]

    def call(self, path: str, body: Path | None = None) -> bytes:
        """Send a request to Orthanc's own interface, with a file as its body if one is given."""
        words = [
            *self.inside,
            "curl",
            "-sS",
            "--fail-with-body",
            "--max-time",
            "60",
            "--user",
            f"{USER}:{PASSWORD}",
            f"http://127.0.0.1:{HTTP_PORT}{path}",
        ]
        if body is not None:
            words += ["--data-binary", f"@{body}", "-H", "Content-Type: application/dicom"]
        done = subprocess.run(words, capture_output=True, timeout=LIMIT_S)
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
        return done.stdout

    def stored(self, path: Path) -> bytes:
        """Store a file, and return what comes back for it."""
        answer = json.loads(self.call("/instances", path))
        assert answer["Status"] == "Success", answer
        return self.call(f"/instances/{answer['ID']}/file")

    def store_all(self, folder: Path) -> None:
        """Store every file of a folder, quickly: one program on one connection."""
        code = (
            "import pathlib, requests, sys\n"
            "session = requests.Session(); session.auth = tuple(sys.argv[3:]); session.trust_env = False\n"
            "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
            "    session.post(sys.argv[2], data=path.read_bytes(), timeout=60).raise_for_status()\n"
        )
        words = [str(folder), f"http://127.0.0.1:{HTTP_PORT}/instances", USER, PASSWORD]
        subprocess.run([*self.inside, sys.executable, "-c", code, *words], check=True, timeout=LIMIT_S)


@contextmanager
def namespace() -> Iterator[tuple[str, ...]]:
    """Make a network namespace, and yield the words that run a program in it."""
    name = f"wardround-{os.getpid()}-{next(NUMBERS)}"
    inside = ("ip", "netns", "exec", name)
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=LIMIT_S)
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True, timeout=LIMIT_S)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=LIMIT_S)


@contextmanager
def orthanc(folder: Path, **settings: object) -> Iterator[Pacs]:
    """Run Orthanc with its store below `folder`, in a namespace of its own, for as long as the block lasts."""
    with namespace() as inside, orthanc_in(inside, folder, **settings) as pacs:
        yield pacs


@contextmanager
def orthanc_in(inside: tuple[str, ...], folder: Path, **settings: object) -> Iterator[Pacs]:
    """Run Orthanc in a namespace. `settings` are added to its own, which know the site as WARDROUND at port 11112."""
    content = {
        "DicomAet": "TESTPACS", "DicomPort": DICOM_PORT, "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": False,
        "DicomModalities": {"wardround": {"AET": "WARDROUND", "Host": "127.0.0.1", "Port": SITE_PORT}},
        "HttpPort": HTTP_PORT, "AuthenticationEnabled": True, "RegisteredUsers": {USER: PASSWORD},
        "RemoteAccessAllowed": True, "StorageDirectory": str(folder), "IndexDirectory": str(folder),
        "Plugins": [str(path) for path in sorted(PLUGINS.glob("libOrthancDicomWeb.so*"))[:1]],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"}, **settings,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(content))
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with open(folder / "orthanc.log", "wb") as log:
        words = [*inside, "Orthanc", str(folder / "orthanc.json")]
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        ends = time.monotonic() + LIMIT_S
        while b"Orthanc has started" not in (folder / "orthanc.log").read_bytes():
            assert process.poll() is None and time.monotonic() < ends, (folder / "orthanc.log").read_text()
            time.sleep(0.2)
        yield Pacs(inside=inside, process=process)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(LIMIT_S)


def certificates(folder: Path) -> Path:
    """Write a CA (ca.pem), and certificates of it for the PACS and the site on 127.0.0.1; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=LIMIT_S)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "9", "-subj", "/CN=test CA")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("pacs", "site"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        by_ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "9", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *by_ca, "-out", f"{name}.pem")
        (folder / f"{name}.key").chmod(0o600)
    return folder


@contextmanager
def https_before(inside: tuple[str, ...], folder: Path, keys: Path, token: str) -> Iterator[None]:
    """Run nginx as the HTTPS side of Orthanc, whose own crashes.

    Port 18443 passes basic authentication on; 18444 wants a bearer token; 18445 wants a certificate of the CA.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_orthanc = f"proxy_pass http://127.0.0.1:{HTTP_PORT}; proxy_buffering off; proxy_set_header Host $http_host;"
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    as_user = f'proxy_set_header Authorization "Basic {basic}"; '
    tls = f"ssl_certificate {keys}/pacs.pem; ssl_certificate_key {keys}/pacs.key;"
    only = f'if ($http_authorization != "Bearer {token}") {{ return 401; }} '
    servers = [
        f"server {{ listen 127.0.0.1:18443 ssl; {tls} location / {{ {to_orthanc} }} }}",
        f"server {{ listen 127.0.0.1:18444 ssl; {tls} location / {{ {only}{as_user}{to_orthanc} }} }}",
        f"server {{ listen 127.0.0.1:18445 ssl; {tls} ssl_client_certificate {keys}/ca.pem; ssl_verify_client on; "
        f"location / {{ {as_user}{to_orthanc} }} }}",
        f"server {{ listen 127.0.0.1:18446; return 302 http://127.0.0.1:{HTTP_PORT}$request_uri; }}",
    ]
    places = [f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    http = " ".join([f"access_log off; {' '.join(places)}", *servers])
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/log; events {{}} http {{ {http} }}"
    )
    process = subprocess.Popen([*inside, "nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")])
    try:
        ends = time.monotonic() + LIMIT_S
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            assert process.poll() is None and time.monotonic() < ends, (folder / "log").read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(LIMIT_S)
