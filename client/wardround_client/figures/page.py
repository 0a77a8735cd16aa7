"""An evaluation as tables for a terminal, as JSON and as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.metrics.subgroups import LEAST_OF_A_LABEL, LEAST_PATIENTS, GroupFigures, Rate
from wardround.storage.atomic import write_private
from wardround.storage.folders import make_folder
from wardround_client.figures.evaluation import PLAIN_THRESHOLD, Compared, Evaluation
from wardround_client.sources.images.attributes import TITLES

JSON_FILE, HTML_FILE = "evaluation.json", "evaluation.html"
SUPPRESSED = "suppressed"
STAYS = (
    "These figures are exact and stay at this site. Nothing was sent, and nothing was charged. To publish them is a "
    "release about held-out patients that no ε covers."
)


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts: `attribute` is its title, and the first column names the groups."""

    attribute: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def text_tables(found: Evaluation) -> list[TextTable]:
    """Return one table for all held-out patients, then one for each attribute that the cohort knows."""
    columns = _columns(found)
    everyone = _row(found, "all", found.everyone, [other.everyone for other in found.others])
    tables = [TextTable(attribute="all held-out patients", columns=("group", *columns), rows=(everyone,))]
    for table in found.tables:
        of_others = [other.groups[table.attribute] for other in found.others]
        rows = tuple(
            _row(found, name, figures, [groups.get(name) for groups in of_others])
            for name, figures in table.groups.items()
        )
        title = TITLES[table.attribute]
        tables.append(TextTable(attribute=title, columns=(title, *columns), rows=rows))
    return tables


def short_table(found: Evaluation) -> TextTable:
    """Return one table for a terminal: the groups that are shown, with the most important figures."""
    two = ("positive", "predicted", "observed") if len(found.labels) == 2 else ()
    columns = ("patients", "AUC", *two, *(f"minus {other.name}" for other in found.others))
    rows = []
    for table in text_tables(found):
        for row in table.rows:
            cells = dict(zip(table.columns[1:], row[1:], strict=False))
            changes = row[len(row) - 2 * len(found.others) :][1::2]
            group = row[0] if table.columns[0] == "group" else f"{table.attribute}: {row[0]}"
            if row[1] != SUPPRESSED:
                rows.append((group, *(cells[name] for name in ("patients", "AUC", *two)), *changes))
    return TextTable(attribute="held-out patients", columns=("group", *columns), rows=tuple(rows))


def suppressed_line(found: Evaluation) -> str:
    """Return one line with the groups that are suppressed; "" if there are none."""
    hidden = {
        TITLES[table.attribute]: [name for name, figures in table.groups.items() if figures is None]
        for table in found.tables
    }
    if found.everyone is None:
        return "Suppressed: everything; there are too few held-out patients, or too few of one label."
    parts = [f"{title} ({', '.join(names)})" for title, names in hidden.items() if names]
    return f"Suppressed: {'; '.join(parts)}." if parts else ""


def notes_of(found: Evaluation) -> list[str]:
    """Return what a reader must know about the tables."""
    notes = [
        "Only patients whom the model's study holds out count. With two labels, a patient's score is the highest of "
        "the patient's images.",
        f"A group is shown if it has at least {LEAST_PATIENTS} patients, and {LEAST_OF_A_LABEL} with each label. "
        f"Further groups are {SUPPRESSED} where a small one could be computed from the total.",
        "Intervals are 95 % over patients. Many groups are compared, so one of them may look different by chance.",
    ]
    if len(found.labels) == 2:
        notes.append(
            "“Predicted” is the mean probability" + (" after calibration" if found.calibrated else ", not calibrated")
            + f", “observed” the share of patients with the label {found.labels[1]}: they should agree."
        )  # fmt: skip
        at = found.points[0] if found.points else None
        notes.append(
            f"The threshold on the uncalibrated probability is {PLAIN_THRESHOLD}: the federation measured none."
            if at is None
            else f"The threshold is the one at which the federation measured {at.specificity:.0%} specificity and "
            f"{at.sensitivity:.0%} sensitivity ({at.low:.0%} to {at.high:.0%})."
        )
    if found.missing:
        names = ", ".join(TITLES[name] for name in found.missing)
        notes.append(
            f"The prepared data do not have: {names}. If the DICOM headers or labels.csv have it, run "
            "wardround-site ingest again."
        )
    return [*notes, STAYS]


def write_evaluation(folder: Path, found: Evaluation) -> list[Path]:
    """Write evaluation.json and evaluation.html, readable by their owner only. Returns their paths.

    Raises:
        OSError: The folder cannot be written.
    """
    make_folder(folder)
    content = {JSON_FILE: json.dumps(found.to_json(), indent=1) + "\n", HTML_FILE: html_of(found)}
    for name, text in content.items():
        write_private(folder / name, text.encode())
    return [folder / name for name in content]


def html_of(found: Evaluation) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("evaluation.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        found=found, tables=text_tables(found), notes=notes_of(found), suppressed=SUPPRESSED
    )


def _columns(found: Evaluation) -> tuple[str, ...]:
    two = ("positive", "sensitivity", "specificity", "predicted", "observed") if len(found.labels) == 2 else ()
    others = [text for other in found.others for text in (f"AUC, {other.name}", "difference")]
    return ("patients", "AUC", *two, *others)


def _row(
    found: Evaluation, name: str, figures: GroupFigures | None, others: Sequence[Compared | None]
) -> tuple[str, ...]:
    if figures is None:
        return (name, SUPPRESSED, *("–" for _ in _columns(found)[1:]))
    cells = [f"{figures.patients:,}", _auc_text(figures.auc, figures.auc_ci95)]
    if len(found.labels) == 2:
        at = figures.thresholds[0]
        cells += [
            f"{figures.positives:,}",
            _rate_text(at.sensitivity),
            _rate_text(at.specificity),
            f"{figures.predicted:.0%}",
            "–" if figures.observed is None else _rate_text(figures.observed),
        ]
    for other in others:
        cells += ["–", "–"] if other is None else [_auc_text(other.auc, other.auc_ci95), _difference_text(other)]
    return (name, *cells)


def _auc_text(auc: float | None, interval: tuple[float, float] | None) -> str:
    return "–" if auc is None or interval is None else f"{auc:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def _rate_text(rate: Rate) -> str:
    return f"{rate.value:.0%} ({100 * rate.low:.0f}–{rate.high:.0%})"


def _difference_text(other: Compared) -> str:
    change = other.difference
    return "–" if change is None else f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
