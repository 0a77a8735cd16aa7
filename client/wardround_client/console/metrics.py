"""The metrics of a site: budget, studies, replies, health. No count of patients or images is among them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from wardround.web.audit_entries import entries_of
from wardround.web.metrics import Part, audit_metrics, daemon_metrics, most_frequent
from wardround_client.console.budget import budget_of
from wardround_client.studies.approvals import known_studies


def metrics_of(folder: Path) -> dict[str, Part]:
    """Return the parts of a site's metrics."""
    return {
        "daemon": lambda: daemon_metrics(folder),
        "ledger": lambda: _ledger(folder),
        "studies": lambda: _studies(folder),
        "audit": lambda: audit_metrics(folder),
        "replies": lambda: _replies(folder),
        "disk": lambda: _disk(folder),
    }


def _ledger(folder: Path) -> Iterator[Metric]:
    budget = budget_of(folder)
    for name, value, text in (
        ("spent", budget.spent.value, "Epsilon spent on each patient, at the cap's delta."),
        ("held", budget.held.value, "Epsilon spent or held, at the cap's delta."),
        ("promised", budget.parts.promised, "Epsilon promised to approved studies that have not begun."),
        ("left", budget.left.value, "Epsilon left for further studies."),
        ("cap", budget.cap.epsilon, "The cap of site.toml."),
    ):
        yield GaugeMetricFamily(f"wardround_epsilon_{name}", text, value=value)
    yield GaugeMetricFamily("wardround_ledger_entries", "Entries of the ledger, verified.", value=budget.entries)


def _studies(folder: Path) -> Iterator[Metric]:
    found = GaugeMetricFamily("wardround_studies", "Studies known at this site.", labels=["state"])
    count = Counter(one.state for one in known_studies(folder))
    for state in ("proposed", "approved", "refused", "revoked", "unreadable"):
        found.add_metric([state], count[state])
    yield found


def _replies(folder: Path) -> Iterator[Metric]:
    entries = entries_of(folder)
    sent = [one for one in entries if one["event"] == "released" and not one.get("again")]
    refused = Counter(str(one["code"]) for one in entries if one["event"] == "message-refused")
    yield CounterMetricFamily("wardround_replies_sent", "Replies that left this site.", value=len(sent))
    messages = CounterMetricFamily(
        "wardround_messages_refused", "Messages with an entry of their own.", labels=["code"]
    )
    for code, count in sorted(most_frequent(refused).items()):
        messages.add_metric([code], count)
    yield messages
    last = 0.0 if not sent else datetime.fromisoformat(sent[-1]["at"]).timestamp()
    yield GaugeMetricFamily("wardround_last_reply_timestamp_seconds", "When the last reply left; 0: never.", value=last)


def _disk(folder: Path) -> Iterator[Metric]:
    free = shutil.disk_usage(folder).free
    yield GaugeMetricFamily("wardround_disk_free_bytes", "Free space on the folder's disk.", value=free)
