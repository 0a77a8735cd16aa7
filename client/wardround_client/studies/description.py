"""A study in plain words for the person who decides about it here, and the decisions about it.

This module imports torch, to count the numbers that would leave.
"""

from __future__ import annotations

from pathlib import Path

from wardround.errors import DataError
from wardround.networks.build import initial_network
from wardround.networks.weights import check_personalisation, trained_parameters
from wardround.study.describe import Cost, describe
from wardround.study.load import Study
from wardround_client.privacy.plan import plan_from_study
from wardround_client.site.budget import cap_of_site, opened_ledger
from wardround_client.site.config import load_site_config
from wardround_client.site.paths import COHORT, CONFIG_FILE
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.study_cohort import differences
from wardround_client.studies.approvals import alike, cost_of, received_at
from wardround_client.studies.store import read_decisions


def described(site: Path, study: Study, runs: int) -> list[tuple[str, str]]:
    """Return the (heading, text) pairs that a person reads before deciding, for `runs` runs in all.

    The command line and the console show the same pairs: what the study reads, what leaves, and its cost here.
    """
    cap, ledger, plan = cap_of_site(site), opened_ledger(site), plan_from_study(study)
    said = cost_of(study, ledger, cap, runs)
    # Each patient is either trained on or held out, and does not change between runs of a study. For one run without
    # personalisation, the promise is the study's own epsilon.
    own = runs == 1 and study.personalisation is None
    trained = study.privacy.epsilon if own else plan.promised(runs).value
    cost = Cost(
        runs=runs,
        begun=ledger.runs_of(study.sha256()),
        noise_multiplier=plan.noise_multiplier,
        together=max(trained, runs * study.evaluation.epsilon),
        now=said.now,
        after=said.after,
        cap_epsilon=cap.epsilon,
        refusal=None if said.refusal is None else str(said.refusal),
    )
    network = initial_network(study)
    check_personalisation(network, study)
    numbers = sum(parameter.numel() for parameter in trained_parameters(network, study).values())
    config = load_site_config(site / CONFIG_FILE)
    received = received_at(site, study.sha256())
    asked_by = "no server: the study was given as a file" if received is None else f"received {received}"
    if received is None and (decisions := read_decisions(site, study.sha256())):
        asked_by = f"decided before, first on {decisions[0]['at'][:10]}; who asked is no longer stored"
    if received is not None and config.server is not None:
        asked_by = f"the server at {config.server.address}, {asked_by}"
    words = {"asked_by": asked_by, "releases": config.release.evaluation}
    shown = describe(study, numbers_leaving=numbers, cost=cost, alike=alike(site, study), **words)
    return [*shown, *_unfit(site, study)]


def identity(study: Study) -> list[tuple[str, str]]:
    """Return the study's name and hash, repeated below its possibly long description, next to the question."""
    return [("study", study.study.name), ("hash", study.sha256())]


def _unfit(site: Path, study: Study) -> list[tuple[str, str]]:
    """Return how the prepared data differ from the study; empty if they fit or if there are none."""
    try:
        found = differences(open_cohort(site / COHORT), study)
    except DataError:  # no prepared data, or damaged ones: `doctor` reports it
        return []
    return [("prepared data", f"{'; '.join(found)}: run wardround-site ingest with this study's file")] if found else []
