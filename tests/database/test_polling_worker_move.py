"""A database of the earlier polling worker: refused as it stands, left unchanged, and moved without calling anybody twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.conftest import Connection
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database
from tests.unit.deployment import code_blocks, page

TABLE = """
create table public.outbound_call_jobs (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null,
  phone_e164 text,
  status text not null default 'queued' check (status in ('queued', 'running', 'succeeded', 'failed')),
  attempts int not null default 0,
  next_run_at timestamptz not null default now(),
  last_error text,
  twilio_call_sid text,
  dedupe_key text unique,
  artifacts jsonb not null default '{}'
);
create index outbound_call_jobs_due on public.outbound_call_jobs (next_run_at) where status = 'queued';
"""
# Its function makes a profile, too.
TRIGGER = """
create table public.profiles (id uuid primary key, role text not null);
create function public.handle_new_user() returns trigger language plpgsql security definer set search_path = public as $$
begin
  insert into public.profiles (id, role) values (new.id, 'member');
  insert into outbound_call_jobs (user_id, phone_e164, dedupe_key)
  values (new.id, '+' || new.phone, 'signup_call:' || new.id);
  return new;
end
$$;
create trigger on_auth_user_created_onboarding after insert on auth.users
  for each row execute function public.handle_new_user();
"""

# The SQL of the page as it stands there.
LOOK, SET_ASIDE, DECIDE, COUNT, CARRY_OVER, IN_BETWEEN = code_blocks(page("polling-worker.md"), "sql")

# Everything that a migration could have touched, in an order of its own.
DUMP = """
select 'namespace', nspname::text, nspacl::text, '' from pg_namespace where nspname !~ '^pg_|^information_schema$'
union all
select 'class', c.oid::regclass::text, concat(c.relkind, c.relacl, c.relrowsecurity), pg_get_userbyid(c.relowner)
from pg_class c where c.relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
union all
select 'column', attrelid::regclass::text, attname::text, format_type(atttypid, atttypmod) || attnotnull
from pg_attribute join pg_class c on c.oid = attrelid
where c.relnamespace::regnamespace::text !~ '^pg_|^information_schema$' and attnum > 0
union all
select 'function', p.oid::regprocedure::text, p.prosrc, coalesce(p.proacl::text, '') from pg_proc p
where p.pronamespace::regnamespace::text !~ '^pg_|^information_schema$'
union all
select 'trigger', tgname::text, tgrelid::regclass::text, pg_get_triggerdef(oid) from pg_trigger
union all
select 'constraint', conname::text, conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint
union all
select 'extension', extname::text, extversion, '' from pg_extension
union all
select 'history', version, name, '' from supabase_migrations.schema_migrations
order by 1, 2, 3, 4
"""


@pytest.fixture
def older(postgres: Postgres, tmp_path: Path) -> Iterator[Connection]:
    """A Supabase project that has had no migration yet."""
    database.create_database(postgres, "test_older")
    database.bootstrap(postgres, "test_older")
    database.migrate(postgres, "test_older", folder=tmp_path)
    with psycopg.connect(postgres.url(database="test_older"), autocommit=True) as connection:
        yield connection
    database.drop_database(postgres, "test_older")


def set_aside(connection: Connection) -> None:
    """The page's block. Its trigger is dropped by the superuser."""
    # The hosted `postgres` may drop a trigger of a table that it does not own: supautils' drop_trigger_grants, which no
    # stand-in of ours has.
    drop = next(line for line in SET_ASIDE.splitlines() if line.startswith("drop trigger"))
    script = SET_ASIDE.replace(drop, "")
    if connection.execute("select to_regclass('public.profiles')").fetchone() == (None,):  # nothing to keep
        script = script[: script.index("-- Your function")] + "commit;"
    connection.execute(drop.replace("drop trigger", "drop trigger if exists").encode())
    as_postgres(connection, script)


