"""The named check of the server: the mean does not depend on the sizes of the sites."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wardround.study.load import Study, parse_study
from wardround.wire.packets import Broadcast, SiteReply
from wardround_simulation.attack.system import Finding, System, passed


def equal_sites(system: System, study: Study, seed: int = 0) -> Finding:
    """Check that the server's new model is the mean of the sites' replies with the study's public weights.

    One round runs over sites whose replies are known. A reply contains no number of patients, and the server does not
    have one.
    """
    weights = dict(study.aggregation.site_weights) or {"audited-a": 1.0, "audited-b": 1.0}
    names, generator = sorted(weights), np.random.default_rng(seed)
    sent = {name: {"w": generator.normal(size=64).astype(np.float32)} for name in names}

    def exchange(broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        for name in names:
            yield SiteReply(site=name, weights=sent[name], code=None, seconds=0.0, bytes_up=256)

    content = study.model_dump()
    content["study"].update(rounds=1)
    content["training"].update(schedule="constant", warmup_rounds=0)
    content["aggregation"].update(
        strategy="fedavg", release="last", nominal_sites=len(names), min_sites=len(names), max_update_norm=1000.0
    )
    start = {"w": np.zeros(64, dtype=np.float32)}
    found = system.run_rounds(parse_study(content), "attack", "0" * 64, start, exchange, None).weights["w"]
    total = sum(weights.values())
    expected = sum(weights[name] / total * sent[name]["w"].astype(np.float64) for name in names)
    gap = float(np.abs(found - expected).max())
    return Finding(
        name="equal-sites",
        question="Are the sites weighted by the study's public weights, and not by their number of patients?",
        measured=f"the mean deviates by {gap:.1e}",
        limit="1.0e-06",
        verdict=passed(gap <= 1e-6),
    )
