"""Code shared by the three programs: creating a Typer application, printing, and turning an error into one line."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer
import typer.core

from wardround.errors import UsageError, WardroundError
from wardround.printable import escaped
from wardround.processes.spawn import import_nothing_from_working_folder
from wardround.storage.disk_errors import FULL, cause, is_of_the_disk
from wardround.storage.text_file import path_text

if TYPE_CHECKING:
    from rich.console import Console

typer.core.HAS_RICH = False  # help is plain text (rich_markup_mode=None) and must not be escaped as Rich markup

STOPPED = 130
LATER_S = 0.1
OTHERS_NOTHING = 0o077  # the umask, which also covers files written by child processes, Flower and SQLite


def program(name: str, text: str) -> typer.Typer:
    """Return a Typer app with this project's defaults: plain help, no completion, no framed tracebacks."""
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def run_program(app: typer.Typer, name: str, *, stopped: str = "stopped", full_disk: str) -> NoReturn:
    """Run a program and end the process; every deliberate error becomes one line on stderr and an exit code.

    The exit codes are 0 done, 1 failed, 2 wrong usage, 3 refused, 130 stopped by Ctrl-C or SIGTERM. An error of the
    disk or of permissions is one line too. Any other error is a fault of the program and keeps its traceback.
    """
    use_utf8()
    os.umask(OTHERS_NOTHING)
    import_nothing_from_working_folder()
    survive_any_terminal()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise the shell wants SIGINT ignored
        signal.signal(signal.SIGINT, _interrupt)
    exit_code = 0
    try:
        exit_code = app(standalone_mode=False) or 0
    except WardroundError as error:
        _fail(name, str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(name, stopped, STOPPED)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a program or group without a command prints its help
            print(error, file=sys.stderr)
            sys.exit(2)
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _fail(name, error.format_message(), 2)
        if isinstance(error, OSError) and error.errno in FULL:
            _fail(name, full_disk, 1)
        if isinstance(error, OSError) and is_of_the_disk(error) and isinstance(error.filename, (str, bytes)):
            _fail(name, f"{path_text(error.filename)}: {cause(error)}", 1)
        raise
    if exit_code == STOPPED:  # the exit code that Typer returns for a KeyboardInterrupt
        _fail(name, stopped, STOPPED)
    sys.exit(exit_code)


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode, unless it is in it or the locale is UTF-8 anyway.

    In the locale C, paths and names with other letters are no text, which libraries and files of this program need.
    """
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        os.environ["PYTHONUTF8"] = "1"  # for child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def survive_any_terminal() -> None:
    """Let output show what a terminal's encoding has no letter for as an escape, instead of failing at it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def literal_console(*, stderr: bool = False) -> Console:
    """Return a console that prints text as it is: Rich would read `[name]` in a path as markup, and drop it."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table for people, as wide as the terminal; long cells are folded and never cut.

    Cells are printed literally, including those from a peer: without markup, emoji or control characters.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    literal_console().print(table)


def require_person(by: str | None) -> None:
    """Raise `UsageError` unless `by` is None or a valid name for an audit log."""
    from wardround.records.audit_events import is_person

    if by is not None and not is_person(by):
        raise UsageError("--by: give the name of a person: letters, spaces and . ' - between them")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop the program, by raising `KeyboardInterrupt`.

    During an import the signal is sent again a moment later, because a half-loaded native library that meets an
    exception aborts the process.
    """
    if not _in_an_import(frame):
        raise KeyboardInterrupt
    again = threading.Timer(LATER_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _in_an_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _fail(name: str, message: str, exit_code: int) -> NoReturn:
    print(f"{name}: {escaped(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(exit_code)
