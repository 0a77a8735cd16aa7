"""`wardround-site init` and `doctor`: create a hospital's folder, and check its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.options import JsonOption, SiteOption
from wardround.errors import required
from wardround_client.site.paths import CONFIG_FILE

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: wardround-site init --server fed.example.org:9092 --name north --ca ca.crt --site north")
def init(
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="The federation's server, as given by the operator."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="The name of this hospital.")] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="The server's CA certificate (PEM), from the operator.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="HOST:PORT", help="An HTTP proxy that forwards connections.")
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Create a site's folder: keys, site.toml, enrolment request. Existing files are shown and never replaced."""
    from wardround_client.site.enrolment import enrol
    from wardround_client.site.paths import CA_CERTIFICATE, CONFIG_FILE

    state = enrol(site, name, server, ca, proxy)
    address = required(state.config.server, "server").address
    if as_json:
        content = {
            "made": list(state.made),
            "name": state.config.name,
            "address": address,
            "key_sha256": state.key_sha256,
            "ca_sha256": state.ca_sha256,
            "request": str(state.request),
        }
        print(json.dumps(content))
        return
    from wardround.identity import in_groups

    print(f"{site}: {'created ' + ', '.join(state.made) if state.made else 'everything exists; nothing was changed'}")
    print(f"site               {state.config.name}, to the server {address}")
    print(f"key's fingerprint  {in_groups(state.key_sha256)}")
    print(f"CA's fingerprint   {in_groups(state.ca_sha256)}")
    print(f"Send {state.request} to the operator, then telephone: read out the key's fingerprint, and compare")
    print(
        f"the CA's fingerprint, from {site / CA_CERTIFICATE}. Then review {site / CONFIG_FILE}: it holds your limits."
    )


@app.command(epilog="Example: wardround-site doctor --site north")
def doctor(
    site: SiteOption = Path("."),
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Time limit for the server's answer.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Check keys, server, clock, device (with one private step), data and ledger: a tick or a cross, and what to do.

    Exit 1 if there is a cross.
    """
    from wardround.operations.health_checks import exit_code, table_of
    from wardround_client.site.config import load_site_config

    load_site_config(site / CONFIG_FILE)  # before torch is loaded, so that a wrong folder fails immediately
    from wardround_client.site.doctor import examine

    checks = list(examine(site, timeout))
    if as_json:
        print(json.dumps({"checks": [check.to_json() for check in checks]}))
    else:
        from wardround.cli.app import literal_console

        literal_console().print(table_of(checks))
    raise typer.Exit(exit_code(checks))
