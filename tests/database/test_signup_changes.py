"""After the sign-up: the phone is corrected, added or removed, the user is banned, or every table was locked."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, a_sid

AT_MOST_S = 2.0


def sign_up(steps: Steps, phone: str | None = None, metadata: object = None, app: object = None) -> uuid.UUID:
    user = uuid.uuid4()
    steps.rows(
        "insert into auth.users (id, phone, raw_user_meta_data, raw_app_meta_data, created_at) values (%s, %s, %s, %s, now())",
        user, phone and phone.lstrip("+"), None if metadata is None else Jsonb(metadata), None if app is None else Jsonb(app),
    )  # fmt: skip
    return user


def change(steps: Steps, user: uuid.UUID, **columns: object) -> None:
    """An update of auth.users, as Supabase Auth makes it: its role has no right to anything of ours."""
    steps.rows("set role supabase_auth_admin")
    try:
        for column, value in columns.items():
            steps.rows(f"update auth.users set {column} = %s where id = %s", value, user)
    finally:
        steps.rows("reset role")


def jobs(steps: Steps, user: uuid.UUID) -> list[Row]:
    return steps.rows("select * from public.outbound_call_jobs where user_id = %s order by id", user)


def only_job(steps: Steps, user: uuid.UUID) -> Row:
    (row,) = jobs(steps, user)
    return row


def dialed(steps: Steps, job: int) -> str:
    number: str = steps.claim(job)["job"]["phone_e164"]
    return number


# --- the phone is corrected -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["auth", "metadata", "confirmation"])
def test_waiting_job_follows_its_users_number(steps: Steps, by: str) -> None:
    was, new = a_number(), a_number()
    if by == "metadata":
        user = sign_up(steps, None, {"phone": was, "first_name": "Ada"})
        change(steps, user, raw_user_meta_data=Jsonb({"phone": new, "first_name": "Ada"}))
    else:
        if by == "confirmation":
            steps.call("require_verified_phones")
        user = sign_up(steps, was)
        change(steps, user, phone_confirmed_at=steps.now())
        steps.rows(
            "update auth.users set phone = %s, phone_confirmed_at = now() + interval '1 s' where id = %s", new[1:], user
        )
    job = only_job(steps, user)
    assert (job["phone_number"], job["phone_e164"], job["status"], job["attempts"]) == (new, new, "queued", 0)
    assert dialed(steps, job["id"]) == new


def test_redialed_job_keeps_attempts_and_follows_at_once(steps: Steps) -> None:
    was, new = a_number(), a_number()
    user = sign_up(steps, was)
    job = only_job(steps, user)["id"]
    attempt = steps.start(job)
    steps.accept(attempt, sid := a_sid())
    steps.status(attempt, sid, "no-answer")
    change(steps, user, phone=new[1:])
    row = steps.job(job)
    assert (row["phone_e164"], row["attempts"], row["status"]) == (new, 1, "queued")
    assert [a["phone_e164"] for a in steps.attempts(job)] == [was]
    assert dialed(steps, job) == new


@pytest.mark.parametrize("state", ["started", "in_doubt", "accepted"])
def test_job_with_open_call_follows_afterwards(steps: Steps, state: str) -> None:
    user = sign_up(steps, was := a_number())
    job, attempt = steps.attempt_in(state, was)
    steps.rows("delete from public.outbound_call_jobs where user_id = %s", user)
    steps.rows("update public.outbound_call_jobs set user_id = %s where id = %s", user, job)
    before = steps.job(job)
    change(steps, user, phone=(new := a_number())[1:])
    after = steps.job(job)
    assert {key for key in after if after[key] != before[key]} == {"phone_number"}
    assert after["phone_number"] == new
    steps.accept(attempt, sid := steps.attempt(attempt)["call_sid"] or a_sid())
    steps.status(attempt, sid, "busy")
    steps.make_due(job)
    claim = steps.claim(job)  # the dispatcher reads what was typed, and sees that it is another number
    assert (claim["job"]["phone_number"], claim["job"]["phone_e164"]) == (new, was)


@pytest.mark.parametrize("refused_by", ["us", "Twilio"])
def test_number_that_was_refused_is_corrected(steps: Steps, refused_by: str) -> None:
    user = sign_up(steps, None, {"phone": "12" if refused_by == "us" else a_number()})
    job = only_job(steps, user)["id"]
    why = {"code": "number_invalid", "reason": "no number"}
    if refused_by == "us":
        steps.call("set_call_number", job_id=job, phone_number="12", phone_e164=None, **why)
    else:
        steps.call("refuse_call", attempt=steps.start(job), **why)
    assert steps.job(job)["status"] == "failed"
    change(steps, user, raw_user_meta_data=Jsonb({"phone": (new := a_number())}))
    attempts = steps.job(job)["attempts"]
    assert (steps.job(job)["status"], attempts, dialed(steps, job)) == ("queued", int(refused_by == "Twilio"), new)


def test_nobody_is_called_anew_for_another_number(steps: Steps) -> None:
    """Reached, canceled by hand, opted out, or a phone that may have rung: it is over."""
    changed = []
    for end in ("completed", "canceled", "opted_out", "absent"):
        number = a_number()
        user = sign_up(steps, number)
        job = only_job(steps, user)["id"]
        if end == "canceled":
            steps.call("cancel_call_job", job_id=job)
        elif end == "opted_out":
            steps.call("opt_out", phone_number=number)
        else:
            attempt = steps.start(job)
            steps.accept(attempt, sid := a_sid())
            steps.status(attempt, sid, "completed")
        if end == "absent":
            steps.rows(
                "update public.outbound_call_jobs set status = 'failed', reason_code = 'absent' where id = %s", job
            )
        before = steps.job(job)
        steps.pass_time(7200)
        change(steps, user, phone=a_number()[1:])
        if jobs(steps, user) != [before]:
            changed.append(end)
    assert changed == []


def test_job_with_a_number_of_its_own_stays(steps: Steps) -> None:
    user, other = sign_up(steps), a_number()
    steps.call("enqueue_call_job", user_id=user, phone_number=other)
    change(steps, user, phone=a_number()[1:])
    change(steps, user, phone=a_number()[1:])
    assert only_job(steps, user)["phone_number"] == other


def test_chosen_time_stays_with_a_new_number(steps: Steps) -> None:
    chosen = steps.now() + timedelta(days=1)
    for reason, due in ((None, chosen), ("outside_calling_hours", None)):
        user = sign_up(steps, a_number())
        steps.rows(
            "update public.outbound_call_jobs set due_at = %s, reason_code = %s where user_id = %s",
            chosen,
            reason,
            user,
        )
        change(steps, user, phone=a_number()[1:])
        assert (only_job(steps, user)["due_at"] == chosen) == (due == chosen), reason


# --- the phone is added or removed --------------------------------------------------------------------------------------
def test_phone_added_after_sign_up_is_called_once(steps: Steps) -> None:
    user = sign_up(steps, None, {"signup_mode": " Demo"})
    change(steps, user, phone=(number := a_number())[1:])
    job = only_job(steps, user)
    assert (job["phone_e164"], job["signup_mode"], dialed(steps, job["id"])) == (number, "demo", number)
    for phone in (None, number[1:], None, a_number()[1:]):
        steps.pass_time(7200)
        change(steps, user, phone=phone)
    assert len(jobs(steps, user)) == 1


def test_user_without_phone_is_not_called_meanwhile(steps: Steps) -> None:
    user = sign_up(steps, a_number())
    change(steps, user, phone=None)
    job = only_job(steps, user)
    assert (job["status"], job["reason_code"]) == ("canceled", "phone_removed")
    change(steps, user, phone=(new := a_number())[1:])
    assert dialed(steps, only_job(steps, user)["id"]) == new


def test_deleted_users_new_phone_is_nothing(steps: Steps) -> None:
    """Supabase Auth writes a hash over the phone of a user whom it marks as deleted."""
    user = sign_up(steps, a_number())
    steps.rows("update auth.users set deleted_at = now(), phone = '1234567890123' where id = %s", user)
    steps.rows("update auth.users set phone = '1234567890124', raw_user_meta_data = '{}' where id = %s", user)
    job = only_job(steps, user)
    assert (job["status"], job["phone_number"]) == ("canceled", "erased")
    nobody = sign_up(steps)
    steps.rows("update auth.users set deleted_at = now(), phone = '1234567890125' where id = %s", nobody)
    assert jobs(steps, nobody) == []


# --- it never fails and never waits -------------------------------------------------------------------------------------
@pytest.mark.parametrize("locked", ["public.outbound_call_jobs", "private.call_settings", "private.calling_codes"])
def test_change_waits_for_no_lock_and_sweep_follows(steps: Steps, another: Another, locked: str) -> None:
    user, new = sign_up(steps, a_number(), None, {"timezone": "America/Denver"}), a_number()
    other = another().service
    other.execute("reset role")
    with other.transaction():
        other.execute(f"lock table {locked}".encode())
        began = time.monotonic()
        change(steps, user, phone=new[1:])
        meanwhile = sign_up(steps, a_number(), None, {"timezone": "America/Denver"})
        assert time.monotonic() - began < 2 * AT_MOST_S
    assert steps.one("select phone from auth.users where id = %s", user) == new[1:]
    assert steps.call("heal_onboarding_calls") == 2
    assert only_job(steps, user)["phone_e164"] == new
    assert [only_job(steps, each)["metadata"] for each in (user, meanwhile)] == [{"app_timezone": "America/Denver"}] * 2


def test_change_waits_for_no_claim_that_hangs(steps: Steps, another: Another) -> None:
    user, new = sign_up(steps, a_number()), a_number()
    job = only_job(steps, user)["id"]
    other = another()
    with other.service.transaction():
        attempt = other.start(job)
        began = time.monotonic()
        change(steps, user, phone=new[1:])
        assert time.monotonic() - began < AT_MOST_S
    assert steps.call("heal_onboarding_calls") == 1
    assert steps.job(job)["phone_number"] == new
    assert steps.attempt(attempt)["state"] == "started"


def test_change_commits_though_everything_of_ours_is_gone(steps: Steps, connection: Connection) -> None:
    user = sign_up(steps, a_number())
    with connection.transaction(force_rollback=True):
        connection.execute(
            "drop table public.outbound_call_jobs, private.missed_signups, private.call_settings cascade"
        )
        connection.execute("update auth.users set phone = '14155550199' where id = %s", (user,))
        assert steps.one("select phone from auth.users where id = %s", user) == "14155550199"


# --- a sign-up that could be neither queued nor noted -------------------------------------------------------------------
def lose(steps: Steps, another: Another, count: int = 1) -> set[uuid.UUID]:
    other = another().service
    other.execute("reset role")
    with other.transaction():
        other.execute("lock table public.outbound_call_jobs, private.missed_signups")
        users = {sign_up(steps, a_number()) for _ in range(count)}
    assert steps.rows("select * from private.missed_signups") == []
    return users


def test_lost_sign_up_is_found_by_sweeps(steps: Steps, another: Another) -> None:
    steps.rows("alter table auth.users disable trigger user")
    sign_up(steps, a_number())  # imported without a call, on purpose, before...
    steps.rows("update auth.users set created_at = now() - interval '2 days'")
    steps.rows("alter table auth.users enable trigger user")
    called = sign_up(steps, a_number())
    sign_up(steps, None)
    lost = lose(steps, another, 2)
    assert sum(steps.call("heal_onboarding_calls") for _ in range(3)) == 3  # the one without a phone is looked at, too
    assert {row["user_id"] for row in steps.rows("select user_id from public.outbound_call_jobs")} == {called} | lost


def test_users_are_searched_after_losses_in_slices(steps: Steps, another: Another) -> None:
    for _ in range(7):
        sign_up(steps, None)
    look = "select private.find_lost_signups(3)"
    steps.rows(look)
    assert steps.one("select lost_after from private.call_settings") is None
    lost = lose(steps, another)
    seen = []
    for _ in range(4):
        steps.rows(look)
        seen.append(steps.one("select lost_after is null from private.call_settings"))
    assert seen == [False, False, True, True]
    noted = {row["user_id"] for row in steps.rows("select user_id from private.missed_signups")}
    assert noted >= lost


# --- banned users -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("banned", ["before", "while it waits", "between two calls"])
def test_banned_user_is_not_called(steps: Steps, banned: str) -> None:
    user = sign_up(steps, a_number())
    job = only_job(steps, user)["id"]
    if banned == "between two calls":
        attempt = steps.start(job)
        steps.accept(attempt, sid := a_sid())
        steps.status(attempt, sid, "no-answer")
        steps.make_due(job)
    change(steps, user, banned_until=steps.now() + timedelta(days=36500))
    answer = steps.claim(job)
    assert (answer["outcome"], answer["status"], answer["reason_code"]) == ("none", "canceled", "user_banned")
    assert steps.job(job)["reason"] == "the user is banned"


def test_ended_ban_keeps_nobody_from_calls(steps: Steps) -> None:
    for until in (steps.now() - timedelta(seconds=1), None):
        user = sign_up(steps, a_number())
        change(steps, user, banned_until=steps.now() + timedelta(days=1))
        change(steps, user, banned_until=until)
        assert steps.claim(only_job(steps, user)["id"])["outcome"] == "claimed", until


# --- the server's word --------------------------------------------------------------------------------------------------
def test_servers_zone_is_told_from_the_users(steps: Steps) -> None:
    cases: list[tuple[object, object, object]] = [
        ({"timezone": "Europe/Berlin"}, None, None),
        ({"app_timezone": "Europe/Berlin"}, None, None),  # a user cannot write it
        ({"app_timezone": "Europe/Berlin", "tz": "UTC"}, {"timezone": "America/Denver"}, "America/Denver"),
        (None, {"tz": "America/Denver"}, "America/Denver"),
        ({"a": "b" * 9000}, {"time_zone": "America/Denver"}, "America/Denver"),
        ([], "junk", None),
    ]
    found = []
    for metadata, app, _ in cases:
        user = sign_up(steps, a_number(), metadata, app)
        found.append(only_job(steps, user)["metadata"].get("app_timezone"))
    assert found == [zone for *_, zone in cases]
