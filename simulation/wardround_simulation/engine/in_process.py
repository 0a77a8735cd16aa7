"""A federation in one process: the usual round functions, with function calls instead of a network.

`compare` trains hundreds of models this way, and a run's report uses it for its baselines: *alone* (one hospital),
*pooled* (all data in one place, which only a simulation can do) and *federated*. Plan, sampler, clipping, noise,
ledger and round loop are those of a real site and server. The only difference is that the ledger is in memory, because
these sites exist only for the duration of the call.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wardround.errors import RefusedError, WireError
from wardround.networks.build import initial_network, start_weights
from wardround.networks.fingerprint import architecture_sha256
from wardround.study.load import Study, parse_study
from wardround.wire.packets import Broadcast, SiteReply, payload_bytes
from wardround_client.ledger.ledger import Ledger, cap_of
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.rounds.training import answer
from wardround_client.site.paths import CACHE, COHORT
from wardround_client.site.site import Site, Weights
from wardround_client.sources.cohort import AnyRows, Cohort, open_cohort
from wardround_client.training.batches import HeldOutRows, material_of
from wardround_client.training.rows import inputs_of
from wardround_server.rounds.loop import Exchange, run_rounds
from wardround_simulation.run.hospitals import release_of

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """One hospital's prepared data. `inputs_N` are images, or the study's frozen features of all images."""

    name: str
    cohort: Cohort
    inputs_N: AnyRows

    @property
    def labelled_N(self) -> np.ndarray:
        return self.cohort.labels_N >= 0

    def rows_of_patients(self, keep_P: np.ndarray) -> np.ndarray:
        """Return the labelled rows of the patients where `keep_P` is true, bool (N,)."""
        return self.labelled_N & keep_P[self.cohort.patient_N]


def open_hospitals(folders: Mapping[str, Path], study: Study, device: torch.device = CPU) -> list[Hospital]:
    """Open the cohorts in `folders` (name -> site folder), in the order of names.

    If the study trains on frozen features, each hospital's `inputs_N` are those features.
    """
    hospitals = []
    for name, folder in sorted(folders.items()):
        cohort = open_cohort(folder / COHORT)
        inputs_N = inputs_of(study, cohort, device, folder / CACHE)
        hospitals.append(Hospital(name=name, cohort=cohort, inputs_N=inputs_N))
    return hospitals


def alone_study(study: Study) -> Study:
    """Return the study for a hospital that trains alone: one site, the same nominal patients, the same epsilon."""
    return _with_sites(study, sites=1, nominal_patients=study.privacy.nominal_patients)


def pooled_study(study: Study) -> Study:
    """Return the study for all data in one place: one site with the nominal patients of all sites, noised once."""
    together = study.privacy.nominal_patients * study.aggregation.nominal_sites
    return _with_sites(study, sites=1, nominal_patients=together)


def _with_sites(study: Study, sites: int, nominal_patients: int) -> Study:
    content = {**study.model_dump(), "personalisation": None}  # a comparison of trainings, none of them personalised
    content["aggregation"].update(nominal_sites=sites, min_sites=sites, site_weights={})
    content["privacy"].update(nominal_patients=nominal_patients)
    return parse_study(content)


def temporary_site(
    study: Study,
    name: str,
    parts: Sequence[tuple[Hospital, np.ndarray]],
    admitted: dict[str, object],
    device: torch.device = CPU,
) -> Site:
    """Return a site with the given rows (bool (N,)) of the given hospitals and an empty ledger in memory.

    `admitted` is shared among the sites of one process, so that each network is built and its clipping checked once.
    """
    if len(parts) == 1:
        only = parts[0][0]
        inputs_N, labels_N, patient_N = only.inputs_N, only.cohort.labels_N, only.cohort.patient_N
    else:
        offsets = np.cumsum([0] + [hospital.cohort.patient_count for hospital, _ in parts])
        inputs_N = np.concatenate([hospital.inputs_N for hospital, _ in parts])
        labels_N = np.concatenate([hospital.cohort.labels_N for hospital, _ in parts])
        patients = [hospital.cohort.patient_N + offset for (hospital, _), offset in zip(parts, offsets, strict=False)]
        patient_N = np.concatenate(patients)
    rows_N = np.concatenate([rows for _, rows in parts])
    material = material_of(inputs_N, labels_N, patient_N, rows_N)

    def held_out_of(_: Study) -> HeldOutRows:
        return everyone_else(parts)

    return Site(
        name=name,
        cap=cap_of(study),
        ledger=Ledger(None),
        replies={},
        study_of=lambda _: study,
        material_of=lambda _: material,
        randomness=SecretRandom(),
        device=device,
        release=release_of(study),
        held_out_of=held_out_of,
        admitted=admitted,
    )


def everyone_else(parts: Sequence[tuple[Hospital, np.ndarray]]) -> HeldOutRows:
    """Return the labelled images of the given hospitals that are not among the given rows (bool (N,))."""
    offsets = np.cumsum([0] + [hospital.cohort.patient_count for hospital, _ in parts])
    rows = [np.flatnonzero(hospital.labelled_N & ~rows_N) for hospital, rows_N in parts]
    cohorts = [(hospital.cohort, place) for (hospital, _), place in zip(parts, rows, strict=True)]
    patients = [cohort.patient_N[place] + offset for (cohort, place), offset in zip(cohorts, offsets, strict=False)]
    return HeldOutRows(
        values_N=np.concatenate([cohort.values_N[place] for cohort, place in cohorts]),
        labels_N=np.concatenate([cohort.labels_N[place] for cohort, place in cohorts]).astype(np.int64),
        patient_N=np.concatenate(patients),
    )


def in_process_exchange(sites: Sequence[Site]) -> Exchange:
    """Return the exchange of a federation in one process; the sites reply in the order of their names."""

    def exchange(broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        for site in sorted(sites, key=lambda site: site.name):
            started = time.monotonic()
            answered, code = None, None
            try:
                answered = answer(broadcast, site)
            except RefusedError as error:
                code = f"refused:{error.code}"
            except WireError as error:  # a diverged model; Flower's client sends the same code
                code = f"refused:wire-{error.code}"
            seconds = time.monotonic() - started
            yield SiteReply(
                site=site.name,
                weights=answered.weights if answered else None,
                code=code,
                seconds=seconds,
                bytes_up=payload_bytes(answered.weights) if answered else 0,
                ledger_head=answered.head if answered else None,
                ledger_recent=answered.recent if answered else "",
            )

    return exchange


def train_together(study: Study, sites: Sequence[Site]) -> Weights:
    """Run the study's rounds over the sites, from the study's initial weights, and return the released weights."""
    architecture = architecture_sha256(initial_network(study))
    outcome = run_rounds(study, "in-process", architecture, start_weights(study), in_process_exchange(sites), None)
    return outcome.weights
