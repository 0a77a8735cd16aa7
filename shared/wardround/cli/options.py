"""Options shared by several commands, so that an option has the same help text in each program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SiteOption = Annotated[Path, typer.Option("--site", metavar="DIR", help="The site's folder, with site.toml.")]
ServerOption = Annotated[Path, typer.Option("--server", metavar="DIR", help="The server's folder, with server.toml.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
JsonStartOption = Annotated[bool, typer.Option("--json", help="Say that it started as one line of JSON.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print each entry as a line of JSON.")]

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
ByOption = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides this: the name of a person.")]
ByForAuditOption = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides this, for the audit log: the name of a person.")
]

OfRunOption = Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only what names this run.")]
LastOption = Annotated[
    int | None, typer.Option("--last", min=1, metavar="N", help="Only the last N of them; all without it.")
]
FollowOption = Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")]
