"""Requests for figures, answered in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wardround.errors import RefusedError
from wardround.wire.evaluation import SiteRelease, pack_release, unpack_release
from wardround.wire.packets import Broadcast
from wardround_client.rounds.evaluation import release_scores
from wardround_client.site.site import Site


class InProcessFigures:
    """Requests for figures in one process; see `wardround_server.rounds.evaluation.FiguresExchange`."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sorted(sites, key=lambda site: site.name)

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        """Yield each site's release in the order of names, through the same packets as over a network."""
        for site in self._sites:
            release, code = None, None
            try:
                packet = pack_release(question, release_scores(question, site))
                release, code = unpack_release(packet, question, bins)
            except RefusedError as error:
                code = f"refused:{error.code}"
            yield SiteRelease(site=site.name, release=release, code=code, bytes_up=16 * bins if release else 0)
