"""From a sign-up to a job: whatever was typed, and whatever of ours is broken, the sign-up itself never fails or hangs."""

from __future__ import annotations

import time
import uuid

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import Connection
from tests.database.conftest import Another
from tests.database.sql_api import Row, Steps, a_number

AT_MOST_S = 2.0


def as_auth(connection: Connection, query: str, *values: object) -> None:
    """As Supabase Auth does it, whose role has no right to anything of ours."""
    connection.execute("set role supabase_auth_admin")
    try:
        connection.execute(query.encode(), values)
    finally:
        connection.execute("reset role")


def sign_up(connection: Connection, phone: str | None = None, metadata: object = None) -> uuid.UUID:
    user = uuid.uuid4()
    query = "insert into auth.users (id, phone, raw_user_meta_data, created_at) values (%s, %s, %s, now())"
    as_auth(connection, query, user, phone, None if metadata is None else Jsonb(metadata))
    return user


def jobs(steps: Steps, user: uuid.UUID) -> list[Row]:
    return steps.rows("select * from public.outbound_call_jobs where user_id = %s", user)


def job(steps: Steps, user: uuid.UUID) -> Row:
    (found,) = jobs(steps, user)
    return found


def missed(steps: Steps) -> list[uuid.UUID]:
    return [row["user_id"] for row in steps.rows("select user_id from private.missed_signups order by noted_at")]


# --- who is called, and what is known of them -------------------------------------------------------------------------
def test_sign_up_with_a_phone_is_one_job(connection: Connection, steps: Steps) -> None:
    number = a_number()
    row = job(steps, sign_up(connection, number.removeprefix("+"), {"signup_mode": "demo"}))
    assert (row["phone_number"], row["phone_e164"], row["signup_mode"]) == (number, number, "demo")
    assert (row["status"], row["attempts"]) == ("queued", 0)


def test_phone_of_the_account_goes_before_the_metadata(connection: Connection, steps: Steps) -> None:
    table: list[tuple[str, str | None, Row]] = [
        ((number := a_number()), None, {"phone": f"  {number} "}),
        ((number := a_number()), None, {"phone_number": f"  {number} "}),
        ((number := a_number()), number.removeprefix("+"), {"phone": a_number()}),
    ]
    rows = [job(steps, sign_up(connection, phone, metadata)) for _, phone, metadata in table]
    assert (
        [row["phone_e164"] for row in rows]
        == [row["phone_number"].strip() for row in rows]
        == [row[0] for row in table]
    )


def test_sign_up_without_a_phone_is_no_job(connection: Connection, steps: Steps) -> None:
    for metadata in (None, {}, {"phone": ""}, {"phone": "  "}, {"phone": None}, {"email": "a@example.com"}):
        sign_up(connection, None, metadata)
        connection.execute("delete from auth.users")  # phones are unique there, the empty one too
        sign_up(connection, "", metadata)
        connection.execute("delete from auth.users")
    assert steps.rows("select * from public.outbound_call_jobs") == []


@pytest.mark.parametrize("typed", ["abc", "415 555 0100", "(415) 555-0100", "☎", "00 1 415 555 0100", "1" * 500])
def test_phone_that_is_not_e164_is_a_job(connection: Connection, steps: Steps, typed: str) -> None:
    row = job(steps, sign_up(connection, None, {"phone": typed}))
    assert (row["phone_number"], row["phone_e164"]) == (typed[:64], None)


NAMES: list[tuple[Row, str | None]] = [
    ({"first_name": "Ada"}, "Ada"),
    ({"first_name": " Ada ", "name": "Grace Hopper"}, "Ada"),
    ({"name": "Grace Hopper"}, "Grace"),
    ({"full_name": "Katherine Johnson"}, "Katherine"),
    ({"first_name": "", "name": " ", "full_name": "Katherine Johnson"}, "Katherine"),
    ({"first_name": None, "name": None}, None),
    ({"first_name": ["Ada"], "name": {"first": "Ada"}, "full_name": 7}, None),
    ({"first_name": "A" * 200}, "A" * 100),
    ({"first_name": "Zoë 🎉"}, "Zoë 🎉"),
    ({}, None),
]


def test_first_name_is_read_from_several_keys(connection: Connection, steps: Steps) -> None:
    read = [job(steps, sign_up(connection, a_number()[1:], metadata))["first_name"] for metadata, _ in NAMES]
    assert read == [name for _, name in NAMES]


