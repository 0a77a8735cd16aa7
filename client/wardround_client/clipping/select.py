"""Choice of the clipping engine for a network: by a rule without timing, or by a short trial whose result is kept.

Engines differ in speed and in the last bits of their sums, never in the guarantee. Timing is measured at most once, so
that a repeated computation gives the same bits:

- Without a bound (C = inf) and for a head over frozen features there is only one engine, and no trial.
- A site with an `EngineMemory` times the candidates when it first opens a study with such a network, on synthetic
  images, and keeps the winner's name. Every later process of the site reads it (the first to write wins).
- Without an `EngineMemory` (the sites of `in_process`) the rule decides: book-keeping if every layer has a rule, else
  the loop.

The chosen engine is proved: against the loop, place by place if it works in groups, and under adversarial weights. The
proof is repeated whenever a study is opened or, with `EngineMemory.proofs`, done once for all the processes that share
that folder, which is as long as a site's daemon runs. If the engine fails or does not support the network, the site
falls back to the loop, which is proved as well, and logs the reason in one line. If the loop fails too, the site does
not train.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wardround.errors import ModelError, WardroundError
from wardround.networks.fingerprint import architecture_sha256
from wardround.storage.atomic import owner_only
from wardround.storage.folders import make_folder
from wardround_client.clipping.bookkeeping import (
    GROUP_IMAGES,
    Precision,
    SpeedSettings,
    clip_by_bookkeeping,
    trained_layers,
)
from wardround_client.clipping.engines import (
    ClippingEngine,
    LossPerRow,
    PatientBatch,
    check_engine,
    clip_by_loop,
    clip_linear_head,
    sum_unclipped,
    synthetic_units,
)
from wardround_client.clipping.hostile_weights import check_hostile_weights, set_weights, weights_restored
from wardround_client.clipping.places import places_agree
from wardround_client.privacy.plan import PrivacyPlan

LOOP = "loop"
IMAGES_OF_A_UNIT = 4  # assumed if patients contribute all of their images
TIMED_ROUNDS = 2
SMALLEST_GROUP, LARGEST_GROUP = 4, 32  # images
WORTH_IT = 0.9  # the rule's engine is kept unless another takes less than this share of its time
REDUCED_TOLERANCE = 0.3  # of bfloat16 against float32; the engine's arithmetic is proved in float32

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Folders in which a site keeps results about engines.

    Attributes:
        choices: The fastest engine for each network, kept permanently.
        proofs: The engines that agreed with the loop, for one study and one start of the daemon.
    """

    choices: Path
    proofs: Path | None = None

    def proof(self, engine: str, key: str) -> Path | None:
        """Return the path of the file that exists once `engine` was proved under the conditions of `key`.

        Returns None without a folder of proofs.
        """
        name = hashlib.sha256(f"{engine} {key}".encode()).hexdigest()[:16]
        return self.proofs / name if self.proofs is not None else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Synthetic images of the study's shape, 7 or more, on which engines are checked and timed."""

    images_N: Tensor
    outputs: int
    images_per_unit: int | None  # None: all of a patient's images

    def batch(self, images: int) -> PatientBatch:
        """Return a batch of as many units as `images` images make, two or more."""
        k = self.images_per_unit or IMAGES_OF_A_UNIT
        return synthetic_units(self.images_N, self.outputs, (k,) * max(2, images // k))


def engine_for(
    network: nn.Module,
    max_grad_norm: float,
    speed: SpeedSettings = SpeedSettings(),  # noqa: B008 (frozen)
) -> ClippingEngine:
    """Choose the engine by rule, without timing, for the parameters that require a gradient.

    The rule: no clipping without a bound, the closed form for a linear head, book-keeping if every layer has a rule,
    else the loop.
    """
    if math.isinf(max_grad_norm):
        return sum_unclipped
    if isinstance(network, nn.Linear):
        return clip_linear_head
    try:
        trained_layers(network, {name: p for name, p in network.named_parameters() if p.requires_grad})
    except WardroundError as error:
        _say_loop(error)
        return _loop(speed)
    return functools.partial(clip_by_bookkeeping, speed=speed)


def checked_engine(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    sample: Sample,
    max_grad_norm: float,
    *,
    speed: SpeedSettings = SpeedSettings(),  # noqa: B008 (frozen)
    memory: EngineMemory | None = None,
) -> ClippingEngine:
    """Return the proved engine of a study at a site.

    It is the choice of `engine_for` or, with `memory`, the fastest engine in the trial.

    Raises:
        WardroundError: Even the simple engines fail.
    """
    engine = engine_for(network, max_grad_norm, speed)
    key = "" if memory is None else _key(network, parameters, sample, speed)
    if getattr(engine, "func", None) is not clip_by_bookkeeping:
        simple = getattr(engine, "func", engine).__name__
        with _proved_once(memory.proof(f"{simple} {max_grad_norm}", key) if memory else None) as missing:
            if missing:
                _prove(engine, network, parameters, loss_per_row, sample, max_grad_norm)
        return engine
    candidates = candidates_of(speed)
    names = [next(iter(candidates))]
    if memory is not None:
        path = memory.choices / f"engine-{key}.json"
        chosen = _remembered(path, network, parameters, loss_per_row, sample, candidates)
        names = list(dict.fromkeys([chosen, *names]))  # the rule's engine follows in case the chosen one fails
    for name in names:
        try:
            with _proved_once(memory.proof(f"{name} {max_grad_norm}", key) if memory else None) as missing:
                if missing:
                    _prove(candidates[name], network, parameters, loss_per_row, sample, max_grad_norm)
            return candidates[name]
        except (WardroundError, RuntimeError) as error:
            reason = error
    _say_loop(reason)
    engine = _loop(speed)
    _prove(engine, network, parameters, loss_per_row, sample, max_grad_norm)
    return engine


def _prove(
    engine: ClippingEngine,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    sample: Sample,
    max_grad_norm: float,
) -> None:
    """Check an engine against the loop, its places against each other, and its bound under adversarial weights.

    Raises:
        WardroundError: A check failed.
    """
    speed = None
    if isinstance(engine, functools.partial) and engine.func is clip_by_bookkeeping:
        speed = engine.keywords["speed"]
    k = speed.images_per_unit if speed is not None else None
    check = functools.partial(
        check_engine,
        network=network,
        parameters=parameters,
        loss_per_row=loss_per_row,
        inputs_N=sample.images_N,
        outputs=sample.outputs,
        max_grad_norm=max_grad_norm,
        images_per_unit=k,
    )
    with weights_restored(parameters):
        set_weights("random", network, parameters, sample.images_N)  # an initial head of zeros would prove nothing
        if speed is not None and speed.precision != "float32":
            plain = replace(speed, precision="float32", channels_last=False)
            check(functools.partial(clip_by_bookkeeping, speed=plain))
            check(engine, tolerance=REDUCED_TOLERANCE)
        else:
            check(engine)
    if speed is not None and not places_agree(network, parameters, loss_per_row, sample.images_N, speed):
        raise WardroundError("on this device the rounding of a patient's images depends on their position in the batch")
    if math.isfinite(max_grad_norm):
        arguments = (network, parameters, loss_per_row, sample.images_N, sample.outputs, max_grad_norm)
        check_hostile_weights(engine, *arguments, images_per_unit=k)


def speed_of(
    plan: PrivacyPlan, precision: Precision, images_at_once: int, largest_group: int | None = None
) -> SpeedSettings:
    """Return how a study's steps are computed, from public numbers.

    A group holds about half of the images that a step expects, so that padding the last group wastes little, and
    `largest_group` at most (`LARGEST_GROUP` if it is None).

    A patient with more images than a group is processed in passes of a group's size too. A group is run at start-up, so
    no patient needs more memory in a pass than was tried before any patient's data were read.
    """
    expected = plan.expected_patients * (plan.images_per_patient or IMAGES_OF_A_UNIT) / 2
    images = min(largest_group or LARGEST_GROUP, max(SMALLEST_GROUP, 1 << int(math.log2(max(1.0, expected)))))
    group = min(images, 1 << int(math.log2(max(1, images_at_once))))  # whole vectors of numbers, or a part of one
    return SpeedSettings(
        precision=precision,
        images_at_once=group,
        group_images=group,
        images_per_unit=plan.images_per_patient,
    )


@contextmanager
def _proved_once(proof: Path | None) -> Iterator[bool]:
    """Yield whether a proof is missing; record the proof if the block ends without an exception."""
    missing = proof is None or not proof.exists()
    yield missing
    if missing and proof is not None:
        make_folder(proof.parent)
        proof.touch(mode=0o600)


def candidates_of(speed: SpeedSettings) -> dict[str, ClippingEngine]:
    """Return the engines for a network whose layers all have rules, by name; the first is the rule's choice."""
    found: dict[str, ClippingEngine] = {
        f"book-keeping{', channels last' if last else ''}": functools.partial(
            clip_by_bookkeeping, speed=replace(speed, channels_last=last)
        )
        for last in (False, True)
    }
    return found | {LOOP: _loop(speed)}


def _remembered(
    path: Path,
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    sample: Sample,
    candidates: dict[str, ClippingEngine],
) -> str:
    """Return the engine's name in the file at `path`.

    If the file has no valid name, the candidates are timed and the fastest one is written first.
    """
    name = _name_in(path, candidates)
    if name is not None:
        return name
    seconds = _trial(network, parameters, loss_per_row, sample, candidates)
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # not `write_file`: the first process's choice is kept
    with open(partial, "w", encoding="utf-8", opener=owner_only) as file:
        file.write(json.dumps({"engine": _winner(seconds), "seconds": seconds}) + "\n")
    try:
        os.link(partial, path)  # if another process of this site was first, its choice is kept
    except FileExistsError:
        if _name_in(path, candidates) is None:
            os.replace(partial, path)
    partial.unlink(missing_ok=True)
    return _name_in(path, candidates) or next(iter(candidates))


def _winner(seconds: dict[str, float]) -> str:
    """Return the fastest engine, or the first one (the rule's choice) if that is nearly as fast."""
    first, fastest = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return fastest if seconds[fastest] < WORTH_IT * seconds[first] else first


def _name_in(path: Path, candidates: dict[str, ClippingEngine]) -> str | None:
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if name in candidates else None


def _trial(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    sample: Sample,
    candidates: dict[str, ClippingEngine],
) -> dict[str, float]:
    """Return the seconds that each candidate takes for a batch: the best of `TIMED_ROUNDS`, after one untimed round.

    The candidates take turns. An engine that raises is excluded; if the loop raises, the error propagates.
    """
    batch, best = sample.batch(GROUP_IMAGES), dict.fromkeys(candidates, math.inf)
    one_thread = torch.get_num_threads() == 1 and not batch.inputs_N.is_cuda
    clock = time.thread_time if one_thread else time.perf_counter  # thread time: other programs do not affect it
    failed: set[str] = set()
    for turn in range(TIMED_ROUNDS + 1):
        for name, engine in candidates.items():
            if name in failed:
                continue
            started = clock()
            try:
                engine(network, parameters, batch, loss_per_row, 1.0)
            except (WardroundError, RuntimeError):
                if name == LOOP:  # the network itself does not train
                    raise
                failed.add(name)
                continue
            if batch.inputs_N.is_cuda:
                torch.cuda.synchronize(batch.inputs_N.device)
            if turn > 0:
                best[name] = min(best[name], clock() - started)
    return {name: seconds for name, seconds in best.items() if name not in failed}


def _key(network: nn.Module, parameters: dict[str, nn.Parameter], sample: Sample, speed: SpeedSettings) -> str:
    """Return a hash of the facts on which choice and proof depend.

    These are the architecture, the trained parameters, the image shape, the settings, the device, the threads and the
    version of torch.
    """
    try:
        architecture = architecture_sha256(network)
    except ModelError:  # a network that is not in the registry
        architecture = f"{network} {[(name, tuple(p.shape)) for name, p in network.named_parameters()]}"
    device = sample.images_N.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} {torch.get_num_threads()}"
    shape = tuple(sample.images_N.shape[1:])
    content = (architecture, sorted(parameters), shape, sample.images_per_unit, machine, torch.__version__, speed)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _loop(speed: SpeedSettings) -> ClippingEngine:
    return functools.partial(clip_by_loop, images_at_once=speed.images_at_once)


def _say_loop(reason: Exception) -> None:
    """Log that the loop is used, in one line even if torch's message is longer."""
    first = str(reason).partition("\n")[0]
    log.warning("clipping: %s; patients are computed one at a time instead, which is correct but slower", first)
