"""One job per key while it waits or is open, and for a true sliding hour after, however many ask at once."""

from __future__ import annotations

import uuid
from datetime import timedelta

import psycopg
import pytest

from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, a_sid, all_at_once


def enqueue(steps: Steps, user: uuid.UUID, **arguments: object) -> Row:
    return steps.answer("enqueue_call_job", user_id=user, phone_number=a_number(), **arguments)


def finish(steps: Steps, job: int, status: str = "completed", **more: object) -> None:
    steps.change_job(job, status=status, due_at=None, finished_at=steps.now(), **more)


def test_job_that_is_open_holds_its_key(steps: Steps) -> None:
    """A night or a pause is longer than an hour."""
    for state in ("queued", "started", "in_doubt", "accepted"):
        job = enqueue(steps, user := uuid.uuid4())["job_id"]
        if state != "queued":
            steps.bring_to(state, job)
        steps.pass_time(9 * 3600)
        assert enqueue(steps, user) == {"job_id": job, "created": False}, state


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
def test_hour_counts_from_the_end_of_the_job(steps: Steps, status: str) -> None:
    job = enqueue(steps, user := uuid.uuid4())["job_id"]
    steps.pass_time(9 * 3600)
    finish(steps, job, status)
    steps.pass_time(59 * 60)  # by the clock another hour
    assert enqueue(steps, user) == {"job_id": job, "created": False}
    steps.pass_time(2 * 60)
    assert enqueue(steps, user)["created"]


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
    finish(steps, job, "failed", reason_code="absent")
    steps.pass_time(7200)
    newer = enqueue(steps, user)["job_id"]
    assert newer != job
    sid = a_sid()
    assert (steps.accept(attempt, sid)["then"], steps.job(job)["status"]) == ("keep", "calling")
    steps.status(attempt, sid, "completed")
    assert (steps.job(job)["status"], steps.job(newer)["status"]) == ("completed", "queued")
    assert enqueue(steps, user) == {"job_id": newer, "created": False}


def test_sign_up_does_not_wait_for_earlier_jobs(steps: Steps, another: Another) -> None:
    slow = another()
    enqueue(steps, uuid.uuid4())
    with slow.service.transaction():
        slow.service.execute("reset role")
        ended = "update public.outbound_call_jobs set status = 'completed', due_at = null, finished_at = now()"
        slow.service.execute(ended)
        steps.service.execute("set statement_timeout = '10s'")  # if it waited for ever
        assert enqueue(steps, uuid.uuid4())["created"]  # another key waits for nothing


@pytest.mark.parametrize("jobs", [1, 20], ids=["one person", "twenty people"])
def test_enqueued_at_once_are_one_job_a_person(steps: Steps, another: Another, jobs: int) -> None:
    callers = [another() for _ in range(20)]
    users = dict(zip(map(id, callers), [uuid.uuid4() for _ in range(jobs)] * 20, strict=False))
    answers = all_at_once(lambda caller: enqueue(caller, users[id(caller)]), callers)
    assert sum(answer["created"] for answer in answers) == jobs
    found = steps.rows("select id from public.outbound_call_jobs")
    assert {row["id"] for row in found} == {answer["job_id"] for answer in answers}
    assert len(found) == jobs


def test_keys_alone_decide_whose_job_it_is(steps: Steps) -> None:
    enqueue(steps, user := uuid.uuid4(), not_before=steps.now().replace(year=2099))
    assert not enqueue(steps, user)["created"]
    assert enqueue(steps, user, dedupe_key=f"renewal:{user}")["created"]
    first = enqueue(steps, uuid.uuid4(), dedupe_key="household:7")
    assert enqueue(steps, uuid.uuid4(), dedupe_key="household:7") == {"job_id": first["job_id"], "created": False}


def test_call_for_later_holds_only_its_own_key(steps: Steps) -> None:
    user, at = uuid.uuid4(), steps.now() + timedelta(hours=20)
    later = enqueue(steps, user, not_before=at, dedupe_key=f"demo:{user}")["job_id"]
    assert enqueue(steps, user)["created"]
    assert steps.claim(later)["outcome"] == "none"
    steps.pass_time(20 * 3600)
    assert not enqueue(steps, user, dedupe_key=f"demo:{user}")["created"]
    assert steps.claim(later)["outcome"] == "claimed"


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
    filled = {
        "signup_mode": "default", "first_name": None, "metadata": {}, "status": "queued", "attempts": 0,
        "dedupe_key": f"onboarding:{user}", "phone_e164": job["phone_number"], "due_at": job["created_at"],
    }  # fmt: skip
    assert {column: job[column] for column in filled} == filled


def test_number_that_is_not_e164_is_left_unparsed(steps: Steps) -> None:
    for typed in ("415 555 0100", "+1 415 555 0100", "0", "+0155550100", "call me", "+14155550100 "):
        job = steps.queue(typed)
        assert steps.job(job)["phone_e164"] is None
        assert steps.claim(job) == {"outcome": "unparsed", "job_id": job, "phone_number": typed}


def test_number_that_cannot_be_read_ends_the_job(steps: Steps) -> None:
    job = steps.queue("call me")
    why = {"code": "number_invalid", "reason": "that is no phone number"}
    assert steps.call("set_call_number", job_id=job, phone_number="call me", phone_e164=None, **why)
    assert steps.fields(job, "status", "reason_code", "due_at") == ("failed", "number_invalid", None)


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
