"""What becomes of each file and image of a site: used, put aside with a reason, or left out by the study.

Every file ends in exactly one of these, which `findings_of` checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wardround.errors import WardroundError, required
from wardround.sources.images.study import ImageData
from wardround_client.sources.images.decoding.decoded_cache import Outcome
from wardround_client.sources.images.folder.layout import SiteSource
from wardround_client.sources.images.plan import Plan
from wardround_client.sources.images.quality.gate import Candidate, Quality, gate, summarise
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.stages import Finding, ImageRequest, ScannedFile


@dataclass(frozen=True, kw_only=True)
class ScannedSite:
    """The files of a site after scanning; records and owners (pseudonyms) are in the order of `source.files`."""

    source: SiteSource
    data: ImageData
    key: bytes
    scanned: Sequence[ScannedFile]
    owners: Sequence[str | None]


def faults_of(asked: Sequence[ImageRequest], outcomes: Sequence[Outcome], owners: Sequence[str | None]) -> list[str]:
    """Return a reason code for each request, "" if its image enters the cohort: its own fault, otherwise the gate's."""
    faults = [outcome.fault for outcome in outcomes]
    passed = [index for index, fault in enumerate(faults) if not fault]
    candidates = [
        Candidate(
            pseudonym=required(owners[asked[index].file], "owner"),
            label=asked[index].label,
            pixels_sha256=outcomes[index].pixels_sha256,
            source_sha256=outcomes[index].source_sha256,
        )
        for index in passed
    ]
    for index, fault in zip(passed, gate(candidates), strict=True):
        faults[index] = fault
    return faults


def findings_of(site: ScannedSite, plan: Plan, asked: Sequence[ImageRequest], faults: Sequence[str]) -> list[Finding]:
    """Return all findings in the order of the files; findings about the whole site come last.

    Raises:
        WardroundError: A file was neither used nor put aside.
    """
    findings = [Finding(code=record.fault, file=index) for index, record in enumerate(site.scanned) if record.fault]
    refused = [(request, request.fault) for request in plan.requests if request.fault]
    refused += [(request, fault) for request, fault in zip(asked, faults, strict=True) if fault]
    frames: dict[tuple[int, str], list[int]] = defaultdict(list)
    for request, code in refused:
        frames[request.file, code].append(request.frame + 1)
    for (file, code), numbers in frames.items():
        several = len(site.scanned[file].frames) > 1
        findings.append(
            Finding(code=code, file=file, place=_frames_text(numbers) if several else "", count=len(numbers))
        )
    findings += plan.findings
    used = {request.file for request, fault in zip(asked, faults, strict=True) if not fault}
    put_aside = {finding.file for finding in findings if finding.file is not None and REASONS[finding.code].fault}
    lost = set(range(len(site.scanned))) - used - put_aside - plan.left_out
    if lost:
        raise WardroundError(
            f"{site.source.root}: {len(lost)} files were neither used nor put aside; report this error"
        )
    issuers = _issuers(site)
    if issuers:
        findings.append(Finding(code="several_issuers", count=issuers))
    source = site.source
    for code, count in (
        ("label_left_out", source.left_out),
        ("skipped", source.skipped),
        ("broken_link", source.broken_links),
    ):
        if count:
            findings.append(Finding(code=code, count=count))
    return sorted(findings, key=lambda finding: (finding.file is None, finding.file or 0, finding.code, finding.place))


def _frames_text(numbers: Sequence[int]) -> str:
    """Return which frames of a file are meant, in a few characters."""
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"{len(numbers)} frames between {min(numbers)} and {max(numbers)}"


def _issuers(site: ScannedSite) -> int:
    """Return the number of PatientIDs that occur with more than one issuer, the missing issuer included."""
    of: dict[str, set[str]] = defaultdict(set)
    for record in site.scanned:
        if record.patient_key:
            of[record.patient_key].add(record.issuer_key)
    return sum(len(issuers) > 1 for issuers in of.values())


def quality_of(site: ScannedSite, made: Sequence[tuple[ImageRequest, Outcome]], findings: list[Finding]) -> Quality:
    """Return the figures of a site. `made` are the images in the cohort; `findings` may get one more remark."""
    without_hu = sum(not outcome.hu for _, outcome in made)
    if without_hu and (site.data.modality == "CT" or without_hu < len(made)):
        findings.append(Finding(code="no_hu", count=without_hu))
    notes = [note[0].upper() + note[1:] + "." for note in site.source.assumptions]
    if site.data.region == "marked" and any(record.kind == "picture" for record in site.scanned):
        notes.append("Pictures are treated as already cropped around their marked point.")
    used = {request.file for request, _ in made}
    aside = {one.file for one in findings if one.file is not None and REASONS[one.code].fault} - used
    rest = len(site.source.files) - len(used) - len(aside)
    quality = summarise(
        site=site.source.name,
        files=len(site.source.files),
        labels=site.data.labels,
        accepted=[(required(site.owners[request.file], "owner"), request.label) for request, _ in made],
        findings=findings,
        notes=tuple(notes),
    )
    return replace(quality, accounted={"used": len(used), "put_aside": len(aside), "left_out": rest})
