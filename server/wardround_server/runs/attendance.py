"""Attendance during a round: `round.json` of a run's folder, rewritten every few seconds for `show`.

A round's replies are stored when the round ends, which may take its whole deadline. A site that loses its connection
meanwhile appears in this file within a minute or two, since Flower takes one minute to detect it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from wardround.wire.evaluation import SiteRelease
from wardround.wire.packets import Broadcast, SiteReply
from wardround_server.rounds.evaluation import SitesExchange
from wardround_server.runs.folder import RunFolder, write_json
from wardround_server.runs.paths import ROUND_FILE

LOOK_EVERY_S = 15.0

log = logging.getLogger(__name__)


class Attended:
    """An exchange that maintains round.json during each round.

    Args:
        exchange: The exchange that carries the messages.
        run: The run's folder.
        directory: Site name -> node id; None marks a site that is not connected.
        online: Returns the sites that are connected now, by name; called from a thread.
    """

    def __init__(
        self,
        exchange: SitesExchange,
        run: RunFolder,
        directory: Mapping[str, int | None],
        online: Callable[[], Mapping[str, int]],
    ) -> None:
        self._exchange, self._directory, self._online = exchange, dict(directory), online
        self._path = run.path / ROUND_FILE

    def __call__(self, broadcast: Broadcast, deadline_s: float) -> Iterator[SiteReply]:
        """See `rounds.loop.Exchange`."""
        with self._kept(broadcast.round, deadline_s) as round:
            for reply in self._exchange(broadcast, deadline_s):
                round.answered(reply.site, reply.code)
                yield reply
                del reply  # otherwise it would stay in memory while the next one arrives

    def ask_for_figures(self, question: Broadcast, bins: int, deadline_s: float) -> Iterator[SiteRelease]:
        """See `rounds.evaluation.FiguresExchange`."""
        with self._kept(question.round, deadline_s) as round:
            for answer in self._exchange.ask_for_figures(question, bins, deadline_s):
                round.answered(answer.site, answer.code)
                yield answer

    @contextmanager
    def _kept(self, number: int, deadline_s: float) -> Iterator[_Round]:
        round = _Round(path=self._path, number=number, deadline_s=deadline_s, directory=self._directory)
        looks = threading.Thread(target=round.look, args=(self._online,), name="attendance", daemon=True)
        looks.start()
        try:
            yield round
        finally:
            round.end()


class _Round:
    """The file of one round. Two threads write it; a lock keeps them apart."""

    def __init__(self, *, path: Path, number: int, deadline_s: float, directory: Mapping[str, int | None]) -> None:
        self._path, self._number, self._deadline_s, self._began = path, number, deadline_s, time.time()
        self._waiting = set(directory)
        self._away = {site for site, node in directory.items() if node is None}
        self._answered: dict[str, str | None] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._write()

    def answered(self, site: str, code: str | None) -> None:
        """Record that a site's reply was processed; `code` is None if the reply is good."""
        with self._lock:
            self._answered[site] = code
            self._waiting.discard(site)
            self._write()

    def look(self, online: Callable[[], Mapping[str, int]]) -> None:
        """Poll which sites are connected, until the round ends."""
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                there = set(online())
            except Exception:  # a failed poll must not affect the round
                log.exception("the list of connected sites could not be read")
                continue
            with self._lock:
                for site in sorted(self._waiting - there - self._away):
                    log.warning("site %s disconnected before it replied", site)
                self._away = self._waiting - there
                if not self._ended.is_set():
                    self._write()

    def end(self) -> None:
        """End the round and delete its file."""
        with self._lock:
            self._ended.set()
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {
            "round": self._number,
            "began": self._began,
            "deadline_s": self._deadline_s,
            "answered": self._answered,
            "waiting_for": sorted(self._waiting),
            "away": sorted(self._away & self._waiting),
        }
        write_json(self._path, content)
