"""The crashes of crash.py in a small form, and proof that their judge can see what it looks for."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

import pytest

from tests.chaos.crash import KINDS, SMALL, Count, History, Row, kill_group, run

NUMBER = "+12015550100"


def call(attempt: str = "a", **told: object) -> Row:
    """In Twilio's record: answered by a person and over, if not told otherwise."""
    url = f"http://127.0.0.1/voice?attempt={attempt}"
    return {"to": NUMBER, "url": url, "status": "completed", "answered_by": "human", "reached": True, **told}


def job(status: str) -> Row:
    return {
        "status": status,
        "finished_at": datetime.now(UTC) if status in ("completed", "failed", "canceled") else None,
    }


def absent(attempt: str) -> Row:
    return {"id": attempt, "state": "absent", "call_status": None}


def test_nobody_is_dialed_twice_or_lost_in_crashes() -> None:
    said: list[str] = []
    count = run(4 * SMALL.wave, KINDS, seed=20261124, size=SMALL, say=said.append)
    assert count.is_clean, "\n".join([*said, str(count)])
    assert count.histories == 4 * SMALL.wave


def test_calls_picked_up_twice_are_dialed_twice() -> None:
    assert History(job("completed"), [], [call("a"), call("b")]).is_twice
    assert History(job("completed"), [], [call("a"), call("b", reached=False)]).is_twice  # they heard a hang-up
    assert not History(job("completed"), [], [call("a"), call("b", reached=False, answered_by=None)]).is_twice


@pytest.mark.parametrize("status", ["queued", "dialing", "in_doubt", "calling"])
def test_job_that_is_never_over_is_lost(status: str) -> None:
    assert History(job(status), [], [call()]).is_lost


def test_completed_job_without_a_completed_call_is_lost() -> None:
    assert History(job("completed"), [], [call(status="canceled", answered_by=None, reached=False)]).is_lost
    assert not History(job("completed"), [], [call()]).is_lost


def test_failed_job_is_lost_before_three_vain_attempts() -> None:
    attempts = [absent("a"), absent("b"), absent("c")]
    assert History(job("failed"), attempts[:2], []).is_lost
    assert not History(job("failed"), attempts, []).is_lost


def test_attempt_that_twilio_knows_was_not_absent() -> None:
    attempts = [absent("a"), absent("b"), absent("c")]
    assert History(job("failed"), attempts, [call("c", status="canceled", answered_by=None, reached=False)]).is_lost


def test_one_wrong_count_of_three_fails_the_run() -> None:
    clean = Count(histories=9, twice=0, lost=0, in_doubt=0, apologies=1, seconds=1)
    assert clean.is_clean
    assert str(clean) == "histories 9, dialed twice 0, lost 0, in doubt at the end 0"
    assert not Count(histories=9, twice=1, lost=0, in_doubt=0, apologies=0, seconds=1).is_clean
    assert not Count(histories=9, twice=0, lost=1, in_doubt=0, apologies=0, seconds=1).is_clean
    assert not Count(histories=9, twice=0, lost=0, in_doubt=1, apologies=0, seconds=1).is_clean


def test_killed_group_leaves_no_process() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True) as leader:
        kill_group(leader.pid)
        assert leader.wait(5) == -9
