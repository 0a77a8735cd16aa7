"""One picture for one patient, as SVG: the risk over the hours, what raises and lowers it, and what is missing.

It is meant for a nurse at the bedside: words of the ward, no logits, and the notice that it is research.
"""

from __future__ import annotations

from html import escape

from wardround.printable import escaped
from wardround.tasks.early_warning.explanation import VariablePart
from wardround_client.predict.predict import NOTICE
from wardround_client.predict.records.predict import PatientRisk, Warned, risk_text

WIDTH, MARGIN = 720, 24
CURVE_TOP, CURVE_HEIGHT = 96, 150
BAR_HEIGHT, SHOWN_BARS = 22, 8
MIDDLE, REACH = 450, 200  # of the bars: where 0 is, and the length of the largest
RAISES, LOWERS, INK, PALE = "#b3372f", "#2f6db3", "#1d2733", "#d5dbe2"
FONT = "font-family='sans-serif'"
LONGEST_TEXT = 56
NAMED = 4  # of the variables that were not measured
UNITS = {"a": "years", "1": "", "Cel": "°C"}  # of UCUM, as people write them


def picture(one: PatientRisk, found: Warned) -> str:
    """The picture of a patient whom the model was asked about, as the text of an SVG file."""
    outcome = found.package.study.data.labels[1]
    parts = () if one.parts is None else one.parts.parts[:SHOWN_BARS]
    bars_top = CURVE_TOP + CURVE_HEIGHT + 70
    notes_top = bars_top + BAR_HEIGHT * len(parts) + 30
    notes = _notes(one, found)
    height = notes_top + 18 * len(notes) + MARGIN
    shapes = [
        f"<rect width='{WIDTH}' height='{height}' fill='white'/>",
        _text(MARGIN, 36, f"Patient {one.patient}", size=20, bold=True),
        _text(MARGIN, 64, f"Risk of “{outcome}”: {risk_text(one.risk or 0)}", size=18),
        *_curve(one.risks),
        _text(MARGIN, bars_top - 16, "What the risk is made of: red raises it, blue lowers it", size=14, bold=True),
        *_bars(parts, bars_top),
        *(_text(MARGIN, notes_top + 18 * line, note, size=12) for line, note in enumerate(notes)),
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}'>\n"
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _curve(risks: tuple[tuple[int, float], ...]) -> list[str]:
    """The risk over the hours, from 0 to the next ten percent above the largest."""
    if len(risks) < 2:
        return []
    top = max(0.1, 0.1 * -(-max(risk for _, risk in risks) // 0.1))
    last = risks[-1][0]
    left, right, bottom = MARGIN + 40, WIDTH - MARGIN, CURVE_TOP + CURVE_HEIGHT

    def at(hours: float, risk: float) -> tuple[float, float]:
        return left + (right - left) * hours / last, bottom - CURVE_HEIGHT * risk / top

    points = [at(hours, risk) for hours, risk in risks]
    shapes = []
    for share in (0.0, 0.5, 1.0):
        _, y = at(0, share * top)
        shapes.append(f"<line x1='{left}' y1='{y:.1f}' x2='{right}' y2='{y:.1f}' stroke='{PALE}'/>")
        shapes.append(_text(MARGIN, y + 4, f"{share * top:.0%}", size=12))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    shapes.append(f"<polyline points='{path}' fill='none' stroke='{INK}' stroke-width='2'/>")
    for (hours, _), (x, y) in zip(risks, points, strict=True):
        shapes.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{INK}'/>")
        shapes.append(_text(x, bottom + 18, f"{hours} h", size=12, middle=True))
    return shapes


def _bars(parts: tuple[VariablePart, ...], top: float) -> list[str]:
    largest = max((abs(one.part) for one in parts), default=1.0) or 1.0
    shapes = []
    for line, one in enumerate(parts):
        y, length = top + BAR_HEIGHT * line, REACH * abs(one.part) / largest
        x, colour = (MIDDLE, RAISES) if one.part > 0 else (MIDDLE - length, LOWERS)
        shapes.append(_text(MARGIN, y + 13, _short(f"{one.title}: {_bedside(one)}"), size=12))
        shapes.append(f"<rect x='{x:.1f}' y='{y}' width='{length:.1f}' height='{BAR_HEIGHT - 6}' fill='{colour}'/>")
    return shapes


def _bedside(one: VariablePart) -> str:
    """The last value with its usual range, as on a chart."""
    if one.category is not None or not one.values:
        return one.said
    unit = UNITS.get(one.unit, one.unit)
    usual = f" (usual {one.normal[0]:g}–{one.normal[1]:g})" if one.normal is not None else ""
    return f"{one.values[-1][1]:.3g} {unit}".rstrip() + usual


def _notes(one: PatientRisk, found: Warned) -> list[str]:
    notes = []
    if one.missing:
        named = ", ".join(one.missing[:NAMED])
        more = f" and {len(one.missing) - NAMED} more" if len(one.missing) > NAMED else ""
        notes.append(f"Not measured: {named}{more}.")
    if found.calibration == "none":
        notes.append("The level of the risk is not calibrated: compare patients, do not read it as a chance.")
    if one.parts is not None and one.parts.method != "exact":
        notes.append("The parts are an approximation: the network does not add variables up.")
    return [*notes, NOTICE]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _text(x: float, y: float, text: str, *, size: int, bold: bool = False, middle: bool = False) -> str:
    weight = " font-weight='bold'" if bold else ""
    anchor = " text-anchor='middle'" if middle else ""
    place = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' {FONT}{weight}{anchor} fill='{INK}'"
    return f"<text {place}>{escape(escaped(text))}</text>"
