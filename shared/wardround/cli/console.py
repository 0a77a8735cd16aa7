"""The command group `console`, the same in both programs: serves the web console, and manages its users."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.cli.options import JsonOption, JsonStartOption
from wardround.errors import UsageError
from wardround.printable import escaped

if TYPE_CHECKING:
    from wardround.web.accounts.users import User
    from wardround.web.app import WebConsole
    from wardround.web.config import ConsoleConfig

LoginArgument = Annotated[str, typer.Argument(metavar="LOGIN", help="The name to sign in with, such as mcurie.")]
CONSOLE_LOG = "logs/console.log"


def console_app(
    program: str,
    option: str,
    example: str,
    config_of: Callable[[Path], ConsoleConfig],
    console_of: Callable[[Path, ConsoleConfig], WebConsole],
) -> typer.Typer:
    """Return the command group for `program`.

    Args:
        program: Its name, for the examples.
        option: The name of the folder's option, as in the program's other commands (`--site`).
        example: The folder of the examples.
        config_of: Reads `[console]` of a folder. Raises `UsageError` if the folder is not the program's.
        console_of: Builds the console of a folder; it may import heavy modules.
    """
    folder_option = typer.Option(Path("."), option, metavar="DIR", help="The folder whose console this is.")
    app = typer.Typer(
        help="The web console: pages to read and to decide, for the people of this folder. On loopback by default.",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    user_app = typer.Typer(help="Who may use the console, and for what.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(user_app, name="user")

    @app.callback(epilog=f"Example: {program} console {option} {example}")
    def console(
        context: typer.Context,
        folder: Path = folder_option,
        port: Annotated[
            int | None, typer.Option("--port", min=1, max=65535, metavar="N", help="Default: [console] port, or 9095.")
        ] = None,
        address: Annotated[
            str | None,
            typer.Option(
                "--address", metavar="ADDRESS", help="Where to listen; another address than loopback needs a proxy."
            ),
        ] = None,
        metrics_port: Annotated[
            int | None,
            typer.Option(
                "--metrics-port", min=0, max=65535, metavar="N", help="Port of /metrics on 127.0.0.1; 0: none."
            ),
        ] = None,
        as_json: JsonStartOption = False,
    ) -> None:
        """Serve the web console until Ctrl-C or SIGTERM. Add a user first: `console user add`."""
        if context.invoked_subcommand is not None:
            return
        changes = {"port": port, "address": address, "metrics_port": metrics_port}
        config = _changed(config_of(folder), {name: value for name, value in changes.items() if value is not None})
        _serve(folder.resolve(), console_of(folder.resolve(), config), as_json)

    @user_app.command(epilog=f'Example: {program} console user add mcurie --person "Dr. Marie Curie" --role approve')
    def add(
        login: LoginArgument,
        person: Annotated[str, typer.Option("--person", metavar="NAME", help="The person, for the audit log.")],
        role: Annotated[
            list[str] | None,
            typer.Option("--role", metavar="ROLE", help="approve or operate; may be repeated. Everybody may read."),
        ] = None,
        no_password: Annotated[
            bool, typer.Option("--no-password", help="Only the reverse proxy signs this user in.")
        ] = False,
        folder: Path = folder_option,
        as_json: JsonOption = False,
    ) -> None:
        """Add a user. The password is asked for, or read from the first line of standard input."""
        from wardround.web.accounts.users import READ, User, add_user

        config_of(folder)
        user = User(login=login, person=person, roles=(READ, *(role or ())))
        password = None if no_password else _password(login)
        added = add_user(folder, user, password, lambda user: _record(folder, "user-added", user))
        _say(added, "was added", as_json)

    @user_app.command("list", epilog=f"Example: {program} console user list {option} {example}")
    def list_(folder: Path = folder_option, as_json: JsonOption = False) -> None:
        """List the users and what they may do."""
        from wardround.cli.app import print_table
        from wardround.web.accounts.users import users_of

        config_of(folder)
        users = users_of(folder).values()
        if as_json:
            print(json.dumps([_to_json(user) for user in users]))
            return
        rows = [
            (one.login, one.person, ", ".join(one.roles), "password" if one.password else "by the proxy")
            for one in users
        ]
        print_table(("login", "person", "may", "signs in"), rows or [("none", "", "", "")])

    @user_app.command(epilog=f"Example: {program} console user password mcurie {option} {example}")
    def password(login: LoginArgument, folder: Path = folder_option, as_json: JsonOption = False) -> None:
        """Set another password, asked for as in `add`. The user's sessions end."""
        from wardround.web.accounts.users import set_password

        config_of(folder)
        changed = set_password(folder, login, _password(login), lambda user: _record(folder, "user-changed", user))
        _say(changed, "has another password", as_json)

    @user_app.command(epilog=f"Example: {program} console user remove mcurie {option} {example}")
    def remove(login: LoginArgument, folder: Path = folder_option, as_json: JsonOption = False) -> None:
        """Remove a user. The user's sessions end."""
        from wardround.web.accounts.users import remove_user

        config_of(folder)
        removed = remove_user(folder, login)
        _record(folder, "user-removed", removed)  # afterwards, so that a full disk cannot keep a user in
        _say(removed, "was removed", as_json)

    return app


