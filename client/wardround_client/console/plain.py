"""The figures of a study for the plain sentences on its page, which stand beside its exact description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from wardround.study.load import Study
from wardround.text import epsilon_text


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What the plain sentences are filled with. `private` is False for a study with epsilon = inf."""

    private: bool
    values: dict[str, str]


def plain_of(folder: Path, study: Study, runs: int) -> Plain:
    """Return the figures of a study for `runs` runs in all at a site.

    Raises:
        StudyError: No noise multiplier meets the study's privacy promise.
        LedgerError: The ledger is damaged.
    """
    from wardround_client.studies.description import costed  # imports torch

    cost, training = costed(folder, study, runs), study.training
    values = {
        "rounds": f"{study.study.rounds:,}",
        "spare": f"{study.study.spare_rounds:,}",
        "steps": f"{training.local_steps:,}",
        "sites": f"{study.aggregation.min_sites:,}",
        "runs": f"{runs:,}",
        "share": f"{1 - study.evaluation.holdout:.0%}".replace("%", " %"),
        "each": epsilon_text(study.privacy.epsilon),
        "after": epsilon_text(cost.with_promised.value),
        "cap": f"{cost.cap_epsilon:g}",
        "delta": f"{cost.after.delta:g}",
        "relation": cost.after.relation,
        "accountant": cost.after.accountant,
        "noise": f"{cost.noise_multiplier:.4g}",
    }
    return Plain(private=math.isfinite(study.privacy.epsilon) and cost.noise_multiplier > 0, values=values)
