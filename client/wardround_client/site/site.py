"""A site as used by one round: its rules, its ledger, its data and its secret randomness, opened from a folder.

`paths.py` lists the contents of a site's folder.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from wardround.errors import WardroundError
from wardround.processes.memory import keep_freed_memory
from wardround.records.audit_events import Event
from wardround.records.audit_log import AUDIT_FILE, AuditLog
from wardround.storage.checkpoint import load_checkpoint, save_checkpoint
from wardround.storage.folders import make_folder
from wardround.storage.locks import locked
from wardround.study.load import Study
from wardround_client.clipping.bookkeeping import Precision
from wardround_client.clipping.select import EngineMemory
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.site.config import ReleaseConfig, SiteConfig, load_site_config
from wardround_client.site.paths import (
    CACHE,
    COHORT,
    CONFIG_FILE,
    LEDGER_FILE,
    OPT_OUT_FILE,
    PERSONAL,
    REPLIES,
    ROUND_LOCK,
)
from wardround_client.sources.cohort import SEAL_FILE, Cohort, NoCohortError, open_cohort
from wardround_client.sources.forget import remove_features
from wardround_client.sources.opt_out import opted_out, without_objectors
from wardround_client.sources.study_cohort import cohort_for, differences, nobody
from wardround_client.studies.store import approved_study, runs_allowed
from wardround_client.training.batches import HeldOutRows, Material, material_of
from wardround_client.training.rows import held_out_rows, inputs_of, training_rows

log = logging.getLogger(__name__)

Weights = dict[str, np.ndarray]


@dataclass(kw_only=True)
class Site:
    """One hospital.

    `study_of` returns approved studies only. `material_of` and `held_out_of` read the data; they are called only after
    admission. `release` is "off" unless the site itself allows more.
    """

    name: str
    cap: Cap
    ledger: Ledger
    replies: MutableMapping[int, Weights]
    study_of: Callable[[str], Study]
    material_of: Callable[[Study], Material]
    randomness: SecretRandom
    device: torch.device
    runs_allowed: Callable[[str], int] = lambda _: 1  # runs of a study that may ever begin, see studies/store.py
    data_state: Callable[[], str] = str  # changes when the prepared data or the list of objections do
    release: ReleaseConfig = ReleaseConfig()
    held_out_of: Callable[[Study], HeldOutRows] | None = None
    cache: Path | None = None  # folder for the choice of the clipping engine; without it a rule decides
    personal: Path | None = None  # folder for personalised models; without it the site makes none
    proofs: Path | None = None  # folder for the engines proved since this start; without it they are not kept
    precision: Precision = "float32"
    exclusive: Callable[[], AbstractContextManager[None]] = nullcontext  # one process at a time trains for this site
    read_rules: Callable[[], SiteConfig] | None = None  # reads the current site.toml; without it the rules never change
    record: Callable[[Event], object] | None = None  # writes to the audit log; without it nothing is recorded
    # objects that are costly to open, by study hash; kept while the process lives
    admitted: dict[str, object] = field(default_factory=dict)
    materials: dict[tuple[str, str], Material] = field(default_factory=dict)  # by study hash and state of the data

    def with_current_rules(self) -> Site:
        """Return this site with the cap and the release settings that its file has now.

        A person may have changed them while the process waited for `exclusive`.

        Raises:
            UsageError: The file is invalid.
        """
        if self.read_rules is None:
            return self
        config = self.read_rules()
        return replace(self, cap=config.privacy.cap(), release=config.release)

    def engine_memory(self, study_sha256: str) -> EngineMemory | None:
        """Return the folders in which this site keeps results about clipping engines, for one study."""
        if self.cache is None:
            return None
        return EngineMemory(choices=self.cache, proofs=self.proofs / study_sha256 if self.proofs else None)


def open_site(folder: Path, proofs: Path | None = None) -> Site:
    """Open a site's folder.

    Args:
        folder: The site's folder.
        proofs: A folder of this start of the daemon, for the clipping engines that it has proved.

    Raises:
        UsageError, LedgerError: A part of the folder is invalid. The message is one line.
    """
    config = load_site_config(folder / CONFIG_FILE)
    torch.set_num_threads(config.compute.threads)
    keep_freed_memory()
    device = choose_device(config)

    def read_material(study: Study) -> Material:
        while True:
            state = _data_state(folder)
            cohort = open_cohort_of(folder, study)
            rows_N = training_rows(study, cohort)
            inputs_N = inputs_of(study, cohort, device, folder / CACHE)
            if _data_state(folder) == state:
                return material_of(inputs_N, cohort.labels_N, cohort.patient_N, rows_N)
            remove_features(folder / CACHE)  # a patient may have objected meanwhile

    return Site(
        name=config.name,
        cap=config.privacy.cap(),
        ledger=Ledger(folder / LEDGER_FILE),
        replies=ReplyFolder(folder / REPLIES),
        study_of=lambda sha256: approved_study(folder, sha256),
        material_of=read_material,
        randomness=SecretRandom(),
        device=device,
        runs_allowed=lambda sha256: runs_allowed(folder, sha256),
        data_state=lambda: _data_state(folder),
        release=config.release,
        held_out_of=lambda study: held_out_rows(study, open_cohort_of(folder, study)),
        cache=folder / CACHE,
        personal=folder / PERSONAL,
        proofs=proofs,
        precision=config.compute.precision,
        record=AuditLog(folder / AUDIT_FILE).append,
        exclusive=functools.partial(locked, folder / ROUND_LOCK),
        read_rules=lambda: load_site_config(folder / CONFIG_FILE),
    )


def open_cohort_of(folder: Path, study: Study) -> Cohort:
    """Return the site's cohort as the study may use it, without the patients who object.

    The cohort is empty if no data are prepared, or if images were prepared with other channels or another size than the
    study's. Labels that the study does not have count as no label. A site without patients must reply like any other,
    or its replies would reveal which sites have patients.

    Raises:
        DataError: The cohort or the list of objections is damaged.
    """
    try:
        cohort = open_cohort(folder / COHORT)
    except NoCohortError:
        log.warning("no prepared data: this site takes part with noise only; see wardround-site ingest")
        return nobody(study)
    found = differences(cohort, study)
    if found:
        todo = "run wardround-site ingest again with this study's file"
        log.warning("the prepared data do not fit the study %s: %s; %s", study.study.name, "; ".join(found), todo)
    return without_objectors(cohort_for(cohort, study), opted_out(folder))


def _data_state(folder: Path) -> str:
    """Return a hash of the cohort's seal and the list of objections.

    A change of either therefore takes effect in the next round.
    """
    digest = hashlib.sha256()
    for path in (folder / COHORT / SEAL_FILE, folder / OPT_OUT_FILE):
        digest.update(path.read_bytes() if path.is_file() else b"none")
    return digest.hexdigest()


def choose_device(config: SiteConfig) -> torch.device:
    """Return the configured device; `auto` takes a CUDA GPU if torch finds one.

    On a GPU, this also makes the same numbers give the same bits in each call, which clipping by groups needs
    (`clipping/bookkeeping.py`).

    Raises:
        WardroundError: The device is missing.
    """
    wanted = config.compute.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise WardroundError(
            "compute.device = cuda, but torch finds no CUDA GPU; use auto or cpu, or repair the driver"
        )
    if wanted == "cuda":
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    return torch.device(wanted)


class ReplyFolder(MutableMapping[int, Weights]):
    """Replies by attempt, each in a hashed file that is fsynced before the call returns.

    `rounds/training.py` removes a run's older replies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, attempt: int) -> Path:
        return self._folder / f"reply-{attempt:06d}.safetensors"

    def __getitem__(self, attempt: int) -> Weights:
        path = self._path(attempt)
        if not path.is_file():
            raise KeyError(attempt)
        return load_checkpoint(path)[0]

    def __setitem__(self, attempt: int, weights: Weights) -> None:
        make_folder(self._folder)
        save_checkpoint(self._path(attempt), weights, {"attempt": attempt})

    def __delitem__(self, attempt: int) -> None:
        self._path(attempt).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.stem.removeprefix("reply-")) for path in self._folder.glob("reply-*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)