def _serve(folder: Path, console: WebConsole, as_json: bool) -> None:
    import threading

    from wardround.operations.logs import log_to
    from wardround.processes.supervisor import sole, stop_on_signals
    from wardround.storage.folders import make_folder
    from wardround.web.accounts.users import CONSOLE, users_of
    from wardround.web.app import build
    from wardround.web.metrics import metrics_app
    from wardround.web.server import Listener, serve

    config = console.config
    if not users_of(folder):
        raise UsageError(f"{folder}: has no user yet; `{console.program} console user add` adds the first")
    make_folder(folder / CONSOLE)
    listeners = [Listener(app=build(console), address=config.address, port=config.port)]
    if config.metrics_port:
        app = metrics_app(dict(console.metrics), config.metrics_port)
        listeners.append(Listener(app=app, address="127.0.0.1", port=config.metrics_port))
    host = f"[{config.address}]" if ":" in config.address else config.address
    shown = f"https://{config.hosts[0]}/" if config.behind_proxy else f"http://{host}:{config.port}/"

    def ready() -> None:
        started = {"console": shown, "metrics_port": config.metrics_port, "process": os.getpid()}
        print(json.dumps(started) if as_json else f"{console.name}: the console is at {shown}", flush=True)

    stopped = threading.Event()
    stop_on_signals(stopped)
    with sole(folder / CONSOLE, "a console is at work here already"):
        log_to(folder / CONSOLE_LOG)
        serve(listeners, stopped, ready)


def _changed(config: ConsoleConfig, changes: dict[str, object]) -> ConsoleConfig:
    from pydantic import ValidationError

    try:
        return type(config).model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _password(login: str) -> str:
    """Ask for a password twice, or read the first line of standard input. It is never an argument."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass(f"Password of {escaped(login)} (12 characters or more): ")
    if first != getpass.getpass("The same once more: "):
        raise UsageError("the two passwords differ; nothing was changed")
    return first


def _record(folder: Path, action: str, user: User) -> None:
    from wardround.records.audit_events import ConsoleUsed
    from wardround.records.audit_log import AUDIT_FILE, AuditLog

    AuditLog(folder / AUDIT_FILE).append(ConsoleUsed(action=action, who=user.person))


def _to_json(user: User) -> dict[str, object]:
    return {
        "login": user.login,
        "person": user.person,
        "roles": list(user.roles),
        "password": user.password is not None,
    }


def _say(user: User, what: str, as_json: bool) -> None:
    print(json.dumps(_to_json(user)) if as_json else escaped(f"{user.login} ({user.person}) {what}"))
