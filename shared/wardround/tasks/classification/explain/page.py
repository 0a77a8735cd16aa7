"""The page of an explanation: one self-contained HTML file for screen and paper, without scripts.

All text is escaped by the template engine. Pictures are in the page as data.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from wardround.tasks.classification.explain.lookalikes import Lookalikes
from wardround.tasks.classification.explain.maps import Maps
from wardround.tasks.classification.explain.named_outputs import Decomposition, Output, measure_text
from wardround.tasks.classification.explain.pictures import grey_picture, legend, overlay, png
from wardround.tasks.classification.explain.sanity import SanityCheck
from wardround.tasks.classification.explain.surrogate import Surrogate

NOTICE = "Research software, not a medical device"
LOOKALIKE_PX = 160
WEAK_R2, WEAK_AUC = 0.3, 0.75  # below these a named output is marked as unreliable


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A named output of the image in units of a reader, and how well it works on phantoms: R2, or AUC."""

    output: Output
    value: float
    accuracy: float

    @property
    def weak(self) -> bool:
        """Whether the read-out hardly works."""
        return self.accuracy < (WEAK_AUC if self.output.is_probability else WEAK_R2)

    @property
    def works(self) -> str:
        """The accuracy with its name."""
        return f"{'AUC' if self.output.is_probability else 'R²'} {self.accuracy:.2f}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """All that is explained of one image, uint8 (H, W). `facts` are pairs of a name and a value about image and model.

    `score` is the logit of `label`. `statement` are lines about the prediction. Parts that do not apply are None or
    empty, and `left_out` says why, one line each.
    """

    label: str
    score: float
    statement: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    image_HW: np.ndarray
    maps: Maps
    sanity: SanityCheck
    lookalikes: Lookalikes | None = None
    measured: tuple[Measured, ...] = ()
    spacing_mm: float | None = None
    decomposition: Decomposition | None = None
    surrogate: Surrogate | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of the picture of shares. Positions are percentages of the width; `text` is the share with its sign."""

    title: str
    text: str
    left: float
    width: float
    kind: str = field(default="raises")


def html_page(explained: Explanation) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found, maps = explained.lookalikes, explained.maps
    return environment.get_template("explanation.html.j2").render(
        one=explained,
        notice=NOTICE,
        picture=_data(grey_picture(explained.image_HW)),
        evidence=_data(overlay(explained.image_HW, maps.evidence_HW, maps.reads_px)),
        occlusion=_data(overlay(explained.image_HW, maps.occlusion_HW, maps.reads_px)),
        legend=_data(legend()),
        bars=[] if explained.decomposition is None else bars(explained.decomposition),
        texts=[measure_text(one.output, one.value, explained.spacing_mm) for one in explained.measured],
        phantoms=[] if found is None else [_data(grey_picture(one.image_HW, LOOKALIKE_PX)) for one in found.nearest],
    )


def bars(decomposition: Decomposition) -> list[Bar]:
    """Return one bar for the start, each share, the remainder and the score; the first and last begin at zero."""
    parts = [("All phantoms, mean", decomposition.start)]
    parts += [(share.output.title, share.value) for share in decomposition.shares]
    parts += [("Not named", decomposition.remainder)]
    ends = np.cumsum([0.0, *(value for _, value in parts)])
    low, high = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    scale = 100 / max(high - low, 1e-9)

    def bar(title: str, begin: float, end: float, kind: str) -> Bar:
        left, width = (min(begin, end) - low) * scale, abs(end - begin) * scale
        return Bar(title=title, text=f"{end - begin:+.2f}", left=left, width=max(width, 0.3), kind=kind)

    drawn = [
        bar(title, begin, end, "whole" if number == 0 else "raises" if end >= begin else "lowers")
        for number, ((title, _), begin, end) in enumerate(zip(parts, ends[:-1], ends[1:], strict=True))
    ]
    return [*drawn, bar("Score", 0.0, float(ends[-1]), "whole")]


def map_pictures(explained: Explanation) -> Sequence[tuple[str, bytes]]:
    """Return the names and PNG files of the two maps over the image."""
    image_HW, maps = explained.image_HW, explained.maps
    return [
        ("evidence", png(overlay(image_HW, maps.evidence_HW, maps.reads_px))),
        ("occlusion", png(overlay(image_HW, maps.occlusion_HW, maps.reads_px))),
    ]


def _data(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
