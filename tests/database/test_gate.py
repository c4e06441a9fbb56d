"""A claim that the gate denies costs next to nothing, and no lock of another holds a claim up for long."""

from __future__ import annotations

import time
import uuid
from collections import Counter

import pytest

from tests.database.conftest import Another
from tests.database.sql_api import PACE, Row, Steps, a_number, a_sid, all_at_once, behind


def claim_and_look(steps: Steps, job: int | None = None, pace: float = PACE) -> tuple[Row, object]:
    """-> what the claim said, and its transaction's id: null if it wrote nothing, not even a lock on a row."""
    with steps.service.transaction():
        answer = steps.claim(job, pace=pace)
        return answer, steps.service.execute("select pg_current_xact_id_if_assigned()").fetchall()[0][0]


# --- claims in vain ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by_id", [True, False], ids=["webhook", "sweep"])
@pytest.mark.parametrize("denied_by", ["rate", "pause", "probe"])
def test_denied_claim_writes_nothing(steps: Steps, denied_by: str, by_id: bool) -> None:
    pace = 0.1 if denied_by == "rate" else PACE
    if denied_by == "rate":
        steps.queue()
        answer, xid = claim_and_look(steps, pace=pace)
        assert (answer["outcome"], xid is None) == ("claimed", False)
    elif denied_by == "pause":
        steps.call("pause_calls", reason="lunch")
    else:
        steps.release(steps.start(steps.queue(due_at=steps.now())), halt_s=60.0)
        steps.pass_time(61)
        assert steps.claim()["outcome"] == "claimed"
    job = steps.queue()
    answer, xid = claim_and_look(steps, job if by_id else None, pace)
    assert (answer["outcome"], xid) == ("wait" if denied_by == "rate" else "paused", None)


def test_nothing_due_is_told_as_such_during_a_pause(steps: Steps) -> None:
    steps.call("pause_calls", reason="lunch")
    assert steps.claim(steps.queue(due_at=steps.now().replace(year=2099)))["outcome"] == "none"
    steps.queue("(415) 555-0100")
    assert steps.claim()["outcome"] == "unparsed"


def test_claim_beside_another_at_the_last_slot_writes_nothing(steps: Steps, another: Another) -> None:
    first, second, claimer = steps.queue(), steps.queue(), another()
    with claimer.service.transaction():
        assert claimer.claim(first, pace=0.1)["outcome"] == "claimed"
        answer, xid = claim_and_look(steps, second, pace=0.1)
    assert (answer["outcome"], xid) == ("wait", None)
    assert 9 < answer["wait_s"] <= 10  # not 5.0, which a claim says that waited for the other's lock


def test_slot_given_back_is_taken_by_next_claim(steps: Steps, another: Another) -> None:
    first, second, claimer = steps.queue(), steps.queue(), another()
    with claimer.service.transaction(force_rollback=True):
        claimer.claim(first, pace=0.1)
    assert steps.claim(second, pace=0.1)["outcome"] == "claimed"


# --- the database's own locks -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("pace", [1.0, PACE])
def test_claim_waits_a_second_for_the_settings_row(steps: Steps, another: Another, pace: float) -> None:
    job, owner = steps.queue(), another()
    before = steps.everything()
    steps.service.execute("set statement_timeout = '10s'")  # if it waited for ever
    with owner.service.transaction(force_rollback=True):
        owner.call("require_verified_phones", required=True)
        began = time.monotonic()
        answer = steps.claim(job, pace=pace)
        assert 0.9 < time.monotonic() - began < 3
    assert answer == {"outcome": "wait", "wait_s": 5.0, "reason": "a lock in the database is held"}
    assert steps.everything() == before
    assert steps.claim(job, pace=pace)["outcome"] == "claimed"


def test_one_of_many_claims_waits_for_held_settings(steps: Steps, another: Another) -> None:
    """41 webhooks and one open transaction: one waits a second, the others are told at once."""
    for _ in range(41):
        steps.queue()
    callers, owner = [another() for _ in range(41)], another()
    with owner.service.transaction(force_rollback=True):
        owner.call("require_verified_phones", required=True)
        answers = all_at_once(lambda caller: caller.claim(pace=1.0), callers)
    assert {answer["outcome"] for answer in answers} == {"wait"}
    assert 1 <= sum("reason" in answer for answer in answers) <= 3  # more than one if a caller comes a second late


