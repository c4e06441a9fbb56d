"""A user who is gone is forgotten: at once what they told us, their number when no cap and no fence needs it, all of it in time."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from pydantic import TypeAdapter

from shared.models import NextOpenCall, OpenCall
from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, a_sid, in_background

NEXT_OPEN_CALL: TypeAdapter[NextOpenCall] = TypeAdapter(NextOpenCall)
DAY_S = 86_400.0


def a_user(steps: Steps, number: str | None = None) -> tuple[uuid.UUID, int]:
    """Signs up. -> the user, the job"""
    user = steps.sign_up(number or a_number(), {"first_name": "Ada", "team": "7"})
    return user, steps.job_of(user)["id"]


def delete(steps: Steps, user: uuid.UUID) -> None:
    steps.rows("delete from auth.users where id = %s", user)


def prune(steps: Steps, days: int = 90, **more: object) -> Row:
    return steps.answer("prune_call_jobs", retention_days=days, **more)


def told(steps: Steps, job: int) -> tuple[object, ...]:
    """What the user told us."""
    return steps.fields(job, "phone_number", "first_name", "metadata")


ERASED: tuple[object, ...] = ("erased", None, {})


# --- a user is deleted ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["delete from auth.users", "update auth.users set deleted_at = now()"])
def test_deleted_user_is_not_called_and_leaves_nothing(steps: Steps, how: str) -> None:
    user, job = a_user(steps)
    assert told(steps, job)[1:] == ("Ada", {"first_name": "Ada", "team": "7"})
    steps.rows(f"{how} where id = %s", user)
    assert (steps.brief(job), told(steps, job)) == (("canceled", 0, "user_deleted"), ERASED)
    assert steps.claim(job)["outcome"] == "none"
    with pytest.raises(psycopg.errors.RaiseException, match="user was deleted"):
        steps.call("retry_call_job", job_id=job)


@pytest.mark.parametrize("how_far", ["started", "in_doubt", "accepted"])
def test_open_call_of_a_deleted_user_is_ended(steps: Steps, how_far: str) -> None:
    user, job = a_user(steps)
    attempt = steps.bring_to(how_far, job)
    delete(steps, user)
    assert told(steps, job) == ERASED
    sid = steps.attempt(attempt)["call_sid"] or a_sid()
    assert steps.accept(attempt, sid)["then"] == "end"
    steps.status(attempt, sid, "canceled")
    assert steps.fields(job, "status", "reason_code") == ("canceled", "user_deleted")


@pytest.mark.parametrize("erased", [False, True])
def test_late_call_for_a_deleted_user_is_ended(steps: Steps, erased: bool) -> None:
    user, job = a_user(steps)
    attempt = steps.start(job)
    steps.doubt(attempt)
    steps.settle(attempt, gives_up=True)
    delete(steps, user)
    if erased:
        steps.pass_time(DAY_S + 1)
        assert prune(steps)["erased"] == 1
    assert steps.accept(attempt, sid := a_sid())["then"] == "end"
    looked = NEXT_OPEN_CALL.validate_python(steps.ask())  # the sweep can read what it is to end
    assert isinstance(looked, OpenCall)
    assert (looked.call_sid, looked.end) == (sid, True)


def test_pruning_and_a_late_callback_never_deadlock(steps: Steps, another: Another) -> None:
    user, job = a_user(steps)
    attempt = steps.start(job)
    steps.status(attempt, sid := a_sid(), "completed")
    delete(steps, user)
    steps.pass_time(DAY_S + 1)
    callback, sweep = another(), another()
    callback.service.autocommit = False
    callback.service.execute("reset role")
    callback.service.execute("select from public.outbound_call_jobs where id = %s for update", (job,))
    with in_background(steps._eyes) as start:
        pruning = start(sweep, lambda: prune(sweep))
        callback.status(attempt, sid, "completed")
        callback.service.commit()
        assert pruning.result(10)["erased"] == 1


def test_number_of_deleted_user_goes_after_a_day(steps: Steps) -> None:
    user, job = a_user(steps, number := a_number())
    attempt = steps.start(job)
    steps.status(attempt, a_sid(), "completed")
    delete(steps, user)
    steps.pass_time(3600)
    _, again = a_user(steps, number)
    assert steps.claim(again, per_number=1)["reason_code"] == "calls_per_number_per_day"

    steps.pass_time(DAY_S - 3660)
    assert prune(steps)["erased"] == 0
    steps.pass_time(120)
    assert prune(steps)["erased"] == 1
    assert steps.fields(job, "phone_e164", "phone_number") == (None, "erased")
    assert steps.attempt(attempt)["phone_e164"] is None
    assert steps.one("select count(*) from private.deleted_users") == 0
    assert steps.job(again)["phone_e164"] == number


def test_number_stays_until_its_open_call_is_over(steps: Steps) -> None:
    user, job = a_user(steps)
    attempt = steps.bring_to("in_doubt", job)
    delete(steps, user)
    steps.pass_time(3 * DAY_S)
    assert prune(steps)["erased"] == 0
    steps.settle(attempt)
    assert prune(steps)["erased"] == 1


def test_user_without_a_job_leaves_nothing(steps: Steps) -> None:
    delete(steps, steps.sign_up())
    assert steps.one("select count(*) from private.deleted_users") == 0


def test_delete_waits_for_no_claim_and_sweep_forgets(steps: Steps, another: Another) -> None:
    user, job = a_user(steps)
    holder = another()
    with holder.service.transaction():
        holder.start(job)
        delete(steps, user)
        assert steps.one("select count(*) from auth.users where id = %s", user) == 0
        assert steps.one("select forgotten from private.deleted_users") is False
        assert prune(steps) == {"forgotten": 0, "erased": 0, "deleted": 0}
    assert told(steps, job)[1] == "Ada"
    assert prune(steps)["forgotten"] == 1
    assert (told(steps, job), steps.job(job)["cancel_requested"]) == (ERASED, True)


def test_delete_commits_even_when_nothing_of_ours_works(steps: Steps) -> None:
    user, _ = a_user(steps)
    steps.rows("alter table private.deleted_users rename to gone")
    try:
        delete(steps, user)
        assert steps.one("select count(*) from auth.users where id = %s", user) == 0
    finally:
        steps.rows("alter table private.gone rename to deleted_users")


# --- what is old ------------------------------------------------------------------------------------------------------
def jobs(steps: Steps) -> list[int]:
    return [row["id"] for row in steps.rows("select id from public.outbound_call_jobs order by 1")]


def test_what_finished_long_ago_is_deleted_with_its_attempts(steps: Steps) -> None:
    old = steps.call_and_end()
    steps.pass_time(2 * DAY_S)
    young = steps.call_and_end()
    waiting = steps.queue()
    assert prune(steps, days=3)["deleted"] == 0
    steps.pass_time(1.5 * DAY_S)
    assert prune(steps, days=3)["deleted"] == 1
    assert (jobs(steps), steps.attempts(old)) == ([young, waiting], [])


def test_it_is_done_in_small_batches_oldest_first(steps: Steps) -> None:
    finished = []
    for _ in range(5):
        finished.append(steps.call_and_end())
        steps.pass_time(1)
    steps.pass_time(DAY_S)
    assert prune(steps, days=1, limit=2)["deleted"] == 2
    assert jobs(steps) == finished[2:]
    assert [prune(steps, days=1, limit=2)["deleted"] for _ in range(3)] == [2, 1, 0]


def test_what_is_open_is_never_deleted_however_old(steps: Steps) -> None:
    for state in ("started", "in_doubt", "accepted", "duplicate"):
        steps.attempt_in(state)
    steps.queue()
    steps.pass_time(1000 * DAY_S)
    assert prune(steps, days=1)["deleted"] == 0
    assert steps.one("select count(*) from public.outbound_call_jobs") == 5


def test_prunings_at_once_do_not_wait(steps: Steps, another: Another) -> None:
    for _ in range(4):
        steps.call_and_end()
    steps.pass_time(2 * DAY_S)
    other = another()
    with other.service.transaction():
        assert prune(other, days=1, limit=3)["deleted"] == 3
        assert prune(steps, days=1)["deleted"] == 1
