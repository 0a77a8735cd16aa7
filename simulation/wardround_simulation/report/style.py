"""The common style of all pictures, and the conversion of matplotlib figures to inline SVG.

A figure is drawn in the light palette. The conversion replaces each palette colour with a CSS variable of the page
(with the light colour as its fallback), so that one picture works for light mode, dark mode and print. Text remains
text. The colours are based on Okabe and Ito's, which colour-blind readers can distinguish, and each setting also has
its own marker shape.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, MUTED, RULE, PAPER, WARN = "#1b1f24", "#667080", "#dde1e6", "#fefefd", "#b3261e"
COLOUR = {"federated": "#0072b2", "pooled": "#00835f", "alone": "#d55e01", "start": "#7b7f87"}
MARKER = {"federated": "o", "pooled": "s", "alone": "D", "start": "|"}
LABEL_COLOURS = ("#5f86a6", "#aa3377", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#f0e442", "#999999")
VARIABLES = {
    INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper", WARN: "warn",
    **{colour: name for name, colour in COLOUR.items()},
    LABEL_COLOURS[0]: "negative", LABEL_COLOURS[1]: "positive",
}  # fmt: skip

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a site may be called "a$b$"
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for a page: its name, its title, its markup, and a caption that explains how to read it."""

    name: str
    title: str
    svg: Markup
    caption: str


@contextmanager
def canvas(
    width_in: float = 4.7, height_in: float = 3.3, rows: Sequence[float] = (1.0,), share_x: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure in the common style with one axes per row, without changing pyplot's global state.

    `rows` are the relative heights of the rows.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.subplots(len(rows), 1, sharex=share_x, squeeze=False, height_ratios=list(rows))
        yield figure, list(axes[:, 0])


def locator_of(axis: Axis) -> MaxNLocator:
    """Return the major tick locator of an axis, which is a `MaxNLocator` by default."""
    return cast(MaxNLocator, axis.get_major_locator())


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return the figure as inline SVG, without a fixed size and with colours as CSS variables.

    `name` prefixes all ids, so that they are unique on the page. Call this function inside `canvas`. The same figure
    gives the same bytes.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r" xmlns(?::xlink)?=\"[^\"]*\"", "", svg)  # an HTML parser does not need the namespace declarations
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', svg)
    svg = re.sub(r"xlink:href=\"#([^\"]+)\"", rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"\b(d|points)=\"([^\"]*)\"", _rounded, svg)
    svg = svg.replace("'DejaVu Sans'", "var(--sans)").replace("DejaVu Sans", "var(--sans)")
    for colour, variable in VARIABLES.items():
        svg = re.sub(colour, f"var(--{variable},{colour})", svg, flags=re.I)
    label = Markup.escape(description)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Markup(svg)


def _rounded(match: re.Match[str]) -> str:
    """Round path coordinates to a hundredth of a point, which halves the size without a visible difference."""
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}", match.group(2))
    return f'{match.group(1)}="{" ".join(numbers.split())}"'


def montage_png(images_NCHW: np.ndarray, columns: int, tile_px: int) -> str:
    """Return uint8 images side by side as one PNG, base64.

    Images with one channel are grey and those with three are in colour; of others the middle channel is shown.
    """
    tiles = [_tile(image_CHW, tile_px) for image_CHW in images_NCHW]
    rows = -(-len(tiles) // columns)
    gap_px = 2
    step = tile_px + gap_px
    sheet = Image.new("RGBA", (columns * step - gap_px, rows * step - gap_px))
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % columns * step, index // columns * step))
    mode = "LA" if all(tile.mode == "L" for tile in tiles) else "RGBA"
    buffer = io.BytesIO()
    sheet.convert(mode).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tile(image_CHW: np.ndarray, tile_px: int) -> Image.Image:
    channels = image_CHW.shape[0]
    pixels = image_CHW.transpose(1, 2, 0) if channels == 3 else image_CHW[channels // 2]
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).resize(
        (tile_px, tile_px), Image.Resampling.BILINEAR
    )


def shorten(name: str, length: int = 14) -> str:
    """Shorten a site's name for an axis. The table next to the picture shows the whole name."""
    return name if len(name) <= length else name[: length - 1] + "…"


def auc_axis(axes: Axes, values: Sequence[float | None], axis: str = "y") -> None:
    """Set the limits of an axis so that they contain all values with a margin of 0.02.

    The limits are at least 0.1 apart and never go beyond 0 and 1.
    """
    known = [value for value in values if value is not None and np.isfinite(value)] or [0.5, 1.0]
    low, high = max(0.0, min(known) - 0.02), min(1.0, max(known) + 0.02)
    if high - low < 0.1:
        low, high = max(0.0, high - 0.1), min(1.0, max(high, 0.1))
    (axes.set_ylim if axis == "y" else axes.set_xlim)(low, high)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return label positions moved apart until neighbours are at least `gap` from each other.

    The order is kept, and the labels stay near their original positions.
    """
    order = np.argsort(positions, kind="stable")
    moved = np.asarray(positions, dtype=float).copy()
    for _ in range(50):
        shifted = False
        for lower, upper in zip(order, order[1:], strict=False):
            lack = gap - (moved[upper] - moved[lower])
            if lack > 1e-9:
                moved[lower] -= lack / 2
                moved[upper] += lack / 2
                shifted = True
        if not shifted:
            break
    return moved.tolist()
