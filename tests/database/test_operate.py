"""By hand: cancel, retry, delete, pause. Nothing done by hand leaves a call that nobody follows, or a number blocked."""

from __future__ import annotations

import uuid
from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Connect
from tests.database.sql_api import FINAL, LEASE_S, OPEN, Steps, a_number, a_sid

Refused = psycopg.errors.RaiseException
STATES = ("queued", *OPEN)


def job_in(steps: Steps, state: str, number: str | None = None) -> int:
    return steps.queue(number) if state == "queued" else steps.attempt_in(state, number)[0]


def failed(steps: Steps, number: str | None = None, **columns: object) -> int:
    """A job whose attempts are spent."""
    job = steps.queue(number, **columns)
    steps.says(steps.start(job), "busy", delays_s=())
    return job


def cancel(steps: Steps, job: int) -> str:
    return str(steps.call("cancel_call_job", job_id=job))


def retry(steps: Steps, job: int) -> str:
    return str(steps.call("retry_call_job", job_id=job))


def delete(steps: Steps, job: int) -> list[tuple[str, bool]]:
    """-> what is left of it: status, cancel_requested"""
    steps.rows("delete from public.outbound_call_jobs where id = %s", job)
    left = steps.rows("select status, cancel_requested from public.outbound_call_jobs where id = %s", job)
    return [(row["status"], row["cancel_requested"]) for row in left]


def follow(steps: Steps) -> None:
    """What sweeps do about canceled jobs, with a Twilio that has none of the calls in doubt, and ends what it is told to."""
    steps.pass_time(LEASE_S + 1)
    while (asked := steps.ask())["outcome"] == "ask":
        if asked["call_sid"] is None:
            steps.settle(uuid.UUID(asked["attempt"]))
        else:
            steps.status(uuid.UUID(asked["attempt"]), asked["call_sid"], "canceled")


JOB: dict[str, object] = {"user_id": uuid.uuid4(), "phone_number": "+1"}
NONSENSE: list[tuple[str, dict[str, object], str]] = [
    ("cancel_call_job", {"job_id": None}, "p_job_id must be given"),
    ("retry_call_job", {"job_id": None}, "p_job_id must be given"),
    ("cancel_call_job", {"job_id": 4711}, "there is no call job 4711"),
    ("retry_call_job", {"job_id": 4711}, "there is no call job 4711"),
    ("pause_calls", {"reason": None}, "p_reason must say why"),
    ("pause_calls", {"reason": " "}, "p_reason must say why"),
    ("pause_calls", {"reason": "x", "until": "-infinity"}, "p_until must be in the future"),
    ("pause_calls", {"reason": "x", "until": "2020-01-01"}, "p_until must be in the future"),
    ("pause_calls", {"reason": "x", "until": "20260-11-27"}, "p_until must be before the year 9999"),
    ("require_verified_phones", {"required": None}, "p_required must be true or false"),
    ("enqueue_call_job", JOB | {"user_id": None}, "p_user_id must be given"),
    ("enqueue_call_job", JOB | {"phone_number": None}, "p_phone_number must be given"),
    ("enqueue_call_job", JOB | {"phone_number": " "}, "p_phone_number must be given"),
    ("enqueue_call_job", JOB | {"phone_number": "1" * 65}, "at most 64 characters"),
    ("enqueue_call_job", JOB | {"signup_mode": ""}, "p_signup_mode must"),
    ("enqueue_call_job", JOB | {"first_name": "x" * 101}, "p_first_name must"),
    ("enqueue_call_job", JOB | {"metadata": Jsonb([1])}, "p_metadata must"),
    ("enqueue_call_job", JOB | {"not_before": "infinity"}, "p_not_before must"),
]


def test_nonsense_by_hand_is_refused_by_name(steps: Steps) -> None:
    steps.queue()
    before = steps.everything()
    for function, arguments, named in NONSENSE:
        with pytest.raises(Refused, match=named):
            steps.call(function, **arguments)
    assert steps.everything() == before


# --- cancel -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", STATES)
def test_canceled_job_leaves_its_number_free(steps: Steps, state: str) -> None:
    """Canceled twice is canceled once. A queued job is canceled at once, another when its call is over."""
    job = job_in(steps, state, number := a_number())
    was = steps.job(job)["status"]
    assert cancel(steps, job) == ("canceled" if was == "queued" else was)
    row, before = steps.job(job), steps.everything()
    assert row["cancel_requested"] is (was != "queued")
    if was == "queued":
        assert (row["due_at"], row["reason"], row["finished_at"] is None) == (None, "canceled by hand", False)
        with pytest.raises(Refused, match="nothing to cancel"):
            cancel(steps, job)
    else:
        assert cancel(steps, job) == was
    assert (steps.everything()[1:], steps.job(job)["status"]) == (before[1:], row["status"])
    assert steps.claim(job)["outcome"] == "none"
    follow(steps)
    assert steps.job(job)["status"] == "canceled"
    assert [row["state"] for row in steps.attempts(job) if row["state"] in OPEN] == []
    assert steps.claim(steps.queue(number))["outcome"] == "claimed"


def test_job_that_is_over_cannot_be_canceled(steps: Steps) -> None:
    for status in FINAL:
        steps.change_job(job := steps.queue(), status=status, due_at=None, finished_at=steps.now())
        with pytest.raises(Refused, match=f"call job {job} is {status} already"):
            cancel(steps, job)


# --- retry ------------------------------------------------------------------------------------------------------------
def test_job_that_spent_its_attempts_is_dialed_again(steps: Steps) -> None:
    job = steps.queue()
    for _ in range(3):
        steps.make_due(job)
        steps.says(steps.start(job), "busy")
    assert steps.job(job)["status"] == "failed"
    assert retry(steps, job) == "queued"
    steps.says(uuid.UUID(steps.claim()["attempt"]["id"]), "busy")  # by the next sweep
    assert steps.brief(job)[:2] == ("failed", 4)


