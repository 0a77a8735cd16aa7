"""The metrics of a federation: runs, sites, replies, certificates, health."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from wardround.web.metrics import MOST_SERIES, Part, audit_metrics, daemon_metrics
from wardround_server.operations.paths import CA_CERTIFICATE, SERVER_CERTIFICATE
from wardround_server.runs.folder import runs
from wardround_server.runs.summary import facts_of
from wardround_server.sites.certificates import facts_of as certificate_facts
from wardround_server.sites.registry import Registry


def metrics_of(folder: Path) -> dict[str, Part]:
    """Return the parts of a server's metrics."""
    return {
        "daemon": lambda: daemon_metrics(folder),
        "runs": lambda: _runs(folder),
        "sites": lambda: _sites(folder),
        "certificates": lambda: _certificates(folder),
        "audit": lambda: audit_metrics(folder),
        "disk": lambda: _disk(folder),
    }


def _runs(folder: Path) -> Iterator[Metric]:
    states, under_way = GaugeMetricFamily("wardround_runs", "Runs by state.", labels=["state"]), []
    count: Counter[str] = Counter()
    for run in runs(folder):
        state = run.state()
        count[state] += 1
        if state in ("proposed", "training"):
            under_way.append(facts_of(run))
    for state in ("proposed", "training", "finished", "stopped"):
        states.add_metric([state], count[state])
    yield states
    named = {
        "rounds_done": "Rounds that are done.",
        "rounds": "Rounds of the study.",
        "sites_approved": "Sites that approved.",
        "sites_needed": "Sites that a round needs.",
        "sites_waiting": "Sites that the round under way waits for.",
        "sites_away": "Those of them that are not connected.",
        "round_seconds": "For how long the round under way has been running.",
        "failed": "1 if the last attempt of the run failed.",
    }
    found = {name: GaugeMetricFamily(f"wardround_run_{name}", text, labels=["run"]) for name, text in named.items()}
    replies = GaugeMetricFamily(
        "wardround_run_replies", "Replies so far, by outcome.", labels=["run", "site", "outcome"]
    )
    size = GaugeMetricFamily("wardround_run_bytes", "Bytes so far.", labels=["run", "direction"])
    for facts in sorted(under_way, key=lambda one: one["submitted_at"], reverse=True)[:MOST_SERIES]:
        now, run_id = facts["now"], facts["run"]
        values = {
            "rounds_done": facts["round"],
            "rounds": facts["rounds"],
            "sites_approved": len(facts["approved"]),
            "sites_needed": facts["min_sites"],
            "sites_waiting": 0 if now is None else len(now["waiting_for"]),
            "sites_away": 0 if now is None else len(now["away"]),
            "round_seconds": 0 if now is None else max(time.time() - now["began"], 0),
            "failed": int(facts["problem"] is not None),
        }
        for name, value in values.items():
            found[name].add_metric([run_id], value)
        for site, one in list(facts["sites"].items())[:MOST_SERIES]:
            replies.add_metric([run_id, site, "counted"], one["rounds_counted"])
            replies.add_metric([run_id, site, "missed"], one["rounds_missed"])
        size.add_metric([run_id, "up"], facts["bytes_up"])
        size.add_metric([run_id, "down"], facts["bytes_down"])
    yield from found.values()
    yield replies
    yield size


def _sites(folder: Path) -> Iterator[Metric]:
    enrolled = len(Registry(folder).sites())
    yield GaugeMetricFamily("wardround_sites_enrolled", "Sites that may take part.", value=enrolled)


def _certificates(folder: Path) -> Iterator[Metric]:
    text = "When a certificate expires."
    until = GaugeMetricFamily("wardround_certificate_expiry_timestamp_seconds", text, labels=["certificate"])
    for name, path in (("ca", CA_CERTIFICATE), ("server", SERVER_CERTIFICATE)):
        facts = certificate_facts((folder / path).read_bytes(), path)
        until.add_metric([name], facts.not_after.timestamp())
    yield until


def _disk(folder: Path) -> Iterator[Metric]:
    free = shutil.disk_usage(folder).free
    yield GaugeMetricFamily("wardround_disk_free_bytes", "Free space on the folder's disk.", value=free)
