"""`wardround-server init`, `doctor`, `backup` and `restore`: create, check, save and restore the server's folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.cli.options import JsonOption, ServerOption
from wardround.errors import UsageError

if TYPE_CHECKING:
    from wardround_server.operations.folder import Founding

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: wardround-server init federation --host federation.example.org,192.0.2.10")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The server's folder: new, empty, or created by an earlier `init`.")
    ],
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="NAME[,NAME…]", help="Names or addresses under which hospitals reach the server."
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The federation's name.")] = "federation",
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, metavar="N", help="The one port that hospitals connect to.")
    ] = 9092,
    ca: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--ca", metavar="CERT KEY", help="Your own CA as PEM files; its key is used but not copied."),
    ] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Renew the server's certificate under the same CA; sites need no change.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a server's folder: CA, certificate, server.toml. Existing files are shown and never replaced."""
    from wardround_server.operations import folder as server_folder
    from wardround_server.operations.paths import CA_CERTIFICATE

    now = datetime.now(UTC)
    if renew and host is not None:
        raise UsageError("--renew takes the names from server.toml; leave --host out")
    state = server_folder.renew(folder, ca, now) if renew else server_folder.found(folder, host, name, port, ca, now)
    if as_json:
        print(json.dumps(_to_json(state)))
        return
    from wardround.identity import in_groups

    server, days = state.config.server, "%Y-%m-%d"
    print(f"{folder}: {'created ' + ', '.join(state.made) if state.made else 'already complete; nothing was changed'}")
    print(f"hospitals connect to  {server.host}:{server.fleet_port}")
    print(f"certificate           for {', '.join(state.certificate.hosts)}, until {state.certificate.not_after:{days}}")
    print(f"CA                    {folder / CA_CERTIFICATE}, until {state.authority.not_after:{days}}")
    print(f"CA's fingerprint      {in_groups(state.authority.sha256)}")
    print("Give each hospital the CA file, and read the fingerprint to them by telephone.")


@app.command(epilog="Example: wardround-server doctor --server federation")
def doctor(server: ServerOption = Path("."), as_json: JsonOption = False) -> None:
    """Check files, certificates, ports, sites, clock and disk, and show what to do. Exit code 1: a check failed."""
    from wardround.operations.health_checks import exit_code, table_of
    from wardround_server.operations.doctor import examine

    checks = list(examine(server))
    if as_json:
        print(json.dumps({"checks": [check.to_json() for check in checks]}))
    else:
        from wardround.cli.app import literal_console

        literal_console().print(table_of(checks))
    raise typer.Exit(exit_code(checks))


@app.command(epilog="Example: wardround-server backup federation-2026-03-01.tar --server federation")
def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new tar file. It contains private keys: store it securely.")
    ],
    server: ServerOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Write the whole folder without its logs to one tar file. The server may be running."""
    from wardround_server.operations import backup as backups
    from wardround_server.operations.config import load_server_config

    load_server_config(server)
    done = backups.backup(server, file)
    if as_json:
        print(json.dumps({"file": str(file), "files": done.files, "bytes": done.size_bytes, "made": done.made}))
    else:
        print(f"{file}: {done.files} files, {done.size_bytes / 1e6:.1f} MB, including private keys: store it securely.")


@app.command(epilog="Example: wardround-server restore federation-2026-03-01.tar --server federation")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tar file written by `backup`.")],
    server: Annotated[Path, typer.Option("--server", metavar="DIR", help="A new or empty folder.")],
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into a new or empty folder. Every file is checked; if one is damaged, nothing is restored."""
    from wardround_server.operations import backup as backups

    done = backups.restore(file, server)
    if as_json:
        print(json.dumps({"folder": str(server), "files": done.files, "bytes": done.size_bytes, "made": done.made}))
    else:
        print(f"{server}: {done.files} files as of {done.made}. Stop the old server for good before starting this one.")


def _to_json(state: Founding) -> dict[str, Any]:
    server = state.config.server
    return {
        "made": list(state.made),
        "address": f"{server.host}:{server.fleet_port}",
        "ca_sha256": state.authority.sha256,
        "ca_until": state.authority.not_after.isoformat(),
        "certificate_hosts": list(state.certificate.hosts),
        "certificate_until": state.certificate.not_after.isoformat(),
    }
