"""Ingest: turns a site's files into its cohort in five steps: scan, plan, decode in worker processes, gate, write.

Source files are opened read-only. A second ingest of the same files decodes nothing, because decoded images are cached
by the hash of the content that they were made from (`decoding/decoded_cache.py`). A faulty file never stops the others;
its fault is listed in the quality report.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from wardround.errors import DataError, required
from wardround.sources.images.study import ImageData
from wardround_client.sources.claim import claimed_cohort, refuse_full_disk
from wardround_client.sources.cohort import SEAL_FILE, CohortRow, cohort_key, pseudonym, table_bytes, write_cohort
from wardround_client.sources.images.ahead import Ahead
from wardround_client.sources.images.decoding.decoded_cache import Memory, Outcome, request_key
from wardround_client.sources.images.decoding.prepare import Recipe, prepare, recipe_of, scan
from wardround_client.sources.images.decoding.workers import Lost, WorkerPool
from wardround_client.sources.images.folder.layout import SiteSource, SourceFile
from wardround_client.sources.images.plan import plan_images
from wardround_client.sources.images.quality.findings import ScannedSite, faults_of, findings_of, quality_of
from wardround_client.sources.images.quality.reasons import REASONS
from wardround_client.sources.images.quality.report import write_quality
from wardround_client.sources.images.source import REPORT_PAGE, prepared_by, row_shape
from wardround_client.sources.images.stages import Finding, ImageRequest, PreparedImage, ScannedFile
from wardround_client.sources.quality import Quality

Progress = Callable[[int, int], None]
PASSING_FAULTS = frozenset({"unreachable", "out_of_memory", "too_slow", "decoder_crashed"})
UNREAD_FAULTS = PASSING_FAULTS | {"unreadable", "no_decoder"}
FILES_WORTH_A_WORKER = 64  # starting a worker takes about as long as this many small files


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The result of an ingest.

    Everything about the data is in `quality`. No field here or in `quality` can name a patient.
    """

    folder: Path
    key: str  # of the cohort
    quality: Quality
    decoded: int  # images decoded now
    reused: int  # images reused from an earlier ingest
    seconds: float

    @property
    def unread(self) -> int:
        """The number of files or images that could not be read at all."""
        return sum(count for code, count in self.quality.quarantined.items() if code in UNREAD_FAULTS)

    @property
    def lost_most(self) -> bool:
        """Whether more could not be read than is in the cohort."""
        return self.unread > self.quality.rows

    @property
    def summary(self) -> str:
        """One line: patients and images, and how many were decoded now."""
        quality = self.quality
        return f"{quality.patients} patients, {quality.rows} images; {self.decoded} decoded now, {self.reused} reused"

    def to_json(self) -> dict:
        """Return plain values for `--json` and a run's report."""
        figures = {"key": self.key, "decoded": self.decoded, "reused": self.reused, "seconds": round(self.seconds, 3)}
        return {**figures, "quality": self.quality.to_json()}


