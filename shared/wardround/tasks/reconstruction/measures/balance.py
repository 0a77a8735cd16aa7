"""How the two networks of a reconstruction stand against each other: the terms of their loss on held-out images, round
by round, exactly, as only a simulation can know. Shapes: N images, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from wardround.study.load import Study
from wardround.tasks.assessment import Panel, ReportTable, RoundPlot
from wardround.tasks.reconstruction.loss import JointLoss, LossWeights
from wardround.tasks.reconstruction.measures.quality import Spoiled
from wardround.tasks.reconstruction.restorer import Restorer
from wardround.tasks.reconstruction.study import section_of

EVERY_TERM = LossWeights(adversarial=1.0, ssim=1.0)
CANNOT_TELL = 2.0  # the hinge loss of a discriminator that gives every patch a logit of 0
LEAST_SPAN = 0.05  # an axis shows at least this part of its values
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Means over images of the terms before their weights (`shared/wardround/tasks/reconstruction/loss.py`): three of
    the generator, and the discriminator's own."""

    error: float
    dissimilarity: float
    fooled: float
    told_apart: float


@torch.no_grad()
def balance_of(network: Restorer, spoiled: Spoiled) -> Balance:
    """The terms on spoiled images, each seen once and as it lies."""
    joint = JointLoss(network, EVERY_TERM)
    both_N4HW = torch.cat([spoiled.inputs_N3HW, spoiled.true_N1HW], 1)
    parts = [joint.terms(part.float()) for part in both_N4HW.split(_AT_ONCE)]

    def mean(name: str) -> float:
        return float(torch.cat([getattr(part, f"{name}_N") for part in parts]).double().mean())

    return Balance(
        error=mean("error"),
        dissimilarity=mean("dissimilarity"),
        fooled=mean("fooled"),
        told_apart=mean("told_apart"),
    )


def balance_series(by_round: Mapping[int, Balance]) -> dict[str, dict[int, float]]:
    """For TensorBoard: name -> round -> number."""
    series: dict[str, dict[int, float]] = {}
    for round_, balance in by_round.items():
        for name, value in asdict(balance).items():
            series.setdefault(f"loss/{name}", {})[round_] = value
    return series


def balance_table(study: Study, by_round: Mapping[int, Balance]) -> ReportTable:
    """The terms in the first and the last round known, and what the last ones weigh in an image's loss."""
    first, last = min(by_round), max(by_round)
    section = section_of(study)
    rows = [
        ("generator: absolute error, in 64 grey levels", "error", 1.0),
        ("generator: 1 − SSIM", "dissimilarity", section.ssim_weight),
        ("generator: − mean logit of what it restored", "fooled", section.adversarial_weight),
        ("discriminator: hinge loss", "told_apart", section.adversarial_weight),
    ]
    return ReportTable(
        caption="The terms of the loss on held-out images, and what each weighs in it. "
        + "The generator's adversarial term falls where its images pass for true. "
        + "A hinge loss of 2: the discriminator cannot tell restored from true patches; of 0: it tells every one.",
        columns=["term", _at(first), _at(last), "weight", f"weighted, {_at(last)}"],
        rows=[
            [title, f"{before:.4f}", f"{after:.4f}", f"{weight:g}", f"{weight * after:.5f}"]
            for title, name, weight in rows
            for before, after in [(getattr(by_round[first], name), getattr(by_round[last], name))]
        ],
    )


def _at(round_: int) -> str:
    return f"after round {round_}" if round_ else "before training"


def balance_plot(by_round: Mapping[int, Balance]) -> RoundPlot:
    """The four terms round by round, each on an axis of its own."""
    rounds = sorted(by_round)
    labels = {
        "error": "absolute\nerror",
        "dissimilarity": "1 − SSIM",
        "fooled": "generator,\nadversarial",
        "told_apart": "discriminator,\nhinge",
    }
    panels = []
    for name, label in labels.items():
        values = [getattr(by_round[at], name) for at in rounds]
        if name == "told_apart":
            limits = _limits([*values, 0.0, CANNOT_TELL])
            panels.append(Panel(label=label, values=values, colour="alone", reference=CANNOT_TELL, limits=limits))
        else:
            panels.append(Panel(label=label, values=values, limits=_limits(values)))
    return RoundPlot(
        name="balance",
        title="Generator against discriminator",
        description="Terms of the loss by round",
        caption="The terms of the loss on held-out images after each round, before their weights; each axis has a "
        "scale of its own. The dashed line: a discriminator that cannot tell restored from true.",
        rounds=rounds,
        panels=panels,
    )


def _limits(values: list[float]) -> tuple[float, float]:
    """An axis that shows at least `LEAST_SPAN` of its values: what hardly moves shall not look wild."""
    middle, span = (max(values) + min(values)) / 2, max(values) - min(values)
    half = 0.65 * max(span, LEAST_SPAN * abs(middle), 1e-9)
    return middle - half, middle + half
