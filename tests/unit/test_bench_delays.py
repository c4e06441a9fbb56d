"""What the bench of delays expects, worked out by hand."""

from __future__ import annotations

import pytest

from tests.bench.delays import WAYS

MINUTE, WORKER, CRON = WAYS


@pytest.mark.parametrize(
    ("limit", "pace", "each_minute", "worker"),
    [
        (10, 1.0, 600, 36_000 / 14),  # 10 calls in 9 s, then 5 s of rest
        (24, 1.0, 1440, 86_400 / 28),
        (1000, 1.0, 1440, 86_400 / 28),  # no more begin in the 23 s until the last claim
        (10, 10.0, 600, 36_000 / 5.9),
    ],
)
def test_calls_an_hour_follow_from_limit_pace_and_interval(
    limit: int, pace: float, each_minute: float, worker: float
) -> None:
    assert MINUTE.expected_an_hour(limit, pace) == CRON.expected_an_hour(limit, pace) == pytest.approx(each_minute)
    assert WORKER.expected_an_hour(limit, pace) == pytest.approx(worker)


def test_never_more_than_the_pace() -> None:
    for way in WAYS:
        for limit in (1, 10, 100, 1000):
            assert way.expected_an_hour(limit, 0.5) <= 1800
