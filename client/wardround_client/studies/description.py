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
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_client.site.paths import COHORT, CONFIG_FILE
from wardround_client.sources.cohort import open_cohort
from wardround_client.sources.study_cohort import differences
from wardround_client.studies.approvals import alike, cost_of, promised, received_at
from wardround_client.studies.store import read_asker, read_decisions

DIGITS_SHOWN = 16  # of the certificate's SHA-256, which --json and the console show in full


def described(site: Path, study: Study, runs: int) -> list[tuple[str, str]]:
    """Return the (heading, text) pairs that a person reads before deciding, for `runs` runs in all.

    The command line and the console show the same pairs: what the study reads, what leaves, and its cost here.
    """
    cost, config = costed(site, study, runs), load_site_config(site / CONFIG_FILE)
    network = initial_network(study)
    check_personalisation(network, study)
    numbers = sum(parameter.numel() for parameter in trained_parameters(network, study).values())
    words = {"asked_by": _asked_by(site, study.sha256(), config), "releases": config.release.evaluation}
    shown = describe(study, numbers_leaving=numbers, cost=cost, alike=alike(site, study), **words)
    return [*shown, *_unfit(site, study)]


def costed(site: Path, study: Study, runs: int) -> Cost:
    """Return what `runs` runs of a study in all would cost this site.

    Raises:
        StudyError: No noise multiplier meets the study's privacy promise.
        LedgerError: The ledger is damaged.
    """
    cap, ledger, plan = cap_of_site(site), opened_ledger(site), plan_from_study(study)
    said, sha256 = cost_of(study, ledger, cap, runs), study.sha256()
    promises = promised(site, ledger, besides=sha256)
    others = [event for events in promises.values() for event in events if event.private]  # as the cap counts
    begun = ledger.runs_of(sha256)
    own_events = [event.repeated(runs - begun) for event in plan.events()] if runs > begun else []
    # Each patient is either trained on or held out, and does not change between runs of a study. For one run without
    # personalisation, the promise is the study's own epsilon.
    own = runs == 1 and study.personalisation is None
    trained = study.privacy.epsilon if own else plan.promised(runs).value
    return Cost(
        runs=runs,
        begun=begun,
        noise_multiplier=plan.noise_multiplier,
        together=max(trained, runs * study.evaluation.epsilon),
        now=said.now,
        after=said.after,
        with_promised=ledger.committed(cap.delta, [*own_events, *others]),
        cap_epsilon=cap.epsilon,
        refusal=None if said.refusal is None else str(said.refusal),
    )


def _asked_by(site: Path, sha256: str, config: SiteConfig) -> str:
    """Return which server asked for the study, when, and by what it is identified; or that none did."""
    if (asker := read_asker(site, sha256)) is not None:
        when = f"{asker.at[:10]} {asker.at[11:16]} UTC"
        certificate = f"{asker.ca_sha256[:DIGITS_SHOWN]}…"
        return f"the server at {asker.server}, received {when}; its CA's certificate: {certificate}"
    if (received := received_at(site, sha256)) is not None:  # of a version that did not store who asked
        server = "" if config.server is None else f"the server at {config.server.address}, "
        return f"{server}received {received}"
    if decisions := read_decisions(site, sha256):
        return f"decided first on {decisions[0]['at'][:10]}; no server's request for it is stored"
    return "no server: the study was given as a file"


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
