"""Rounds of a server over sites that are plain functions in one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wardround.study.load import parse_study
from wardround.wire.packets import LedgerHead, SiteReply
from wardround_server.rounds.loop import run_rounds

ARCHITECTURE = "b" * 64


START = {"head.weight": np.zeros((1, 3), np.float32), "head.bias": np.zeros((), np.float32)}


def a_study(rounds=4, **aggregation):
    return parse_study(
        {
            "study": {"name": "rounds", "rounds": rounds},
            "data": {"labels": ["benign", "malignant"]},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 50},
            "aggregation": {"nominal_sites": 3, "min_sites": 2, **aggregation},
        }
    )


def trained(weights, site, number):
    """Return weights that are moved halfway to a target, which depends on the site and slightly on the round."""
    target = 1.0 + len(site) + 0.1 * number
    return {name: np.asarray(array + 0.5 * (target - array), np.float32) for name, array in weights.items()}


class Sites:
    """An exchange by function calls. `faults[(round, site)]` is a code or a function of the weights that are sent."""

    def __init__(self, names=("a", "bb", "ccc"), faults=None):
        self.names, self.faults, self.asked = names, faults or {}, []

    def __call__(self, broadcast, deadline_s):
        self.asked.append(broadcast.round)
        for site in self.names:
            fault = self.faults.get((broadcast.round, site))
            weights, code = trained(broadcast.weights, site, broadcast.round), None
            if callable(fault):
                weights = fault(weights)
            elif fault:
                weights, code = None, fault
            yield SiteReply(site=site, weights=weights, code=code, seconds=0.5, bytes_up=16 if weights else 0)


def run(study, sites, folder=None, on_round=None, **other):
    arguments = {"run_id": "run-1", "architecture_sha256": ARCHITECTURE, "start_weights": START, **other}
    return run_rounds(study, exchange=sites, folder=folder, on_round=on_round, **arguments)


def same_bits(left, right):
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def head(entries, letter="d"):
    return LedgerHead(entries=entries, sha256=letter * 64)


def recent(now, letter="d"):
    """Return `ledger_recent` of a reply for a ledger in which all entries but the last have hashes of this letter."""
    return "" if now is None else letter * 8 * (now.entries - 1) + now.sha256[:8]


class WithLedgers(Sites):
    """Sites whose ledgers grow by two entries per round; `heads[(round, site)]` replaces the head."""

    def __init__(self, heads=None, **other):
        super().__init__(**other)
        self.heads = heads or {}

    def __call__(self, broadcast, deadline_s):
        for reply in super().__call__(broadcast, deadline_s):
            now = self.heads.get((broadcast.round, reply.site), head(2 * broadcast.round + 2))
            yield replace(reply, ledger_head=now, ledger_recent=recent(now))
