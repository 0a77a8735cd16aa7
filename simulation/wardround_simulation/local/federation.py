"""A whole federation on this machine: a server and its sites as real processes, with keys and TLS, on 127.0.0.1.

    OUT/server/        the server's folder, created by `wardround-server init`
        hospital-1/ …  each site's folder, created by `wardround-site init`
        logs/          output of the daemons, by name (their logs are in logs/ of their own folders)

The module runs the commands of the two programs, as an operator and the hospitals would type them. In addition it makes
two edits of the configuration files that people would make in an editor: ports that are free on this machine, and each
site's share of its processors. While it waits for a proposal it reads the sites' folders itself, because a program per
site and look would slow down the daemons. A second call continues where the first one ended and repeats no step.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from wardround.errors import WardroundError
from wardround.processes.supervisor import sole
from wardround.storage.atomic import write_private
from wardround.storage.toml import toml_content
from wardround.study.load import Study
from wardround_client.site.paths import CONFIG_FILE
from wardround_client.studies.store import stored_hashes
from wardround_server.operations.paths import CA_CERTIFICATE, LOGS
from wardround_server.operations.paths import CONFIG_FILE as SERVER_CONFIG
from wardround_simulation.cli.progress import RunProgress
from wardround_simulation.local.ports import LOOPBACK, LocalPorts
from wardround_simulation.local.programs import Daemon, asked, call, call_all, end, start

SERVER, SITE = "wardround-server", "wardround-site"
PERSON = "Local Demonstrator"  # recorded in the audit logs as the person who enrols and approves
LOOK_S = 2.0  # between two calls of `wardround-server show`, each of which is a process
POLL_S = 0.2  # between two looks at files and child processes, which cost almost nothing
ANSWER_LIMIT_S, INGEST_LIMIT_S, START_LIMIT_S, PROPOSAL_LIMIT_S = 120.0, 3600.0, 120.0, 300.0
ENDING_LIMIT_S = 40.0  # for daemons of a killed command to end: each gives its own processes 15 s
BETWEEN_ROUNDS_S = 180.0  # beyond a round's deadline: to gather the sites, and to restart a phase

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LocalFederation:
    """The folders of a federation on this machine. `data` contains one folder of images per site, with its name."""

    folder: Path
    data: Path
    sites: tuple[str, ...]
    ports: LocalPorts = field(default_factory=LocalPorts)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def site(self, name: str) -> Path:
        return self.folder / name

    def finished(self, study: Study) -> str | None:
        """Return the id of the last finished run of this study, or None."""
        if not (self.server / SERVER_CONFIG).exists():
            return None
        runs = self._ask_server("runs")
        of_study = [run for run in runs if run["study_sha256"] == study.sha256() and run["state"] == "finished"]
        return of_study[-1]["run"] if of_study else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folders for this command, and release the ports at the end.

        Waits up to `ENDING_LIMIT_S` for the daemons of an earlier command that was killed to end.

        Raises:
            WardroundError: If another command, or a daemon that was started by hand, works on the folders.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        other, advice = (
            "another process of this command uses this folder",
            "stop it with Ctrl-C or choose another --out",
        )
        with sole(self.folder, f"{other}; {advice}"):
            ends = time.monotonic() + ENDING_LIMIT_S
            for folder in filter(Path.is_dir, (self.server, *map(self.site, self.sites))):
                busy = "a daemon is running in this folder; end that process or choose another --out"
                with sole(folder, busy, ends - time.monotonic()):
                    pass
            try:
                yield
            finally:
                self.ports.release()

    def found(self, progress: RunProgress) -> None:
        """Create the server and the sites, and enrol the sites.

        Each site generates its own key, and the server receives the key's fingerprint.
        """
        progress.stage("Creating the server and the sites, with their keys and certificates")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "logs").mkdir(exist_ok=True)
        self._keep_ports()
        new = not (self.server / SERVER_CONFIG).exists()
        chosen = ("--host", LOOPBACK, "--port", self.ports.next(), "--name", "local") if new else ()
        made = asked("server", SERVER, "init", self.server, *chosen, limit_s=ANSWER_LIMIT_S)
        if 'listen = "0.0.0.0"' in (self.server / SERVER_CONFIG).read_text(encoding="utf-8"):
            _set(self.server / SERVER_CONFIG, {"listen": f'"{LOOPBACK}"', "control_port": self.ports.next()})
        enrolled = {site["name"] for site in self._ask_server("sites", "list")}
        ca, threads = self.server / CA_CERTIFICATE, max(1, (os.cpu_count() or 1) // len(self.sites))
        for number, name in enumerate(self.sites, 1):
            words = ("--server", made["address"], "--name", name, "--ca", ca, "--site", self.site(name))
            site = asked(name, SITE, "init", *words, limit_s=ANSWER_LIMIT_S)
            if "runtime_port = 9094\n" in (self.site(name) / CONFIG_FILE).read_text(encoding="utf-8"):
                _set(self.site(name) / CONFIG_FILE, {"runtime_port": self.ports.next(), "threads": threads})
            if name not in enrolled:
                self._ask_server("sites", "add", site["request"], "--fingerprint", site["key_sha256"], "--by", PERSON)
            progress.pieces(number, len(self.sites))

    def ingest(self, study: Path, progress: RunProgress) -> None:
        """Let each site prepare its own images for the study file."""
        progress.stage("Each site prepares its images")
        for number, name in enumerate(self.sites, 1):
            words = (self.data / name, "--study", study, "--site", self.site(name))
            asked(name, SITE, "ingest", *words, limit_s=INGEST_LIMIT_S)
            progress.pieces(number, len(self.sites))

    @contextmanager
    def daemons(self, progress: RunProgress) -> Iterator[list[Daemon]]:
        """Start the server and the sites, and yield their daemons. They are always ended when the block ends."""
        progress.stage("Starting the server and the sites")
        self._keep_ports()
        running: list[Daemon] = []
        try:
            for name, program, option, folder in self._parties():
                log, printed = folder / LOGS / f"{option[2:]}.log", self.folder / "logs" / f"{name}.log"
                running.append(start(name, program, "start", option, folder, "--json", printed=printed, log=log))
            _wait(lambda: all(one.started for one in running), running, START_LIMIT_S, self._who_is_ill)
            yield running
        finally:
            end(running)

    def submit(self, study: Path) -> Mapping[str, Any]:
        """Propose the study file to the sites, and return the run in the format of `wardround-server show`."""
        return self._ask_server("submit", study)

    def approve(self, sha256: str, running: list[Daemon], progress: RunProgress) -> None:
        """Wait until each site has received the study, and approve it there.

        The approval covers all runs of the study that the server has, because an earlier run may have been stopped for
        good.

        Raises:
            WardroundError: If a site has refused or revoked the study, a daemon ends, or the study does not arrive
                within `PROPOSAL_LIMIT_S`.
        """
        progress.stage("The sites receive the study and approve it")

        def received() -> dict[str, Any] | None:
            # The wait reads the sites' folders: `studies list` costs 0.3 s of processor time per site and call.
            arrived = sum(sha256 in stored_hashes(self.site(name)) for name in self.sites)
            progress.pieces(arrived, len(self.sites))
            if arrived < len(self.sites):
                return None
            known = self._ask_sites("studies", "list")
            studies = {name: one for name in known for one in known[name] if one["sha256"] == sha256}
            return studies if len(studies) == len(self.sites) else None

        studies = _wait(received, running, PROPOSAL_LIMIT_S, self._who_is_ill)
        runs = sum(run["study_sha256"] == sha256 for run in self._ask_server("runs"))
        for name, state in ((name, one["state"]) for name, one in studies.items()):
            if state in ("refused", "revoked"):
                words = f"{SITE} studies approve {sha256[:12]} --site {self.site(name)} --by NAME"
                raise WardroundError(f"{name}: the study is {state} at this site; to approve it, run: {words}")
        undecided = [name for name, one in studies.items() if one["runs"] < runs]
        # All sites at once: the server may begin as soon as enough of them have approved.
        self._ask_sites("studies", "approve", sha256, "--runs", runs, "--yes", "--by", PERSON, sites=undecided)

    def watch(self, run: str, study: Study, running: list[Daemon], progress: RunProgress) -> None:
        """Follow the run to its end.

        Raises:
            WardroundError: If the run is stopped, a daemon ends, or there is no progress for longer than two rounds may
                take.
        """
        progress.stage(f"Training {study.study.rounds} rounds at {len(self.sites)} sites")
        limit_s = 2 * study.aggregation.round_deadline_s + BETWEEN_ROUNDS_S
        mark, moved, problem = None, time.monotonic(), None
        while True:
            facts = self._ask_server("show", run)
            progress.replies(facts["metrics"], facts["rounds"])
            if facts["state"] == "finished":
                return
            if facts["state"] == "stopped":
                raise WardroundError(f"server: the run {run} was stopped; `wardround-server resume` continues it")
            if facts["problem"] and facts["problem"] != problem:
                problem = facts["problem"]
                progress.warn(f"server, in phase {problem['phase']}: {problem['error']}")
            if mark != (facts["state"], facts["words"], facts["round"]):
                mark, moved = (facts["state"], facts["words"], facts["round"]), time.monotonic()
            if time.monotonic() - moved > limit_s:
                last = f"the server's last problem: {problem['error']}; " if problem else ""
                raise WardroundError(f"no round finished within {limit_s:.0f} s: {last}{self._who_is_ill()}")
            for daemon in running:
                daemon.check()
            time.sleep(LOOK_S)

    def status(self, run: str) -> str:
        """Return the two programs' output about the run and each site's ledger, as text."""
        shown = call("server", SERVER, "show", run, "--server", self.server, limit_s=ANSWER_LIMIT_S)
        words = {name: ("ledger", "show", "--site", self.site(name)) for name in self.sites}
        ledgers = call_all(SITE, words, limit_s=ANSWER_LIMIT_S)
        return "\n".join([shown, *(f"The ledger of {name}\n{said}" for name, said in ledgers.items())])

    def status_json(self, run: str) -> dict[str, Any]:
        """Return the run and the ledgers as JSON values, with the path of the folder."""
        return {
            "folder": str(self.folder),
            "run": self._ask_server("show", run),
            "ledgers": self._ask_sites("ledger", "show"),
        }

    def _parties(self) -> Iterator[tuple[str, str, str, Path]]:
        """Yield each daemon's name, its program, the option that names its folder, and the folder."""
        yield "server", SERVER, "--server", self.server
        for name in self.sites:
            yield name, SITE, "--site", self.site(name)

    def _ask_server(self, *words: object) -> Any:
        return asked("server", SERVER, *words, "--server", self.server, limit_s=ANSWER_LIMIT_S)

    def _ask_sites(self, *words: object, sites: Collection[str] | None = None) -> dict[str, Any]:
        """Run the same command at all sites, or at `sites`, concurrently; return the parsed JSON output by name."""
        chosen = self.sites if sites is None else sites
        questions = {name: (*words, "--site", self.site(name), "--json") for name in chosen}
        answers = call_all(SITE, questions, limit_s=ANSWER_LIMIT_S)
        return {name: json.loads(answer) for name, answer in answers.items()}

    def _who_is_ill(self) -> str:
        """Return one line with each daemon that is not serving, its first fault, and the place of the logs."""
        ill = []
        for name, program, option, folder in self._parties():
            said = call(name, program, "health", option, folder, "--json", limit_s=ANSWER_LIMIT_S, codes=(0, 1))
            nobody_answers = {"serving": False, "checks": []}  # the command exited with 1 and printed nothing
            health: dict[str, Any] = json.loads(said) if said else nobody_answers
            faults = [f"{check['name']} {check['found']}" for check in health["checks"] if check["state"] == "fault"]
            if not health["serving"]:
                ill.append(f"{name}: {faults[0] if faults else 'no reply'}")
        return f"{'; '.join(ill) or 'all daemons report that they are serving'}; logs: {self.folder}/*/logs/"

    def _ports(self) -> dict[str, tuple[Path, int]]:
        """Return "folder key" -> (configuration file, port) for all ports in the folders' configuration files."""
        found = {}
        for path in (self.server / SERVER_CONFIG, *(self.site(name) / CONFIG_FILE for name in self.sites)):
            if path.exists():
                section = toml_content(path).get("server", {})
                for key in ("fleet_port", "control_port", "runtime_port"):
                    if key in section:
                        found[f"{path.parent.name} {key}"] = (path, section[key])
        return found

    def _keep_ports(self) -> None:
        """Claim the ports in the configuration files, and replace those that have been taken in the meantime."""
        for name, (path, port) in self._ports().items():
            if not self.ports.claim(port):
                key, other = name.split()[1], self.ports.next()
                _set(path, {key: other})
                if key == "fleet_port":
                    for site in filter(Path.exists, (self.site(name) / CONFIG_FILE for name in self.sites)):
                        _set(site, {"address": f'"{LOOPBACK}:{other}"'})


def _set(path: Path, values: Mapping[str, object]) -> None:
    """Set the values of keys that a TOML file already contains."""
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    write_private(path, text.encode("utf-8"))


def _wait(what: Callable[[], T | None], running: list[Daemon], limit_s: float, complaint: Callable[[], str]) -> T:
    """Call `what` until its result is truthy, and return that result.

    Raises:
        WardroundError: If a daemon ends, or after `limit_s`; then the message includes the text from `complaint`.
    """
    ends = time.monotonic() + limit_s
    while not (found := what()):
        for daemon in running:
            daemon.check()
        if time.monotonic() > ends:
            raise WardroundError(f"timed out after {limit_s:.0f} s: {complaint()}")
        time.sleep(POLL_S)
    return found
