"""The people who may use a console: `console/users.json` of a site's or a server's folder, readable by its owner only.

A user has a login, the name of the person for the audit log, roles, and the hash of a password (argon2id, with the
parameters that RFC 9106 recommends for machines with little memory). A user without a password can be named by the
reverse proxy only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from wardround.errors import UsageError, WardroundError
from wardround.records.audit_events import is_person
from wardround.storage.atomic import write_private
from wardround.storage.disk_errors import cause, unwritable
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked

CONSOLE = "console"
USERS_FILE, USERS_LOCK = f"{CONSOLE}/users.json", f"{CONSOLE}/.users.lock"
READ, APPROVE, OPERATE = ROLES = ("read", "approve", "operate")
LOGIN = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 256
AT_ONCE, WAIT_S = 2, 5.0  # each check of a password takes 64 MiB and some 50 ms

PASSES, MEMORY_KIB = 3, 64 * 1024  # the second recommended option of RFC 9106, with one lane

_hasher = PasswordHasher(time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=1)
_checking = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True, kw_only=True)
class User:
    """One user. Everybody may read; `approve` and `operate` are given separately, so that a person may have both."""

    login: str
    person: str
    roles: tuple[str, ...] = (READ,)
    password: str | None = None

    def may(self, role: str) -> bool:
        return role in (READ, *self.roles)

    def fingerprint(self) -> str:
        """A hash that changes with every change of the user, and ends the sessions that began before it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def users_of(folder: Path) -> dict[str, User]:
    """Return the users by login. Raises `WardroundError` if the file is damaged."""
    try:
        content = json.loads((folder / USERS_FILE).read_text(encoding="utf-8"))
        return {one["login"]: _user(one) for one in content["users"]}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise WardroundError(f"{folder / USERS_FILE}: cannot be read: {cause(error)}") from None
    except (ValueError, TypeError, KeyError, UsageError):
        raise WardroundError(f"{folder / USERS_FILE}: damaged; move it away, and add the users again") from None


def add_user(
    folder: Path, user: User, password: str | None, record: Callable[[User], object] = User.fingerprint
) -> User:
    """Add a user, and return it with the hash of the password.

    `record` is called with the user before the change takes effect; if it raises, nothing is changed.

    Raises:
        UsageError: The login exists, or a value is not valid.
    """
    checked = _checked(user)
    hashed = None if password is None else _hash(password, user.login)
    with _changing(folder) as users:
        if user.login in users:
            raise UsageError(f"{user.login}: exists already; remove this user first, or choose another login")
        record(checked)
        users[user.login] = replace(checked, password=hashed)
        return users[user.login]


def set_password(folder: Path, login: str, password: str, record: Callable[[User], object] = User.fingerprint) -> User:
    """Give a user another password, which ends their sessions. `record` is as in `add_user`. Raises `UsageError`."""
    hashed = _hash(password, login)
    with _changing(folder) as users:
        record(_known(users, login))
        users[login] = replace(users[login], password=hashed)
        return users[login]


def remove_user(folder: Path, login: str) -> User:
    """Remove a user, which ends their sessions. Raises `UsageError` if there is none."""
    with _changing(folder) as users:
        user = _known(users, login)
        del users[login]
        return user


def authenticate(folder: Path, login: str, password: str) -> User | None:
    """Return the user whose login and password these are, or None.

    It takes equally long whether the login exists or not. Raises `WardroundError` if too many passwords are being
    checked at the same time.
    """
    user, nobodys = users_of(folder).get(login.strip().lower()), _nobodys()
    hashed = nobodys if user is None or user.password is None else user.password
    if not _checking.acquire(timeout=WAIT_S):
        raise WardroundError("too many people sign in at this moment; try again in a minute")
    try:
        _hasher.verify(hashed, _normal(password[: LONGEST_PASSWORD + 1]))
    except (VerificationError, InvalidHashError):
        return None
    finally:
        _checking.release()
    return user if hashed is not nobodys else None


@functools.cache
def _nobodys() -> str:
    """A hash that is checked for a login that does not exist, so that the answer takes as long as for one that does."""
    return _hasher.hash(secrets.token_urlsafe(32))


def _normal(password: str) -> str:
    """The same password typed on another system may be composed differently."""
    return unicodedata.normalize("NFC", password)


@contextmanager
def _changing(folder: Path) -> Iterator[dict[str, User]]:
    try:
        make_folder(folder / CONSOLE)
    except OSError as error:
        raise unwritable(folder / CONSOLE, error) from None
    with locked(folder / USERS_LOCK):
        users = users_of(folder)
        yield users
        content = {"schema": 1, "users": [asdict(users[login]) for login in sorted(users)]}
        write_private(folder / USERS_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _known(users: dict[str, User], login: str) -> User:
    if login not in users:
        raise UsageError(f"{login}: there is no such user; `console user list` lists all of them")
    return users[login]


def _user(content: dict[str, Any]) -> User:
    return _checked(User(**{**content, "roles": tuple(content["roles"])}))


def _checked(user: User) -> User:
    if not LOGIN.fullmatch(user.login):
        raise UsageError(f"{user.login!r}: a login has up to 64 lower-case letters, digits and . _ @ -")
    if not is_person(user.person):
        raise UsageError("--person: give the name of a person: letters, spaces and . ' - between them")
    if not set(user.roles) <= set(ROLES):
        raise UsageError(f"--role: choose from {', '.join(ROLES)}")
    return replace(user, roles=tuple(role for role in ROLES if role in (READ, *user.roles)))


def _hash(password: str, login: str) -> str:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise UsageError(f"the password: use {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if any("\ud800" <= letter <= "\udfff" for letter in password):
        raise UsageError("the password: has a character that is not text; type it again")
    if len(set(password)) < 5 or login in password.lower():
        raise UsageError("the password: is too easy to guess; several words that do not belong together are better")
    return _hasher.hash(_normal(password))
