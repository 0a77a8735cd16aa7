"""Draw the pictures of one run: learning curve, sites side by side, ROC, calibration, scores and rounds.

Each function draws numbers that have already been computed and returns a `Picture`. None computes a figure of merit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wardround.metrics.classification import CalibrationCurve, RocBand, RocCurve
from wardround.tasks.assessment import SETTINGS, CurvePoint
from wardround_simulation.report import style
from wardround_simulation.report.measures import Interval
from wardround_simulation.report.style import COLOUR, INK, LABEL_COLOURS, MARKER, MUTED, RULE, WARN, Picture

DODGE = {"start": -0.27, "alone": -0.09, "federated": 0.09, "pooled": 0.27}
MEANING = {
    "start": "Start: the model before any hospital's data",
    "alone": "alone: trained on this hospital's patients only",
    "federated": "federated: the shared model",
    "pooled": "pooled: trained with all data in one place, which only a simulation can do",
}
MARKER_SIZE = {"start": 8, "alone": 5, "federated": 7, "pooled": 5}


def _aucs(points: Sequence[CurvePoint]) -> list[float]:
    return [point.auc for point in points if point.auc is not None]


def learning_curve(curve: Sequence[CurvePoint], references: Mapping[str, float]) -> Picture:
    """Draw the AUC by round with its interval.

    Thin grey lines show the sites. `references` (pooled, start: AUC) are horizontal lines.
    """
    whole = [p for p in sorted(curve, key=lambda p: p.round) if p.site is None and p.auc is not None]
    by_site: dict[str, list[CurvePoint]] = {}
    for point in sorted(curve, key=lambda p: p.round):
        if point.site is not None and point.auc is not None:
            by_site.setdefault(point.site, []).append(point)
    with style.canvas() as (figure, (axes,)):
        for points in by_site.values():
            axes.plot([p.round for p in points], _aucs(points), color=MUTED, linewidth=0.7, alpha=0.55)
        banded = [p for p in whole if p.auc_low is not None and p.auc_high is not None]
        rounds = [p.round for p in banded]
        lows = [p.auc_low for p in banded if p.auc_low is not None]
        highs = [p.auc_high for p in banded if p.auc_high is not None]
        axes.fill_between(
            rounds,
            lows,
            highs,
            color=COLOUR["federated"],
            alpha=0.14,
            linewidth=0,
        )
        axes.plot(
            [p.round for p in whole],
            _aucs(whole),
            color=COLOUR["federated"],
            marker="o",
            markersize=2.6,
            linewidth=1.8,
        )
        shown = _aucs(whole) + lows + highs + list(references.values())
        style.auc_axis(axes, shown + [value for points in by_site.values() for value in _aucs(points)])
        labels = [("federated", _aucs(whole)[-1])] if whole else []
        for name, value in references.items():
            axes.axhline(value, color=COLOUR[name], linewidth=1.1, linestyle=(0, (4, 3)))
            labels.append((name, value))
        low, high = axes.get_ylim()
        places = style.spread([value for _, value in labels], gap=(high - low) * 0.06)
        for (name, _), place in zip(labels, places, strict=True):
            axes.annotate(
                name,
                (1.015, place),
                xycoords=("axes fraction", "data"),
                color=COLOUR[name],
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
        style.locator_of(axes.xaxis).set_params(integer=True)
        axes.set_xlabel("round (0: before training)" if whole and whole[0].round == 0 else "round")
        axes.set_ylabel("AUC")
        title = "The model round by round"
        caption = "AUC of the global model on the held-out patients after each round; the band is its 95 % interval."
        if by_site:
            caption += " Thin lines: the same model on each site's own held-out patients."
        return Picture(name="curve", title=title, svg=style.to_svg(figure, "curve", title), caption=caption)


def sites_side_by_side(
    rows: Sequence[tuple[str, Mapping[str, Interval]]],
    name: str = "sites",
    title: str = "Does federated training help each hospital?",
    shown_values: Sequence[float | None] = (),
    width_in: float = 4.7,
) -> Picture:
    """Draw, per site, the AUC of each setting with its interval, on that site's own test patients.

    `name` must be unique on the page. The axis also covers `shown_values`, so that several pictures can have the same
    axis.
    """
    settings = [setting for setting in SETTINGS if any(setting in intervals for _, intervals in rows)]
    height_in = 1.15 + (0.52 if len(rows) <= 8 else 0.36) * len(rows)
    with style.canvas(width_in=width_in, height_in=height_in) as (figure, (axes,)):
        for index, (_, intervals) in enumerate(rows):
            if index % 2 == 0:
                axes.axhspan(index - 0.5, index + 0.5, color=RULE, alpha=0.35, linewidth=0)
            for setting, interval in intervals.items():
                if interval.value is None:
                    continue
                place = index + DODGE[setting]
                if interval.low is not None and interval.high is not None:
                    axes.plot(
                        [interval.low, interval.high],
                        [place, place],
                        color=COLOUR[setting],
                        linewidth=2.0 if setting == "federated" else 1.2,
                        solid_capstyle="butt",
                    )
                axes.plot(
                    interval.value,
                    place,
                    MARKER[setting],
                    color=COLOUR[setting],
                    markersize=MARKER_SIZE[setting],
                    markeredgewidth=2 if setting == "start" else 0,
                )
        for setting in settings:
            axes.plot(
                [],
                [],
                MARKER[setting],
                color=COLOUR[setting],
                label=setting,
                markersize=MARKER_SIZE[setting],
                markeredgewidth=2 if setting == "start" else 0,
            )
        axes.set_yticks(range(len(rows)), [style.shorten(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(axis="y", visible=False)
        values = [edge for _, intervals in rows for i in intervals.values() for edge in (i.value, i.low, i.high)]
        style.auc_axis(axes, [*values, *shown_values], axis="x")
        axes.set_xlabel("AUC on the held-out patients of the row")
        figure.legend(loc="outside upper left", ncols=len(settings), columnspacing=1.2, handletextpad=0.3)
        caption = (
            "AUC on the held-out patients of each row; lines are 95 % intervals. A site whose held-out patients have "
            "only one label is not shown."
        )
        meanings = [MEANING[setting] for setting in settings if setting in MEANING]
        if meanings:
            caption = f"{caption} {'; '.join(meanings)}."
        return Picture(name=name, title=title, svg=style.to_svg(figure, name, title), caption=caption)


def roc(curves: Mapping[str, RocCurve], band: RocBand | None) -> Picture:
    """Draw ROC curves by setting, or by label if there are more than two. `band` is that of the federated model."""
    palette = {**dict(zip(curves, LABEL_COLOURS, strict=False)), **COLOUR}
    with style.canvas(height_in=4.2) as (figure, (axes,)):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        if band is not None:
            axes.fill_between(
                band.false_positive_rate, band.low, band.high, color=COLOUR["federated"], alpha=0.15, linewidth=0
            )
        for name in sorted(curves, key=lambda name: name == "federated"):
            line: dict[str, Any] = {"color": palette[name], "label": style.shorten(name, 24)}
            line |= {
                "linewidth": 2.0 if name == "federated" else 1.2,
                "linestyle": (0, (4, 2)) if name == "start" else "-",
            }
            axes.plot(curves[name].false_positive_rate, curves[name].true_positive_rate, **line)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="lower right")
        title = "ROC curve"
        caption = "All held-out patients."
        if not set(curves) & set(COLOUR):
            caption += " The federated model, each label against all others."
        if band is not None:
            caption += (
                " The band is the 95 % interval of the federated curve at each false positive rate, from "
                "resampled patients."
            )
        return Picture(name="roc", title=title, svg=style.to_svg(figure, "roc", title), caption=caption)


def calibration(curve: CalibrationCurve, scores_N: np.ndarray, event: str, ece: float | None) -> Picture:
    """Draw the observed against the predicted share with intervals, above a histogram of the predictions.

    `event` names the predicted event.
    """
    edges = np.linspace(0, 1, 21)
    with style.canvas(height_in=4.2, rows=(3.4, 1.0), share_x=True) as (figure, (axes, below)):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.vlines(curve.mean_score_B, curve.low_B, curve.high_B, color=COLOUR["federated"], linewidth=1.2)
        axes.plot(curve.mean_score_B, curve.observed_B, "o-", color=COLOUR["federated"], markersize=4.5, linewidth=1.2)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel(f"observed share of {event}")
        below.bar(
            edges[:-1],
            np.histogram(scores_N, edges)[0],
            width=0.046,
            align="edge",
            color=COLOUR["federated"],
            alpha=0.45,
        )
        below.set_ylabel("count")
        below.set_xlim(-0.01, 1.01)
        style.locator_of(below.yaxis).set_params(integer=True, nbins=3)
        below.set_xlabel(f"predicted probability of {event}")
        title = "Calibration: predicted and observed probabilities"
        caption = "Points on the dotted line are well calibrated; lines are 95 % intervals (Wilson, counting patients)."
        if ece is not None:
            caption += f" Expected calibration error: {ece:.3f}."
        return Picture(name="calibration", title=title, svg=style.to_svg(figure, "calibration", title), caption=caption)


def score_distribution(scores_by_label: Mapping[str, np.ndarray], event: str) -> Picture:
    """Draw the distribution of the predicted probabilities for each label.

    Each histogram shows shares of its label, so that a rare label remains visible.
    """
    edges = np.linspace(0, 1, 26)
    with style.canvas() as (figure, (axes,)):
        for (label, scores_N), colour in zip(scores_by_label.items(), LABEL_COLOURS, strict=False):
            share_B = np.histogram(np.clip(scores_N, 0, 1), edges)[0] / max(len(scores_N), 1) * 100
            axes.stairs(share_B, edges, fill=True, color=colour, alpha=0.28)
            axes.stairs(
                share_B, edges, color=colour, linewidth=1.4, label=f"{style.shorten(label, 24)} ({len(scores_N)})"
            )
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"predicted probability of {event}")
        axes.set_ylabel("% of the label")
        figure.legend(loc="outside upper left", ncols=2)
        title = "Distribution of the scores"
        caption = (
            "Federated model, held-out patients. The less the distributions overlap, the better the model separates "
            "the labels."
        )
        return Picture(name="scores", title=title, svg=style.to_svg(figure, "scores", title), caption=caption)


def rounds_and_sites(
    sites: Sequence[str], missing: Mapping[tuple[int, str], str], rounds: int, seconds: Mapping[tuple[int, str], float]
) -> Picture:
    """Draw which site took part in which round (a cross: missing), and the time of the slowest and the median site."""
    rows = (0.35 + 0.24 * len(sites), 1.6) if seconds else (0.35 + 0.24 * len(sites),)
    with style.canvas(height_in=sum(rows) + 0.75, rows=rows, share_x=True) as (figure, axes_list):
        axes = axes_list[0]
        for index, site in enumerate(sites):
            present = [r for r in range(1, rounds + 1) if (r, site) not in missing]
            axes.broken_barh(_spans(present), (index - 0.3, 0.6), color=COLOUR["federated"], alpha=0.4, linewidth=0)
            absent = [r for r in range(1, rounds + 1) if (r, site) in missing]
            axes.plot(absent, [index] * len(absent), "x", color=WARN, markersize=5, markeredgewidth=1.6)
        axes.set_yticks(range(len(sites)), [style.shorten(site) for site in sites])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(sites) - 0.4, -0.6)
        axes.grid(visible=False)
        axes.set_xlim(0.4, rounds + 0.6)
        if seconds:
            _seconds_panel(axes_list[1], seconds, rounds)
        style.locator_of(axes_list[-1].xaxis).set_params(integer=True)
        axes_list[-1].set_xlabel("round")
        title = "Rounds"
        caption = (
            "Bar: the site's reply is included in the round's model. Cross: it is not; the table gives the reason."
        )
        return Picture(name="rounds", title=title, svg=style.to_svg(figure, "rounds", title), caption=caption)


def _seconds_panel(axes: style.Axes, seconds: Mapping[tuple[int, str], float], rounds: int) -> None:
    by_round = [(r, [s for (at, _), s in seconds.items() if at == r]) for r in range(1, rounds + 1)]
    known = [(r, values) for r, values in by_round if values]
    axes.plot([r for r, _ in known], [max(v) for _, v in known], color=INK, linewidth=1.2, label="slowest site")
    axes.plot(
        [r for r, _ in known],
        [float(np.median(v)) for _, v in known],
        color=MUTED,
        linewidth=1.0,
        linestyle=(0, (3, 2)),
        label="median site",
    )
    axes.set_ylim(0, max((max(v) for _, v in known), default=1.0) * 1.45 or 1.0)
    style.locator_of(axes.yaxis).set_params(nbins=4)
    axes.set_ylabel("seconds")
    axes.legend(loc="upper right", ncols=2, borderaxespad=0.2)


def _spans(rounds: Sequence[int]) -> list[tuple[float, float]]:
    """Merge consecutive rounds into (start, width), so that hundreds of rounds need only a few rectangles."""
    spans: list[tuple[float, float]] = []
    for r in rounds:
        if spans and abs(spans[-1][0] + spans[-1][1] - (r - 0.5)) < 1e-9:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((r - 0.5, 1.0))
    return spans