def as_postgres(connection: Connection, script: str) -> None:
    connection.execute(f"set role postgres; {script}; reset role".encode())


def user_with_job(connection: Connection, status: str = "queued", attempts: int = 0, **columns: object) -> uuid.UUID:
    user = uuid.uuid4()
    connection.execute("insert into auth.users (id) values (%s)", (user,))
    another_job(connection, user, status, attempts, **columns)
    return user


def another_job(
    connection: Connection, user: uuid.UUID, status: str = "queued", attempts: int = 0, **columns: object
) -> None:
    row = {
        "user_id": user, "status": status, "attempts": attempts, "phone_e164": "+14155550100",
        "artifacts": Jsonb({"signup_mode": "demo"}), **columns,
    }  # fmt: skip
    query = sql.SQL("insert into public.outbound_call_jobs ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join([sql.Placeholder()] * len(row))
    )
    connection.execute(query, list(row.values()))


def moved(postgres: Postgres, older: Connection) -> None:
    """Steps 3, 4 and the view of step 5."""
    set_aside(older)
    database.migrate(postgres, "test_older")
    as_postgres(older, DECIDE)


def dump(connection: Connection) -> list[object]:
    objects: list[object] = list(connection.execute(DUMP).fetchall())
    (there,) = connection.execute("select to_regclass('public.outbound_call_jobs') is not null").fetchall()
    if there[0]:
        objects += connection.execute("select t::text from public.outbound_call_jobs t order by 1").fetchall()
    return objects


@pytest.mark.parametrize(
    "what_is_there",
    [(TABLE,), (TABLE, TRIGGER), (TABLE, TRIGGER, "drop table public.outbound_call_jobs")],
    ids=["the table", "both", "the trigger"],
)
def test_older_database_is_refused_and_left_unchanged(
    postgres: Postgres, older: Connection, what_is_there: tuple[str, ...]
) -> None:
    for script in what_is_there:
        as_postgres(older, script)
    if len(what_is_there) < 3:
        older.execute("alter table auth.users disable trigger user")
        user_with_job(older)
        user_with_job(older, "succeeded", 1, twilio_call_sid="CA1")
        older.execute("alter table auth.users enable trigger user")
    before = dump(older)
    with pytest.raises(database.MigrationError, match="of an earlier version: nothing was changed") as refused:
        database.migrate(postgres, "test_older")
    assert "20261201000100" in str(refused.value)
    assert isinstance(refused.value.__cause__, psycopg.Error)
    assert "Coming from the polling worker" in str(refused.value.__cause__.diag.message_hint)
    assert dump(older) == before


def test_database_of_nobodys_is_not_refused(postgres: Postgres, older: Connection) -> None:
    assert len(database.migrate(postgres, "test_older")) >= 6


def test_dump_would_show_a_change(older: Connection) -> None:
    as_postgres(older, TABLE)
    before = dump(older)
    for change in (
        "create schema private",
        "create table public.more (id int)",
        "create extension btree_gist with schema extensions",
        "alter table public.outbound_call_jobs enable row level security",
        "grant select on public.outbound_call_jobs to anon",
    ):
        as_postgres(older, change)
        after = dump(older)
        assert after != before, change
        before = after


