"""What `make bench` promises about itself; it runs in minutes, and not here."""

from __future__ import annotations

import pytest

from tests.bench.compare import PAGE, PICTURE, Results, costs_table, promises_table, spread
from tests.bench.contenders import CONTENDERS, ROOT
from tests.bench.delays import WAYS


def test_each_contender_has_at_most_sixty_lines() -> None:
    peers = ROOT / "tests/bench/peers"
    lines = {peer.module: len((peers / f"{peer.module}.py").read_text().splitlines()) for peer in CONTENDERS}
    assert {name: count for name, count in lines.items() if count > 60} == {}


def test_bench_page_shows_every_contender_and_a_small_chart() -> None:
    page = PAGE.read_text()
    results = page.partition("<!-- results -->")[2].partition("<!-- end of results -->")[0]
    # Promises, both rates, and the rest.
    assert [results.count(f"| {peer.name} |") for peer in CONTENDERS] == [4] * len(CONTENDERS)
    assert PICTURE.stat().st_size < 200_000


def test_spread_is_a_median_between_least_and_most() -> None:
    spreads = [spread([3.0, 1.0, 2.26]), spread([5.0]), spread([1000.4, 1000.0, 999.0], 0)]
    assert spreads == ["2.3 (1.0 to 3.0)", "5.0", "1,000 (999 to 1,000)"]


def test_tables_have_a_row_for_each_contender() -> None:
    cost = {"p50_ms": 2.0, "p99_ms": 4.0, "worker_cpu_ms": 3.0, "postgres_cpu_ms": 1.5, "wal": 2100.0}
    promise = {"jobs": 400, "twice": 7, "never": 0, "stuck": 1, "calls": 407}
    costs = [{"20": cost}, {"20": cost | {"p50_ms": 3.0}}]
    results: Results = {"promises": {"one": [promise]}, "costs": {"one": costs}}
    assert promises_table(results).splitlines()[-1] == "| one | 7 | 0 | 1 | 407 |"
    assert costs_table(results, 20).splitlines()[-1] == "| one | 2.5 (2.0 to 3.0) | 4.0 | 4.5 | 3.0 + 1.5 | 2,100 |"


def test_calls_an_hour_follow_from_limit_pace_and_interval() -> None:
    """limit, pace -> calls an hour with a sweep each minute, and of a worker that rests 5 s; by hand."""
    table = {
        (10, 1.0): (600, 36_000 / 14),  # 10 calls in 9 s, then 5 s of rest
        (24, 1.0): (1440, 86_400 / 28),
        (1000, 1.0): (1440, 86_400 / 28),  # no more begin in the 23 s until the last claim
        (10, 10.0): (600, 36_000 / 5.9),
    }
    minute, worker, cron = WAYS
    for case, (each_minute, resting) in table.items():
        assert minute.expected_an_hour(*case) == cron.expected_an_hour(*case) == pytest.approx(each_minute)
        assert worker.expected_an_hour(*case) == pytest.approx(resting)
    assert max(way.expected_an_hour(limit, 0.5) for way in WAYS for limit in (1, 10, 100, 1000)) <= 1800
