"""Each site's software as of its last reply: `software/NAME.json` of a server's folder. See `wire.versions`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from wardround.wire.versions import SOFTWARE, Software, mismatch, ours, software_in
from wardround_server.operations.paths import SOFTWARE_FOLDER
from wardround_server.runs.folder import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class SiteSoftware:
    """A site's software, and when its reply arrived by this machine's clock (seconds since 1970)."""

    software: Software
    at: float

    @property
    def fault(self) -> str | None:
        """Why the software is incompatible with this server and which side must upgrade; None if it is compatible."""
        return mismatch(site=self.software, server=ours())


def keep(server: Path, site: str, software: Software) -> None:
    """Store the software that a site, identified by its key, reports."""
    folder = server / SOFTWARE_FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(folder / f"{site}.json", {SOFTWARE: asdict(software), "at": time.time()})


def software_of_sites(server: Path) -> dict[str, SiteSoftware]:
    """Return each site's last reported software, by site name; sites that never replied are left out."""
    found = {}
    for path in sorted((server / SOFTWARE_FOLDER).glob("*.json")):
        content = read_json(path) or {}
        software, at = software_in(content), content.get("at")
        if software is not None and isinstance(at, float):
            found[path.stem] = SiteSoftware(software=software, at=at)
    return found