def test_claim_of_a_held_job_names_no_past_time(steps: Steps, another: Another) -> None:
    job, claimer = steps.queue(), another()
    with claimer.service.transaction():
        claimer.start(job)
        assert steps.claim(job) == {"outcome": "none", "status": "queued", "due_at": None, "reason_code": None}
    later = steps.queue(due_at=steps.now().replace(year=2099))
    assert steps.claim(later)["due_at"].startswith("2099")


# --- two users with one number ----------------------------------------------------------------------------------------
def two_users(steps: Steps, **second: object) -> tuple[int, int]:
    number = a_number()
    return steps.queue(number, user_id=uuid.uuid4()), steps.queue(number, user_id=uuid.uuid4(), **second)


def test_second_user_of_a_number_waits_for_the_first(steps: Steps) -> None:
    first, second = two_users(steps)
    steps.call_and_end("busy", first, delays_s=(900.0, 900.0))
    assert steps.claim(second)["reason_code"] == "number_in_use"
    assert steps.job(second)["due_at"] > steps.job(first)["due_at"]  # no look each minute
    steps.make_due(first)
    steps.call_and_end("no-answer", first, delays_s=())
    steps.make_due(second)
    assert steps.claim(second)["outcome"] == "claimed"


def test_second_user_is_not_called_after_a_reached_number(steps: Steps) -> None:
    first, second = two_users(steps)
    steps.call_and_end("completed", first)
    assert steps.claim(second)["outcome"] == "none"
    reason = "this number was reached within the hour, for another user"
    assert steps.fields(second, "status", "reason_code", "reason") == ("canceled", "number_reached", reason)
    assert steps.call("retry_call_job", job_id=second) == "queued"
    assert steps.claim(second)["outcome"] == "claimed", "a retry by hand is meant"
    first, second = two_users(steps)
    steps.call_and_end("completed", first)
    steps.pass_time(3601)
    assert steps.claim(second)["outcome"] == "claimed"


def test_own_and_later_jobs_hold_up_nobody(steps: Steps) -> None:
    number, another = a_number(), a_number()
    first, second = steps.queue(number), steps.queue(number)
    steps.call_and_end("busy", first, delays_s=(900.0, 900.0))
    assert steps.claim(second)["outcome"] == "claimed"
    steps.queue(another, user_id=uuid.uuid4(), due_at=steps.now().replace(year=2099))
    assert steps.claim(steps.queue(another, user_id=uuid.uuid4()))["outcome"] == "claimed"


def test_older_of_two_dialed_jobs_goes_first(steps: Steps) -> None:
    first, second = two_users(steps)
    steps.call_and_end("busy", first, delays_s=(900.0, 900.0))
    for job, attempts in ((first, 0), (second, 1), (first, 1)):
        steps.change_job(job, attempts=attempts, due_at=steps.now())
    assert steps.claim(second)["reason_code"] == "number_in_use"
    assert steps.claim(first)["outcome"] == "claimed"


def test_claims_at_once_for_one_number_dial_one(steps: Steps, another: Another) -> None:
    number = a_number()
    jobs = [steps.queue(number, user_id=uuid.uuid4()) for _ in range(30)]
    callers = [another() for _ in jobs]
    todo = dict(zip(map(id, callers), jobs, strict=True))
    answers = all_at_once(lambda caller: caller.claim(todo[id(caller)]), callers)
    (claimed,) = (answer for answer in answers if answer["outcome"] == "claimed")
    steps.status(uuid.UUID(claimed["attempt"]["id"]), a_sid(), "completed")
    steps.make_all_due()
    again = all_at_once(lambda caller: caller.claim(), callers)
    assert {answer["outcome"] for answer in again} == {"none"}
    found = Counter(steps.brief(job) for job in jobs)
    assert found == {("completed", 1, None): 1, ("canceled", 0, "number_reached"): 29}


def test_claim_behind_another_of_its_number_sees_it(steps: Steps, another: Another) -> None:
    first, second = two_users(steps)
    claimer = another()
    answers = behind(claimer, lambda: claimer.claim(first), steps, lambda: steps.claim(second))
    assert (answers[0]["outcome"], answers[1]["reason_code"]) == ("claimed", "number_in_use")
