"""One training round at one site: admit, reserve, train, settle, record, reply.

No data are read before the ledger holds the whole study's budget. The attempt is on disk before training starts. The
reply's bytes are on disk, settled and in the audit log before they are returned. If the same round is requested twice,
the site returns the same bytes; it trains and charges the round once.

A `RefusedError` or `WireError` carries a code that may be sent to a peer; no other detail of an error leaves the site.
Once the attempt is charged, an error caused by patients' data never becomes a code: the round is computed again as at a
site without patients (`answer_as_empty_on_error`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from torch import nn

from wardround.errors import LedgerError, PolicyRefusal, WireError
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import check_personalisation, trained_parameters
from wardround.study.load import Study
from wardround.wire.packets import Answer, Broadcast, weights_sha256
from wardround.wire.protocol import TRAIN
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.rounds.audit import record_release, refusals_recorded
from wardround_client.site.site import Site, Weights
from wardround_client.training.batches import Material, SpeedPlan
from wardround_client.training.rows import empty_material
from wardround_client.training.train import plan_speed, train

REPLIES_KEPT = 4  # a server repeats requests for the last round only; keeping a few more costs little

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """An admitted study: its privacy plan, a network of the approved architecture, and its speed plan."""

    study: Study
    plan: PrivacyPlan
    network: nn.Module
    architecture_sha256: str
    speed: SpeedPlan


def answer(broadcast: Broadcast, site: Site) -> Answer:
    """Train one round; return the new weights and the ledger's head.

    The weights are float32 and have the names and shapes received.

    Raises:
        PolicyRefusal, BudgetRefusal, WireError: The request is refused, with a code for the server.
        WardroundError: Something failed at this site.
    """
    with refusals_recorded(broadcast, site):
        study = site.study_of(broadcast.study_sha256)
        admitted = admit(broadcast, site, rounds=range(1, study.study.rounds + 1))
        # A killed run's worker may still be training this round when the next run requests it. The lock ensures that
        # this makes one attempt, not two.
        with site.exclusive():
            site = site.with_current_rules()
            site.study_of(broadcast.study_sha256)  # the approval may have been revoked during the wait
            weights = _reply(broadcast, admitted, site)
            head, recent = site.ledger.shown()
            return Answer(weights=weights, head=head, recent=recent)


def _reply(broadcast: Broadcast, admitted: Admitted, site: Site) -> Weights:
    study_sha256, run, received = broadcast.study_sha256, broadcast.run_id, weights_sha256(broadcast.weights)
    settled = site.ledger.settled(study_sha256, run, broadcast.round, received)
    if settled is not None:
        reply = settled_reply(site, settled.id, settled.reply_sha256)
        record_release(broadcast, site, TRAIN, weights_sha256(reply), again=True)
        return reply
    attempt = site.ledger.reserve(study_sha256, run, broadcast.round, received, cap=site.cap)
    reply = answer_as_empty_on_error(
        broadcast,
        lambda: _trained(broadcast, admitted, site, _material(site, admitted.study, study_sha256)),
        lambda: _trained_on_nobody(broadcast, admitted, site),
    )
    if not all(np.isfinite(array).all() for array in reply.values()):
        # Noised weights are released unchanged or not at all. Divergence is caused by the study's settings, whatever
        # the patients' data are.
        raise WireError("not-finite", "training diverged: the weights are not finite; the learning rate is too high")
    site.replies[attempt] = reply
    site.ledger.settle(attempt, weights_sha256(reply))
    record_release(broadcast, site, TRAIN, weights_sha256(reply), again=False)
    for old in site.ledger.attempts(study_sha256, run)[:-REPLIES_KEPT]:
        site.replies.pop(old.id, None)
    return reply


def answer_as_empty_on_error(
    question: Broadcast, with_patients: Callable[[], T], without_patients: Callable[[], T]
) -> T:
    """Return `with_patients()` or, if that raises an `Exception`, `without_patients()`.

    Called after the attempt was charged. An error code instead of a reply would be an answer without noise: it would
    reveal whether the site has a patient whose data cause the error. Every `Exception` is therefore handled alike,
    including a `MemoryError` or `OSError` that the machine may have caused: it is recorded in full in the site's own
    log, and the same attempt is answered with noise alone. An error that `without_patients()` raises propagates, and so
    do exceptions that end the process or the round (`KeyboardInterrupt`, `SystemExit`, `OutOfTime`).
    """
    try:
        return with_patients()
    except Exception:
        log.exception(
            "round %s: training failed with this site's patients; the round is charged, and the reply is noise only, "
            "like that of a site without patients; fix the error in the traceback before the next round",
            question.round,
        )
    return without_patients()  # outside the handler, which would keep the failed attempt's memory alive


def _trained(broadcast: Broadcast, admitted: Admitted, site: Site, material: Material) -> Weights:
    began = time.monotonic()
    reply = train(
        admitted.study,
        admitted.plan,
        admitted.network,
        broadcast.weights,
        material,
        broadcast.round,
        site.randomness,
        site.device,
        admitted.speed,
    )
    log.info("round %s: trained in %.2f s", broadcast.round, time.monotonic() - began)
    return reply


def _trained_on_nobody(broadcast: Broadcast, admitted: Admitted, site: Site) -> Weights:
    admitted = with_new_network(broadcast.study_sha256, admitted, site)
    return _trained(broadcast, admitted, site, empty_material(admitted.study, site.device))


def with_new_network(study_sha256: str, admitted: Admitted, site: Site) -> Admitted:
    """Return `admitted` with a newly built network, which later rounds use as well.

    A network whose computation failed may keep hooks or a changed mode.
    """
    new = replace(admitted, network=initial_network(admitted.study))
    site.admitted[study_sha256] = new
    return new


def admit(broadcast: Broadcast, site: Site, rounds: range) -> Admitted:
    """Check everything that can be refused without reading an image, and hold the study's budget.

    The checks, in this order: study, source of randomness, architecture, round number (one of `rounds`), weights,
    number of runs, budget.

    Raises:
        PolicyRefusal, BudgetRefusal, WireError: A check failed.
    """
    study = site.study_of(broadcast.study_sha256)
    if not site.randomness.secret and not site.cap.allow_no_privacy:
        raise PolicyRefusal("known_randomness", "known randomness is only for tests; this site has patients")
    admitted = site.admitted.get(broadcast.study_sha256)
    if not isinstance(admitted, Admitted):
        admitted = open_study(study, site)
        site.admitted[broadcast.study_sha256] = admitted
    if broadcast.architecture_sha256 != admitted.architecture_sha256:
        raise PolicyRefusal("architecture", "the server's network differs from the one in this study")
    if broadcast.round not in rounds:
        raise PolicyRefusal("round", f"round {broadcast.round} is not allowed for this kind of request in this study")
    expected = {name: tuple(p.shape) for name, p in trained_parameters(admitted.network, study).items()}
    got = {name: array.shape for name, array in broadcast.weights.items()}
    if got != expected:
        raise WireError(
            "names" if got.keys() != expected.keys() else "shape", "the weights received do not fit the network"
        )
    if not all(np.isfinite(array).all() for array in broadcast.weights.values()):
        raise WireError("not-finite", "the weights received are not finite")
    runs = site.runs_allowed(broadcast.study_sha256)
    site.ledger.hold(broadcast.study_sha256, broadcast.run_id, admitted.plan, site.cap, runs)
    return admitted


def open_study(study: Study, site: Site) -> Admitted:
    """Return the study's plan, network, and proved clipping engine. Raises `WardroundError` if the proof fails."""
    plan = plan_from_study(study)
    network = initial_network(study)
    check_personalisation(network, study)
    memory = site.engine_memory(study.sha256())
    speed = plan_speed(network, study, plan, site.device, memory, site.precision)
    architecture = architecture_sha256(network)
    return Admitted(study=study, plan=plan, network=network, architecture_sha256=architecture, speed=speed)


def _material(site: Site, study: Study, study_sha256: str) -> Material:
    """Return the study's training material, built again when a patient has objected or the cohort has changed."""
    key = (study_sha256, site.data_state())
    if key not in site.materials:
        for old in [one for one in site.materials if one[0] == study_sha256]:
            del site.materials[old]
        site.materials[key] = site.material_of(study)
    return site.materials[key]


def settled_reply(site: Site, attempt: int, reply_sha256: str | None) -> Weights:
    """Return the weights of a settled attempt, read from disk.

    Raises:
        PolicyRefusal: The reply is no longer kept.
        LedgerError: The reply on disk is not the one that was settled.
    """
    try:
        reply = site.replies[attempt]
    except KeyError:
        raise PolicyRefusal("reply_gone", f"the reply of attempt {attempt} is no longer stored") from None
    if weights_sha256(reply) != reply_sha256:
        raise LedgerError(f"the stored reply of attempt {attempt} differs from the settled one")
    return reply
