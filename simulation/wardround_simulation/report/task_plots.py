"""Draws the plots that a task's assessment describes as plain data."""

from __future__ import annotations

from wardround.tasks.assessment import RoundPlot
from wardround_simulation.report import style

ONE_PANEL_IN, PANEL_IN = 3.3, 1.15  # height of a plot of one panel, and of each where there are several
DASHES = (0, (4, 3))


def round_picture(plot: RoundPlot) -> style.Picture:
    """Curves by round, one panel above the other, with dashed lines for what they are compared with."""
    count = len(plot.panels)
    height_in = ONE_PANEL_IN if count == 1 else PANEL_IN * count
    with style.canvas(height_in=height_in, rows=(1.0,) * count, share_x=count > 1) as (figure, axes_list):
        for axes, panel in zip(axes_list, plot.panels, strict=True):
            axes.plot(plot.rounds, panel.values, color=style.COLOUR[panel.colour], marker="o", markersize=2.6)
            if panel.reference is not None:
                axes.axhline(panel.reference, color=style.MUTED, linewidth=1.1, linestyle=DASHES)
            axes.set_ylim(*panel.limits)
            if count > 1:
                style.locator_of(axes.yaxis).set_params(nbins=3)
                axes.ticklabel_format(axis="y", useOffset=False)
            axes.set_ylabel(panel.label)
        figure.align_ylabels(axes_list)
        style.locator_of(axes_list[-1].xaxis).set_params(integer=True)
        axes_list[-1].set_xlabel("round (0: before training)")
        svg = style.to_svg(figure, plot.name, plot.description)
    return style.Picture(name=plot.name, title=plot.title, svg=svg, caption=plot.caption)
