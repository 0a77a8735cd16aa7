"""Minimal hospitals for the simulation engine: a site with only a name and a counter, its reply and its folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.study.load import parse_study
from wardround.wire.packets import Answer, Broadcast, LedgerHead

NAMES = ("east", "north", "west")


START = {"head.weight": np.zeros((1, 3), np.float32), "head.bias": np.zeros((), np.float32)}


QUESTION = Broadcast(study_sha256="a" * 64, run_id="run-1", round=1, weights=START, architecture_sha256="b" * 64)


@dataclass
class TinySite:
    """A minimal hospital. `calls` is for counting the rounds that this process requests of it."""

    name: str
    calls: int = 0


def open_tiny(folder):
    return TinySite(name=folder.name)


def trained(weights, name, number):
    pull = np.float32(len(name) + 0.1 * number)
    return {key: np.asarray(array + np.float32(0.5) * (pull - array), np.float32) for key, array in weights.items()}


def said(weights):
    return Answer(weights=weights, head=LedgerHead(entries=1, sha256="c" * 64))


def answer_tiny(broadcast, site):
    return said(trained(broadcast.weights, site.name, broadcast.round))


def site_folders(root):
    for name in reversed(NAMES):
        (root / name).mkdir(parents=True, exist_ok=True)
    return [root / name for name in reversed(NAMES)]


def a_study(rounds, **aggregation):
    return parse_study(
        {
            "study": {"name": "engine", "rounds": rounds},
            "data": {"labels": ["benign", "malignant"]},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 50},
            "aggregation": {"nominal_sites": 3, **aggregation},
        }
    )
