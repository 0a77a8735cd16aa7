"""What no request passes: foreign names, forged forms and headers, other addresses, frames, long or slow bodies."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from builders.consoles import APPROVER, Browser, add_users, hidden
from builders.processes import free_ports
from fastapi import APIRouter
from pydantic import ValidationError

from wardround.errors import UsageError
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.web import guard, server
from wardround.web.accounts.limits import Limit
from wardround.web.app import PROXY_SECRET, WebConsole, build
from wardround.web.config import ConsoleConfig, console_text
from wardround.web.guard import HEADERS, MOST_BYTES, Guard
from wardround.web.limited_log import LINES, WITHIN_S, LimitedLog

PROXIED = {"proxy": "10.0.0.5", "hosts": ("console.example.org",), "address": "127.0.0.1"}
BASE = "https://console.example.org"


def console(folder: Path, **config: object) -> WebConsole:
    return WebConsole(
        program="wardround-site", name="north", folder=folder, config=ConsoleConfig(**config),
        pages=Path(guard.__file__).parent, router=APIRouter(), navigation=(("/account", "account.title", "read"),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    add_users(folder)
    return folder


@pytest.fixture
def browser(folder: Path) -> Browser:
    return Browser(console(folder))


def test_every_answer_forbids_frames_foreign_scripts_and_copies(browser: Browser) -> None:
    """Clickjacking, injected scripts and a shared computer's cache."""
    for answer in (browser.get("/login"), browser.get("/nowhere"), browser.client.put("/"), browser.get("/account")):
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    policy = HEADERS["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
    assert "unsafe" not in policy and "*" not in policy and "server" not in browser.get("/login").headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:9095.evil.example", "localhost:9095@evil", ""]
)
def test_a_foreign_host_name_reaches_no_page(browser: Browser, host: str) -> None:
    """DNS rebinding: the name of an attacker's page that resolves to 127.0.0.1."""
    assert browser.get("/login", headers={"host": host}).status_code == 421


