"""Write the report of a run, `report.html`: the question, the results and the meaning of the privacy promise.

The figures of the headline are those of result.json. All others are computed from the scores by
`wardround.metrics.classification`. If the two disagree, a banner at the top of the report shows both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardround import text as plain
from wardround.sources import registry as sources
from wardround.tasks.assessment import CurvePoint, ScoredSet
from wardround.tasks.registry import public_start
from wardround_simulation.report import sections
from wardround_simulation.report import text as words
from wardround_simulation.report.evidence import RunEvidence, SiteQuality
from wardround_simulation.report.measures import Interval, missing_replies, site_figures, whole_test_set
from wardround_simulation.report.noised_figures import released_section
from wardround_simulation.report.page import write_page
from wardround_simulation.run.paths import REPORT_PAGE

__all__ = ["CurvePoint", "RunEvidence", "ScoredSet", "SiteQuality", "write_report"]

NO_PRIVACY = (
    "This run used ε = ∞: no noise protects the patients. What left each hospital, and the model itself, may reveal "
    "individual patients' images. Sending only weights is not a protection by itself."
)


def write_report(folder: Path, evidence: RunEvidence) -> Path:
    """Write `folder/report.html` and return its path.

    Raises:
        ValueError: If two settings were scored on different images.
    """
    sites = site_figures(evidence)
    aucs = whole_test_set(evidence)
    missing = missing_replies(evidence)
    content = {
        "title": f"{evidence.study.study.name}: Wardround report",
        "study": evidence.study,
        "unit": evidence.unit,
        "asked": evidence.asked or _asked(evidence),
        "banners": _banners(evidence, aucs),
        "headline": list(evidence.headline) or words.headline(evidence, aucs),
        "facts": _facts(evidence),
        "notes": list(evidence.notes),
        "command": evidence.command,
        **_privacy(evidence),
        **sections.site_section(evidence, sites, aucs),
        "pictures": sections.quality_pictures(evidence, aucs),
        "task_sections": [sections.task_section(section) for section in evidence.sections],
        **released_section(evidence),
        **sections.round_section(evidence, missing),
        "quality_rows": [sections.quality_row(site, quality) for site, quality in sorted(evidence.quality.items())],
        "row": sources.of_study(evidence.study).ROW,
        "montages": sections.montage_section(evidence.montages or {}),
        "montage_sites": len(evidence.montages or {}),
        "repeat": _repeat(evidence),
        "study_text": json.dumps(json.loads(evidence.study.canonical()), indent=2),
    }
    return write_page(folder / REPORT_PAGE, "report.html.j2", content)


def _asked(evidence: RunEvidence) -> str:
    study = evidence.study
    stated = " or ".join(f"“{label}”" for label in study.data.labels)
    source = sources.of_study(study)
    public = public_start(study.study.task, study.model.name)
    start = {"phantom": public, "random": "random weights"}.get(study.model.init, "the weights of a file")
    part = {"head": "its last layer", "norm+head": "its normalisation and last layers", "all": "all of it"}
    hospitals = len(evidence.result.get("sites") or {}) or study.aggregation.nominal_sites
    return (
        f"Task: classify {source.kind(study)} as {stated}. The network {study.model.name} starts from {start}; "
        f"{part[study.model.trainable]} is trained in {plain.count_text(study.study.rounds, 'round')} across "
        f"{plain.count_text(hospitals, 'hospital')}. No {source.ROW} leaves its hospital."
    )


def _banners(evidence: RunEvidence, aucs: Mapping[str, Interval]) -> list[dict[str, str]]:
    banners = []
    result = evidence.result
    if not words.is_private(evidence):
        banners.append({"title": "NO PRIVACY", "text": NO_PRIVACY})
    done, asked = result.get("rounds_completed"), evidence.study.study.rounds
    if done is not None and done < asked:
        status = result.get("status", "unknown")
        text = f"{done} of {asked} rounds were completed (status: {status}). The same command continues the run."
        banners.append({"title": "NOT FINISHED", "text": text})
    stated, found = (result.get("test") or {}).get("auc"), aucs.get("federated")
    if stated is not None and found is not None and (found.value is None or abs(found.value - stated) > 5e-4):
        text = (
            f"The AUC is {words.auc_text(stated)} in result.json, but {words.auc_text(found.value)} computed from the "
            "scores. Do not rely on this report; please report the error."
        )
        banners.append({"title": "FIGURES DISAGREE", "text": text})
    return banners


def _facts(evidence: RunEvidence) -> list[dict[str, str]]:
    result, test = evidence.result, evidence.result.get("test") or {}
    epsilon = words.largest_epsilon(evidence)
    facts = []
    if test.get("auc") is not None:
        low, high = test.get("auc_ci95") or (None, None)
        within = words.interval_text(Interval(value=test["auc"], low=low, high=high))
        by_patient = _by_patient(result) or f"figures per {evidence.unit}"
        facts.append(_fact("AUC, held out", words.auc_text(test["auc"]), f"95 % {within}" if within else ""))
        facts.append(_fact("held-out patients", f"{test['patients']:,}", by_patient))
    unit = "no privacy" if math.isinf(epsilon) else f"per patient, δ = {_delta(evidence):g}"
    rounds = f"{result.get('rounds_completed', '–')} of {evidence.study.study.rounds}"
    return [
        *facts,
        _fact("ε, at most", plain.epsilon_text(epsilon), unit),
        _fact("rounds", rounds, ""),
        _fact("hospitals", str(len(result.get("sites") or {})), "simulated on this machine"),
    ]


def _fact(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _by_patient(result: Mapping[str, Any]) -> str:
    """Return the AUC per patient, which doctors ask for, or "" if it is missing or already in the headline."""
    figures = result.get("test_by_patient") or {}
    if figures.get("auc") is None or (result.get("test") or {}).get("unit") == "patient":
        return ""
    return f"counted per patient: AUC {words.auc_text(figures['auc'])}"


def _delta(evidence: RunEvidence) -> float:
    return float((evidence.result.get("privacy") or {}).get("delta", evidence.study.privacy.delta))


def _privacy(evidence: RunEvidence) -> dict[str, Any]:
    privacy, sites = evidence.result.get("privacy") or {}, evidence.result.get("sites") or {}
    private = words.is_private(evidence)
    epsilon, delta = words.largest_epsilon(evidence), _delta(evidence)
    accountant = str(privacy.get("accountant", "rdp"))
    if "opacus" in evidence.versions and "opacus" not in accountant:
        accountant += f", opacus {evidence.versions['opacus']}"
    exact = any(site.get("epsilon_exact") is not None for site in sites.values())
    caption = "ε = ∞ means no privacy. Steps are counted, but no noise was added."
    if private:
        asked = plain.epsilon_text(evidence.study.privacy.epsilon)
        caption = (
            f"Unit: one {privacy.get('unit', 'patient')}. Neighbours: data sets that differ by adding or removing one. "
            f"δ = {delta:g}. Accountant: {accountant}. Values are rounded up. The study promises at most ε = {asked}, "
            "including spare rounds."
        )
        if exact:
            caption += (
                " “Exact”: the same events by the analytic Gaussian, where every patient takes part in every step."
            )
    rows = [
        {
            "site": name,
            "epsilon": plain.epsilon_text(site["epsilon"], decimals=2) if "epsilon" in site else "–",
            "exact": "–"
            if site.get("epsilon_exact") is None
            else plain.epsilon_text(site["epsilon_exact"], decimals=2),
            "steps": f"{site['steps']:,}" if "steps" in site else "–",
            "patients": f"{site['patients']:,}" if site.get("patients") is not None else "–",
        }
        for name, site in sorted(sites.items())
    ]
    return {
        "promise": plain.promise(epsilon, delta) if private else [],
        "privacy_caption": caption,
        "privacy_rows": rows,
        "exact": exact and private,
        "several": len(sites) > 1,
        "private": private,
    }


def _repeat(evidence: RunEvidence) -> list[tuple[str, str]]:
    result, privacy = evidence.result, evidence.result.get("privacy") or {}
    pairs = [("study hash", str(result.get("study_sha256") or evidence.study.sha256()))]
    if evidence.architecture_sha256:
        pairs.append(("architecture hash", evidence.architecture_sha256))
    pairs.append(("seed", str(evidence.study.study.seed)))
    named = (
        ("noise multiplier σ", "noise_multiplier"),
        ("sampling rate q", "sampling_rate"),
        ("noisy steps", "steps"),
    )
    pairs += [(name, f"{privacy[key]:.6g}") for name, key in named if isinstance(privacy.get(key), (int, float))]
    pairs += [(name, str(version)) for name, version in sorted(evidence.versions.items())]
    return pairs
