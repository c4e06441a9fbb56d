"""What Studio's SQL editor is told when a request makes no sense, and what it is told when it does."""

from __future__ import annotations

import uuid
from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Connect, Connection
from tests.database.sql_api import DELAYS_S, OPEN, Steps, a_number, a_sid

Refused = psycopg.errors.RaiseException
USER = str(uuid.uuid4())


def failed(steps: Steps, number: str | None = None, **columns: object) -> int:
    """A job whose attempts are spent."""
    job = steps.queue(number, **columns)
    steps.status(steps.start(job), a_sid(), "busy", delays_s=())
    return job


# --- nothing, and nonsense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        ("cancel_call_job", {"job_id": None}, "p_job_id must be given"),
        ("retry_call_job", {"job_id": None}, "p_job_id must be given"),
        ("cancel_call_job", {"job_id": 4711}, "there is no call job 4711"),
        ("retry_call_job", {"job_id": 4711}, "there is no call job 4711"),
        ("pause_calls", {"reason": None}, "p_reason must say why"),
        ("pause_calls", {"reason": " "}, "p_reason must say why"),
        ("pause_calls", {"reason": "x", "until": "-infinity"}, "p_until must be in the future"),
        ("pause_calls", {"reason": "x", "until": "2020-01-01"}, "p_until must be in the future"),
        ("require_verified_phones", {"required": None}, "p_required must be true or false"),
        ("enqueue_call_job", {"user_id": None, "phone_number": "+14155550100"}, "p_user_id must be given"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": None}, "p_phone_number must be given"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": " "}, "p_phone_number must be given"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": "1" * 65}, "at most 64 characters"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": "+1", "signup_mode": ""}, "p_signup_mode must"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": "+1", "first_name": "x" * 101}, "p_first_name must"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": "+1", "metadata": Jsonb([1])}, "p_metadata must"),
        ("enqueue_call_job", {"user_id": USER, "phone_number": "+1", "not_before": "infinity"}, "p_not_before must"),
    ],
)
def test_nonsense_by_hand_is_refused_by_name(
    steps: Steps, function: str, arguments: dict[str, object], named: str
) -> None:
    steps.queue()
    before = steps.everything()
    with pytest.raises(Refused, match=named):
        steps.call(function, **arguments)
    assert steps.everything() == before


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", OPEN)
def test_job_with_a_live_call_is_not_retried(steps: Steps, state: str) -> None:
    job = failed(steps, number := a_number())
    other = steps.queue(number, user_id=uuid.uuid4())
    steps.pass_time(3601)
    steps.bring_to(state, other)
    with pytest.raises(Refused, match=f"call job {job} cannot be retried yet: .* of job {other}, which is"):
        steps.call("retry_call_job", job_id=job)
    assert steps.job(job)["status"] == "failed"


def test_job_with_a_live_duplicate_is_not_retried(steps: Steps) -> None:
    job, attempt = steps.attempt_in("duplicate")
    with pytest.raises(Refused, match="a call too many to its number is being ended"):
        steps.call("retry_call_job", job_id=job)
    steps.status(attempt, steps.attempt(attempt)["call_sid"], "completed")
    assert steps.call("retry_call_job", job_id=job) == "queued"


def test_job_with_a_newer_open_one_is_not_retried(steps: Steps) -> None:
    user = uuid.uuid4()
    job = failed(steps, user_id=user, dedupe_key="first")
    newer = steps.queue(user_id=user, dedupe_key="second")
    with pytest.raises(
        Refused, match=f"call job {job} cannot be retried: its user has a newer one, {newer}, which is queued"
    ):
        steps.call("retry_call_job", job_id=job)
    steps.call("cancel_call_job", job_id=newer)
    assert steps.call("retry_call_job", job_id=job) == "queued"


def test_job_of_an_opted_out_number_is_not_retried(steps: Steps) -> None:
    job = failed(steps, number := a_number())
    steps.call("opt_out", phone_number=number)
    with pytest.raises(Refused, match="its number has opted out of calls"):
        steps.call("retry_call_job", job_id=job)


def test_a_job_is_retried_once(steps: Steps) -> None:
    job = failed(steps)
    assert steps.call("retry_call_job", job_id=job) == "queued"
    with pytest.raises(Refused, match=f"call job {job} is queued: only failed and canceled jobs"):
        steps.call("retry_call_job", job_id=job)


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_what_was_canceled_twice_says_so(steps: Steps) -> None:
    job = steps.queue()
    assert steps.call("cancel_call_job", job_id=job) == "canceled"
    with pytest.raises(Refused, match=f"call job {job} is canceled already: there is nothing to cancel"):
        steps.call("cancel_call_job", job_id=job)


# --- pause and resume -------------------------------------------------------------------------------------------------


def test_pause_and_resume_answer_in_words(steps: Steps) -> None:
    assert steps.call("pause_calls", reason="lunch") == "calls are paused until somebody calls resume_calls()"
    assert (
        steps.call("pause_calls", reason="lunch", until=None) == "calls are paused until somebody calls resume_calls()"
    )
    assert steps.call("resume_calls") == "calls go on; they were paused: lunch"
    until = steps.now() + timedelta(hours=1)
    assert str(until.year) in steps.call("pause_calls", reason="lunch", until=until)


def test_resume_without_a_pause_says_so(steps: Steps) -> None:
    assert steps.call("resume_calls") == "calls were not paused"
    steps.call("pause_calls", reason="lunch", until=steps.now() + timedelta(minutes=1))
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


# --- opt out, and in again --------------------------------------------------------------------------------------------


def test_to_opt_out_twice_is_to_opt_out_once(steps: Steps) -> None:
    number = a_number()
    steps.call("opt_out", phone_number=number)
    assert steps.call("opt_out", phone_number=number) == {"canceled": 0, "ending": 0, "jobs": 0, "calls": 0}


def test_person_who_asks_is_called_by_the_owner_only(steps: Steps, connect: Connect) -> None:
    job = steps.queue(number := a_number())
    steps.call("opt_out", phone_number=number)
    again = "delete from public.call_opt_outs where phone_e164 = %s"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        steps.service.execute(again, (number,))
    assert connect(user="postgres").execute(again, (number,)).rowcount == 1
    assert steps.call("retry_call_job", job_id=job) == "queued"
    assert steps.claim(job)["outcome"] == "claimed"


# --- Studio -----------------------------------------------------------------------------------------------------------


def test_functions_and_views_say_what_they_are_for(connection: Connection) -> None:
    silent = connection.execute(
        "select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace"
        " and obj_description(p.oid, 'pg_proc') is null"
        " union all select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace"
        " and c.relkind in ('r', 'v') and obj_description(c.oid, 'pg_class') is null"
    ).fetchall()
    assert silent == []


def test_retried_job_is_dialed_by_the_next_sweep(steps: Steps) -> None:
    job = failed(steps)
    steps.call("retry_call_job", job_id=job)
    steps.status(uuid.UUID(steps.claim()["attempt"]["id"]), a_sid(), "busy", delays_s=DELAYS_S[:1])
    assert (steps.job(job)["status"], steps.job(job)["attempts"]) == ("failed", 2)
