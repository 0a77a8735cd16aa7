"""The quality gate over a whole site: it finds faults that no single image can show, and computes the report's figures.

The module consists of pure functions over hashes and labels. The same picture under two patients is an error, and
neither image is used: one of them belongs to someone else, and a patient who is counted twice gets half the protection.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.stages import Finding
from wardround_client.sources.quality import FEW_PATIENTS, Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One prepared image that passed every check of the image itself."""

    pseudonym: str
    label: int
    pixels_sha256: str
    source_sha256: str


def gate(candidates: Sequence[Candidate]) -> list[str]:
    """Return a reason code for each candidate, "" if it may enter the cohort.

    `two_patients`: the same prepared or source pixels under two pseudonyms. `two_labels`: the same pixels of one
    patient with two labels. `duplicate`: a repetition of the same pixels; the first labelled image is kept.
    """
    faults = [""] * len(candidates)
    for content in (lambda c: c.pixels_sha256, lambda c: c.source_sha256):
        owners: dict[str, set[str]] = defaultdict(set)
        for candidate in candidates:
            owners[content(candidate)].add(candidate.pseudonym)
        for index, candidate in enumerate(candidates):
            if len(owners[content(candidate)]) > 1:
                faults[index] = "two_patients"
    twins: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, candidate in enumerate(candidates):
        if not faults[index]:
            twins[candidate.pseudonym, candidate.pixels_sha256].append(index)
    for group in twins.values():
        labels = {candidates[index].label for index in group} - {-1}
        kept = next((index for index in group if candidates[index].label >= 0), group[0])
        for index in group:
            if len(labels) > 1:
                faults[index] = "two_labels"
            elif index != kept:
                faults[index] = "duplicate"
    return faults


def summarise(
    *,
    site: str,
    files: int,
    labels: tuple[str, ...],
    accepted: Sequence[tuple[str, int]],
    findings: Sequence[Finding],
    notes: tuple[str, ...],
) -> Quality:
    """Return the figures of a site. `accepted` contains the pseudonym and label of each image in the cohort."""
    classes = {}
    for index, name in enumerate(labels):
        own = [pseudonym for pseudonym, label in accepted if label == index]
        classes[name] = {"images": len(own), "patients": len(set(own))}
    unlabelled = sum(label < 0 for _, label in accepted)
    quarantined: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    for finding in findings:
        (quarantined if REASONS[finding.code].fault else remarks)[finding.code] += finding.count
    few = sum(figures["patients"] < FEW_PATIENTS for figures in classes.values())
    if few:
        remarks["few_of_class"] = few
    if unlabelled:
        remarks["no_label"] = unlabelled
    return Quality(
        site=site,
        files=files,
        rows=len(accepted),
        patients=len({pseudonym for pseudonym, _ in accepted}),
        classes=classes,
        unlabelled=unlabelled,
        quarantined=dict(sorted(quarantined.items())),
        remarks=dict(sorted(remarks.items())),
        notes=notes,
    )
