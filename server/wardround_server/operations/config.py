"""`server.toml`, the operator's settings. `init` writes it with every key explained; unknown keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wardround.errors import UsageError
from wardround.identity import SITE_NAME
from wardround.storage.toml import read_toml
from wardround.web.config import OPERATOR_PORT, ConsoleConfig, console_text
from wardround_server.operations.paths import CONFIG_FILE

TRACKING_TEXT = """
[tracking]
# Where the progress of runs is also recorded: a folder on this machine (file:///srv/mlflow) or your own MLflow server
# (https://mlflow.operator.example). Empty: nowhere. docs/operator.md describes what is written and what to install.
mlflow_uri = ""
# The name of the experiment there.
experiment = "wardround"
"""
MLFLOW_URI = r"(file:///[^?#]+|https?://[^/?#@\s]+(/[^?#@\s]*)?)?"
Port = Annotated[int, Field(ge=1, le=65535)]


class ServerSection(BaseModel):
    """`[server]`: the server's names and ports, and the lifetime of its certificate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=SITE_NAME)]
    host: Annotated[str, Field(min_length=1)]
    more_hosts: tuple[str, ...] = ()
    listen: str = "0.0.0.0"
    fleet_port: Port = 9092
    control_port: Port = 9093
    certificate_days: Annotated[int, Field(ge=1, le=825)] = 397

    @property
    def hosts(self) -> tuple[str, ...]:
        """All names of the server's certificate; sites connect to the first."""
        return self.host, *self.more_hosts

    @model_validator(mode="after")
    def _hospitals_do_not_reach_the_control_port(self) -> Self:
        if self.fleet_port == self.control_port:
            raise ValueError("fleet_port and control_port must differ")
        return self


class TrackingSection(BaseModel):
    """`[tracking]`: the MLflow store to which the progress of runs is written; an empty URI is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mlflow_uri: str = ""
    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")] = "wardround"

    @field_validator("mlflow_uri")
    @classmethod
    def _is_a_folder_or_a_server_without_a_password(cls, uri: str) -> str:
        if re.fullmatch(MLFLOW_URI, uri) is None:
            raise ValueError(
                "must be file:///FOLDER or http(s)://HOST; give a user and a password in the environment variables "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class ServerConfig(BaseModel):
    """The content of `server.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    server: ServerSection
    console: ConsoleConfig = ConsoleConfig()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _the_console_has_its_own_port(self) -> Self:
        if "console" not in self.model_fields_set:
            return self  # a server without a console may use any port
        if {self.console.port, self.console.metrics_port} & {self.server.fleet_port, self.server.control_port}:
            raise ValueError("console: its ports must differ from those of [server], which hospitals connect to")
        return self


def load_server_config(folder: Path) -> ServerConfig:
    """Read `server.toml` of a server's folder. Raises a one-line `UsageError` that names the file and the field."""
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UsageError(f"{folder}: is not a server's folder; `wardround-server init` creates one")
    return read_toml(path, ServerConfig)


def config_text(name: str, hosts: tuple[str, ...], fleet_port: int) -> str:
    """Return the text of a new `server.toml`."""
    more = ", ".join(f'"{host}"' for host in hosts[1:])
    listen = "127.0.0.1" if set(hosts) <= {"127.0.0.1", "localhost"} else "0.0.0.0"
    console_port = OPERATOR_PORT if fleet_port != OPERATOR_PORT else OPERATOR_PORT + 1
    return f"""\
# The server of a federation. Nothing here changes what a hospital allows: its own site.toml sets that.

[server]
# The federation's name, as it appears in certificates and reports.
name = "{name}"

# The name or address under which the hospitals reach this server, and additional ones. The server's certificate
# contains all of them: after a change here run `wardround-server init DIR --renew`.
host = "{hosts[0]}"
more_hosts = [{more}]

# The address to listen on for hospitals; 0.0.0.0 is every network interface, 127.0.0.1 this machine alone.
listen = "{listen}"

# The one port that hospitals connect to. No other port has to be open in a firewall.
fleet_port = {fleet_port}

# A port on this machine itself (127.0.0.1), for submitting and running studies. Never open it to others.
control_port = 9093

# For how many days a server certificate from `init` or `--renew` is valid. The CA's certificate is valid for ten years.
certificate_days = 397
{console_text("operator", console_port)}{TRACKING_TEXT}"""
