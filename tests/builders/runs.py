"""Runs of a server: a study, sites that are plain functions, and a run after both of its phases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardround.networks.initial_weights import write_start
from wardround.study.load import Study, parse_study
from wardround.wire.evaluation import ScoreRelease, SiteRelease
from wardround.wire.packets import Broadcast, LedgerHead, SiteReply
from wardround_server.runs.folder import RunFolder
from wardround_server.runs.phases import ask, train


def study_of(name: str = "tiny", *, rounds: int = 2, epsilon: float = 8.0, figures: float = 0.0) -> Study:
    return parse_study(
        {
            "study": {"name": name, "rounds": rounds},
            "data": {"image_size": 32, "labels": ("benign", "malignant")},
            "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
            "privacy": {"epsilon": epsilon, "delta": 1e-5, "max_grad_norm": 1.0, "nominal_patients": 100},
            "aggregation": {"nominal_sites": 2, "min_sites": 1, "round_deadline_s": 60},
            "evaluation": {"epsilon": figures},
        }
    )


@dataclass
class Sites:
    """Sites that reply with slightly changed weights, or with the code in `codes[(round, site)]`."""

    names: tuple[str, ...] = ("east", "north")
    codes: Mapping[tuple[int, str], str] = field(default_factory=dict)
    entries: int = 0  # number of entries in their ledgers before the run

    def ledger(self, round_: int) -> dict[str, Any]:
        head = LedgerHead(entries=self.entries + 2 * round_, sha256="a" * 64)
        return {"head": head, "recent": "a" * 8 * head.entries}

    def online(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names, 1)}

    def propose(self, study: Study, sites: Collection[str], limit_s: float) -> dict[str, str]:
        return dict.fromkeys((name for name in self.names if name in sites), "approved")

    def exchange(self, directory: Mapping[str, int | None]) -> Sites:
        return self

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        for site in self.names:
            code, weights, head = self.codes.get((broadcast.round, site)), None, None
            if code is None:
                weights = {name: np.asarray(array + np.float32(0.01)) for name, array in broadcast.weights.items()}
                head = self.ledger(broadcast.round)["head"]
            size = 0 if weights is None else sum(array.nbytes for array in weights.values())
            reply = SiteReply(site=site, weights=weights, code=code, seconds=0.5, bytes_up=size, ledger_head=head)
            yield replace(reply, ledger_recent="a" * 8 * head.entries if head else "")

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        for site in self.names:
            code = self.codes.get((question.round, site))
            counts_2B = np.stack([np.arange(bins, 0, -1), np.arange(bins)]) * 10
            release = ScoreRelease(
                counts_2B=counts_2B.astype(np.int64), per_site=site == "north", **self.ledger(question.round)
            )
            yield SiteRelease(site=site, release=None if code else release, code=code, bytes_up=0 if code else 99)


def trained(run: RunFolder, sites: Sites) -> RunFolder:
    """Take a run through both phases. This process makes its initial weights, because it has imported torch already."""
    write_start(run.study(), run.path / "start.safetensors")
    ask(run, sites)
    train(run, sites)
    return run


def run_of(server: Path, name: str) -> RunFolder:
    (path,) = (server / "runs").glob(f"{name}-*")
    return RunFolder(path=path)
