"""What one Flower run does for a run of ours: ask the sites for their word, or train. Both end by themselves.

A phase gets a `Federation` (who is there, and the way to them) and a run's folder, and leaves everything it learned in
that folder. So it can be killed at any moment, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wardround.errors import ModelError, RoundError
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.storage.json_numbers import json_number
from wardround.study.load import Study
from wardround.tasks.registry import release_part
from wardround.wire.evaluation import SiteRelease
from wardround.wire.packets import Broadcast, SiteReply
from wardround_server.rounds.evaluation import SitesExchange, federated_test
from wardround_server.rounds.loop import RunOutcome, run_rounds
from wardround_server.runs.audit import RunRecord
from wardround_server.runs.folder import RunFolder, quorum, write_json
from wardround_server.runs.paths import MODEL_FILE, RESULT_FILE, START_FILE, STUDY_FILE
from wardround_server.sites.ledger_heads import LedgerHeads

ASK_LIMIT_S = 60.0
GATHER_LIMIT_S = 45.0  # a node that was killed is back after about a minute; a round does not wait much longer for one
# Those who have not decided may join a run that is at work: the first pause before they are asked, and the last.
ASK_AGAIN_SOON_S, ASK_AGAIN_S = 15.0, 300.0
LOOK_S = 1.0
START_LIMIT_S = 300.0
STOPPED = "the operator stopped the run"


class Federation(Protocol):
    """The sites as a phase sees them."""

    def online(self) -> Mapping[str, int]:
        """Name -> node of the registered sites that are connected now."""

    def propose(self, study: Study, sites: Collection[str], limit_s: float) -> dict[str, str]:
        """Put a study before those of `sites` that are connected; name -> their word, or a code; `limit_s` at most."""

    def exchange(self, directory: Mapping[str, int | None]) -> SitesExchange:
        """The way to these sites; None for one that is not connected."""


def ask(run: RunFolder, federation: Federation) -> None:
    """Put the run's study before all sites that are connected, and keep what they say."""
    with run.phase("propose"):
        study = run.study()
        RunRecord(run, study).heard(federation.propose(study, federation.online().keys(), ASK_LIMIT_S))


def train(run: RunFolder, federation: Federation) -> None:
    """Train the run to its end with the sites that approved it, from its last checkpoint, and write its result."""
    with run.phase("train"):
        if run.state() == "finished":  # a phase that was ordered twice: the first one did it all
            return
        study = run.study()
        network, manifest = start_of(run, study)
        start = {name: network[name] for name in manifest["exchanged"]}
        architecture = manifest["architecture_sha256"]
        way, record = Gathering(run, federation, quorum(study)), RunRecord(run, study)
        heads = LedgerHeads(run.server)
        outcome = run_rounds(
            study, run.run_id, architecture, start, way, run.path, on_reply=record.replied, ledgers=heads
        )
        figures = federated_test(study, run.run_id, architecture, outcome.weights, way, record.released, heads)
        result = result_of(study, run.run_id, architecture, outcome, figures)
        released, choice = release_part(study.study.task).released_weights(figures, outcome.weights, start)
        result |= choice
        save_model(run.path / MODEL_FILE, network, released, study, result)
        record.finished(hashlib.sha256((run.path / MODEL_FILE).read_bytes()).hexdigest())
        write_json(run.path / RESULT_FILE, result)


