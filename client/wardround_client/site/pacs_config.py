"""`[pacs.NAME]` of `site.toml`: an archive of the hospital, how to reach it, and what is allowed there."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HOST_PORT = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$"
AE_TITLE = r"^[A-Za-z0-9_.-]{1,16}$"  # the printable characters that every PACS accepts (PS3.5 6.2)
NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
WEB_ROOT = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?(/[^\s?#]*)?")
THIS_MACHINE = ("127.0.0.1", "[::1]", "localhost")
Way = Literal["c-move", "c-get", "web"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DicomConfig(_Section):
    """`[pacs.NAME.dicom]`: the PACS as a DICOM node. File names are relative to the site's folder.

    Attributes:
        address: HOST:PORT of the PACS.
        pacs_ae: The AE title of the PACS.
        our_ae: This site's AE title, as entered at the PACS.
        listen: ADDRESS:PORT on which this site receives objects during C-MOVE. The PACS knows it as `our_ae`.
        sends_from: The IP addresses from which the PACS sends. Default: that of `address`, if it is a number.
        tls: Whether the connections in both directions use TLS.
        ca_file: The CA that issued the certificate of the PACS (PEM).
        certificate_file, key_file: This site's own certificate and key (PEM), for both directions.
        server_name: The name in the certificate of the PACS, if it is not the host of `address`.
    """

    address: Annotated[str, Field(pattern=HOST_PORT)]
    pacs_ae: Annotated[str, Field(pattern=AE_TITLE)]
    our_ae: Annotated[str, Field(pattern=AE_TITLE)] = "WARDROUND"
    listen: Annotated[str, Field(pattern=HOST_PORT)] | None = None
    sends_from: tuple[str, ...] = ()
    tls: bool = False
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    @field_validator("sends_from")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            try:
                ipaddress.ip_address(one)
            except ValueError:
                raise ValueError("give IP addresses, such as 10.0.0.7") from None
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> DicomConfig:
        if self.tls and self.ca_file is None:
            raise ValueError("tls needs ca_file, the CA that issued the certificate of the PACS")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        if self.tls and self.listen is not None and self.certificate_file is None:
            raise ValueError("tls with listen needs certificate_file and key_file")
        return self


class WebConfig(_Section):
    """`[pacs.NAME.web]`: the DICOMweb service of the PACS. File names are relative to the site's folder.

    Attributes:
        url: Its root, below which `/studies` is found.
        ca_file: The CA that issued its certificate (PEM). Without it, the public CAs.
        certificate_file, key_file: This site's own certificate and key (PEM), if the service asks for one.
        user, password_file: Name and file of the password, for basic authentication.
        token_file: The file of a bearer token.
    """

    url: str
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    user: str | None = None
    password_file: str | None = None
    token_file: str | None = None

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        if WEB_ROOT.fullmatch(value) is None:
            raise ValueError("write https://HOST/PATH, the root of the DICOMweb service, without a user or password")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _credentials_are_whole(self) -> WebConfig:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file go together")
        if self.user is not None and self.token_file is not None:
            raise ValueError("either user and password_file, or token_file")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        root = WEB_ROOT.fullmatch(self.url)
        secret = self.user is not None or self.token_file is not None
        if secret and root is not None and root["scheme"] != "https" and root["host"] not in THIS_MACHINE:
            raise ValueError("a password or token is sent over https only")
        return self


class PacsConfig(_Section):
    """`[pacs.NAME]`: one archive.

    Attributes:
        way: How `pull` fetches objects unless `--way` is given.
        hours: When `pull` may work, in the local time of this machine: "20:00-06:00". Without it, always.
        bandwidth_mbit_s: The most that `pull` takes in the mean, in Mbit/s. Without it, no limit.
        timeout_s: How long the PACS may stay silent before it is given up, in seconds.
        allow_store: Whether results of `predict` and `explain` may be stored there.
    """

    way: Way = "c-move"
    hours: Annotated[str, Field(pattern=HOURS)] | None = None
    bandwidth_mbit_s: Annotated[float, Field(gt=0)] | None = None
    timeout_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    allow_store: bool = False
    dicom: DicomConfig | None = None
    web: WebConfig | None = None

    @model_validator(mode="after")
    def _way_is_set_up(self) -> PacsConfig:
        if self.dicom is None and self.web is None:
            raise ValueError("needs the section dicom or web")
        if self.way == "web" and self.web is None:
            raise ValueError('way = "web" needs the section web')
        if self.way != "web" and self.dicom is None:
            raise ValueError(f'way = "{self.way}" needs the section dicom')
        return self
