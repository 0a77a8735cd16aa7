"""Signing in: sessions are new and end, wrong guesses are slow and tell nothing, and passwords are kept as hashes."""

from __future__ import annotations

import json
import logging
import re
import stat
from pathlib import Path

import pytest
from builders.consoles import APPROVER, OPERATOR, PASSWORD, READER, Browser, add_users, hidden, text_of
from fastapi import APIRouter

from wardround.errors import UsageError, WardroundError
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.web import guard
from wardround.web.accounts import users
from wardround.web.accounts.limits import MOST_KEYS, Limit, SignInLimits, limited_address
from wardround.web.accounts.sessions import MOST_OF_A_USER, Sessions
from wardround.web.accounts.users import USERS_FILE, User, add_user, remove_user, set_password, users_of
from wardround.web.app import WebConsole, build
from wardround.web.config import ConsoleConfig


def console(folder: Path) -> WebConsole:
    return WebConsole(
        program="wardround-site", name="north", folder=folder, config=ConsoleConfig(),
        pages=Path(guard.__file__).parent, router=APIRouter(), navigation=(("/account", "account.title", "read"),),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_users(tmp_path)
    return tmp_path


@pytest.fixture
def browser(folder: Path) -> Browser:
    return Browser(console(folder))


COOKIE = "wardround-site-9095"


def test_a_person_signs_in_and_out_and_the_audit_log_has_both(folder: Path, browser: Browser) -> None:
    assert browser.get("/account").headers["location"] == "/login"
    answer = browser.sign_in(APPROVER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "Dr. Marie Curie" in browser.get("/account").text
    cookie = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(f"{COOKIE}="))
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    token = browser.client.cookies[COOKIE]
    assert browser.post("/logout", {"csrf": browser.csrf()}).headers["location"] == "/login"
    browser.client.cookies.set(COOKIE, token)
    assert browser.get("/account").status_code == 303, "a cookie that was kept is of no use"
    entries = verified(folder / AUDIT_FILE).entries
    assert [(one["action"], one["who"]) for one in entries] == [
        ("signed-in", "Dr. Marie Curie"), ("signed-out", "Dr. Marie Curie"),
    ]  # fmt: skip


def test_a_token_that_was_planted_before_the_sign_in_is_not_adopted(browser: Browser) -> None:
    """Session fixation."""
    planted = {"cookie": f"{COOKIE}=planted-by-another-page"}
    form = hidden(browser.get("/login").text)
    visit = f"{COOKIE}-visit={browser.client.cookies[f'{COOKIE}-visit']}"
    headers = {"cookie": f"{planted['cookie']}; {visit}"}
    answer = browser.post("/login", {**form, "login": "marie", "password": PASSWORD}, headers=headers)
    assert answer.status_code == 303 and answer.cookies[COOKIE] != "planted-by-another-page"
    browser.client.cookies.clear()
    assert browser.get("/account", headers=planted).headers["location"] == "/login"


def test_a_sign_in_replaces_the_session_that_the_browser_had(browser: Browser) -> None:
    answer = browser.sign_in(APPROVER)
    first = answer.cookies[COOKIE]
    browser.client.cookies.clear()
    page = hidden(browser.get("/login").text)
    browser.client.cookies.set(COOKIE, first)
    second = browser.post("/login", {**page, "login": "rosa", "password": PASSWORD}).cookies[COOKIE]
    assert second != first
    browser.client.cookies.clear()
    browser.client.cookies.set(COOKIE, first)
    assert browser.get("/account").status_code == 303


def test_the_sign_in_form_needs_its_own_cookie(browser: Browser) -> None:
    """Login CSRF: nobody is signed in as somebody else by a foreign form."""
    form = hidden(browser.get("/login").text)
    for token in ("", "x", form["csrf"][:-1] + ("0" if form["csrf"][-1] != "0" else "1")):
        assert browser.post("/login", {"csrf": token, "login": "marie", "password": PASSWORD}).status_code == 403
    browser.client.cookies.clear()
    assert browser.post("/login", {**form, "login": "marie", "password": PASSWORD}).status_code == 403


def test_a_wrong_login_and_a_wrong_password_look_the_same(browser: Browser, monkeypatch) -> None:
    """User enumeration: by the page, and by the number of hashes that were computed."""
    hashes: list[str] = []
    verify = users._hasher.verify

    class Counting:
        def verify(self, hashed: str, password: str) -> bool:
            hashes.append(hashed)
            return verify(hashed, password)

    add_user(console_folder(browser), User(login="proxied", person="Pia Proxied"), None)
    users._nobodys()
    monkeypatch.setattr(users, "_hasher", Counting())
    seen = set()
    for login in ("marie", "nobody", "proxied", "x' or '1'='1", ""):
        form = hidden(browser.get("/login").text)
        answer = browser.post("/login", {**form, "login": login, "password": "wrong password"})
        page = re.sub(r"As of [^.]*\.", "", answer.text).replace(hidden(answer.text)["csrf"], "")
        seen.add((answer.status_code, page))
    assert len(seen) == 1 and len(hashes) == 5


def console_folder(browser: Browser) -> Path:
    return browser.client.app._app.state.desk.folder


def test_guessing_stops_after_five_attempts_whether_the_login_exists_or_not(browser: Browser) -> None:
    for login in ("marie", "nobody"):
        codes = []
        for _ in range(7):
            form = hidden(browser.get("/login").text)
            codes.append(browser.post("/login", {**form, "login": login, "password": "wrong"}).status_code)
        assert codes == [403] * 5 + [429] * 2
    assert browser.sign_in(APPROVER).status_code == 429, "the right password does not help either"
    assert browser.sign_in(READER).status_code == 303, "others are not locked out"


def test_the_limits_of_sign_ins() -> None:
    now = [0.0]
    limits = SignInLimits(lambda: now[0])
    assert [limits.wait_s("marie", "a") for _ in range(5)] == [0.0] * 5
    assert limits.wait_s("marie", "a") == pytest.approx(900)
    assert limits.wait_s("marie", "b") == 0.0
    assert [limits.wait_s(f"u{n}", "a") for n in range(16)] == [0.0] * 15 + [pytest.approx(900)]
    now[0] = 901
    assert limits.wait_s("marie", "a") == 0.0
    many = [limits.wait_s("otto", f"address {n}") for n in range(60)]
    assert many[:50] == [0.0] * 50 and all(wait > 0 for wait in many[50:])
    limits.succeeded("otto", "address 1")
    assert limits.wait_s("otto", "address 1") == 0.0


def test_signing_in_does_not_buy_more_guesses_at_others() -> None:
    limits = SignInLimits(lambda: 0.0)
    guesses = 0
    for number in range(100):
        if limits.wait_s("mallory", "a") == 0.0:
            limits.succeeded("mallory", "a")
        guesses += limits.wait_s(f"victim {number}", "a") == 0.0
    assert guesses <= 20


def test_an_ipv6_address_counts_as_its_network() -> None:
    """Whoever has a /64 has 2^64 addresses."""
    limits = SignInLimits(clock=lambda: 0.0)
    waits = [limits.wait_s("marie", f"2001:db8:1:2::{number:x}") for number in range(6)]
    assert waits[:5] == [0.0] * 5 and waits[5] > 0
    assert limits.wait_s("marie", "2001:db8:1:3::1") == 0.0
    limits.succeeded("marie", "2001:db8:1:2:ffff::1")
    assert limits.wait_s("marie", "2001:db8:1:2::9") == 0.0
    counted = {"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "fe80::1%eth0": "fe80::/64", "unix": "unix"}
    assert {address: limited_address(address) for address in counted} == counted


def test_a_person_sees_where_else_they_are_signed_in_and_ends_it(folder: Path) -> None:
    made = build(console(folder))
    here, there = Browser(console(folder)), Browser(console(folder), address="::1")
    here.client.app = there.client.app = made
    here.client._transport.app = there.client._transport.app = made
    assert here.sign_in(APPROVER).status_code == 303
    assert "signed in 2 times" not in here.get("/account").text and "End the other" not in here.get("/account").text
    assert there.sign_in(APPROVER).status_code == 303
    page = text_of(here.get("/account").text)
    assert "signed in 2 times" in page and "127.0.0.1 this one" in page and "::1 another one" in page
    assert Browser(console(folder)).post("/account/others", {"csrf": "x"}).headers["location"] == "/login"
    assert here.post("/account/others", {"csrf": "x"}).status_code == 403
    assert here.post("/account/others", {"csrf": here.csrf()}).status_code == 303
    assert there.get("/account").status_code == 303 and here.get("/account").status_code == 200
    assert verified(folder / AUDIT_FILE).entries[-1]["action"] == "signed-out"


def test_a_limit_forgets_the_oldest_keys_and_does_not_grow() -> None:
    limit = Limit(1, 60.0)
    for number in range(MOST_KEYS + 5):
        limit.wait_s(str(number))
    assert len(limit._events) == MOST_KEYS and limit.wait_s("0") == 0.0 and limit.wait_s(str(MOST_KEYS)) > 0


def test_sessions_end_when_unused_and_after_some_hours() -> None:
    now = [0.0]
    sessions = Sessions(idle_s=900, longest_s=3600, clock=lambda: now[0])
    token, _ = sessions.begin(READER)
    now[0] = 899
    assert sessions.find(token, touch=True)
    now[0] = 1790
    assert sessions.find(token, touch=False), "a page that updates itself"
    now[0] = 1800
    assert sessions.find(token, touch=False) is None, "did not keep the session"
    token, _ = sessions.begin(READER)
    for _ in range(20):
        now[0] += 200
        found = sessions.find(token, touch=True)
    assert found is None


def test_the_number_of_sessions_is_bounded_and_tokens_are_random() -> None:
    sessions = Sessions(900, 3600)
    tokens = [sessions.begin(READER)[0] for _ in range(MOST_OF_A_USER + 3)]
    alive = [sessions.find(token, touch=True) is not None for token in tokens]
    assert alive == [False] * 3 + [True] * MOST_OF_A_USER
    assert len(set(tokens)) == len(tokens) and min(map(len, tokens)) >= 43
    assert not any(token in repr(sessions._known) for token in tokens), "only hashes of tokens are kept"
    for strange in (None, "", "x", "\u00fc" * 50):
        assert sessions.find(strange, touch=True) is None


def test_a_change_of_the_user_ends_their_sessions(folder: Path) -> None:
    for change in (
        lambda: remove_user(folder, "marie"),
        lambda: add_user(folder, APPROVER, PASSWORD),
        lambda: set_password(folder, "marie", "another long password"),
    ):
        first, second = Browser(console(folder)), Browser(console(folder))
        if "marie" in users_of(folder):
            first.sign_in(APPROVER)
        second.sign_in(READER)
        change()
        assert first.get("/account").status_code == 303 and second.get("/account").status_code == 200


def test_a_user_changes_their_password(folder: Path, browser: Browser) -> None:
    browser.sign_in(READER)
    csrf, new = browser.csrf(), "tram lantern cobalt seven"
    for fields, status in (
        ({"password": "wrong", "new": new, "again": new}, 403),
        ({"password": PASSWORD, "new": new, "again": "other"}, 400),
        ({"password": PASSWORD, "new": "short", "again": "short"}, 400),
        ({"password": PASSWORD, "new": "a" * 20, "again": "a" * 20}, 400),
        ({"password": PASSWORD, "new": new, "again": new}, 303),
    ):
        assert browser.post("/account", {"csrf": csrf, **fields}).status_code == status
    assert browser.post("/account", {"password": new, "new": new, "again": new}).status_code == 403, "no CSRF token"
    assert browser.get("/account").status_code == 200, "in a new session"
    other = Browser(console(folder))
    assert other.sign_in(READER).status_code == 403 and other.sign_in(READER, new).status_code == 303


def test_passwords_are_hashed_with_the_parameters_of_the_standard() -> None:
    """The tests use smaller ones (builders/consoles.py)."""
    assert users.PASSES >= 3 and users.MEMORY_KIB >= 64 * 1024


def test_the_users_file_is_its_owners_and_has_no_password(folder: Path) -> None:
    path = folder / USERS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    text = path.read_text()
    assert PASSWORD not in text
    assert all(one["password"].startswith("$argon2id$v=19$") for one in json.loads(text)["users"])
    assert users_of(folder)["otto"] == User(**{**OPERATOR.__dict__, "password": users_of(folder)["otto"].password})


@pytest.mark.parametrize(
    "change, word",
    [
        ({"login": "Marie"}, "login"),
        ({"login": "../x"}, "login"),
        ({"login": "a b"}, "login"),
        ({"login": "rosa"}, "exists already"),
        ({"person": "<b>x</b>"}, "--person"),
        ({"person": "R2D2"}, "--person"),
        ({"roles": ("admin",)}, "--role"),
    ],
)
def test_a_user_that_is_not_valid_is_refused(folder: Path, change: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        add_user(folder, User(**{"login": "new", "person": "New Person", **change}), PASSWORD)


@pytest.mark.parametrize(
    "password", ["", "short", "x" * 257, "aaaaaaaaaaaaaaaa", "my new password, new", "abababababababab"]
)
def test_an_easy_password_is_refused(folder: Path, password: str) -> None:
    with pytest.raises(UsageError, match="the password"):
        add_user(folder, User(login="new", person="New Person"), password)


def test_a_damaged_users_file_lets_nobody_in(folder: Path, browser: Browser) -> None:
    browser.sign_in(READER)
    (folder / USERS_FILE).write_text('{"users": [{"login": "x"}]}')
    with pytest.raises(WardroundError, match="damaged"):
        users_of(folder)
    answer = browser.get("/account")
    assert answer.status_code == 503 and "Rosa" not in answer.text


def test_a_failed_sign_in_is_logged_without_what_may_be_a_password(browser: Browser, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        for login in ("My Secret Pass\r\nword!", "marie"):
            form = hidden(browser.get("/login").text)
            browser.post("/login", {**form, "login": login, "password": "hunter2hunter2"})
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "no valid name" in text and '"marie"' in text and "secret" not in text.lower() and "hunter2" not in text


def test_too_many_checks_at_once_are_put_off(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(users, "WAIT_S", 0.01)
    held = [users._checking.acquire() for _ in range(users.AT_ONCE)]
    try:
        with pytest.raises(WardroundError, match="too many people"):
            users.authenticate(folder, "marie", PASSWORD)
    finally:
        for _ in held:
            users._checking.release()


def test_a_password_does_not_change_without_its_entry_in_the_audit_log(folder: Path) -> None:
    browser = Browser(console(folder))
    browser.sign_in(APPROVER)
    csrf, new = browser.csrf(), "several words that differ"
    log = folder / AUDIT_FILE
    log.write_bytes(log.read_bytes()[:-30] + b"}\n")
    fields = {"csrf": csrf, "password": PASSWORD, "new": new, "again": new}
    assert browser.post("/account", fields).status_code == 400
    assert users.authenticate(folder, APPROVER.login, PASSWORD) and not users.authenticate(folder, APPROVER.login, new)


def test_a_password_that_is_not_text_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UsageError, match="not text"):
        set_password(folder, APPROVER.login, "several words that differ \ud800")
