"""The round loop, independent of the transport: broadcast, check and fold the replies, step, checkpoint.

    each round: exchange -> check_update -> RunningMean -> step_server -> fold_release -> metrics -> checkpoint

An `Exchange` carries the messages to the sites: Flower's grid in `flower/exchange.py`, or plain function calls if
everything runs in one process. If a site is late, refuses, fails or sends something invalid, the round continues
without it and the outcome names it. A round with fewer than `min_sites` good replies ends the run with `RoundError`,
and the same call continues the run.

Each finished round is durable before the next one begins: its lines in metrics.jsonl, then its checkpoint (global
weights, FedAdam's moments, the released average, the round, the heads of the sites' ledgers). A killed run therefore
continues at the next round with bit-identical state. The heads that reveal whether a site's ledger went back are also
stored outside the run, in `sites/ledger_heads.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wardround.errors import ModelError, RoundError, UsageError, WireError
from wardround.storage.checkpoint import latest_checkpoint, save_checkpoint
from wardround.storage.folders import make_folder
from wardround.study.load import Study
from wardround.study.schema import AggregationSection
from wardround.wire.packets import (
    Broadcast,
    LedgerHead,
    SiteReply,
    check_names_and_shapes,
    check_update,
    payload_bytes,
    weights_sha256,
)
from wardround_server.rounds import aggregation
from wardround_server.rounds.aggregation import ReleaseState, RunningMean, ServerState, Weights
from wardround_server.runs.metrics_log import append_lines, trim_lines
from wardround_server.runs.paths import CHECKPOINTS, METRICS_FILE, ROUND_CHECKPOINT, ROUND_CHECKPOINTS
from wardround_server.sites.ledger_heads import LedgerHeads

KEPT_CHECKPOINTS = 3


class Exchange(Protocol):
    """The transport of one round's messages to the sites and of their replies.

    It yields one `SiteReply` for each site that it serves, in ascending order of site names, with the weights of one
    reply in memory at a time. A site that has not replied after `deadline_s` seconds is yielded with code "late". It
    never waits longer.
    """

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]: ...


@dataclass(frozen=True, kw_only=True)
class SiteRound:
    """The outcome of one site in one round.

    `code` is None for a reply that counted; `update_norm` is the norm of its change to the weights; `ledger_head` is
    the head of the site's ledger according to the reply; `reply_sha256` is the hash of the weights that counted.
    """

    site: str
    code: str | None
    seconds: float
    bytes_up: int
    bytes_down: int
    update_norm: float | None
    ledger_head: LedgerHead | None = None
    reply_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A finished round as passed to `on_round`, already durable. `weights` is the new global model (float32)."""

    round: int
    rounds: int
    sites: tuple[SiteRound, ...]
    weights: Weights
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A site that did not contribute to a round, and the code of the reason."""

    round: int
    site: str
    code: str


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """The result of a run. `weights` is the released model, `last_weights` the last global one; both are float32.

    Counters cover the whole run, across resumes; `seconds` is the time spent in rounds. `ledger_heads` is the head of
    each site's ledger in its last good reply.
    """

    weights: Weights
    last_weights: Weights
    rounds_completed: int
    sites: tuple[str, ...]
    missing: tuple[Missing, ...]
    bytes_up: int
    bytes_down: int
    seconds: float
    ledger_heads: Mapping[str, LedgerHead]


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """The state that is carried from round to round, which is the content of a checkpoint."""

    round: int
    server: ServerState
    release: ReleaseState
    sites: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    ledger_heads: Mapping[str, LedgerHead] = field(default_factory=dict)


def run_rounds(
    study: Study,
    run_id: str,
    architecture_sha256: str,
    start_weights: Weights,
    exchange: Exchange,
    folder: Path | None,
    on_round: Callable[[RoundRecord], None] | None = None,
    warn: Callable[[str], None] | None = None,
    on_reply: Callable[[int, SiteRound], object] | None = None,
    ledgers: LedgerHeads | None = None,
) -> RunOutcome:
    """Run a study's rounds, or the remaining ones if `folder` has checkpoints of this run already.

    Args:
        study: The study.
        run_id: The run's id.
        architecture_sha256: The hash of the network's architecture.
        start_weights: The exchanged parameters by name, float32. A checkpoint replaces their values, but must match
            their names and shapes.
        exchange: The exchange with the sites.
        folder: Where checkpoints/ (the last three) and metrics.jsonl (one line per round and site) are written; None
            writes nothing.
        on_round: Called with each finished round.
        warn: Called with one line for each damaged checkpoint that was skipped.
        on_reply: Called with the round and each site's outcome as it is processed, before the round's lines and
            checkpoint are stored. If it raises, the round is not stored.
        ledgers: The ledger heads seen in all runs of this server; without it, those of `folder`.

    Raises:
        RoundError: A round misses its quorum.
        UsageError: The folder belongs to another study or run.
        ModelError: The checkpoints do not fit or cannot be read.
        WardroundError: The disk is full.
    """
    settings, rounds = study.aggregation, study.study.rounds
    ledgers = ledgers or LedgerHeads(folder)
    identity = {"study_sha256": study.sha256(), "run_id": run_id, "architecture_sha256": architecture_sha256}
    progress = None
    if folder is not None:
        progress = _resume(folder, identity, start_weights, warn or (lambda line: None))
        trim_lines(folder / METRICS_FILE, last_round=progress.round if progress else 0)
    if progress is None:
        server = aggregation.start_server(settings, start_weights)
        progress = _Progress(round=0, server=server, release=aggregation.start_release(settings, start_weights))
        _save(folder, identity, progress)
    ledgers.take_over(progress.ledger_heads)
    while progress.round < rounds:
        progress, record = _one_round(
            study, identity, progress, exchange, folder, on_reply or (lambda number, line: None), ledgers
        )
        _save(folder, identity, progress)
        if on_round is not None:
            on_round(record)
    return _outcome(settings, progress)


def _one_round(
    study: Study,
    identity: dict[str, str],
    progress: _Progress,
    exchange: Exchange,
    folder: Path | None,
    on_reply: Callable[[int, SiteRound], object],
    ledgers: LedgerHeads,
) -> tuple[_Progress, RoundRecord]:
    settings, number = study.aggregation, progress.round + 1
    broadcast = Broadcast(**identity, round=number, weights=progress.server.weights)
    started = time.monotonic()
    mean, sites = RunningMean(progress.server.weights), []
    for reply in exchange(broadcast, settings.round_deadline_s):
        sites.append(_take(reply, broadcast, settings, mean, ledgers))
        on_reply(number, sites[-1])
        del reply  # otherwise it would stay in memory while the next one arrives
    seconds = time.monotonic() - started
    lines = tuple(sites)
    if folder is not None:
        append_lines(folder / METRICS_FILE, [{"round": number, **asdict(line)} for line in lines])
    heads = dict(progress.ledger_heads)
    heads |= {line.site: line.ledger_head for line in lines if line.code is None and line.ledger_head is not None}
    try:
        _require_quorum(number, lines, settings.min_sites or settings.nominal_sites)
    except RoundError:  # the round does not count, but the ledger heads that its sites reported are kept
        _save(folder, identity, replace(progress, ledger_heads=heads))
        raise
    server = aggregation.step_server(settings, progress.server, mean.mean())
    release = aggregation.fold_release(settings, study.study.rounds, progress.release, number, server.weights)
    missing = tuple(Missing(round=number, site=line.site, code=line.code) for line in lines if line.code is not None)
    after = replace(
        progress,
        round=number,
        server=server,
        release=release,
        sites=tuple(sorted({*progress.sites, *(line.site for line in lines)})),
        missing=progress.missing + missing,
        bytes_up=progress.bytes_up + sum(line.bytes_up for line in lines),
        bytes_down=progress.bytes_down + sum(line.bytes_down for line in lines),
        seconds=progress.seconds + seconds,
        ledger_heads=heads,
    )
    weights, rounds = server.weights, study.study.rounds
    return after, RoundRecord(round=number, rounds=rounds, sites=lines, weights=weights, seconds=seconds)


def _take(
    reply: SiteReply, broadcast: Broadcast, settings: AggregationSection, mean: RunningMean, ledgers: LedgerHeads
) -> SiteRound:
    """Check one reply and fold it in, or return the code of the reason why it does not count.

    The reply is not kept. A later head of the site's ledger is stored even if the weights are refused, because the
    ledger has reached it either way.
    """
    code, norm, sha256 = reply.code, None, None
    if reply.weights is not None and code is None:
        weight = aggregation.site_weight(settings, reply.site)
        try:
            ledgers.take(reply.site, reply.ledger_head, reply.ledger_recent)
            norm = check_update(reply.weights, broadcast.weights, settings.max_update_norm)
            sha256 = weights_sha256(reply.weights)
            mean.fold(reply.site, reply.weights, weight)
        except WireError as error:
            code = f"invalid:{error.code}"
    elif code is None:
        code = "failed"
    return SiteRound(
        site=reply.site,
        code=code,
        seconds=round(reply.seconds, 3),
        bytes_up=reply.bytes_up,
        bytes_down=payload_bytes(broadcast.weights),
        update_norm=norm,
        ledger_head=reply.ledger_head,
        reply_sha256=sha256 if code is None else None,
    )


def _require_quorum(number: int, lines: tuple[SiteRound, ...], min_sites: int) -> None:
    absent = [line for line in lines if line.code is not None]
    present = len(lines) - len(absent)
    if present >= min_sites:
        return
    named = ", ".join(f"{line.site} ({line.code})" for line in absent) or "no other site is connected"
    raise RoundError(
        f"round {number}: {present} valid replies, but aggregation.min_sites is {min_sites}; missing: {named}. "
        "Fix those sites and start the same run again: it continues with this round"
    )


def _outcome(settings: AggregationSection, progress: _Progress) -> RunOutcome:
    last = progress.server.weights
    return RunOutcome(
        weights=aggregation.released_weights(settings, progress.release, last),
        last_weights=last,
        rounds_completed=progress.round,
        sites=progress.sites,
        missing=progress.missing,
        bytes_up=progress.bytes_up,
        bytes_down=progress.bytes_down,
        seconds=progress.seconds,
        ledger_heads=progress.ledger_heads,
    )


def _save(folder: Path | None, identity: dict[str, str], progress: _Progress) -> None:
    """Write the checkpoint of a round, then delete the oldest beyond `KEPT_CHECKPOINTS`."""
    if folder is None:
        return
    groups = {
        "weights": progress.server.weights,
        "first_moment": progress.server.first_moment,
        "second_moment": progress.server.second_moment,
        "release": progress.release.total,
    }
    tensors = {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    manifest: dict[str, Any] = {
        "kind": "round",
        **identity,
        "round": progress.round,
        "release_count": progress.release.count,
        "sites": progress.sites,
        "missing": [asdict(missing) for missing in progress.missing],
        "bytes_up": progress.bytes_up,
        "bytes_down": progress.bytes_down,
        "seconds": round(progress.seconds, 3),
        "ledger_heads": {site: asdict(head) for site, head in progress.ledger_heads.items()},
    }
    checkpoints = folder / CHECKPOINTS
    make_folder(checkpoints)
    save_checkpoint(checkpoints / ROUND_CHECKPOINT.format(progress.round), tensors, manifest)
    for old in sorted(checkpoints.glob(ROUND_CHECKPOINTS))[:-KEPT_CHECKPOINTS]:
        old.unlink(missing_ok=True)


def _resume(
    folder: Path, identity: dict[str, str], start_weights: Weights, warn: Callable[[str], None]
) -> _Progress | None:
    """Return the progress of an earlier call in this folder, or None.

    Raises `UsageError` if the folder belongs to another study, run or architecture, and `ModelError` if its checkpoint
    does not fit the network.
    """
    checkpoints = folder / CHECKPOINTS
    found = latest_checkpoint(checkpoints, warn) if checkpoints.is_dir() else None
    if found is None:
        return None
    manifest, path = found.manifest, found.path
    for key, name in (("study_sha256", "study"), ("run_id", "run"), ("architecture_sha256", "architecture")):
        if manifest.get(key) != identity[key]:
            raise UsageError(f"{folder}: contains checkpoints of another {name}; choose another output folder")
    groups: dict[str, Weights] = {"weights": {}, "first_moment": {}, "second_moment": {}, "release": {}}
    for key, array in found.tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = np.array(array)
    try:
        check_names_and_shapes(groups["weights"], start_weights)
    except WireError as error:
        raise ModelError(f"{path}: does not fit the study's network: {error}") from None
    return _Progress(
        round=manifest["round"],
        server=ServerState(
            weights=groups["weights"], first_moment=groups["first_moment"], second_moment=groups["second_moment"]
        ),
        release=ReleaseState(total=groups["release"], count=manifest["release_count"]),
        sites=tuple(manifest["sites"]),
        missing=tuple(Missing(**missing) for missing in manifest["missing"]),
        bytes_up=manifest["bytes_up"],
        bytes_down=manifest["bytes_down"],
        seconds=manifest["seconds"],
        ledger_heads={site: LedgerHead(**head) for site, head in manifest.get("ledger_heads", {}).items()},
    )