class Gathering:
    """The exchange over the sites that approved, gathered anew for every question: sites come and go between rounds.

    It waits for all of them, but not for ever; who is not there then is named as unreachable.
    """

    def __init__(self, run: RunFolder, federation: Federation, needed: int) -> None:
        self._run = run
        self._federation = federation
        self._needed = needed
        # After a phase without success at once: those who approved may never make a quorum, however often they try.
        self._asked = -math.inf if run.problem() else time.monotonic()
        self._pause_s = ASK_AGAIN_SOON_S

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        return self._federation.exchange(self._gather(deadline_s))(broadcast, deadline_s)

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        """The question about figures; see `evaluation`."""
        return self._federation.exchange(self._gather(deadline_s)).ask_for_figures(question, bins, deadline_s)

    def _gather(self, deadline_s: float) -> dict[str, int | None]:
        self._ask_again()
        began = time.monotonic()
        while True:
            if self._run.is_stopped:
                raise RoundError(STOPPED)
            approved, online = self._run.approved(), self._federation.online()
            directory = {site: online.get(site) for site in approved}
            there = sum(node is not None for node in directory.values())
            limit_s = GATHER_LIMIT_S if there >= self._needed else max(deadline_s, GATHER_LIMIT_S)
            if there == len(approved) or time.monotonic() - began > limit_s:
                return directory
            time.sleep(LOOK_S)

    def _ask_again(self) -> None:
        """Ask those who have not decided, between two rounds and now and then: sites may join later."""
        if time.monotonic() - self._asked < self._pause_s:
            return
        decided = {site for site, said in self._run.approvals().items() if said.state in ("approved", "refused")}
        if undecided := self._federation.online().keys() - decided:
            study = self._run.study()
            RunRecord(self._run, study).heard(self._federation.propose(study, undecided, ASK_LIMIT_S))
        self._asked, self._pause_s = time.monotonic(), min(2 * self._pause_s, ASK_AGAIN_S)


def start_of(run: RunFolder, study: Study) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    """The network before training and its manifest, made once for a run by a process of its own: torch stays out of
    this one. Raises `ModelError` where it cannot be made.
    """
    path = run.path / START_FILE
    if not path.is_file():
        command = [
            sys.executable,
            "-I",
            "-m",
            "wardround.networks.initial_weights",
            str(run.path / STUDY_FILE),
            str(path),
        ]
        _make_start(run, command)
    tensors, manifest = load_checkpoint(path)
    if manifest.get("kind") != "start" or manifest.get("study_sha256") != study.sha256():
        raise ModelError(f"{path}: are not the initial weights of this study; restore the run's folder from a backup")
    return tensors, manifest


def _make_start(run: RunFolder, command: list[str]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ends = time.monotonic() + START_LIMIT_S
    try:
        while True:
            try:
                _, said = process.communicate(timeout=LOOK_S)
                break
            except subprocess.TimeoutExpired:
                if run.is_stopped:
                    raise RoundError(STOPPED) from None
                if time.monotonic() > ends:
                    why = f"it took longer than {START_LIMIT_S:.0f} s"
                    raise ModelError(f"the study's initial weights cannot be created: {why}") from None
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        why = (said.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"the study's initial weights cannot be created: {why}")


def result_of(
    study: Study, run_id: str, architecture: str, outcome: RunOutcome, figures: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of result.json, schema 1, with what a real server knows: no patient counts and no ledgers, but how
    far each site said that its ledger had come.
    """
    privacy = study.privacy
    result = {
        "schema": 1,
        "status": "finished",
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run_id": run_id,
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "architecture_sha256": architecture,
        "rounds_completed": outcome.rounds_completed,
        "missing": [asdict(one) for one in outcome.missing],
        "privacy": {
            "unit": "patient",
            "relation": "add or remove one",
            "epsilon_promised": json_number(privacy.epsilon),
            "delta": privacy.delta,
            "sampling_rate": privacy.sampling_rate,
            "max_grad_norm": json_number(privacy.max_grad_norm),
        },
        "sites": {
            site: {"ledger": asdict(outcome.ledger_heads[site]) if site in outcome.ledger_heads else None}
            for site in outcome.sites
        },
        "bytes": {"up": outcome.bytes_up, "down": outcome.bytes_down},
        "seconds": {"rounds": round(outcome.seconds, 1)},
    }
    return result if figures is None else {**result, "federated_test": figures}


def save_model(
    path: Path,
    network: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    study: Study,
    result: Mapping[str, Any],
) -> None:
    """The whole network with the released weights, and what it is, as `wardround-sim run` writes it."""
    manifest = {
        "kind": "model",
        "study": study.study.name,
        "study_sha256": result["study_sha256"],
        "architecture_sha256": result["architecture_sha256"],
        "trainable": study.model.trainable,
        **({"released": result["released"]} if "released" in result else {}),
        **release_part(study.study.task).manifest(study),
        "privacy": result["privacy"],
    }
    tensors = {**network, **{name: np.asarray(array).reshape(network[name].shape) for name, array in weights.items()}}
    save_checkpoint(path, tensors, manifest)
