"""Flower's SuperLink as the server runs it, and the calls of Flower's command line that the server needs.

Hospitals reach the Fleet API only: gRPC under TLS on the public port, for registered keys, within the limits of
`fleet_api.py`. The Control API and the Runtime API listen on loopback. State is kept in SQLite under flower/, so that
nodes and keys survive a restart. Nothing is installed at run time, and no outgoing connection is made. The executor,
which starts a phase's ServerApp, is a child process of the daemon: a SuperLink starts its own executor only once, and
if that one died, every later phase would wait indefinitely. A run sends the sites a bundle without code: its project
file names modules that are installed on both sides.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.flower.environment import flower_environment
from wardround.processes.spawn import ISOLATED_PYTHON
from wardround.processes.supervisor import Child
from wardround.storage.atomic import write_private
from wardround.storage.folders import make_folder
from wardround_server.operations.paths import CA_CERTIFICATE, EXECUTOR_SECRET, FLOWER, SERVER_CERTIFICATE, SERVER_KEY
from wardround_server.runs.folder import write_text

LINK = "wardround"
DAEMON = "WARDROUND_DAEMON"  # environment variable with the process id of the daemon that keeps the SuperLink running
SERVER_FOLDER = "WARDROUND_SERVER"  # environment variable with the server's folder, for all processes of the SuperLink
PROGRAMS = Path(sys.executable).parent
ANSWER_LIMIT_S = 60.0

BUNDLE = """[project]
name = "wardround-run"
version = "{version}"
description = "One phase of a run of Wardround. It ships no code: both components are installed already."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "wardround"
fab-include = ["/README.md"]

[tool.flwr.app.components]
serverapp = "wardround_server.flower.server_app:app"
clientapp = "wardround_client.flower.site_app:app"

[tool.flwr.app.config]
run = ""
phase = ""
"""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The server's ports: `fleet` on the address `listen` for hospitals, and `control` on loopback."""

    listen: str = "0.0.0.0"
    fleet: int
    control: int


@dataclass(frozen=True, kw_only=True)
class SuperLink:
    """The SuperLink of a server folder."""

    folder: Path
    ports: Ports

    @property
    def home(self) -> Path:
        return self.folder / FLOWER

    def children(self) -> list[Child]:
        """Return the programs to keep running, the SuperLink first. Writes the files that they need under flower/."""
        superlink, environment = self.child(), self._environment()
        command = (
            str(PROGRAMS / "flower-superexec"),
            *("--runtime-api-address", f"127.0.0.1:{self.ports.control}"),
            *("--root-certificates", str(self.folder / CA_CERTIFICATE)),
            *("--superexec-auth-secret-file", str(self._secret)),
        )
        return [superlink, Child(name="executor", command=command, environment=environment, folder=self.home)]

    def child(self) -> Child:
        """Return the SuperLink alone: with it, hospitals can connect, but no phase can begin."""
        self._write_bundle()
        write_private(self._secret, secrets.token_bytes(32))  # new at each start
        command = (
            *(*ISOLATED_PYTHON, "-m", "wardround_server.flower.fleet_api", "flower-superlink"),
            *("--ssl-ca-certfile", str(self.folder / CA_CERTIFICATE)),
            *("--ssl-certfile", str(self.folder / SERVER_CERTIFICATE)),
            *("--ssl-keyfile", str(self.folder / SERVER_KEY)),
            "--enable-supernode-auth",
            *("--isolation", "process", "--superexec-auth-secret-file", str(self._secret)),
            *("--database", str(self.home / "superlink.db")),
            *("--host", "127.0.0.1", "--port", str(self.ports.control)),
            *("--fleet-api-address", f"{self.ports.listen}:{self.ports.fleet}"),
            "--disable-runtime-dependency-installation",
        )
        environment = self._environment()
        return Child(
            name="superlink", command=command, environment=environment, folder=self.home, up_when="Uvicorn running"
        )

    def register(self, name: str, public_key: str) -> str:
        """Register a site's public key under the name that the operator chose; return the node's id.

        `public_key` is in OpenSSH's one-line format. Raises `WardroundError` if Flower refuses, which includes every
        key that was unregistered before: Flower never accepts it again.
        """
        path = self.home / "registering.pub"
        write_text(path, public_key.strip() + "\n")
        return str(self._flwr("supernode", "register", str(path), LINK, "--name", name)["node-id"])

    def unregister(self, node_id: str) -> None:
        """Stop admitting a node. Raises `WardroundError` if Flower refuses."""
        self._flwr("supernode", "unregister", node_id, LINK)

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return Flower's list of nodes, including unregistered ones. It contains no names or keys.

        Raises `WardroundError` if Flower refuses.
        """
        return self._flwr("supernode", "list", LINK).get("nodes", [])

    def start_phase(self, run_id: str, phase: str) -> str:
        """Start one phase of a run; return the id of the Flower run. Raises `WardroundError` if Flower refuses."""
        config = f'run="{run_id}" phase="{phase}"'
        return str(self._flwr("run", str(self.home / "bundle"), LINK, "--run-config", config)["run-id"])

    def stop_phase(self, flower_id: str) -> None:
        """Stop a phase by the id of its Flower run. Raises `WardroundError` if Flower refuses."""
        self._flwr("stop", flower_id, LINK)

    def _flwr(self, *words: str) -> dict[str, Any]:
        """Run Flower's command line and return its JSON output. Raises `WardroundError` if the call fails."""
        command = [str(PROGRAMS / "flwr"), *words, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                cwd=self.home,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=ANSWER_LIMIT_S,
            )
            answer = json.loads(done.stdout[done.stdout.find("{") :])
        except subprocess.TimeoutExpired:
            raise WardroundError(f"flwr {words[0]}: no answer within {ANSWER_LIMIT_S:.0f} s") from None
        except ValueError:
            output = " ".join((done.stderr or done.stdout).split())[-300:]
            raise WardroundError(f"flwr {words[0]}: {output or 'no output'}") from None
        if not answer.get("success", False):
            raise WardroundError(f"flwr {words[0]}: {answer.get('error-message', 'refused')}")
        return answer

    @property
    def _secret(self) -> Path:
        return self.folder / EXECUTOR_SECRET

    def _environment(self) -> dict[str, str]:
        return {**flower_environment(self.home), SERVER_FOLDER: str(self.folder), DAEMON: str(os.getpid())}

    def _write_bundle(self) -> None:
        bundle = self.home / "bundle"
        make_folder(bundle)
        write_text(bundle / "pyproject.toml", BUNDLE.format(version=version("wardround")))
        write_text(bundle / "README.md", "A run of Wardround. No code.\n")
        ca = json.dumps(str(self.folder / CA_CERTIFICATE))
        link = f'[superlink.{LINK}]\naddress = "127.0.0.1:{self.ports.control}"\nroot-certificates = {ca}\n'
        write_text(self.home / "config.toml", f'[superlink]\ndefault = "{LINK}"\n\n{link}')
