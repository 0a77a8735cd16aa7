"""Build the sections of a run's report that have pictures or tables: sites, model quality, rounds and images."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from wardround import text
from wardround.metrics import classification
from wardround.tasks.assessment import SETTINGS, ReportSection
from wardround.wire.reply_codes import code_text
from wardround_simulation.report import run_plots, style
from wardround_simulation.report import text as words
from wardround_simulation.report.evidence import RunEvidence, SiteQuality
from wardround_simulation.report.measures import Interval, SiteFigures, rows_by_unit
from wardround_simulation.report.task_plots import round_picture

ALL_HOSPITALS = "all hospitals"
LEAD_WIDTH_IN = 6.4
MONTAGE_IMAGES = 12
MONTAGE_SITES = 16


def site_section(evidence: RunEvidence, sites: list[SiteFigures], aucs: Mapping[str, Interval]) -> dict[str, Any]:
    """Return the comparison of each site's own model with the federated one, which is marked where it is worse.

    The picture, which leads the report, also has a row for all held-out patients (`aucs`).
    """
    settings = [setting for setting in SETTINGS if any(setting in site.intervals for site in sites)]
    nothing = words.Interval(value=None)
    rows = []
    for site in sites:
        shown = [site.intervals.get(setting, nothing) for setting in settings]
        rows.append({
            "site": site.site,
            "patients": f"{site.patients:,}",
            "cells": [{"value": words.auc_text(i.value), "interval": words.interval_text(i)} for i in shown],
            "difference": words.signed_text(site.difference.value),
            "difference_interval": words.signed_interval_text(site.difference),
            "below": site.difference.value is not None and site.difference.value < 0,
            "verdict": words.verdict_text(site),
        })  # fmt: skip
    drawn = [(site.site, site.intervals) for site in sites if any(i.value is not None for i in site.intervals.values())]
    if len(drawn) > 1:
        drawn.insert(0, (ALL_HOSPITALS, aucs))
    return {
        "site_rows": rows,
        "site_settings": settings,
        "setting_names": {
            setting: text.start_name(evidence.study) if setting == "start" else setting for setting in settings
        },
        "has_alone": "alone" in settings,
        "worth_it": words.worth_it(sites),
        "sites_picture": run_plots.sites_side_by_side(drawn, width_in=LEAD_WIDTH_IN) if drawn else None,
    }


def quality_pictures(evidence: RunEvidence, aucs: Mapping[str, Interval]) -> list[style.Picture]:
    """Return learning curve, scores, ROC and calibration of the federated model, where there is evidence for them."""
    pictures = []
    if any(point.site is None and point.auc is not None for point in evidence.curve):
        found = {name: aucs[name].value for name in ("pooled", "start") if name in aucs}
        references = {name: value for name, value in found.items() if value is not None}
        pictures.append(run_plots.learning_curve(evidence.curve, references))
    federated = evidence.scored("federated")
    if federated is None or not len(federated.labels_N):
        return pictures
    scores, labels_N, patients_N = rows_by_unit(federated, evidence.unit)
    labels = evidence.study.data.labels
    ece = (evidence.result.get("test") or {}).get("ece")
    if scores.ndim == 2:
        maybe = {label: classification.roc_curve(scores[:, k], labels_N == k) for k, label in enumerate(labels)}
        band, likeliest_N = None, scores.argmax(axis=1)
        event, probability_N, happened_N = "the likeliest label", scores.max(axis=1), likeliest_N == labels_N
    else:
        known = {name: evidence.scored(name) for name in ("start", "pooled", "federated")}
        maybe = {
            name: classification.roc_curve(*rows_by_unit(one, evidence.unit)[:2])
            for name, one in known.items()
            if one is not None
        }
        band = classification.roc_band(scores, labels_N, patients_N)
        event, probability_N, happened_N = f"“{style.shorten(labels[1], 20)}”", scores, labels_N
    curves = {name: curve for name, curve in maybe.items() if curve is not None}
    probable = probability_N.min() >= 0 and probability_N.max() <= 1
    if probable and scores.ndim == 1:
        by_label = {label: scores[labels_N == k] for k, label in enumerate(labels)}
        pictures.append(run_plots.score_distribution(by_label, event))
    if curves:
        pictures.append(run_plots.roc(curves, band))
    if probable:
        reliability = classification.calibration_curve(probability_N, happened_N, patients_N)
        pictures.append(run_plots.calibration(reliability, probability_N, event, ece))
    return pictures


def round_section(evidence: RunEvidence, missing: Mapping[tuple[int, str], str]) -> dict[str, Any]:
    """Return which sites took part in the rounds, which replies are missing and why, and the time and bytes used.

    The lines of a failed round also count as missing replies.
    """
    rounds = int(evidence.result.get("rounds_completed") or 0)
    sites = sorted({*(evidence.result.get("sites") or {}), *(site for _, site in missing)})
    rows = [_round_row(evidence, site, rounds, missing) for site in sites]
    lost = len({at for at, _ in missing})
    sentence = f"{text.count_text(rounds, 'round')} completed; every site replied in every round."
    if not rounds:
        sentence = "No round was completed."
    elif missing:
        lack = "1 reply is" if len(missing) == 1 else f"{len(missing):,} replies are"
        sentence = (
            f"{text.count_text(rounds, 'round')} completed. {lack} missing, in {text.count_text(lost, 'round')}; "
            "the table lists them. Without a site, the round's model is the mean of the other sites."
        )
    seconds = {
        (int(r["round"]), str(r["site"])): float(r["seconds"])
        for r in evidence.metrics
        if r.get("seconds") is not None and not r.get("code")
    }
    picture = run_plots.rounds_and_sites(sites, missing, rounds, seconds) if rounds and sites else None
    spent, carried = evidence.result.get("seconds") or {}, evidence.result.get("bytes") or {}
    totals = [f"{name.replace('_', ' ')} {text.seconds_text(value)}" for name, value in spent.items()]
    totals = [f"Time: {', '.join(totals)}."] if totals else []
    if carried:
        totals.append(
            f"Transferred in total: {text.bytes_text(carried.get('up', 0))} up, "
            f"{text.bytes_text(carried.get('down', 0))} down."
        )
    return {"rounds_sentence": sentence, "rounds_picture": picture, "round_rows": rows, "totals": " ".join(totals)}


def _round_row(evidence: RunEvidence, site: str, rounds: int, missing: Mapping[tuple[int, str], str]) -> dict[str, str]:
    own = [row for row in evidence.metrics if row.get("site") == site]
    seconds = [float(row["seconds"]) for row in own if row.get("seconds") is not None and not row.get("code")]
    lost: dict[str, list[int]] = {}
    for (at, name), code in sorted(missing.items()):
        if name == site:
            lost.setdefault(code, []).append(at)
    answered = rounds - sum(at <= rounds for at, name in missing if name == site)
    up, down = (sum(int(row.get(key) or 0) for row in own) for key in ("bytes_up", "bytes_down"))
    return {
        "site": site,
        "answered": f"{answered} of {rounds}",
        "median": text.seconds_text(median(seconds)) if seconds else "–",
        "longest": text.seconds_text(max(seconds)) if seconds else "–",
        "up": text.bytes_text(up) if up else "–",
        "down": text.bytes_text(down) if down else "–",
        "missing": "; ".join(f"{words.rounds_text(at)}: {code_text(code)}" for code, at in lost.items()) or "–",
    }


def quality_row(site: str, quality: SiteQuality) -> dict[str, str]:
    """Return one site's row of the quality gate's table, with the most common reason first."""
    reasons = sorted(quality.quarantined.items(), key=lambda item: (-item[1], item[0]))
    left_out = sorted(quality.left_out.items(), key=lambda item: (-item[1], item[0]))
    return {
        "site": site,
        "accepted": f"{quality.accepted:,}",
        "quarantined": f"{sum(quality.quarantined.values()):,}",
        "reasons": ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons) or "–",
        "left_out": ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in left_out) or "–",
    }


def task_section(section: ReportSection) -> dict[str, Any]:
    """Return the content of a task's own section, with its image sheets as PNGs."""
    sheets = [
        {
            "title": sheet.title,
            "alt": f"{len(sheet.images_NCHW)} images: {sheet.title}",
            "png": style.montage_png(sheet.images_NCHW, sheet.columns, sheet.tile_px),
            "width_px": sheet.columns * (sheet.tile_px + 2) - 2,
            "caption": sheet.caption,
        }
        for sheet in section.sheets
    ]
    return {"anchor": section.anchor, "title": section.title, "lines": section.lines, "tables": section.tables,
            "pictures": [round_picture(plot) for plot in section.plots], "sheets": sheets}  # fmt: skip


def montage_section(montages: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return one sheet of images per site.

    Only the first `MONTAGE_SITES` sites are shown, so that the report is small enough to be sent by mail.
    """
    shown = sorted(montages.items())[:MONTAGE_SITES]
    tile_px = 112 if len(shown) <= 6 else 72
    items = []
    for site, images_NCHW in shown:
        if not len(images_NCHW):
            continue
        images_NCHW = images_NCHW[:MONTAGE_IMAGES]
        columns = min(4, len(images_NCHW))
        items.append({
            "site": site,
            "alt": f"{len(images_NCHW)} images of {site} as given to the network",
            "png": style.montage_png(images_NCHW, columns, tile_px),
            "width_px": columns * (tile_px + 2) - 2,
            "caption": f"{text.count_text(len(images_NCHW), 'image')} as given to the network, before normalisation.",
        })  # fmt: skip
    return items
