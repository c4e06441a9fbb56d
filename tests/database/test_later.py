"""A person asks in the call to be called later: the job waits for then, whatever ends the call, and only if it is wanted."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.database.conftest import Queue
from tests.database.sql_api import ASK_S, GIVE_UP_S, Steps, a_number, a_sid
from tests.database.test_answers import answers, opt_out, picked_up


def in_hours(steps: Steps, hours: float) -> datetime:
    return steps.now() + timedelta(hours=hours)


@pytest.mark.parametrize("word", ["completed", "busy", "no-answer", "failed", "canceled"])
def test_job_waits_for_the_agreed_time_unspent(steps: Steps, word: str) -> None:
    job, attempt, sid = picked_up(steps)
    at = in_hours(steps, 2)
    answer = steps.ask_for_later(attempt, sid, in_hours(steps, 1))
    assert (answer["then"], answer["job"]["laters"], steps.job(job)["status"]) == ("keep", 0, "calling")
    assert datetime.fromisoformat(steps.ask_for_later(attempt, sid, at)["later_at"]) == at  # the last one counts
    steps.status(attempt, sid, word)
    waits = steps.job(job)
    expected = {
        "status": "queued", "due_at": at, "attempts": 0, "reason_code": "asked_for_later", "finished_at": None,
        "qualification": None,
    }  # fmt: skip
    assert {column: waits[column] for column in expected} == expected
    assert answers(steps, job) == {"good_time": "later"}
    key = {column: waits[column] for column in ("user_id", "phone_number", "dedupe_key")}
    again = steps.call("enqueue_call_job", **key)
    assert again == {"job_id": job, "created": False}
    assert steps.claim(job)["outcome"] == "none"
    steps.pass_time(2 * 3600)
    assert steps.claim(job, per_number=1)["reason_code"] == "calls_per_number_per_day"  # it counts as a call


def test_laters_of_a_job_are_counted_by_its_calls(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    for laters in range(3):
        told = [steps.ask_for_later(attempt, sid, in_hours(steps, 0))["job"]["laters"] for _ in range(2)]
        assert told == [laters, laters]
        steps.status(attempt, sid, "completed")
        attempt, sid = steps.start(job), a_sid()
        assert steps.status(attempt, sid, "in-progress")["job"]["laters"] == laters + 1
    steps.status(attempt, sid, "completed")
    assert (steps.brief(job), answers(steps, job)) == (("completed", 1, None), {"good_time": "later"})


def test_late_wish_takes_the_finished_job_up_again(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    steps.status(attempt, sid, "completed")
    at = in_hours(steps, 2)
    for wish in (at, in_hours(steps, 5)):  # the second is a repeated request: the person heard the first time
        answer = steps.ask_for_later(attempt, sid, wish)
        assert (answer["then"], datetime.fromisoformat(answer["later_at"])) == ("keep", at)
        assert steps.fields(job, "status", "due_at", "attempts") == ("queued", at, 0)
    steps.make_due(job)
    steps.call_and_end("completed", job)
    steps.ask_for_later(attempt, sid, in_hours(steps, 5))  # once more, after the later call
    assert steps.job(job)["status"] == "completed"


def test_wish_holds_although_the_end_never_becomes_known(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    at = in_hours(steps, 20)
    steps.ask_for_later(attempt, sid, at)
    for _ in range(2):
        steps.pass_time(GIVE_UP_S + ASK_S)
        steps.ask()
    assert steps.fields(job, "status", "due_at") == ("queued", at)
    assert steps.attempt(attempt)["error_code"] == "outcome_unknown"


@pytest.mark.parametrize("wish_first", [True, False], ids=["wish first", "wish last"])
def test_cancel_and_opt_out_end_the_job(steps: Steps, wish_first: bool) -> None:
    for code in ("canceled", "opted_out", "user_deleted", None):
        job, attempt, sid = picked_up(steps)
        user, number = steps.fields(job, "user_id", "phone_e164")
        if wish_first:
            steps.ask_for_later(attempt, sid, in_hours(steps, 2))
        if code == "canceled":
            steps.call("cancel_call_job", job_id=job)
        elif code == "opted_out":
            steps.call("opt_out", phone_number=number)
        elif code == "user_deleted":
            steps.rows("insert into auth.users (id) values (%s)", user)
            steps.rows("delete from auth.users where id = %s", user)
        else:
            opt_out(steps, attempt, sid)
        if not wish_first:
            steps.ask_for_later(attempt, sid, in_hours(steps, 2))
        steps.status(attempt, sid, "completed")
        assert steps.fields(job, "status", "reason_code") == ("canceled" if code else "completed", code)
        if not code:
            steps.ask_for_later(attempt, sid, in_hours(steps, 2))
            assert steps.job(job)["status"] == "completed"


def test_duplicate_and_machine_ask_for_nothing(steps: Steps) -> None:
    job, attempt, sid = picked_up(steps)
    assert steps.ask_for_later(attempt, "CA" + "d" * 32, in_hours(steps, 2))["later_at"] is None
    steps.status(attempt, sid, "in-progress", answered_by="machine_start")
    assert steps.ask_for_later(attempt, sid, in_hours(steps, 2))["later_at"] is None
    steps.status(attempt, sid, "completed")
    assert steps.job(job)["status"] == "completed"


@pytest.mark.parametrize("wish_first", [True, False], ids=["wish first", "end first"])
def test_wish_and_end_at_once_agree(steps: Steps, one_after_the_other: Queue, wish_first: bool) -> None:
    job, attempt, sid = picked_up(steps)
    at = in_hours(steps, 2)
    crowd = [lambda mine: mine.ask_for_later(attempt, sid, at), lambda mine: mine.status(attempt, sid, "completed")]
    one_after_the_other(*(crowd if wish_first else crowd[::-1]))
    assert steps.fields(job, "status", "due_at", "attempts") == ("queued", at, 0)


def test_opt_out_and_wish_at_once_leave_nothing_queued(steps: Steps, one_after_the_other: Queue) -> None:
    job, attempt, sid = picked_up(steps, number := a_number())
    steps.ask_for_later(attempt, sid, in_hours(steps, 2))
    one_after_the_other(
        lambda mine: mine.status(attempt, sid, "completed"), lambda mine: mine.call("opt_out", phone_number=number)
    )
    assert steps.fields(job, "status", "reason_code") == ("canceled", "opted_out")
