"""The pictures of a comparison: AUC against ε, the gain over the start, and each site alone beside federated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wardround_simulation.compare.statistics import FoldMean
from wardround_simulation.report import style
from wardround_simulation.report.style import COLOUR, MARKER, MUTED, Picture

DODGE = {"alone": -0.2, "federated": 0.0, "pooled": 0.2}


def auc_against_epsilon(means: Mapping[str, Mapping[float, FoldMean]], start: FoldMean | None, unit: str) -> Picture:
    """Mean AUC with interval by setting and ε over every fold's own dot; the start is a line across."""
    title = "AUC against ε"
    caption = (
        f"AUC per {unit}. Large marks: mean over all folds with its 95 % interval; small dots: individual folds. "
        "ε = ∞ means no privacy; privacy increases to the right."
    )
    with style.canvas(height_in=3.9) as (figure, (axes,)):
        if start is not None:
            axes.axhline(start.value, color=COLOUR["start"], linewidth=1.2, linestyle=(0, (4, 3)), label="start")
        values = _marks(axes, means) + ([start.value] if start is not None else [])
        style.auc_axis(axes, values)
        axes.set_ylabel("AUC")
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.4)
        return Picture(
            name=f"epsilon-{unit}", title=title, svg=style.to_svg(figure, f"epsilon-{unit}", title), caption=caption
        )


def gain_over_start(means: Mapping[str, Mapping[float, FoldMean]], unit: str) -> Picture:
    """Paired difference to the start, fold by fold: what the hospitals' patients added."""
    title = "Improvement over the start"
    caption = (
        f"AUC per {unit} minus that of the start on the same patients. Below the line, training made the model worse; "
        "small dots: individual folds."
    )
    with style.canvas(height_in=3.9) as (figure, (axes,)):
        axes.axhline(0, color=MUTED, linewidth=1.2)
        _marks(axes, means)
        axes.set_ylabel("difference in AUC")
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.4)
        return Picture(
            name=f"gain-{unit}", title=title, svg=style.to_svg(figure, f"gain-{unit}", title), caption=caption
        )


def epsilon_label(epsilon: float) -> str:
    """`ε = ∞`, `ε = 8`."""
    return "ε = ∞" if math.isinf(epsilon) else f"ε = {epsilon:g}"


def _marks(axes: style.Axes, means: Mapping[str, Mapping[float, FoldMean]]) -> list[float]:
    """Draws each setting at each ε; returns every value drawn, for the axis."""
    epsilons: Sequence[float] = sorted(
        {epsilon for by_epsilon in means.values() for epsilon in by_epsilon}, reverse=True
    )
    drawn: list[float] = []
    for setting, by_epsilon in means.items():
        places = [index + DODGE[setting] for index, epsilon in enumerate(epsilons) if epsilon in by_epsilon]
        known = [by_epsilon[epsilon] for epsilon in epsilons if epsilon in by_epsilon]
        axes.plot(places, [mean.value for mean in known], color=COLOUR[setting], linewidth=0.8, alpha=0.5)
        for place, mean in zip(places, known, strict=True):
            dots = list(mean.by_fold.values())
            axes.plot(
                [place] * len(dots), dots, "o", color=COLOUR[setting], markersize=2.6, markeredgewidth=0, alpha=0.38
            )
            drawn += [*dots, mean.value]
            if mean.low is not None and mean.high is not None:
                axes.plot(
                    [place, place], [mean.low, mean.high], color=COLOUR[setting], linewidth=2.0, solid_capstyle="butt"
                )
                drawn += [mean.low, mean.high]
        axes.plot(
            places,
            [mean.value for mean in known],
            MARKER[setting],
            color=COLOUR[setting],
            markersize=6.5,
            label=setting,
        )
    axes.set_xticks(range(len(epsilons)), [epsilon_label(epsilon) for epsilon in epsilons])
    axes.set_xlim(-0.5, len(epsilons) - 0.5)
    axes.grid(axis="x", visible=False)
    return drawn
