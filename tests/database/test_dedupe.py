"""One job per key while it waits or is open, and for a true sliding hour after, however many ask at once."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import psycopg
import pytest

from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, a_sid, all_at_once


def enqueue(steps: Steps, user: uuid.UUID, **arguments: object) -> Row:
    return steps.answer("enqueue_call_job", user_id=user, phone_number=a_number(), **arguments)


def finish(steps: Steps, job: int, status: str = "completed") -> None:
    ended = "status = %s, due_at = null, finished_at = private.clock()"
    steps.rows(f"update public.outbound_call_jobs set {ended} where id = %s", status, job)


def test_job_that_is_open_holds_its_key(steps: Steps) -> None:
    """A night or a pause is longer than an hour."""
    for state in ("queued", "started", "in_doubt", "accepted"):
        user = uuid.uuid4()
        if state == "queued":
            job = enqueue(steps, user)["job_id"]
        else:
            job, _ = steps.attempt_in(state)
            steps.rows("update public.outbound_call_jobs set dedupe_key = %s where id = %s", f"onboarding:{user}", job)
        steps.pass_time(9 * 3600)
        assert enqueue(steps, user) == {"job_id": job, "created": False}, state


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
def test_hour_counts_from_the_end_of_the_job(steps: Steps, status: str) -> None:
    first = enqueue(steps, user := uuid.uuid4())
    steps.pass_time(9 * 3600)
    finish(steps, first["job_id"], status)
    steps.pass_time(59 * 60)
    assert enqueue(steps, user) == {"job_id": first["job_id"], "created": False}
    steps.pass_time(2 * 60)
    assert enqueue(steps, user)["created"]


def test_hour_of_the_key_begins_with_the_end(steps: Steps) -> None:
    to_59_past = 59 * 60 - steps.now().minute * 60 - steps.now().second
    steps.pass_time(to_59_past)
    finish(steps, enqueue(steps, user := uuid.uuid4())["job_id"])
    steps.pass_time(120)  # the next hour, by the clock
    assert not enqueue(steps, user)["created"]


def test_finished_job_that_goes_on_holds_its_key(steps: Steps) -> None:
    first = enqueue(steps, user := uuid.uuid4())["job_id"]
    finish(steps, first, "failed")
    steps.pass_time(7200)
    steps.call("retry_call_job", job_id=first)
    steps.pass_time(7200)
    assert enqueue(steps, user) == {"job_id": first, "created": False}


def test_late_truth_counts_beside_a_newer_jobs_key(steps: Steps) -> None:
    """The exclusion constraint must never refuse an outcome."""
    job, attempt = steps.attempt_in("absent")
    user = steps.job(job)["user_id"]
    finish(steps, job, "failed")
    steps.rows("update public.outbound_call_jobs set reason_code = 'absent'")
    steps.pass_time(7200)
    newer = enqueue(steps, user)["job_id"]
    assert newer != job
    sid = a_sid()
    assert steps.accept(attempt, sid)["then"] == "keep"
    assert steps.job(job)["status"] == "calling"
    steps.status(attempt, sid, "completed")
    assert (steps.job(job)["status"], steps.job(newer)["status"]) == ("completed", "queued")
    assert enqueue(steps, user) == {"job_id": newer, "created": False}


def test_sign_up_does_not_wait_for_earlier_jobs(steps: Steps, another: Another) -> None:
    first, slow = enqueue(steps, uuid.uuid4())["job_id"], another()
    with slow.service.transaction():
        slow.service.execute("reset role")
        slow.service.execute(
            "update public.outbound_call_jobs set status = 'completed', due_at = null, finished_at = now() where id = %s",
            (first,),
        )
        began = time.monotonic()
        assert enqueue(steps, uuid.uuid4())["created"]  # another key waits for nothing
        assert time.monotonic() - began < 1


def test_twenty_enqueued_at_once_make_one_job(steps: Steps, another: Another) -> None:
    user, callers = uuid.uuid4(), [another() for _ in range(20)]
    answers = all_at_once(lambda caller: enqueue(caller, user), callers)
    assert sum(answer["created"] for answer in answers) == 1
    assert {answer["job_id"] for answer in answers} == {steps.one("select id from public.outbound_call_jobs")}


def test_twenty_people_at_once_have_a_job_each(steps: Steps, another: Another) -> None:
    callers = [another() for _ in range(20)]
    answers = all_at_once(lambda caller: enqueue(caller, uuid.uuid4()), callers)
    assert all(answer["created"] for answer in answers)
    assert len({answer["job_id"] for answer in answers}) == 20


def test_keys_alone_decide_whose_job_it_is(steps: Steps) -> None:
    enqueue(steps, user := uuid.uuid4(), not_before=steps.now().replace(year=2099))
    assert not enqueue(steps, user)["created"]
    assert enqueue(steps, user, dedupe_key=f"renewal:{user}")["created"]
    first = enqueue(steps, uuid.uuid4(), dedupe_key="household:7")
    assert enqueue(steps, uuid.uuid4(), dedupe_key="household:7") == {"job_id": first["job_id"], "created": False}


def test_call_for_later_holds_only_its_own_key(steps: Steps) -> None:
    later = enqueue(
        steps, user := uuid.uuid4(), not_before=steps.now() + timedelta(hours=20), dedupe_key=f"demo:{user}"
    )
    assert enqueue(steps, user)["created"]
    assert steps.claim(later["job_id"])["outcome"] == "none"
    steps.pass_time(20 * 3600)
    assert not enqueue(steps, user, dedupe_key=f"demo:{user}")["created"]
    assert steps.claim(later["job_id"])["outcome"] == "claimed"


def test_plain_insert_is_held_to_the_same_hour(steps: Steps) -> None:
    enqueue(steps, user := uuid.uuid4())
    with pytest.raises(psycopg.errors.ExclusionViolation):
        steps.queue(user_id=user)
    finish(steps, steps.one("select id from public.outbound_call_jobs"))
    steps.pass_time(61 * 60)
    assert steps.queue(user_id=user)


def test_mode_is_folded_however_it_is_written(steps: Steps) -> None:
    modes = {" Demo": "demo", "JOB_SEEKER\n": "job_seeker", "demo": "demo", "  ": "default"}
    found = {mode: steps.job(steps.queue(signup_mode=mode))["signup_mode"] for mode in modes}
    assert found == modes


def test_what_is_not_said_is_filled_in(steps: Steps) -> None:
    user = uuid.uuid4()
    job = steps.job(enqueue(steps, user, signup_mode=None, first_name=None, metadata=None)["job_id"])
    assert (job["signup_mode"], job["first_name"], job["metadata"]) == ("default", None, {})
    assert (job["status"], job["dedupe_key"], job["attempts"]) == ("queued", f"onboarding:{user}", 0)
    assert job["phone_e164"] == job["phone_number"]
    assert job["due_at"] == job["created_at"]


@pytest.mark.parametrize("typed", ["415 555 0100", "+1 415 555 0100", "0", "+0155550100", "call me", "+14155550100 "])
def test_number_that_is_not_e164_is_left_unparsed(steps: Steps, typed: str) -> None:
    job = steps.queue(typed)
    assert steps.job(job)["phone_e164"] is None
    assert steps.claim(job) == {"outcome": "unparsed", "job_id": job, "phone_number": typed}


def test_number_that_cannot_be_read_ends_the_job(steps: Steps) -> None:
    job = steps.queue("call me")
    why = {"code": "number_invalid", "reason": "that is no phone number"}
    assert steps.call("set_call_number", job_id=job, phone_number="call me", phone_e164=None, **why)
    row = steps.job(job)
    assert (row["status"], row["reason_code"], row["due_at"]) == ("failed", "number_invalid", None)


@pytest.mark.parametrize("typed", ["something older", None])
def test_number_counts_only_for_what_was_read(steps: Steps, typed: str | None) -> None:
    job = steps.queue("call me")
    number = a_number()
    assert not steps.call("set_call_number", job_id=job, phone_number=typed, phone_e164=number)
    assert steps.job(job)["phone_e164"] is None
    assert steps.call("set_call_number", job_id=job, phone_number="call me", phone_e164=number)
    assert steps.claim(job)["job"]["phone_e164"] == number


def test_number_does_not_change_under_a_call(steps: Steps) -> None:
    job, _ = steps.attempt_in("started")
    before = steps.everything()
    number = steps.job(job)["phone_number"]
    assert not steps.call("set_call_number", job_id=job, phone_number=number, phone_e164=a_number())
    assert steps.everything() == before