def test_its_own_names_reach_it(browser: Browser) -> None:
    for host in ("127.0.0.1:9095", "localhost:9095", "LOCALHOST:9095", "[::1]:9095"):
        assert browser.get("/login", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9096"},
        {"origin": "https://127.0.0.1:9095"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_form_of_another_web_site_is_refused(browser: Browser, headers: dict[str, str]) -> None:
    form = {**hidden(browser.get("/login").text), "login": "marie", "password": "x"}
    assert browser.post("/login", form, headers=headers).status_code == 403


def test_other_methods_and_kinds_of_bodies_are_refused(browser: Browser) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert browser.client.request(method, "/login").status_code == 405
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x", ""):
        answer = browser.client.post("/login", content=b"login=x", headers={"content-type": kind})
        assert answer.status_code == 415


def test_a_long_form_is_refused_before_it_is_read(browser: Browser) -> None:
    answer = browser.post("/login", {"login": "x" * (MOST_BYTES + 1)})
    assert answer.status_code == 413


def test_a_long_head_is_refused(browser: Browser) -> None:
    assert browser.get("/login", headers={"x-long": "x" * 20_000}).status_code == 431


def test_slow_connections_are_closed_and_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: connections that never finish the head of a request, also after a first one that did."""
    monkeypatch.setattr(server, "HEAD_LIMIT_S", 0.3)
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 10)
    (port,) = free_ports(1)
    application, stopped, ready = build(console(folder, port=port)), threading.Event(), threading.Event()
    listener = server.Listener(app=application, address="127.0.0.1", port=port)
    serving = threading.Thread(target=server.serve, args=([listener], stopped, ready.set), daemon=True)
    serving.start()
    assert ready.wait(20)
    try:
        slow = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(20)]
        for number, one in enumerate(slow):
            one.sendall(b"GET /static/console.css HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % port)
            if number == 0:
                one.sendall(b"\r\n")
                assert b"HTTP/1.1" in one.recv(100)
                one.sendall(b"GET /login HTTP/1.1\r\n")
        for one in slow:
            with suppress(ConnectionResetError):
                while one.recv(65536):
                    pass  # until the console closes it
            one.close()
        ends = time.monotonic() + 10
        while httpx.get(f"http://127.0.0.1:{port}/login", trust_env=False, timeout=10).status_code != 200:
            assert time.monotonic() < ends, "the slow connections still take all the room"
            time.sleep(0.05)
    finally:
        stopped.set()
        serving.join(20)


def test_a_form_that_stops_arriving_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_LIMIT_S", 0.05)
    answers: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {}

    async def send(message) -> None:
        answers.append(message)

    async def nothing(scope, receive, send) -> None:
        raise AssertionError("the page was reached")

    headers = [(b"host", b"127.0.0.1:9095"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/login", "headers": headers, "client": ("127.0.0.1", 1)}
    asyncio.run(Guard(nothing, ConsoleConfig(), 9095)(scope, receive, send))
    assert answers[0]["status"] == 408


def test_one_address_cannot_send_requests_without_end(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    application = browser.client.app
    monkeypatch.setattr(application, "_requests", Limit(3, 60.0))
    assert [browser.get("/login").status_code for _ in range(5)] == [200, 200, 200, 429, 429]


IMAGE = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
FRAME = {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def test_a_page_of_another_web_site_cannot_use_up_the_persons_requests(browser: Browser, monkeypatch) -> None:
    """Pictures and frames of it are refused; links that it opens again and again are counted by themselves."""
    monkeypatch.setattr(browser.client.app, "_requests", Limit(3, 60.0))
    form = hidden(browser.get("/login").text)
    for headers in (IMAGE, FRAME):
        assert [browser.get("/login", headers=headers).status_code for _ in range(4)] == [403] * 4
    assert [browser.post("/login", form, headers=IMAGE).status_code for _ in range(4)] == [403] * 4
    assert [browser.get("/login", headers=LINK).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "style"}
    assert browser.get("/static/console.css", headers=own).status_code == 200
    assert browser.get("/login", headers={"sec-fetch-site": "none"}).status_code == 200


def test_refusals_do_not_fill_the_log(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3 * LINES):
        browser.get("/login", headers=IMAGE)
    assert len(caplog.records) == LINES and "from 127.0.0.1 was refused" in caplog.text
    caplog.clear()
    now = [0.0]
    log = LimitedLog(logging.getLogger("test"), clock=lambda: now[0])
    for _ in range(LINES + 5):
        log.warning("refused: %s", "x")
    now[0] = WITHIN_S
    log.warning("refused: %s", "y")
    assert [one.getMessage() for one in caplog.records[-2:]] == [
        "5 more refusals were not logged, because there were too many at once", "refused: y",
    ]  # fmt: skip


def test_a_web_socket_is_not_answered(folder: Path) -> None:
    async def nothing(*words) -> None:
        raise AssertionError("the page was reached")

    asyncio.run(Guard(nothing, ConsoleConfig(), 9095)({"type": "websocket"}, nothing, nothing))


# Behind a reverse proxy


def through_the_proxy(made: WebConsole) -> Browser:
    """A browser whose requests come from the proxy, with the secret that it adds."""
    browser = Browser(made, "10.0.0.5", BASE)
    browser.client.headers["X-Console-Secret"] = (made.folder / PROXY_SECRET).read_text(encoding="ascii").strip()
    return browser


def test_only_the_proxy_reaches_a_console_behind_it(folder: Path) -> None:
    made = console(folder, **PROXIED)
    assert through_the_proxy(made).get("/login").status_code == 200
    forged = {"X-Forwarded-For": "192.0.2.7"}
    assert Browser(made, "10.0.0.5", BASE).get("/login", headers=forged).status_code == 403, "without the secret"
    for address in ("10.0.0.6", "127.0.0.1", "::1", "unix", ""):
        assert Browser(console(folder, **PROXIED), address, BASE).get("/login").status_code == 403


@pytest.mark.parametrize(
    "content, word", [(b"\xff" * 40, "damaged; move it away"), (b"abc\n", "too short; move it"), (None, "cannot be")]
)
def test_a_secret_that_cannot_be_used_is_one_clear_line(tmp_path: Path, content: bytes | None, word: str) -> None:
    path = tmp_path / PROXY_SECRET
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        build(console(tmp_path, **PROXIED))
    assert str(error.value).startswith(f"{path}: ") and word in str(error.value) and "\n" not in str(error.value)


def test_a_new_configuration_says_that_every_proxy_sends_the_secret() -> None:
    """Not only one that names the users: `build` asks it of all of them."""
    before, _, after = console_text("hospital").partition("# proxy = ")
    assert "console/proxy.secret as X-Console-Secret with every request" in before and "secret" not in after


def test_an_unannounced_proxy_is_refused(browser: Browser) -> None:
    """Its users would sign in without TLS, and its limits would see one address for all of them."""
    for name in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"):
        assert browser.get("/login", headers={name: "1.2.3.4"}).status_code == 403


def test_cookies_behind_a_proxy_need_tls_and_one_host(folder: Path) -> None:
    browser = through_the_proxy(console(folder, **PROXIED))
    answer = browser.sign_in(APPROVER)
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if "-visit" not in one]
    assert cookie.startswith("__Host-wardround-site-9095=") and "Path=/" in cookie and "Domain" not in cookie
    assert {"HttpOnly", "Secure", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
    assert answer.headers["strict-transport-security"]
    assert browser.get("/account").status_code == 200


def test_the_header_of_a_user_counts_from_the_proxy_with_its_secret_alone(folder: Path) -> None:
    """A forged header: from another address, without the secret, with a wrong one, or twice."""
    made = console(folder, **PROXIED, user_header="X-Remote-User")
    named, proxy = {"X-Remote-User": "marie"}, Browser(made, "10.0.0.5", BASE)
    secret = {"X-Console-Secret": (folder / PROXY_SECRET).read_text().strip()}
    assert Browser(made, "10.0.0.6", BASE).get("/account", headers=named | secret).status_code == 403
    assert proxy.get("/account", headers=named).status_code == 403
    assert proxy.get("/account", headers=named | {"X-Console-Secret": "x" * 43}).status_code == 403
    twice = [*named.items(), ("X-Remote-User", "otto"), *secret.items()]
    assert proxy.client.get("/account", headers=twice).status_code == 403
    assert proxy.get("/account", headers={"X-Remote-User": "nobody"} | secret).status_code == 403
    answer = proxy.get("/account", headers=named | secret)
    assert answer.status_code == 200 and "Dr. Marie Curie" in answer.text
    assert (folder / PROXY_SECRET).stat().st_mode & 0o777 == 0o600


def test_a_session_behind_the_proxy_is_of_the_user_named_in_the_request(folder: Path) -> None:
    made = console(folder, **PROXIED, user_header="X-Remote-User")
    browser = Browser(made, "10.0.0.5", BASE)
    secret = {"X-Console-Secret": (folder / PROXY_SECRET).read_text().strip()}
    assert "Curie" in browser.get("/account", headers={"X-Remote-User": "marie"} | secret).text
    answer = browser.get("/account", headers={"X-Remote-User": "rosa"} | secret)
    assert "Rosa Reader" in answer.text and "Curie" not in answer.text
    assert browser.get("/account", headers=secret).status_code == 403, "the cookie alone is nobody"


def test_a_program_without_cookies_behind_the_proxy_does_not_fill_the_audit_log(tmp_path: Path) -> None:
    add_users(tmp_path)
    browser = Browser(console(tmp_path, **PROXIED, user_header="X-Remote-User"), "10.0.0.5", BASE)
    headers = {"X-Remote-User": "marie", "X-Console-Secret": (tmp_path / PROXY_SECRET).read_text().strip()}
    for path in ("/account", "/nowhere", "/logs") * 5:
        browser.client.cookies.clear()
        browser.get(path, headers=headers)
    assert [one["action"] for one in verified(tmp_path / AUDIT_FILE).entries] == ["signed-in"]
    form = {"csrf": hidden(browser.get("/account", headers=headers).text).get("csrf", ""), "sure": "yes"}
    browser.client.cookies.clear()
    assert browser.post("/logout", form, headers=headers).status_code == 403, "a form needs its session"


def test_a_page_that_updates_itself_never_signs_in_behind_the_proxy(tmp_path: Path) -> None:
    """Its tab stays open after the person left or the session ended; only a person begins the next one."""
    add_users(tmp_path)
    browser = Browser(console(tmp_path, **PROXIED, user_header="X-Remote-User"), "10.0.0.5", BASE)
    headers = {"X-Remote-User": "marie", "X-Console-Secret": (tmp_path / PROXY_SECRET).read_text().strip()}
    by_itself = headers | {"HX-Request": "true"}
    assert browser.get("/account", headers=headers).status_code == 200
    assert browser.get("/account", headers=by_itself).status_code == 200
    form = {"csrf": hidden(browser.get("/account", headers=headers).text).get("csrf", "")}
    desk = browser.client.app._app.state.desk
    (session,) = desk.sessions.of("marie")
    assert browser.post("/logout", {"csrf": session.csrf, **form} | {"csrf": session.csrf}, headers=headers)
    for _ in range(3):
        answer = browser.get("/account", headers=by_itself)
        assert answer.status_code == 401 and "hx-refresh" not in answer.headers
        assert 'id="live"' in answer.text and "hx-get" not in answer.text and "over" in answer.text
        assert "set-cookie" not in answer.headers and desk.sessions.of("marie") == []
    assert [one["action"] for one in verified(tmp_path / AUDIT_FILE).entries] == ["signed-in", "signed-out"]


def test_a_header_is_ignored_unless_the_console_is_told_of_it(browser: Browser) -> None:
    for name in ("X-Remote-User", "Remote-User", "X-Forwarded-User", "Authorization"):
        assert browser.get("/account", headers={name: "marie"}).headers["location"] == "/login"


def test_the_address_behind_a_proxy_is_the_one_that_the_proxy_added(folder: Path) -> None:
    """The browser writes what it likes before it, and cannot get rid of its limits so."""
    browser = through_the_proxy(console(folder, **PROXIED))
    codes = []
    for number in range(7):
        form = {**hidden(browser.get("/login").text), "login": "rosa", "password": "wrong"}
        headers = {"x-forwarded-for": f"9.9.9.{number}, 192.0.2.1"}
        codes.append(browser.post("/login", form, headers=headers).status_code)
    assert codes == [403] * 5 + [429] * 2


@pytest.mark.parametrize(
    "config, word",
    [
        ({"address": "0.0.0.0"}, "address"),
        ({"address": "192.0.2.7"}, "address"),
        ({"address": "example.org"}, "address"),
        ({"proxy": "10.0.0.5"}, "hosts"),
        ({"proxy": "anything", "hosts": ("a.example",)}, "proxy"),
        ({"user_header": "X-User"}, "user_header"),
        ({"port": 9095, "metrics_port": 9095}, "metrics_port"),
        ({"hosts": ("a.example/x",)}, "hosts"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_setting_that_would_open_the_console_is_refused(config: dict, word: str) -> None:
    with pytest.raises(ValidationError) as error:
        ConsoleConfig(**config)
    assert word in str(error.value)