def ingest(
    source: SiteSource,
    data: ImageData,
    folder: Path,
    key: bytes,
    *,
    workers: int,
    objectors: frozenset[str] = frozenset(),
    progress: Progress | None = None,
    pool: WorkerPool | None = None,
    ahead: Ahead | None = None,
) -> IngestReport:
    """Prepare a site's cohort and its quality report in `folder`.

    Memory use grows with `workers`, not with the amount of data. Rows are in the order of the source's files (slices in
    the order of their series), independently of the workers' timing.

    Args:
        source: The site's files.
        data: The study's data section.
        folder: The cohort folder.
        key: The site's own secret, from which pseudonyms are derived.
        workers: Number of worker processes; ignored when `pool` is given.
        objectors: Pseudonyms of patients who object. Their images are not decoded.
        progress: Called as `progress(done, total)`; it counts files scanned and images made.
        pool: An open pool, which many small sites can share to avoid the cost of starting one each.
        ahead: Files of the source that were prepared before, and are no longer there.

    Raises:
        MustComeAgainError: Files that were prepared are needed again.
        DataError: No image is fit for the study, most files cannot be read at the moment, the disk cannot hold the
            cohort, or another ingest is running in `folder`. An existing cohort is kept.
    """
    start = time.monotonic()
    with claimed_cohort(folder), _open_pool(pool, workers, len(source.files)) as pool:
        count = _Counter(progress, len(source.files))
        site = _look(source, data, key, objectors, pool, count, {} if ahead is None else ahead.scans)
        plan = plan_images(source, site.scanned, site.owners, data, key)
        with Memory(folder, row_shape(data)) as memory:
            asked = [request for request in plan.requests if not request.fault]
            if ahead is not None:
                ahead.refuse_stale(asked, site.scanned, source)
                memory.lend(ahead.outcomes, ahead.images(), ahead.row_of)
            refuse_full_disk(folder, len(asked), math.prod(row_shape(data)))
            outcomes, decoded = _make(asked, site, memory, pool, count)
            decoded += 0 if ahead is None else sum(outcome.request in ahead.outcomes for outcome in outcomes)
            faults = faults_of(asked, outcomes, site.owners)
            kept = [index for index, fault in enumerate(faults) if not fault]
            # Pixels that an earlier gate refused were not kept, so they are decoded again if the gate accepts them now.
            decoded += _make_missing(kept, asked, outcomes, site, memory, pool)
            memory.save(outcomes)
            findings = findings_of(site, plan, asked, faults)
            quality = quality_of(site, [(asked[index], outcomes[index]) for index in kept], findings)
            write_quality(folder, quality, findings, [file.path for file in source.files], key)
            _refuse_if_most_may_pass(source, findings)
            if not kept:
                raise DataError(
                    f"{source.root}: none of the {len(source.files)} files of {source.name} can be used for the study; "
                    f"the reasons are in {folder / REPORT_PAGE}"
                )
            rows = [
                CohortRow(
                    pseudonym=required(site.owners[asked[index].file], "owner"),
                    label=asked[index].label,
                    extra={"hu": str(int(outcomes[index].hu)), **_columns(asked[index], site)},
                )
                for index in kept
            ]
            made_key = _write(folder, rows, [outcomes[index].pixels_sha256 for index in kept], site, memory)
    return IngestReport(
        folder=folder,
        key=made_key,
        quality=quality,
        decoded=decoded,
        reused=len(asked) - decoded,
        seconds=time.monotonic() - start,
    )


def _refuse_if_most_may_pass(source: SiteSource, findings: Sequence[Finding]) -> None:
    """Raise `DataError` if more than half of the files cannot be read for a cause that may pass.

    A cohort of the few others would be trained on as if it were the hospital's data.
    """
    lost = {finding.file for finding in findings if finding.code in PASSING_FAULTS} - {None}
    if 2 * len(lost) > len(source.files):
        codes = Counter(finding.code for finding in findings if finding.code in PASSING_FAULTS)
        reason = REASONS[codes.most_common(1)[0][0]]
        raise DataError(
            f"{source.root}: {len(lost)} of the {len(source.files)} files of {source.name} could not be read, most of "
            f"them for this reason: {reason.title}. {reason.advice} Nothing was changed"
        )


