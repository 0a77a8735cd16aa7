"""`wardround-site`: what a hospital runs. Each group of commands is a file of its own, added here.

Heavy imports (torch, Opacus, SQLite) happen inside the commands, so that `--help` and mistakes answer at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
import typer.core

from wardround.audit_commands import audit_app
from wardround.errors import WardroundError
from wardround_client import cli_ledger

typer.core.HAS_RICH = False  # help is plain text here (rich_markup_mode), and must not be escaped as if it were rich's

STOPPED = 130

app = typer.Typer(
    name="wardround-site",
    help="One hospital of a federation: its rules, its data, its ledger. Research software, no medical device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(audit_app("wardround-site"), name="audit")


@app.callback()
def wardround_site() -> None:
    """Commands come in groups; this keeps the group's name even where there is one only."""


def main() -> NoReturn:
    """Entry point: every error on purpose becomes one line and its exit code."""
    exit_code = 0
    try:
        exit_code = app(standalone_mode=False) or 0
    except WardroundError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped", STOPPED)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _fail(error.format_message(), 2)
        raise
    sys.exit(exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"wardround-site: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
