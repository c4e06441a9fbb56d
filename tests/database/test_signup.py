"""From a sign-up to a job: whatever was typed, and whatever of ours is broken, the sign-up itself never fails or hangs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number, locked

AT_MOST_S = 2.0


def missed(steps: Steps) -> list[uuid.UUID]:
    return [row["user_id"] for row in steps.rows("select user_id from private.missed_signups order by noted_at")]


def users_with_jobs(steps: Steps) -> list[uuid.UUID]:
    return [row["user_id"] for row in steps.rows("select user_id from public.outbound_call_jobs")]


# --- who is called, and what is known of them -------------------------------------------------------------------------
# phone of the account, metadata, and what the job says of them
ONE, TWO = "+14155550101", "+14155550102"
READ: list[tuple[str | None, Row, Row]] = [
    (ONE, {"signup_mode": "demo"}, {"phone_number": ONE, "phone_e164": ONE, "signup_mode": "demo", "status": "queued"}),
    (ONE, {"phone": TWO}, {"phone_number": ONE, "phone_e164": ONE}),
    (None, {"phone": f"  {TWO} "}, {"phone_e164": TWO}),
    (None, {"phone_number": f"  {TWO} "}, {"phone_e164": TWO}),
    *[(None, {"phone": typed}, {"phone_number": typed[:64], "phone_e164": None})
      for typed in ("abc", "415 555 0100", "(415) 555-0100", "☎", "00 1 415 555 0100", "1" * 500)],
    *[(ONE, {"signup_mode": mode}, {"signup_mode": "default"}) for mode in (None, "", "  ")],
    (None, {"phone": ONE, "first_name": "Ada", "signup_mode": "demo", "avatar": "x" * 1_000_000},
     {"phone_e164": ONE, "first_name": "Ada", "signup_mode": "demo", "metadata": {}}),
    (ONE, {"first_name": "Ada"}, {"first_name": "Ada"}),
    (ONE, {"first_name": " Ada ", "name": "Grace Hopper"}, {"first_name": "Ada"}),
    (ONE, {"name": "Grace Hopper"}, {"first_name": "Grace"}),
    (ONE, {"full_name": "Katherine Johnson"}, {"first_name": "Katherine"}),
    (ONE, {"first_name": "", "name": " ", "full_name": "Katherine Johnson"}, {"first_name": "Katherine"}),
    (ONE, {"first_name": None, "name": None}, {"first_name": None}),
    (ONE, {"first_name": ["Ada"], "name": {"first": "Ada"}, "full_name": 7}, {"first_name": None}),
    (ONE, {"first_name": "A" * 200}, {"first_name": "A" * 100}),
    (ONE, {"first_name": "Zoë 🎉"}, {"first_name": "Zoë 🎉"}),
    (ONE, {}, {"first_name": None}),
]  # fmt: skip


def test_job_says_what_its_sign_up_said(steps: Steps) -> None:
    read = []
    for phone, metadata, expected in READ:
        job = steps.job_of(steps.sign_up(phone, metadata))
        read.append((phone, metadata, {column: job[column] for column in expected}))
        steps.rows("delete from auth.users")  # phones are unique there
    assert read == READ


def test_sign_up_without_a_phone_is_no_job(steps: Steps) -> None:
    for metadata in (None, {}, {"phone": ""}, {"phone": "  "}, {"phone": None}, {"email": "a@example.com"}):
        for phone in (None, ""):
            steps.sign_up(phone, metadata)
            steps.rows("delete from auth.users")  # phones are unique there, the empty one too
    assert users_with_jobs(steps) == []


def deep(levels: int) -> object:
    value: object = "bottom"
    for _ in range(levels):
        value = [value]
    return value


def test_odd_metadata_never_fails_a_sign_up(steps: Steps) -> None:
    odd: list[object] = [
        [], "text", 7, True, {"signup_mode": ["a"], "first_name": {"b": []}}, {"signup_mode": 7, "phone": 14155550100},
        {"signup_mode": "m" * 1000}, {"phone": ["+14155550100"]}, {"phone": {"number": 1}}, {"phone": True},
        {"avatar": "x" * 1_000_000}, {"deep": deep(900)}, {"first_name": "'; drop table auth.users; --"},
        {"first_name": "%s %I \\ \x01 \u2028"}, {"": {"": ""}},
    ]  # fmt: skip
    without_job = [
        str(metadata)[:30] for metadata in odd if len(steps.jobs_of(steps.sign_up(a_number(), metadata))) != 1
    ]
    assert (without_job, missed(steps)) == ([], [])


def test_sign_up_that_is_rolled_back_leaves_nothing(connection: Connection, steps: Steps) -> None:
    with connection.transaction(force_rollback=True):
        steps.sign_up(a_number())
    assert users_with_jobs(steps) == missed(steps) == []


def test_thousand_sign_ups_in_one_statement_are_queued(steps: Steps) -> None:
    steps.rows(
        "insert into auth.users (id, phone) select gen_random_uuid(), '1415555' || n from generate_series(1000, 1999) n"
    )
    assert len(users_with_jobs(steps)) == 1000


# --- what may break ---------------------------------------------------------------------------------------------------
# What is broken -> is the job queued, and if not, is the sign-up noted?
BROKEN = {
    "drop table public.outbound_call_jobs cascade": "noted",
    "alter table public.outbound_call_jobs rename to jobs": "noted",
    "alter table public.outbound_call_jobs drop column dedupe_window cascade": "noted",
    "drop function private.queue_onboarding_call": "noted",
    "alter table public.outbound_call_jobs add constraint never check (false) not valid": "noted",
    "alter sequence public.outbound_call_jobs_id_seq restart with 9223372036854775807;"
    " select nextval('public.outbound_call_jobs_id_seq')": "noted",
    "drop schema net cascade": "queued",  # test_webhook_trigger has the other parts of a webhook
    "revoke all on vault.decrypted_secrets from postgres": "queued",
    "drop table public.outbound_call_jobs, private.missed_signups cascade": "neither",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_sign_up_succeeds_whatever_of_ours_is_broken(connection: Connection, steps: Steps, broken: str) -> None:
    for name, value in (("url", "http://127.0.0.1:9/"), ("secret", "whsec_c2VjcmV0")):
        connection.execute("select vault.create_secret(%s, %s)", (value, f"call_dispatcher_{name}"))
    with connection.transaction(force_rollback=True):
        connection.execute(broken.encode())
        user = steps.sign_up(a_number())
        assert steps.rows("select id from auth.users") == [{"id": user}]
        match BROKEN[broken]:
            case "noted":
                assert steps.rows("select user_id, error <> '' as why from private.missed_signups") == [
                    {"user_id": user, "why": True}
                ]
            case "queued":
                assert (users_with_jobs(steps), missed(steps)) == ([user], [])


# --- locks ------------------------------------------------------------------------------------------------------------
JOBS, MISSED = "public.outbound_call_jobs", "private.missed_signups"


@pytest.mark.parametrize("tables", [(JOBS,), (JOBS, MISSED), ("net.http_request_queue", "vault.secrets")], ids=str)
def test_sign_up_does_not_wait_for_locks(steps: Steps, another: Another, tables: tuple[str, ...]) -> None:
    with locked(another(), *tables):
        began = time.monotonic()
        user = steps.sign_up(a_number())
        assert time.monotonic() - began < AT_MOST_S
    assert steps.one("select count(*) from auth.users where id = %s", user) == 1
    if tables == (JOBS,):
        assert missed(steps) == [user]
        assert steps.call("heal_onboarding_calls") == 1
        assert steps.job_of(user)["status"] == "queued"


def test_lock_timeout_of_the_sign_up_comes_back(steps: Steps) -> None:
    steps.rows("set lock_timeout = '7s'")
    steps.sign_up(a_number())
    assert steps.one("show lock_timeout") == "7s"


# --- healing ----------------------------------------------------------------------------------------------------------
@contextmanager
def refused(steps: Steps, check: str = "false") -> Iterator[None]:
    """The table of jobs takes none but rows that pass this check."""
    steps.rows(f"alter table public.outbound_call_jobs add constraint never check ({check}) not valid")
    try:
        yield
    finally:
        steps.rows("alter table public.outbound_call_jobs drop constraint never")


def miss(steps: Steps) -> uuid.UUID:
    """A sign-up whose job could not be written."""
    with refused(steps):
        return steps.sign_up(a_number(), {"signup_mode": "demo"})


def test_missed_sign_up_is_healed_once(steps: Steps) -> None:
    user = miss(steps)
    assert [steps.call("heal_onboarding_calls") for _ in range(2)] == [1, 0]
    assert (steps.job_of(user)["signup_mode"], users_with_jobs(steps), missed(steps)) == ("demo", [user], [])


def test_missed_sign_up_with_a_job_gets_no_second(steps: Steps) -> None:
    job = steps.queue(user_id=(user := miss(steps)))
    assert steps.call("heal_onboarding_calls") == 1
    assert [row["id"] for row in steps.jobs_of(user)] == [job]


def test_missed_sign_up_that_left_is_not_called(steps: Steps) -> None:
    steps.rows("delete from auth.users where id = %s", miss(steps))
    steps.call("heal_onboarding_calls")
    assert users_with_jobs(steps) == missed(steps) == []


def test_missed_sign_up_that_cannot_heal_stays_noted(steps: Steps) -> None:
    user = miss(steps)
    with refused(steps):
        assert (steps.call("heal_onboarding_calls"), missed(steps)) == (0, [user])
    assert steps.call("heal_onboarding_calls") == 1


def test_missed_sign_ups_that_cannot_heal_hold_up_nobody(steps: Steps) -> None:
    sick, well = ", ".join(str(miss(steps)) for _ in range(3)), miss(steps)
    healed = 0
    with refused(steps, f"user_id <> all ('{{{sick}}}')"):
        for _ in range(4):
            steps.pass_time(60)
            healed += steps.call("heal_onboarding_calls", limit=1)
    assert (healed, users_with_jobs(steps)) == (1, [well])


def test_sweeps_that_heal_at_once_share_the_work(steps: Steps, another: Another) -> None:
    users, first = {miss(steps) for _ in range(4)}, another()
    with first.service.transaction():
        assert first.call("heal_onboarding_calls", limit=2) == 2
        assert steps.call("heal_onboarding_calls") == 2
    assert set(users_with_jobs(steps)) == users


def test_sign_up_that_fails_makes_no_job(steps: Steps) -> None:
    user = steps.sign_up(number := a_number())
    with pytest.raises(psycopg.errors.UniqueViolation):
        steps.sign_up(number)
    assert users_with_jobs(steps) == [user]


# --- only verified phones ---------------------------------------------------------------------------------------------
def confirm(steps: Steps, user: uuid.UUID) -> int:
    """-> how many jobs the user has now"""
    steps.as_auth("update auth.users set phone_confirmed_at = now() where id = %s", user)
    return len(steps.jobs_of(user))


@pytest.fixture
def verified(steps: Steps) -> Steps:
    """The same steps, with verified phones required."""
    steps.call("require_verified_phones")
    return steps


def test_confirmation_calls_nobody_a_second_time(steps: Steps) -> None:
    before, since = steps.sign_up(a_number()), steps.sign_up(a_number())
    steps.pass_time(7200)  # the dedupe key would not hold it back any more
    assert confirm(steps, before) == 1
    steps.call("require_verified_phones")
    assert confirm(steps, since) == 1


def test_phone_is_called_once_it_is_confirmed(verified: Steps) -> None:
    user = verified.sign_up(number := a_number(), {"signup_mode": "demo", "phone": a_number()})
    typed, without, added = verified.sign_up(None, {"phone": a_number()}), verified.sign_up(), a_number()
    assert users_with_jobs(verified) == []
    assert [confirm(verified, each) for each in (user, typed)] == [1, 0]
    confirmed = "update auth.users set phone = %s, phone_confirmed_at = now() where id = %s"
    verified.rows(confirmed, added[1:], without)
    jobs = [verified.job_of(each) for each in (user, without)]
    assert [(job["phone_e164"], job["signup_mode"]) for job in jobs] == [(number, "demo"), (added, "default")]
    from_the_start = "insert into auth.users (id, phone, phone_confirmed_at) values (gen_random_uuid(), %s, now())"
    verified.rows(from_the_start, a_number()[1:])
    assert len(users_with_jobs(verified)) == 3


def test_phone_confirmed_again_or_changed_is_called_once(verified: Steps) -> None:
    user = verified.sign_up(a_number())
    confirm(verified, user)
    verified.pass_time(7200)
    verified.rows("update auth.users set phone_confirmed_at = null where id = %s", user)
    assert confirm(verified, user) == 1
    changed = "update auth.users set phone = %s, phone_confirmed_at = now() + interval '1 second' where id = %s"
    verified.rows(changed, a_number()[1:], user)
    assert len(verified.jobs_of(user)) == 1
    verified.rows("delete from public.outbound_call_jobs where user_id = %s", user)  # as the retention does
    assert confirm(verified, user) == 0


def test_typed_phones_count_again_when_none_are_required(verified: Steps) -> None:
    verified.call("require_verified_phones", required=False)
    assert len(verified.jobs_of(verified.sign_up(None, {"phone": a_number()}))) == 1


def test_healing_waits_for_the_confirmation_too(verified: Steps) -> None:
    user = verified.sign_up(a_number())
    verified.rows("insert into private.missed_signups (user_id, error, noted_at) values (%s, 'x', now())", user)
    assert verified.call("heal_onboarding_calls") == 1
    assert users_with_jobs(verified) == missed(verified) == []
    assert confirm(verified, user) == 1


def test_confirmation_commits_when_our_table_is_gone(verified: Steps) -> None:
    user = verified.sign_up(a_number())
    verified.rows("alter table public.outbound_call_jobs rename to gone")
    try:
        verified.as_auth("update auth.users set phone_confirmed_at = now() where id = %s", user)
    finally:
        verified.rows("alter table public.gone rename to outbound_call_jobs")
    assert missed(verified) == [user]
    assert verified.call("heal_onboarding_calls") == 1
    assert len(verified.jobs_of(user)) == 1
