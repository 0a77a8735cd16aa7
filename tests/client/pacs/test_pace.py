"""A pull keeps the bandwidth, the hours and its time limit, with a clock of the test."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from wardround.errors import PolicyRefusal
from wardround_client.pacs import pull
from wardround_client.pacs.node import Node, PacsError, Rows
from wardround_client.pacs.pace import LONGEST_PAUSE_S, Pace
from wardround_client.pacs.query import Wanted
from wardround_client.site.pacs_config import PacsConfig


class Time:
    def __init__(self, at: datetime) -> None:
        self.begun, self.passed = at, 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.passed += seconds

    def now(self) -> datetime:
        return self.begun + timedelta(seconds=self.passed)


def pace_at(at: datetime, limit_s: float = 1e6, *, wait: bool = False, **settings) -> tuple[Pace, Time]:
    config = PacsConfig(web={"url": "https://pacs.example/web"}, way="web", **settings)
    time = Time(at)
    node = Node(name="archive", config=config, site=Path())
    return Pace(node, limit_s, wait=wait, clock=lambda: time.passed, sleep=time.sleep, now=time.now), time


def test_the_mean_bandwidth_is_kept():
    pace, time = pace_at(datetime(2024, 1, 1, 12), bandwidth_mbit_s=8)  # 1 MB/s
    for _ in range(30):
        pace.took(500_000)
    assert time.passed == pytest.approx(15)


def test_a_large_object_delays_the_pacs_a_little_and_the_next_request_for_the_rest():
    pace, time = pace_at(datetime(2024, 1, 1, 12), bandwidth_mbit_s=8)
    pace.took(20_000_000)
    assert time.passed == LONGEST_PAUSE_S
    pace.begin()
    assert time.passed == pytest.approx(20)


@pytest.mark.parametrize(
    "hour, hours, seconds",
    [
        (12, "20:00-06:00", 8 * 3600),
        (21, "20:00-06:00", 0),
        (5, "20:00-06:00", 0),
        (6, "20:00-06:00", 14 * 3600),
        (12, "09:00-17:00", 0),
        (18, "09:00-17:00", 15 * 3600),
        (3, "00:00-00:00", 0),
    ],
)
def test_the_hours_are_kept(hour, hours, seconds):
    pace, _ = pace_at(datetime(2024, 1, 1, hour), hours=hours)
    assert pace.until_open_s() == seconds
    if seconds:
        with pytest.raises(PolicyRefusal, match="--wait"):
            pace.begin()
        waiting, time = pace_at(datetime(2024, 1, 1, hour), hours=hours, wait=True)
        waiting.begin()
        assert time.passed == seconds


def test_the_time_limit_ends_waiting_and_work():
    pace, time = pace_at(datetime(2024, 1, 1, 12), 3600, wait=True, hours="20:00-06:00")
    with pytest.raises(PacsError, match="time limit"):
        pace.begin()
    assert 3600 <= time.passed < 3700


class Endless:
    """A PACS that calls every answer cut short. Each query takes a minute."""

    cuts_silently = False

    def __init__(self, time: Time) -> None:
        self.time, self.asked = time, 0

    def find(self, *query: object) -> Rows:
        self.asked += 1
        self.time.sleep(60)
        return Rows(rows=[{"StudyInstanceUID": "1.2"}], limited=True)


@pytest.mark.parametrize(
    "settings, limit_s, error", [({}, 600, PacsError), ({"hours": "12:00-12:10"}, 1e6, PolicyRefusal)]
)
def test_a_search_without_end_keeps_the_time_limit_and_the_hours(tmp_path, monkeypatch, settings, limit_s, error):
    pace, time = pace_at(datetime(2024, 1, 1, 12), limit_s, **settings)
    finder = Endless(time)
    monkeypatch.setattr(pull, "open_finder", lambda *given: nullcontext(finder))
    monkeypatch.setattr(pull, "open_transfer", lambda *given: nullcontext())
    monkeypatch.setattr(pull, "PAUSES_S", (0.0, 0.0))
    day = date(2024, 1, 1)
    node = Node(name="archive", config=PacsConfig(web={"url": "https://pacs.example/web"}, way="web"), site=Path())
    order = pull.Order(node=node, wanted=Wanted(first=day), folder=tmp_path / "out", way="web", today=day)
    with pytest.raises(error):
        pull.pull(order, pace)
    assert finder.asked == 10
