"""After the sign-up: the phone is corrected, added or removed, the user is banned, or every table was locked."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import Steps, a_number, locked

AT_MOST_S = 2.0
DENVER = {"timezone": "America/Denver"}


def change(steps: Steps, user: uuid.UUID, **columns: object) -> None:
    """An update of auth.users, as Supabase Auth makes it."""
    for column, value in columns.items():
        steps.as_auth(f"update auth.users set {column} = %s where id = %s", value, user)


def change_phone(steps: Steps, user: uuid.UUID) -> str:
    """-> the new one"""
    change(steps, user, phone=(new := a_number())[1:])
    return new


def signed_up(steps: Steps, *about: object) -> tuple[uuid.UUID, int]:
    """-> user and job"""
    user = steps.sign_up(a_number(), *about)
    return user, steps.job_of(user)["id"]


def dialed(steps: Steps, job: int) -> str:
    number: str = steps.claim(job)["job"]["phone_e164"]
    return number


@contextmanager
def at_once(seconds: float = AT_MOST_S) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# --- the phone is corrected -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["auth", "metadata", "confirmation"])
def test_waiting_job_follows_its_users_number(steps: Steps, by: str) -> None:
    was, new = a_number(), a_number()
    if by == "metadata":
        user = steps.sign_up(None, {"phone": was, "first_name": "Ada"})
        change(steps, user, raw_user_meta_data=Jsonb({"phone": new, "first_name": "Ada"}))
    else:
        if by == "confirmation":
            steps.call("require_verified_phones")
        user = steps.sign_up(was)
        change(steps, user, phone_confirmed_at=steps.now())
        steps.rows(
            "update auth.users set phone = %s, phone_confirmed_at = now() + interval '1 s' where id = %s", new[1:], user
        )
    job = steps.job_of(user)
    assert (job["phone_number"], job["phone_e164"], steps.brief(job["id"])) == (new, new, ("queued", 0, None))
    assert dialed(steps, job["id"]) == new


def test_redialed_job_keeps_attempts_and_follows_at_once(steps: Steps) -> None:
    user, job = signed_up(steps)
    was = steps.job(job)["phone_e164"]
    steps.says(steps.start(job), "no-answer")
    new = change_phone(steps, user)
    assert (steps.job(job)["phone_e164"], steps.brief(job)[:2]) == (new, ("queued", 1))
    assert [a["phone_e164"] for a in steps.attempts(job)] == [was]
    assert dialed(steps, job) == new


@pytest.mark.parametrize("state", ["started", "in_doubt", "accepted"])
def test_job_with_open_call_follows_afterwards(steps: Steps, state: str) -> None:
    user, job = signed_up(steps)
    attempt, before = steps.bring_to(state, job), steps.job(job)
    new = change_phone(steps, user)
    assert steps.job(job) == before | {"phone_number": new}
    steps.says(attempt, "busy")
    steps.make_due(job)
    claim = steps.claim(job)  # the dispatcher reads what was typed, and sees that it is another number
    assert (claim["job"]["phone_number"], claim["job"]["phone_e164"]) == (new, before["phone_e164"])


@pytest.mark.parametrize("refused_by", ["us", "Twilio"])
def test_number_that_was_refused_is_corrected(steps: Steps, refused_by: str) -> None:
    user = steps.sign_up(None, {"phone": "12" if refused_by == "us" else a_number()})
    job = steps.job_of(user)["id"]
    why = {"code": "number_invalid", "reason": "no number"}
    if refused_by == "us":
        steps.call("set_call_number", job_id=job, phone_number="12", phone_e164=None, **why)
    else:
        steps.call("refuse_call", attempt=steps.start(job), **why)
    assert steps.job(job)["status"] == "failed"
    change(steps, user, raw_user_meta_data=Jsonb({"phone": (new := a_number())}))
    assert (steps.brief(job)[:2], dialed(steps, job)) == (("queued", int(refused_by == "Twilio")), new)


def test_nobody_is_called_anew_for_another_number(steps: Steps) -> None:
    """Reached, canceled by hand, opted out, or a phone that may have rung: it is over."""
    changed = []
    for end in ("completed", "canceled", "opted_out", "absent"):
        user, job = signed_up(steps)
        if end == "canceled":
            steps.call("cancel_call_job", job_id=job)
        elif end == "opted_out":
            steps.call("opt_out", phone_number=steps.job(job)["phone_e164"])
        else:
            steps.says(steps.start(job), "completed")
        if end == "absent":
            steps.change_job(job, status="failed", reason_code="absent")
        before = steps.job(job)
        steps.pass_time(7200)
        change_phone(steps, user)
        if steps.jobs_of(user) != [before]:
            changed.append(end)
    assert changed == []


def test_job_with_a_number_of_its_own_stays(steps: Steps) -> None:
    user, other = steps.sign_up(), a_number()
    steps.call("enqueue_call_job", user_id=user, phone_number=other)
    for _ in range(2):
        change_phone(steps, user)
    assert steps.job_of(user)["phone_number"] == other


def test_chosen_time_stays_with_a_new_number(steps: Steps) -> None:
    chosen = steps.now() + timedelta(days=1)
    for reason, stays in ((None, True), ("outside_calling_hours", False)):
        user, job = signed_up(steps)
        steps.change_job(job, due_at=chosen, reason_code=reason)
        change_phone(steps, user)
        assert (steps.job(job)["due_at"] == chosen) is stays, reason


# --- the phone is added or removed --------------------------------------------------------------------------------------
def test_phone_added_after_sign_up_is_called_once(steps: Steps) -> None:
    user = steps.sign_up(None, {"signup_mode": " Demo"})
    number = change_phone(steps, user)
    job = steps.job_of(user)
    assert (job["phone_e164"], job["signup_mode"], dialed(steps, job["id"])) == (number, "demo", number)
    for phone in (None, number[1:], None, a_number()[1:]):
        steps.pass_time(7200)
        change(steps, user, phone=phone)
    assert len(steps.jobs_of(user)) == 1


def test_user_without_phone_is_not_called_meanwhile(steps: Steps) -> None:
    user, job = signed_up(steps)
    change(steps, user, phone=None)
    assert steps.brief(job) == ("canceled", 0, "phone_removed")
    new = change_phone(steps, user)
    assert dialed(steps, steps.job_of(user)["id"]) == new


def test_deleted_users_new_phone_is_nothing(steps: Steps) -> None:
    """Supabase Auth writes a hash over the phone of a user whom it marks as deleted."""
    (user, job), nobody = signed_up(steps), steps.sign_up()
    deleted = "update auth.users set deleted_at = now(), phone = %s where id = %s"
    steps.rows(deleted, "1234567890123", user)
    steps.rows("update auth.users set phone = '1234567890124', raw_user_meta_data = '{}' where id = %s", user)
    assert (steps.job(job)["status"], steps.job_of(user)["phone_number"]) == ("canceled", "erased")
    steps.rows(deleted, "1234567890125", nobody)
    assert steps.jobs_of(nobody) == []


# --- it never fails and never waits -------------------------------------------------------------------------------------
@pytest.mark.parametrize("table", ["public.outbound_call_jobs", "private.call_settings", "private.calling_codes"])
def test_change_waits_for_no_lock_and_sweep_follows(steps: Steps, another: Another, table: str) -> None:
    user, _ = signed_up(steps, None, DENVER)
    with locked(another(), table), at_once(2 * AT_MOST_S):
        new = change_phone(steps, user)
        meanwhile = steps.sign_up(a_number(), None, DENVER)
    assert steps.one("select phone from auth.users where id = %s", user) == new[1:]
    assert steps.call("heal_onboarding_calls") == 2
    assert steps.job_of(user)["phone_e164"] == new
    assert [steps.job_of(each)["metadata"] for each in (user, meanwhile)] == [{"app_timezone": "America/Denver"}] * 2


def test_change_waits_for_no_claim_that_hangs(steps: Steps, another: Another) -> None:
    (user, job), other = signed_up(steps), another()
    with other.service.transaction():
        attempt = other.start(job)
        with at_once():
            new = change_phone(steps, user)
    assert steps.call("heal_onboarding_calls") == 1
    assert (steps.job(job)["phone_number"], steps.attempt(attempt)["state"]) == (new, "started")


def test_change_commits_though_everything_of_ours_is_gone(steps: Steps, connection: Connection) -> None:
    user, _ = signed_up(steps)
    with connection.transaction(force_rollback=True):
        steps.rows("drop table public.outbound_call_jobs, private.missed_signups, private.call_settings cascade")
        steps.rows("update auth.users set phone = '14155550199' where id = %s", user)
        assert steps.one("select phone from auth.users where id = %s", user) == "14155550199"


# --- a sign-up that could be neither queued nor noted -------------------------------------------------------------------
def lose(steps: Steps, another: Another, count: int = 1) -> set[uuid.UUID]:
    with locked(another(), "public.outbound_call_jobs", "private.missed_signups"):
        users = {steps.sign_up(a_number()) for _ in range(count)}
    assert steps.rows("select * from private.missed_signups") == []
    return users


def test_lost_sign_up_is_found_by_sweeps(steps: Steps, another: Another) -> None:
    steps.rows("alter table auth.users disable trigger user")
    steps.sign_up(a_number())  # imported without a call, on purpose, before...
    steps.rows("update auth.users set created_at = now() - interval '2 days'")
    steps.rows("alter table auth.users enable trigger user")
    called, _ = signed_up(steps)
    steps.sign_up()
    lost = lose(steps, another, 2)
    assert sum(steps.call("heal_onboarding_calls") for _ in range(3)) == 3  # the one without a phone is looked at, too
    assert {row["user_id"] for row in steps.rows("select user_id from public.outbound_call_jobs")} == {called} | lost


def test_users_are_searched_after_losses_in_slices(steps: Steps, another: Another) -> None:
    for _ in range(7):
        steps.sign_up()

    def nothing_lost_after_a_look() -> bool:
        steps.rows("select private.find_lost_signups(3)")
        return bool(steps.one("select lost_after is null from private.call_settings"))

    assert nothing_lost_after_a_look()
    lost = lose(steps, another)
    assert [nothing_lost_after_a_look() for _ in range(4)] == [False, False, True, True]
    assert {row["user_id"] for row in steps.rows("select user_id from private.missed_signups")} >= lost


# --- banned users -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("calls", [0, 1])
def test_banned_user_is_not_called(steps: Steps, calls: int) -> None:
    user, job = signed_up(steps)
    for _ in range(calls):
        steps.says(steps.start(job), "no-answer")
        steps.make_due(job)
    change(steps, user, banned_until=steps.now() + timedelta(days=36500))
    answer = steps.claim(job)
    assert (answer["outcome"], answer["status"], answer["reason_code"]) == ("none", "canceled", "user_banned")
    assert steps.job(job)["reason"] == "the user is banned"


def test_ended_ban_keeps_nobody_from_calls(steps: Steps) -> None:
    for until in (steps.now() - timedelta(seconds=1), None):
        user, job = signed_up(steps)
        change(steps, user, banned_until=steps.now() + timedelta(days=1))
        change(steps, user, banned_until=until)
        assert steps.claim(job)["outcome"] == "claimed", until


# --- the server's word --------------------------------------------------------------------------------------------------
def test_servers_zone_is_told_from_the_users(steps: Steps) -> None:
    cases: list[tuple[object, object, object]] = [
        ({"timezone": "Europe/Berlin"}, None, None),
        ({"app_timezone": "Europe/Berlin"}, None, None),  # a user cannot write it
        ({"app_timezone": "Europe/Berlin", "tz": "UTC"}, DENVER, "America/Denver"),
        (None, {"tz": "America/Denver"}, "America/Denver"),
        ({"a": "b" * 9000}, {"time_zone": "America/Denver"}, "America/Denver"),
        ([], "junk", None),
    ]
    jobs = [signed_up(steps, metadata, app)[1] for metadata, app, _ in cases]
    assert [steps.job(job)["metadata"].get("app_timezone") for job in jobs] == [zone for *_, zone in cases]