def test_move_carries_over_waiting_rows_only(postgres: Postgres, older: Connection) -> None:
    as_postgres(older, TABLE)
    later = datetime(2031, 1, 2, tzinfo=UTC)
    waiting = {user_with_job(older) for _ in range(2)} | {user_with_job(older, next_run_at=later)}
    for status, attempts, sid in [
        ("succeeded", 1, "CA1"), ("running", 1, "CA2"), ("running", 1, None), ("running", 0, None),
        ("failed", 3, None), ("queued", 1, None), ("queued", 0, "CA3"),
    ]:  # fmt: skip
        user_with_job(older, status, attempts, twilio_call_sid=sid)
    another_job(older, user_with_job(older, "succeeded", 1))  # called, and asked for again since
    another_job(older, twice := user_with_job(older))
    another_job(older, uuid.uuid4())  # deleted
    user_with_job(older, phone_e164="")
    moved(postgres, older)
    assert older.execute(COUNT.encode()).fetchall() == [
        ("failed", "stays: it is over, or its status is unknown", 1),
        ("queued", "is carried over", 4),
        ("queued", "stays: another row of its user was called, or may have been", 1),
        ("queued", "stays: it has no phone", 1),
        ("queued", "stays: it may have been called", 2),
        ("queued", "stays: its user is gone", 1),
        ("queued", "stays: its user waits in another row", 1),
        ("running", "stays: it may have been called", 3),
        ("succeeded", "stays: it was called", 2),
    ]
    assert older.execute("select count(*) from public.outbound_call_jobs").fetchone() == (0,)  # nothing yet
    for _ in range(2):  # a second time does no harm
        as_postgres(older, CARRY_OVER)
    jobs = older.execute(
        "select user_id, phone_e164, signup_mode, status, attempts from public.outbound_call_jobs"
    ).fetchall()
    assert {row[0] for row in jobs} == waiting | {twice}
    assert [row[1:] for row in jobs] == [("+14155550100", "demo", "queued", 0)] * 4
    due = older.execute("select count(*) from public.outbound_call_jobs where due_at = %s", (later,))
    assert due.fetchone() == (1,)


def test_page_shows_the_function_that_must_be_changed(older: Connection) -> None:
    as_postgres(older, TABLE + TRIGGER)
    ((function, definition),) = older.execute(LOOK.encode()).fetchall()
    assert function == "handle_new_user()"
    assert "insert into outbound_call_jobs" in definition


def test_sign_up_after_the_move_has_one_job(postgres: Postgres, older: Connection) -> None:
    """The old function is found by its search_path: with its insert, it would write to the new table."""
    as_postgres(older, TABLE + TRIGGER)
    older.execute("insert into auth.users (id, phone) values (gen_random_uuid(), '14155550101')")
    set_aside(older)
    between = older.execute("insert into auth.users (id, phone) values (gen_random_uuid(), '14155550102') returning id")
    database.migrate(postgres, "test_older")
    older.execute("insert into auth.users (id, phone) values (gen_random_uuid(), '14155550103')")
    assert older.execute("select count(*) from public.profiles").fetchone() == (3,)
    assert between.fetchone() is not None
    assert older.execute("select phone_number from public.outbound_call_jobs").fetchall() == [("+14155550103",)]
    assert older.execute("select phone_e164 from polling_worker.outbound_call_jobs").fetchall() == [("+14155550101",)]


def test_sign_ups_in_between_are_queued_once(postgres: Postgres, older: Connection) -> None:
    older.execute(
        "insert into auth.users (id, phone, created_at) values (gen_random_uuid(), '14155550101', now() - interval '1 day')"
    )
    as_postgres(older, TABLE)
    set_aside(older)
    user, typed = uuid.uuid4(), uuid.uuid4()
    insert = "insert into auth.users (id, phone, raw_user_meta_data, created_at) values (%s, %s, %s, now())"
    older.execute(insert, (user, "14155550102", Jsonb({"first_name": "A" * 300})))
    older.execute(insert, (typed, None, Jsonb({"phone": "+14155550103"})))
    older.execute(insert, (uuid.uuid4(), None, None))
    database.migrate(postgres, "test_older")
    stopped_at = older.execute("select now() - interval '1 hour'").fetchone()
    assert stopped_at is not None
    for _ in range(2):
        older.execute(IN_BETWEEN.replace("<the time of step 1>", str(stopped_at[0])).encode())
    jobs = older.execute(
        "select user_id, phone_e164, signup_mode from public.outbound_call_jobs order by id"
    ).fetchall()
    assert set(jobs) == {(user, "+14155550102", "default"), (typed, "+14155550103", "default")}