def _open_pool(pool: WorkerPool | None, workers: int, files: int) -> AbstractContextManager[WorkerPool]:
    if pool is not None:
        return nullcontext(pool)
    return WorkerPool(min(workers, 1 + files // FILES_WORTH_A_WORKER))


class _Counter:
    """Progress over two stages: every file is scanned, then every image is made."""

    def __init__(self, report: Progress | None, files: int) -> None:
        self._report = report
        self._total = 2 * files  # until the number of images is known
        self._done = 0
        self._files = files

    def images(self, count: int) -> None:
        self._total = self._files + count

    def step(self, count: int = 1) -> None:
        self._done += count
        if self._report is not None and count:
            self._report(self._done, self._total)


def _look(
    source: SiteSource,
    data: ImageData,
    key: bytes,
    objectors: frozenset[str],
    pool: WorkerPool,
    count: _Counter,
    known: Mapping[str, ScannedFile],
) -> ScannedSite:
    """Scan every file whose scan is not known by its name.

    Files without an owner get the fault `no_patient`, files of an objector `opted_out`.
    """
    scanned, owners = [], []
    paths = [source.root / file.path for file in source.files if file.path.name not in known]
    found = pool.map(functools.partial(scan, data=data, key=key), paths)
    for file in source.files:
        record = known[file.path.name] if file.path.name in known else next(found)
        if isinstance(record, Lost):
            record = ScannedFile(content_sha256="", fault=record.code)
        owner = _owner(file, record, key)
        if owner is None and not record.fault:
            record = replace(record, fault="no_patient")
        scanned.append(record)
        owners.append(owner)
        count.step()
    # An objection of an earlier version names a patient with the issuer; it holds for all files of the PatientID.
    former = {owner for owner, record in zip(owners, scanned, strict=True) if record.former_pseudonym in objectors}
    gone = objectors | former
    scanned = [
        replace(record, fault="opted_out") if owner in gone else record
        for owner, record in zip(owners, scanned, strict=True)
    ]
    return ScannedSite(source=source, data=data, key=key, scanned=scanned, owners=owners)


def _owner(file: SourceFile, record: ScannedFile, key: bytes) -> str | None:
    """Return the pseudonym of the patient that the source names (in a manifest, say), otherwise of the header's."""
    return record.pseudonym if file.patient_id is None else pseudonym(key, file.patient_id)


def _make(
    asked: Sequence[ImageRequest], site: ScannedSite, memory: Memory, pool: WorkerPool, count: _Counter
) -> tuple[list[Outcome], int]:
    """Return the outcome of each request, and the number of requests that had to be decoded."""
    count.images(len(asked))
    settings = prepared_by(site.data)
    keys = [request_key(request, site.scanned, settings) for request in asked]
    known = {key: memory.recall(key) for key in keys}
    new = [index for index, key in enumerate(keys) if known[key] is None]
    count.step(len(asked) - len(new))
    function = functools.partial(prepare, data=site.data)
    recipes = [_recipe(asked[index], site) for index in new]
    for index, image in zip(new, pool.map(function, recipes), strict=True):
        known[keys[index]] = _outcome(keys[index], image)
        if isinstance(image, PreparedImage):
            memory.keep(image)
        count.step()
    return [required(known[key], "outcome") for key in keys], len(new)


def _make_missing(
    kept: Sequence[int],
    asked: Sequence[ImageRequest],
    outcomes: Sequence[Outcome],
    site: ScannedSite,
    memory: Memory,
    pool: WorkerPool,
) -> int:
    """Decode the images again whose outcome is cached but whose pixels are not available. Returns their number."""
    missing = [index for index in kept if not memory.has(outcomes[index].pixels_sha256)]
    recipes = [_recipe(asked[index], site) for index in missing]
    for index, image in zip(missing, pool.map(functools.partial(prepare, data=site.data), recipes), strict=True):
        if isinstance(image, Lost) or image.pixels_sha256 != outcomes[index].pixels_sha256:
            raise DataError(f"{site.source.root}: a file changed while it was read; run ingest again")
        memory.keep(image)
    return len(missing)


def _columns(request: ImageRequest, site: ScannedSite) -> dict[str, str]:
    """Return the attributes of one image as columns of the table; nothing trains on them."""
    return replace(site.scanned[request.file].attributes, lesion_size=request.lesion_size).columns()


def _recipe(request: ImageRequest, site: ScannedSite) -> Recipe:
    return recipe_of(request, site.scanned, lambda file: site.source.root / site.source.files[file].path)


def _outcome(key: str, image: PreparedImage | Lost) -> Outcome:
    if isinstance(image, Lost):
        return Outcome(request=key, fault=image.code)
    return Outcome(
        request=key,
        fault=image.fault,
        pixels_sha256=image.pixels_sha256,
        source_sha256=image.source_sha256,
        hu=image.hu,
    )


def _write(folder: Path, rows: list[CohortRow], hashes: list[str], site: ScannedSite, memory: Memory) -> str:
    """Write the cohort, unless the existing one is identical. Returns its key."""
    settings = prepared_by(site.data)
    made_key = cohort_key(hashes, settings)
    if memory.has_cohort and _is_sealed(folder, made_key, table_bytes(rows, hashes, site.data.labels)):
        return made_key
    return write_cohort(
        folder,
        rows,
        (memory.pixels(sha256) for sha256 in hashes),
        row_shape=row_shape(site.data),
        label_names=site.data.labels,
        site_key=site.key,
        prepared_by=settings,
    )


def _is_sealed(folder: Path, made_key: str, table: bytes) -> bool:
    seal = json.loads((folder / SEAL_FILE).read_bytes())
    return seal["key"] == made_key and seal["table_sha256"] == hashlib.sha256(table).hexdigest()
