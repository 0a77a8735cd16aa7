"""A log of refusals that whoever causes them cannot fill: some lines a minute, and how many more there were."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from wardround.web.accounts.limits import Limit

LINES, WITHIN_S = 60, 60.0


class LimitedLog:
    """Writes at most `LINES` warnings within `WITHIN_S` seconds; the next one says how many were left out."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._limit = log, Limit(LINES, WITHIN_S, clock)
        self._lock, self._left_out = threading.Lock(), 0

    def warning(self, text: str, *values: object) -> None:
        """Log a warning, as `logging.Logger.warning` does, or count it."""
        with self._lock:
            if self._limit.wait_s(""):
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        if left_out:
            self._log.warning("%d more refusals were not logged, because there were too many at once", left_out)
        self._log.warning(text, *values)


class LimitedLines(logging.Filter):
    """Lets as many warnings and errors of another library's logger pass, such as one for each malformed request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._limit, self._left_out = Limit(LINES, WITHIN_S, clock), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is logged; the next one that is says how many were not."""
        if record.levelno < logging.WARNING:
            return True
        if self._limit.wait_s(""):
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out} more were not logged)", ()
            self._left_out = 0
        return True
