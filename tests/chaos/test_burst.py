"""The burst of burst.py in a small form, and proof that its judge can see what it looks for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from tests.chaos.burst import A_FEW, PATIENCE, START_S, Figures, judge, numbers, run
from tests.chaos.scene import Row

NOON = datetime(2026, 6, 17, 19, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CLEAN = Figures(
    signed_up=9, called=9, spent=0, most_queued=1, outside=0, out_of_turn=1, seconds=2.0, at_the_pace=1.8
)  # fmt: skip


def call(job: int, taken: datetime, rings_after_s: float | None = 0.0, **told: object) -> Row:
    rang = [] if rings_after_s is None else [{"status": "ringing", "at": (taken + rings_after_s * SECOND).isoformat()}]
    return {"to": f"+1{job}", "accepted_at": taken.isoformat(), "history": rang, "reached": True, **told}


def job(number: int, status: str = "completed", attempts: int = 1) -> Row:
    return {"id": number, "phone_e164": f"+1{number}", "status": status, "attempts": attempts}


def judged(jobs: list[Row], calls: list[Row], attempts: list[Row] | None = None, by: set[int] | None = None) -> Figures:
    return judge(jobs, attempts or [], calls, by or set(), seconds=1, at_the_pace=1)


def test_burst_is_called_at_pace_and_in_turn() -> None:
    said: list[str] = []
    figures = run(sign_ups=30, evening=16, pace=5, say=said.append)
    # The command judges the time; here other tests may be at work beside it, and the machine may have two cores.
    assert replace(figures, seconds=0.0).is_clean, "\n".join([*said, str(figures)])
    assert figures.signed_up == 46
    assert figures.seconds < 60


def test_numbers_of_a_burst_are_enough_and_differ() -> None:
    drawn = list(islice(numbers(), 1001))
    assert len(set(drawn)) == len(drawn) > 1000


def test_calls_missing_repeated_unheard_or_vain_are_seen() -> None:
    jobs = [job(1), job(2), job(3, status="queued", attempts=0)]
    assert judged(jobs, [call(1, NOON), call(2, NOON), call(2, NOON)]).called == 1
    assert judged([job(1)], [call(1, NOON, reached=False)]).called == 0
    assert judged([job(1, attempts=2)], []).spent == 1
    assert judged([job(1)], [], attempts=[{"state": "absent"}, {"state": "refused"}, {"state": "ended"}]).spent == 2


def test_queue_is_seen_at_its_fullest() -> None:
    calls = [call(n, NOON + n * SECOND, rings_after_s=2.5) for n in range(6)]
    assert judged([], calls).most_queued == 3
    assert judged([], [call(n, NOON, rings_after_s=None) for n in range(7)]).most_queued == 7


def test_phone_that_rings_outside_its_hours_is_seen() -> None:
    seen = {rings: judged([], [call(1, NOON, rings_after_s=rings * 3600)]).outside for rings in (-3, -3.001, 7.999, 8)}
    assert seen == {-3: 0, -3.001: 1, 7.999: 0, 8: 1}


def test_overtaken_job_is_seen_unless_by_webhook() -> None:
    jobs = [job(n) for n in range(1, 6)]
    calls = [call(n, NOON + at * SECOND) for at, n in enumerate((1, 5, 2, 3, 4))]
    assert judged(jobs, calls).out_of_turn == 1
    late = [call(n, NOON + at * SECOND) for at, n in enumerate((2, 3, 4, 5, 1))]
    assert judged(jobs, late).out_of_turn == 4
    assert judged(jobs, calls, by={5}).out_of_turn == 0


def test_one_wrong_figure_fails_the_run() -> None:
    wrong: dict[str, Any] = {
        "called": 8, "spent": 1, "most_queued": A_FEW + 1, "outside": 1, "out_of_turn": 100,
        "seconds": PATIENCE * 1.8 + START_S + 1,
    }  # fmt: skip
    assert CLEAN.is_clean
    assert [name for name, value in wrong.items() if replace(CLEAN, **{name: value}).is_clean] == []