def test_canceled_job_that_is_retried_is_wanted_again(steps: Steps) -> None:
    job, attempt = steps.attempt_in("accepted")
    cancel(steps, job)
    follow(steps)
    retry(steps, job)
    assert steps.accept(steps.start(job), a_sid())["then"] == "keep"
    assert steps.attempt(attempt)["state"] == "ended"


def test_late_truth_about_a_retried_job_counts(steps: Steps) -> None:
    job, attempt = steps.attempt_in("in_doubt")
    steps.settle(attempt, gives_up=True)
    retry(steps, job)
    assert steps.accept(attempt, a_sid())["then"] == "keep"
    assert steps.job(job)["status"] == "calling"


def test_job_that_is_not_over_cannot_be_retried(steps: Steps) -> None:
    completed, attempt = steps.attempt_in("accepted")
    steps.says(attempt, "completed")
    for job in (completed, *(job_in(steps, state) for state in STATES)):
        status = steps.job(job)["status"]
        with pytest.raises(Refused, match=f"call job {job} is {status}: only failed and canceled jobs"):
            retry(steps, job)


def test_job_with_a_live_call_is_not_retried(steps: Steps) -> None:
    for state in OPEN:
        job = failed(steps, number := a_number())
        other = steps.queue(number, user_id=uuid.uuid4())
        steps.bring_to(state, other)
        with pytest.raises(Refused, match=f"call job {job} cannot be retried yet: .* of job {other}, which is"):
            retry(steps, job)
        assert steps.job(job)["status"] == "failed"


def test_job_with_a_live_duplicate_is_not_retried(steps: Steps) -> None:
    job, attempt = steps.attempt_in("duplicate")
    with pytest.raises(Refused, match="a call too many to its number is being ended"):
        retry(steps, job)
    steps.says(attempt, "completed")
    assert retry(steps, job) == "queued"


def test_job_with_a_newer_open_one_is_not_retried(steps: Steps) -> None:
    user = uuid.uuid4()
    job = failed(steps, user_id=user, dedupe_key="first")
    newer = steps.queue(user_id=user, dedupe_key="second")
    with pytest.raises(Refused, match=f"{job} cannot be retried: its user has a newer one, {newer}, which is queued"):
        retry(steps, job)
    cancel(steps, newer)
    assert retry(steps, job) == "queued"


def test_opted_out_person_is_called_by_the_owner_only(steps: Steps, connect: Connect) -> None:
    job = steps.queue(number := a_number())
    steps.call("opt_out", phone_number=number)
    with pytest.raises(Refused, match="its number has opted out of calls"):
        retry(steps, job)
    again = "delete from public.call_opt_outs where phone_e164 = %s"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        steps.service.execute(again, (number,))
    assert connect(user="postgres").execute(again, (number,)).rowcount == 1
    assert retry(steps, job) == "queued"
    assert steps.claim(job)["outcome"] == "claimed"


# --- delete -----------------------------------------------------------------------------------------------------------
def test_job_not_under_way_is_deleted_with_attempts(steps: Steps) -> None:
    for state in ("ended", "refused", "absent", "released"):
        job, attempt = steps.attempt_in(state)
        assert (delete(steps, job), steps.attempts(job)) == ([], [])
        assert steps.accept(attempt, a_sid())["then"] == "unknown"  # a late call is ended


@pytest.mark.parametrize("state", OPEN)
def test_delete_of_a_job_under_way_cancels_it(steps: Steps, state: str) -> None:
    job, _ = steps.attempt_in(state)
    assert delete(steps, job) == [(steps.job(job)["status"], True)]
    follow(steps)
    assert delete(steps, job) == []


def test_job_with_a_live_duplicate_is_not_deleted(steps: Steps) -> None:
    job, attempt = steps.attempt_in("duplicate")
    assert len(delete(steps, job)) == 1
    steps.says(attempt, "completed")
    assert delete(steps, job) == []


# --- the answers in words ---------------------------------------------------------------------------------------------
def test_pause_and_resume_answer_in_words(steps: Steps) -> None:
    for_good = "calls are paused until somebody calls resume_calls()"
    until = steps.now() + timedelta(minutes=1)
    assert steps.call("resume_calls") == "calls were not paused"
    assert [steps.call("pause_calls", reason="lunch", **more) for more in ({}, {"until": None})] == [for_good] * 2
    assert steps.call("call_job_stats")["paused_until"] == "infinity"
    assert steps.call("resume_calls") == "calls go on; they were paused: lunch"
    assert str(until.year) in steps.call("pause_calls", reason="lunch", until=until)
    steps.pass_time(61)
    assert steps.call("resume_calls") == "calls were not paused"


def test_resume_after_a_halt_lets_all_go(steps: Steps) -> None:
    steps.release(steps.start(steps.queue()), halt_s=60)
    assert steps.call("resume_calls") == "calls go on; they were paused: too early there"
    steps.release(steps.start(steps.queue()), halt_s=60)
    steps.pass_time(61)
    assert steps.call("resume_calls") == "calls go on; after a halt one was to go first"
    assert [steps.claim(steps.queue())["outcome"] for _ in range(2)] == ["claimed", "claimed"]


def test_verified_phones_answer_in_words(steps: Steps) -> None:
    assert steps.call("require_verified_phones") == "a sign-up is called when its phone is confirmed"
    assert steps.call("require_verified_phones", required=False) == "a sign-up is called at once, confirmed or not"
