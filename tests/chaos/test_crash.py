"""The crashes of crash.py in a small form, and proof that their judge can see what it looks for."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime

from tests.chaos.crash import KINDS, SMALL, Count, History, kill_group, run
from tests.chaos.scene import Row

NUMBER, NOW = "+12015550100", datetime.now(UTC)


def call(attempt: str = "a", **told: object) -> Row:
    """In Twilio's record: answered by a person and over, if not told otherwise."""
    url = f"http://127.0.0.1/voice?attempt={attempt}"
    return {"to": NUMBER, "url": url, "status": "completed", "answered_by": "human", "reached": True, **told}


def job(status: str) -> Row:
    return {"status": status, "finished_at": NOW if status in ("completed", "failed", "canceled") else None}


def absent(attempt: str) -> Row:
    return {"id": attempt, "state": "absent", "call_status": None}


def test_nobody_is_dialed_twice_or_lost_in_crashes() -> None:
    said: list[str] = []
    count = run(4 * SMALL.wave, KINDS, seed=20261124, size=SMALL, say=said.append)
    assert count.is_clean, "\n".join([*said, str(count)])
    assert count.histories == 4 * SMALL.wave
    under_way = {line.split(":")[0]: int(line.split()[3]) for line in said if "strikes with" in line}
    assert under_way.keys() == set(KINDS)
    assert sum(map(bool, under_way.values())) >= 3, under_way  # a strike that meets no request proves nothing


def test_person_who_picked_up_twice_was_dialed_twice() -> None:
    twice = {
        "both reached": (call("b"), True),
        "the second heard a hang-up": (call("b", reached=False), True),
        "the second was not answered": (call("b", reached=False, answered_by=None), False),
    }
    wrong = {how: said for how, (second, said) in twice.items()
             if History(job("completed"), [], [call("a"), second]).is_twice is not said}  # fmt: skip
    assert wrong == {}


def test_lost_jobs_are_told_from_ended_ones() -> None:
    unanswered: Row = {"status": "canceled", "answered_by": None, "reached": False}
    vain = [absent("a"), absent("b"), absent("c")]
    histories = {
        **{f"never over: {status}": (History(job(status), [], [call()]), True)
           for status in ("queued", "dialing", "in_doubt", "calling")},
        "completed, never answered": (History(job("completed"), [], [call(**unanswered)]), True),
        "completed": (History(job("completed"), [], [call()]), False),
        "failed after two attempts": (History(job("failed"), vain[:2], []), True),
        "failed after three": (History(job("failed"), vain, []), False),
        "not absent: Twilio knows it": (History(job("failed"), vain, [call("c", **unanswered)]), True),
    }  # fmt: skip
    assert {how: history for how, (history, lost) in histories.items() if history.is_lost is not lost} == {}


def test_one_wrong_count_of_three_fails_the_run() -> None:
    clean = Count(histories=9, twice=0, lost=0, in_doubt=0, apologies=1, seconds=1)
    assert str(clean) == "histories 9, dialed twice 0, lost 0, in doubt at the end 0"
    assert clean.is_clean
    assert [name for name in ("twice", "lost", "in_doubt") if replace(clean, **{name: 1}).is_clean] == []


def test_killed_group_leaves_no_process() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True) as leader:
        kill_group(leader.pid)
        assert leader.wait(5) == -9
