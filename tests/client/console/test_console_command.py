"""`wardround-site console`: users from the command line, and the real program on a port of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from builders.consoles import PASSWORD, SITE, hidden
from builders.processes import free_ports
from typer.testing import CliRunner

from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.web.accounts.users import USERS_FILE
from wardround_client.cli.main import app

PROGRAM = (sys.executable, "-m", "wardround_client.cli.main", "console")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(SITE.format("0" * 64))
    return tmp_path


def called(site: Path, *words: str, given: str = "") -> tuple[int, str]:
    done = subprocess.run(
        [*PROGRAM, *words, "--site", str(site)], input=given, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def said(site: Path, *words: str, given: str = "") -> str:
    done = CliRunner().invoke(app, ["console", *words, "--site", str(site)], input=given)
    assert done.exit_code == 0, done.exception
    return done.stdout


def test_users_are_added_listed_changed_and_removed_with_entries_in_the_audit_log(site: Path) -> None:
    added = said(site, "user", "add", "marie", "--person", "Marie Curie", "--role", "approve", given=f"{PASSWORD}\n")
    assert added == "marie (Marie Curie) was added\n"
    said(site, "user", "add", "pia", "--person", "Pia Proxied", "--no-password")
    listed = json.loads(said(site, "user", "list", "--json"))
    assert [(one["login"], one["roles"], one["password"]) for one in listed] == [
        ("marie", ["read", "approve"], True), ("pia", ["read"], False),
    ]  # fmt: skip
    assert PASSWORD not in said(site, "user", "list") and "argon2" not in said(site, "user", "list", "--json")
    said(site, "user", "password", "marie", given="another long password\n")
    said(site, "user", "remove", "pia")
    entries = verified(site / AUDIT_FILE).entries
    assert [(one["action"], one["who"]) for one in entries] == [
        ("user-added", "Marie Curie"), ("user-added", "Pia Proxied"), ("user-changed", "Marie Curie"),
        ("user-removed", "Pia Proxied"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words, given, fault",
    [
        (("user", "add", "marie", "--person", "Marie Curie"), "short\n", "12 to 256 characters"),
        (("user", "add", "marie", "--person", "Marie Curie"), "", "12 to 256 characters"),
        (("user", "add", "Ma rie", "--person", "Marie Curie"), f"{PASSWORD}\n", "a login has"),
        (("user", "add", "marie", "--person", "R2"), f"{PASSWORD}\n", "name of a person"),
        (("user", "add", "marie", "--person", "Marie Curie", "--role", "god"), f"{PASSWORD}\n", "choose from"),
        (("user", "remove", "nobody"), "", "there is no such user"),
        ((), "", "console user add"),
        (("--address", "0.0.0.0"), "", "loopback only"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(site: Path, words: tuple[str, ...], given: str, fault: str) -> None:
    done = CliRunner().invoke(app, ["console", *words, "--site", str(site)], input=given)
    assert fault in str(done.exception) and "\n" not in str(done.exception) and done.exit_code == 1
    assert not (site / USERS_FILE).exists() or json.loads((site / USERS_FILE).read_text())["users"] == []


def test_the_program_serves_on_loopback_and_ends_when_it_is_asked_to(site: Path) -> None:
    said(site, "user", "add", "marie", "--person", "Marie Curie", given=f"{PASSWORD}\n")
    port, metrics = free_ports(2)
    words = [*PROGRAM, "--port", str(port), "--metrics-port", str(metrics), "--site", str(site), "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        started = json.loads(process.stdout.readline())
        assert started["console"] == f"http://127.0.0.1:{port}/"
        with httpx.Client(base_url=started["console"], trust_env=False, timeout=10) as client:
            form = hidden(client.get("/login").text)
            answer = client.post("/login", data={**form, "login": "marie", "password": PASSWORD})
            assert answer.status_code == 303 and "Marie Curie" in client.get("/account").text
            assert client.get("/login", headers={"host": "evil.example"}).status_code == 421
        found = httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False, timeout=10)
        assert found.status_code == 200 and "wardround_epsilon_cap 8.0" in found.text
        code, text = called(site, "--port", str(port))
        assert code == 1 and "console is at work here already" in text
        sockets = Path("/proc/net/tcp").read_text().splitlines()
        listening = [line.split()[1] for line in sockets if line.split()[1].endswith(f":{port:04X}")]
        assert {one.split(":")[0] for one in listening} == {"0100007F"}, "127.0.0.1 and no other address"
    finally:
        process.terminate()
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 0 and complaints == ""
    assert "Marie" not in (site / "logs" / "console.log").read_text()
