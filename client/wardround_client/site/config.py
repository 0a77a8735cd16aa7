"""`site.toml`: the settings that a hospital makes for itself. The server cannot change any of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from wardround.errors import UsageError
from wardround.identity import SHA256, SITE_NAME
from wardround.storage.toml import read_toml
from wardround.web.config import ConsoleConfig
from wardround_client.ledger.ledger import Cap
from wardround_client.site.pacs_config import NODE_NAME, PacsConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerConfig(_Section):
    """`[server]`: the address of the federation's server, and the CA that identifies it. None at a simulated site."""

    address: Annotated[str, Field(pattern=r"^\S+:\d{1,5}$")]  # HOST:PORT
    ca_sha256: Annotated[str, Field(pattern=SHA256)]  # the fingerprint, compared by telephone
    proxy: Annotated[str, Field(pattern=r"^\S+:\d{1,5}$")] | None = None  # HOST:PORT of an HTTP proxy
    runtime_port: Annotated[int, Field(ge=1024, le=65535)] = 9094  # on loopback; different for each site of a machine
    health_port: Annotated[int, Field(ge=0, le=65535)] = 0  # on loopback, for a monitoring program; 0 takes a free port


class PrivacyConfig(_Section):
    """`[privacy]`: the cap over all studies, and whether studies without privacy are admitted."""

    epsilon_cap: Annotated[float, Field(gt=0)]
    delta_cap: Annotated[float, Field(gt=0, lt=1)]
    allow_no_privacy: bool = False

    def cap(self) -> Cap:
        return Cap(epsilon=self.epsilon_cap, delta=self.delta_cap, allow_no_privacy=self.allow_no_privacy)


class ReleaseConfig(_Section):
    """`[release]`: which figures about held-out patients may leave the site. A study that asks for more is refused.

    Attributes:
        evaluation: "off"; "noised", histograms of scores under the study's finite evaluation.epsilon; "exact", also
            exact counts for studies that ask for evaluation.epsilon = inf, which gives no privacy (and needs
            allow_no_privacy as well).
        per_site: Whether the server may show figures of this site alone, and then only if the noised number of patients
            behind them is at least `minimum_patients`.
    """

    evaluation: Literal["off", "noised", "exact"] = "off"
    per_site: bool = False
    minimum_patients: Annotated[int, Field(ge=1)] = 50


class ComputeConfig(_Section):
    """`[compute]`: the device, and how much of the machine a round may use. Nothing here affects privacy."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: faster if the processor supports it


class SiteConfig(_Section):
    """The whole file.

    `name` is chosen by the site; the server identifies the site by its registered key.
    """

    name: Annotated[str, Field(pattern=SITE_NAME)]
    server: ServerConfig | None = None
    privacy: PrivacyConfig
    release: ReleaseConfig = ReleaseConfig()
    compute: ComputeConfig = ComputeConfig()
    pacs: dict[Annotated[str, Field(pattern=NODE_NAME)], PacsConfig] = {}
    console: ConsoleConfig = ConsoleConfig()


def load_site_config(path: Path) -> SiteConfig:
    """Read `site.toml`.

    Raises:
        UsageError: There is no such file, or it is invalid. The message is one line that names the file and the field.
    """
    if not path.parent.is_dir() or not os.path.lexists(path):
        raise UsageError(f"{path.parent}: is not a site's folder; `wardround-site init` creates one")
    return read_toml(path, SiteConfig)
