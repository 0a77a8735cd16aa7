"""A site's console behind a real nginx with TLS that signs users in, configured as docs/console.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from builders.consoles import add_users, hidden, proposed_study, site_folder
from builders.processes import free_ports
from paths import ROOT
from whole.browser import console

from wardround.web.app import PROXY_SECRET, proxy_secret
from wardround_client.studies.approvals import find_study

pytestmark = pytest.mark.slow
NAME, SHA256 = "console.hospital.example", proposed_study().sha256()
LIMIT_S = 30
SETTINGS = """
user root; pid {folder}/nginx.pid; daemon off; error_log {folder}/error.log; events {{}}
http {{ access_log off; server {{
listen 127.0.0.1:{tls} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
auth_basic console; auth_basic_user_file {folder}/users;
{location}
}} }}
"""


@dataclass(frozen=True, kw_only=True)
class Proxied:
    """A site whose console is behind nginx: its folder, and the addresses of nginx and of the console itself."""

    site: Path
    tls: int
    direct: str

    def client(self, user: str, password: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.tls}", verify=False, trust_env=False, auth=(user, password),
            headers={"host": f"{NAME}:{self.tls}"}, timeout=LIMIT_S,
        )  # fmt: skip


def made(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def location_of_the_guide(address: str, secret: str) -> str:
    """The block of docs/console.md, with this console's address and secret in it."""
    guide = (ROOT / "docs/console.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(location / \{.*?\n\})\n```", guide, re.DOTALL)
    filled = block.replace("http://127.0.0.1:9095", address).replace("the content of console/proxy.secret", secret)
    assert filled.count(secret) == 1 and address in filled
    return filled


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    if shutil.which("nginx") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("needs Debian's package nginx-light")
        command = ["apt-get", "install", "-y", "--no-install-recommends", "nginx-light"]
        if subprocess.run(command, capture_output=True, timeout=600).returncode:
            pytest.skip("apt-get cannot install nginx-light")
    folder, site = tmp_path_factory.mktemp("nginx"), site_folder(tmp_path_factory.mktemp("site"))
    add_users(site)
    with (site / "site.toml").open("a") as file:
        file.write(f'[console]\nhosts = ["{NAME}"]\nproxy = "127.0.0.1"\nuser_header = "X-Remote-User"\n')
    keys = ("-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem", "-days", "2", "-subj", f"/CN={NAME}")
    made("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *keys)
    users = [f"{name}:{made('openssl', 'passwd', '-apr1', f'{name}-password')}" for name in ("marie", "rosa", "eve")]
    (folder / "users").write_text("\n".join(users) + "\n")
    secret = proxy_secret(site)
    port, tls = free_ports(2)
    with console("client", site, port) as shown:
        assert shown == f"https://{NAME}"
        location = location_of_the_guide(f"http://127.0.0.1:{port}", secret)
        (folder / "nginx.conf").write_text(SETTINGS.format(folder=folder, tls=tls, location=location))
        nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        try:
            ends = time.monotonic() + LIMIT_S
            while not (folder / "nginx.pid").exists() or not (folder / "nginx.pid").read_text():
                assert nginx.poll() is None and time.monotonic() < ends
                time.sleep(0.1)
            yield Proxied(site=site, tls=tls, direct=f"http://127.0.0.1:{port}")
        finally:
            nginx.terminate()
            nginx.wait(LIMIT_S)


def test_a_user_of_the_proxy_decides_in_the_persons_name(proxied: Proxied) -> None:
    with proxied.client("marie", "marie-password") as browser:
        answer = browser.get("/account")
        assert answer.status_code == 200 and "Dr. Marie Curie" in answer.text
        assert {"Secure", "HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
        form = hidden(browser.get(f"/studies/{SHA256}/refuse").text) | {"sure": "yes", "reason": "tested"}
        other = {"origin": f"https://{NAME}:{proxied.tls + 1}"}
        assert browser.post(f"/studies/{SHA256}/refuse", data=form, headers=other).status_code == 403
        own = {"origin": f"https://{NAME}:{proxied.tls}"}
        assert browser.post(f"/studies/{SHA256}/refuse", data=form, headers=own).status_code == 303
    assert find_study(proxied.site, SHA256).decisions[-1]["who"] == "Dr. Marie Curie"


def test_a_name_that_the_browser_sends_itself_is_overwritten(proxied: Proxied) -> None:
    forged = {"X-Remote-User": "otto", "X_Remote_User": "otto", "X-Console-Secret": "x"}
    with proxied.client("rosa", "rosa-password") as browser:
        text = browser.get("/account", headers=forged).text
        assert "Rosa Reader" in text and "Otto" not in text
        assert browser.get(f"/studies/{SHA256}/approve").status_code == 403


def test_whom_the_console_or_the_proxy_does_not_know_sees_nothing(proxied: Proxied) -> None:
    for user, password, status in (("eve", "eve-password", 403), ("marie", "wrong", 401)):
        with proxied.client(user, password) as browser:
            answer = browser.get("/")
            assert answer.status_code == status and "lung-nodules" not in answer.text


def test_another_program_of_the_machine_cannot_name_a_user(proxied: Proxied) -> None:
    for headers in ({}, {"X-Remote-User": "marie"}, {"X-Remote-User": "marie", "X-Console-Secret": "x" * 43}):
        answer = httpx.get(f"{proxied.direct}/", headers={"host": NAME, **headers}, trust_env=False, timeout=LIMIT_S)
        assert answer.status_code == 403 and "secret" in answer.text
    assert (proxied.site / PROXY_SECRET).stat().st_mode & 0o077 == 0
