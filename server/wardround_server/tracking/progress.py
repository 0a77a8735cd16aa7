"""What of a run is written to MLflow: parameters of its study, sums over each round's sites, figures of its result.

Everything comes from study.json, metrics.jsonl and result.json of the run's folder. Of metrics.jsonl, only sums, a mean
and a maximum over the sites of a round are written, and no site is named. The figures about patients are those that
result.json holds, and no others. Ledger heads, hashes of replies and the names of people are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wardround.study.load import Study
from wardround_server.runs.folder import RunFolder, quorum

Status = Literal["RUNNING", "FINISHED", "KILLED"]  # MLflow's words
STATUS: Mapping[str, Status] = {"training": "RUNNING", "finished": "FINISHED", "stopped": "KILLED"}
MOST_FIGURES = 500  # of a result; MLflow takes 1000 in one call
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.\- ]")


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """The sums of one finished round: name -> number."""

    round: int
    figures: Mapping[str, float]


def parameters_of(study: Study) -> dict[str, str]:
    """Return the parameters of a study that describe its run. Sites and reports know all of them."""
    privacy, training = study.privacy, study.training
    return {
        "study": study.study.name,
        "study_sha256": study.sha256(),
        "task": study.study.task,
        "network": study.model.name,
        "trainable": study.model.trainable,
        "rounds": str(study.study.rounds),
        "min_sites": str(quorum(study)),
        "learning_rate": str(training.learning_rate),
        "local_steps": str(training.local_steps),
        "epsilon_promised": str(privacy.epsilon),
        "delta": str(privacy.delta),
        "sampling_rate": str(privacy.sampling_rate),
        "max_grad_norm": str(privacy.max_grad_norm),
    }


def rounds_after(run: RunFolder, last: int) -> Iterator[RoundFigures]:
    """Yield the finished rounds after `last`, in order.

    A round is finished when it has a checkpoint: until then it may be repeated with other replies.
    """
    done, lines = run.rounds_done(), run.metrics()
    for number in range(last + 1, done + 1):
        yield RoundFigures(round=number, figures=round_figures(line for line in lines if line["round"] == number))


def round_figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sums of a round's lines of metrics.jsonl: sites, seconds, bytes, and the mean norm of the updates."""
    found = list(lines)
    counted = [line for line in found if line["code"] is None]
    norms = [line["update_norm"] for line in counted if _is_number(line["update_norm"])]
    figures = {
        "sites_counted": float(len(counted)),
        "sites_missing": float(len(found) - len(counted)),
        "seconds": max((float(line["seconds"]) for line in found), default=0.0),
        "bytes_up": float(sum(line["bytes_up"] for line in found)),
        "bytes_down": float(sum(line["bytes_down"] for line in found)),
    }
    return {**figures, "update_norm_mean": sum(norms) / len(norms)} if norms else figures


def result_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of result.json under dotted names, such as `result.federated_test.auc`.

    Lists, such as the points of a curve, are left out, and so is all beyond `MOST_FIGURES`.
    """
    return dict(list(_numbers("result", result))[:MOST_FIGURES])


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            if key != "ledger":
                yield from _numbers(f"{name}.{NOT_IN_A_NAME.sub('_', str(key))}", value[key])
    elif _is_number(value):
        yield name, float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