def test_sign_up_without_a_mode_is_default(connection: Connection, steps: Steps) -> None:
    users = [sign_up(connection, a_number()[1:], {"signup_mode": mode}) for mode in (None, "", "  ")]
    assert [job(steps, user)["signup_mode"] for user in users] == ["default"] * 3


def deep(levels: int) -> object:
    value: object = "bottom"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "metadata",
    [
        [], "text", 7, True, {"signup_mode": ["a"], "first_name": {"b": []}}, {"signup_mode": 7, "phone": 14155550100},
        {"signup_mode": "m" * 1000}, {"phone": ["+14155550100"]}, {"phone": {"number": 1}}, {"phone": True},
        {"avatar": "x" * 1_000_000}, {"deep": deep(900)}, {"first_name": "'; drop table auth.users; --"},
        {"first_name": "%s %I \\ \x01 \u2028"}, {"": {"": ""}},
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_odd_metadata_never_fails_a_sign_up(connection: Connection, steps: Steps, metadata: object) -> None:
    assert len(jobs(steps, sign_up(connection, a_number()[1:], metadata))) == 1
    assert missed(steps) == []


def test_phone_beside_a_huge_avatar_is_called(connection: Connection, steps: Steps) -> None:
    metadata = {"phone": (number := a_number()), "first_name": "Ada", "signup_mode": "demo", "avatar": "x" * 1_000_000}
    row = job(steps, sign_up(connection, None, metadata))
    assert (row["phone_e164"], row["first_name"], row["signup_mode"]) == (number, "Ada", "demo")
    assert row["metadata"] == {}


def test_sign_up_that_is_rolled_back_leaves_nothing(connection: Connection, steps: Steps) -> None:
    with connection.transaction(force_rollback=True):
        user = sign_up(connection, a_number()[1:])
    assert jobs(steps, user) == missed(steps) == []


def test_thousand_sign_ups_in_one_statement_are_queued(connection: Connection, steps: Steps) -> None:
    connection.execute(
        "insert into auth.users (id, phone) select gen_random_uuid(), '1415555' || n from generate_series(1000, 1999) n"
    )
    assert steps.one("select count(*) from public.outbound_call_jobs") == 1000


# --- what may break ---------------------------------------------------------------------------------------------------
BREAKS = {
    "the table is gone": "drop table public.outbound_call_jobs cascade",
    "the table has another name": "alter table public.outbound_call_jobs rename to jobs",
    "a column is gone": "alter table public.outbound_call_jobs drop column dedupe_window cascade",
    "the helper is gone": "drop function private.queue_onboarding_call",
    "the table refuses every row": "alter table public.outbound_call_jobs add constraint never check (false) not valid",
    "the ids are used up": "alter sequence public.outbound_call_jobs_id_seq restart with 9223372036854775807;"
    " select nextval('public.outbound_call_jobs_id_seq')",
}
HARMLESS = {
    "vault is gone": "drop schema vault cascade",
    "pg_net is gone": "drop schema net cascade",
    "nobody may read vault": "revoke all on vault.decrypted_secrets from postgres",
    "what signs is gone": "drop function private.hmac_sha256",
}


@pytest.mark.parametrize("broken", BREAKS)
def test_sign_up_whose_job_cannot_be_written_is_noted(connection: Connection, steps: Steps, broken: str) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(BREAKS[broken].encode())
        user = sign_up(connection, a_number()[1:])
        assert missed(steps) == [user]
        assert steps.one("select error <> '' from private.missed_signups")


@pytest.mark.parametrize("broken", HARMLESS)
def test_sign_up_without_a_webhook_has_its_job(connection: Connection, steps: Steps, broken: str) -> None:
    connection.execute("select vault.create_secret('http://127.0.0.1:9/', 'call_dispatcher_url')")
    connection.execute("select vault.create_secret('whsec_c2VjcmV0', 'call_dispatcher_secret')")
    with connection.transaction(force_rollback=True):
        connection.execute(HARMLESS[broken].encode())
        user = sign_up(connection, a_number()[1:])
        assert missed(steps) == []
        assert steps.rows("select user_id from public.outbound_call_jobs") == [{"user_id": user}]


def test_sign_up_succeeds_without_our_tables(connection: Connection, steps: Steps) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("drop table public.outbound_call_jobs, private.missed_signups cascade")
        user = sign_up(connection, a_number()[1:])
        assert steps.rows("select id from auth.users") == [{"id": user}]


# --- locks ------------------------------------------------------------------------------------------------------------
LOCKS = {
    "the jobs": ("public.outbound_call_jobs",),
    "the notes of what was missed, too": ("public.outbound_call_jobs", "private.missed_signups"),
    "the webhooks": ("net.http_request_queue",),
    "vault": ("vault.secrets",),
    "all of it": ("public.outbound_call_jobs", "private.missed_signups", "net.http_request_queue", "vault.secrets"),
}


@pytest.mark.parametrize("locked", LOCKS)
def test_sign_up_does_not_wait_for_locks(connection: Connection, steps: Steps, another: Another, locked: str) -> None:
    other = another().service
    other.execute("reset role")
    with other.transaction():
        for table in LOCKS[locked]:
            other.execute(f"lock table {table}".encode())
        began = time.monotonic()
        user = sign_up(connection, a_number()[1:])
        assert time.monotonic() - began < AT_MOST_S
    assert connection.execute("select count(*) from auth.users where id = %s", (user,)).fetchone() == (1,)
    if locked == "the jobs":
        assert missed(steps) == [user]
        assert steps.call("heal_onboarding_calls") == 1
        assert job(steps, user)["status"] == "queued"


def test_lock_timeout_of_the_sign_up_comes_back(connection: Connection, steps: Steps) -> None:
    connection.execute("set lock_timeout = '7s'")
    sign_up(connection, a_number()[1:])
    assert connection.execute("show lock_timeout").fetchone() == ("7s",)


# --- healing ----------------------------------------------------------------------------------------------------------
def miss(connection: Connection, phone: str | None = None) -> uuid.UUID:
    """A sign-up whose job could not be written."""
    connection.execute("alter table public.outbound_call_jobs add constraint never check (false) not valid")
    user = sign_up(connection, phone or a_number()[1:], {"signup_mode": "demo"})
    connection.execute("alter table public.outbound_call_jobs drop constraint never")
    return user


def test_missed_sign_up_is_healed_once(connection: Connection, steps: Steps) -> None:
    user = miss(connection)
    assert [steps.call("heal_onboarding_calls") for _ in range(2)] == [1, 0]
    assert [(row["user_id"], row["signup_mode"]) for row in steps.rows("select * from public.outbound_call_jobs")] == [
        (user, "demo")
    ]
    assert missed(steps) == []


def test_missed_sign_up_with_a_job_gets_no_second(connection: Connection, steps: Steps) -> None:
    user = miss(connection)
    job_id = steps.queue(user_id=user)
    assert steps.call("heal_onboarding_calls") == 1
    assert [row["id"] for row in steps.rows("select id from public.outbound_call_jobs")] == [job_id]


def test_missed_sign_up_that_left_is_not_called(connection: Connection, steps: Steps) -> None:
    user = miss(connection)
    connection.execute("delete from auth.users where id = %s", (user,))
    steps.call("heal_onboarding_calls")
    assert steps.rows("select * from public.outbound_call_jobs") == []
    assert missed(steps) == []


def test_missed_sign_up_that_cannot_heal_stays_noted(connection: Connection, steps: Steps) -> None:
    user = miss(connection)
    with connection.transaction():
        connection.execute("alter table public.outbound_call_jobs add constraint never check (false) not valid")
    assert steps.call("heal_onboarding_calls") == 0
    assert missed(steps) == [user]
    connection.execute("alter table public.outbound_call_jobs drop constraint never")
    assert steps.call("heal_onboarding_calls") == 1


def test_missed_sign_ups_that_cannot_heal_hold_up_nobody(connection: Connection, steps: Steps) -> None:
    sick = ", ".join(str(miss(connection)) for _ in range(3))
    well = miss(connection)
    connection.execute(
        f"alter table public.outbound_call_jobs add constraint sick check (user_id <> all ('{{{sick}}}'))".encode()
    )
    try:
        healed = []
        for _ in range(4):
            steps.pass_time(60)
            healed.append(steps.call("heal_onboarding_calls", limit=1))
    finally:
        connection.execute("alter table public.outbound_call_jobs drop constraint sick")
    assert sum(healed) == 1
    assert [row["user_id"] for row in steps.rows("select user_id from public.outbound_call_jobs")] == [well]


def test_sweeps_that_heal_at_once_share_the_work(connection: Connection, another: Another) -> None:
    users = {miss(connection) for _ in range(4)}
    first, second = another(), another()
    first.service.autocommit = False
    assert first.call("heal_onboarding_calls", limit=2) == 2
    assert second.call("heal_onboarding_calls") == 2
    first.service.commit()
    assert {row["user_id"] for row in second.rows("select user_id from public.outbound_call_jobs")} == users


def test_sign_up_that_fails_makes_no_job(connection: Connection, steps: Steps) -> None:
    user = sign_up(connection, number := a_number()[1:])
    with pytest.raises(psycopg.errors.UniqueViolation):
        sign_up(connection, number)
    assert len(jobs(steps, user)) == 1


# --- only verified phones ---------------------------------------------------------------------------------------------
def confirm(connection: Connection, user: uuid.UUID) -> None:
    as_auth(connection, "update auth.users set phone_confirmed_at = now() where id = %s", user)


@pytest.mark.parametrize("required_since", [False, True])
def test_confirmation_calls_nobody_a_second_time(connection: Connection, steps: Steps, required_since: bool) -> None:
    user = sign_up(connection, a_number()[1:])
    if required_since:
        steps.call("require_verified_phones")
    steps.pass_time(7200)  # the dedupe key would not hold it back any more
    confirm(connection, user)
    assert len(jobs(steps, user)) == 1


def test_confirmation_is_waited_for_where_it_is_required(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = sign_up(connection, (number := a_number())[1:], {"signup_mode": "demo", "phone": a_number()})
    assert jobs(steps, user) == []
    confirm(connection, user)
    assert (job(steps, user)["phone_e164"], job(steps, user)["signup_mode"]) == (number, "demo")
    typed = sign_up(connection, None, {"phone": a_number()})
    confirm(connection, typed)
    assert jobs(steps, typed) == []


def test_phone_confirmed_from_the_start_is_called_at_once(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = uuid.uuid4()
    query = "insert into auth.users (id, phone, phone_confirmed_at) values (%s, %s, now())"
    connection.execute(query, (user, a_number()[1:]))
    assert len(jobs(steps, user)) == 1


def test_phone_confirmed_again_or_changed_is_called_once(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = sign_up(connection, a_number()[1:])
    confirm(connection, user)
    steps.pass_time(7200)
    steps.rows("update auth.users set phone_confirmed_at = null where id = %s", user)
    confirm(connection, user)
    assert len(jobs(steps, user)) == 1
    changed = "update auth.users set phone = %s, phone_confirmed_at = now() + interval '1 second' where id = %s"
    steps.rows(changed, a_number()[1:], user)
    assert len(jobs(steps, user)) == 1
    steps.rows("delete from public.outbound_call_jobs where user_id = %s", user)  # as the retention does
    confirm(connection, user)
    assert jobs(steps, user) == []


def test_phone_added_after_the_sign_up_is_called(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = sign_up(connection, None)
    number = a_number()
    steps.rows("update auth.users set phone = %s, phone_confirmed_at = now() where id = %s", number[1:], user)
    assert job(steps, user)["phone_e164"] == number


def test_typed_phones_count_again_when_none_are_required(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    steps.call("require_verified_phones", required=False)
    assert len(jobs(steps, sign_up(connection, None, {"phone": a_number()}))) == 1


def test_healing_waits_for_the_confirmation_too(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = sign_up(connection, a_number()[1:])
    steps.rows("insert into private.missed_signups (user_id, error, noted_at) values (%s, 'x', now())", user)
    assert steps.call("heal_onboarding_calls") == 1
    assert (jobs(steps, user), missed(steps)) == ([], [])
    confirm(connection, user)
    assert len(jobs(steps, user)) == 1


def test_confirmation_commits_when_our_table_is_gone(connection: Connection, steps: Steps) -> None:
    steps.call("require_verified_phones")
    user = sign_up(connection, a_number()[1:])
    steps.rows("alter table public.outbound_call_jobs rename to gone")
    try:
        confirm(connection, user)
    finally:
        steps.rows("alter table public.gone rename to outbound_call_jobs")
    assert missed(steps) == [user]
    assert steps.call("heal_onboarding_calls") == 1
    assert len(jobs(steps, user)) == 1
