"""A database of the earlier polling worker: refused as it stands, left unchanged, and moved without calling anybody twice."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Connection
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database
from tests.unit.deployment import code_blocks, page

TABLE = """
create table public.outbound_call_jobs (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  phone_number text not null,
  signup_mode text not null default 'default',
  status text not null default 'pending' check (status in ('pending', 'processing', 'completed', 'failed')),
  attempts int not null default 0,
  call_sid text,
  created_at timestamptz not null default now()
);
create index outbound_call_jobs_pending on public.outbound_call_jobs (created_at) where status = 'pending';
"""
TRIGGER = """
create function public.enqueue_onboarding_call() returns trigger language plpgsql security definer set search_path = public as $$
begin
  insert into public.outbound_call_jobs (user_id, phone_number) values (new.id, '+' || new.phone);
  return new;
end
$$;
create trigger on_auth_user_created_onboarding after insert on auth.users
  for each row execute function public.enqueue_onboarding_call();
"""

# The SQL of the page as it stands there: set aside, carry over, queue the sign-ups in between.
SET_ASIDE, CARRY_OVER, IN_BETWEEN = code_blocks(page("polling-worker.md"), "sql")

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
    # As the superuser: what lets the hosted `postgres` drop a trigger of a table that it does not own is supautils'
    # drop_trigger_grants, which no stand-in of ours has.
    drop = next(line for line in SET_ASIDE.splitlines() if line.startswith("drop trigger"))
    connection.execute(drop.encode())
    as_postgres(connection, SET_ASIDE.replace(drop, ""))


def as_postgres(connection: Connection, script: str) -> None:
    connection.execute(f"set role postgres; {script}; reset role".encode())


def user_with_job(connection: Connection, status: str, attempts: int = 0, call_sid: str | None = None) -> uuid.UUID:
    user = uuid.uuid4()
    connection.execute("insert into auth.users (id) values (%s)", (user,))
    connection.execute(
        "insert into public.outbound_call_jobs (user_id, phone_number, signup_mode, status, attempts, call_sid)"
        " values (%s, '+14155550100', 'demo', %s, %s, %s)",
        (user, status, attempts, call_sid),
    )
    return user


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
def test_an_older_database_is_refused_with_a_clear_message_and_left_unchanged(
    postgres: Postgres, older: Connection, what_is_there: tuple[str, ...]
) -> None:
    for script in what_is_there:
        as_postgres(older, script)
    if len(what_is_there) < 3:
        older.execute("alter table auth.users disable trigger user")
        user_with_job(older, "pending")
        user_with_job(older, "completed", 1, "CA1")
        older.execute("alter table auth.users enable trigger user")
    before = dump(older)
    with pytest.raises(database.MigrationError, match="of an earlier version: nothing was changed") as refused:
        database.migrate(postgres, "test_older")
    assert "20261201000100" in str(refused.value)
    assert isinstance(refused.value.__cause__, psycopg.Error)
    assert "Coming from the polling worker" in str(refused.value.__cause__.diag.message_hint)
    assert dump(older) == before


def test_a_database_of_nobodys_is_not_refused(postgres: Postgres, older: Connection) -> None:
    assert len(database.migrate(postgres, "test_older")) >= 6


def test_the_dump_would_show_a_change(older: Connection) -> None:
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


def test_the_move_carries_over_who_waits_and_nobody_who_was_called(postgres: Postgres, older: Connection) -> None:
    as_postgres(older, TABLE)
    waiting = {user_with_job(older, "pending") for _ in range(3)}
    called = {
        user_with_job(older, "completed", 1, "CA1"),
        user_with_job(older, "processing", 1, "CA2"),
        user_with_job(older, "processing", 1),
        user_with_job(older, "failed", 3),
        user_with_job(older, "pending", 1),
        user_with_job(older, "pending", 0, "CA3"),
    }
    both = user_with_job(older, "completed", 1, "CA4")  # and asked for again since
    older.execute("insert into public.outbound_call_jobs (user_id, phone_number) values (%s, '+14155550100')", (both,))
    called.add(both)
    as_postgres(older, TRIGGER)
    set_aside(older)
    database.migrate(postgres, "test_older")
    for _ in range(2):  # a second time does no harm
        as_postgres(older, CARRY_OVER)
    jobs = older.execute(
        "select user_id, phone_e164, signup_mode, status, attempts from public.outbound_call_jobs"
    ).fetchall()
    assert {row[0] for row in jobs} == waiting
    assert not called & {row[0] for row in jobs}
    assert {row[1:] for row in jobs} == {("+14155550100", "demo", "queued", 0)}


def test_after_the_move_a_sign_up_has_its_job_and_the_old_table_gets_none(
    postgres: Postgres, older: Connection
) -> None:
    as_postgres(older, TABLE)
    as_postgres(older, TRIGGER)
    set_aside(older)
    database.migrate(postgres, "test_older")
    older.execute("insert into auth.users (id, phone) values (gen_random_uuid(), '14155550100')")
    assert older.execute("select count(*) from public.outbound_call_jobs").fetchone() == (1,)
    assert older.execute("select count(*) from polling_worker.outbound_call_jobs").fetchone() == (0,)


def test_who_had_a_job_twice_is_called_once(postgres: Postgres, older: Connection) -> None:
    as_postgres(older, TABLE)
    user = user_with_job(older, "pending")
    older.execute("insert into public.outbound_call_jobs (user_id, phone_number) values (%s, '+14155550100')", (user,))
    set_aside(older)
    database.migrate(postgres, "test_older")
    as_postgres(older, CARRY_OVER)
    assert older.execute("select user_id from public.outbound_call_jobs").fetchall() == [(user,)]


def test_who_signed_up_in_between_is_queued_once_and_nobody_else(postgres: Postgres, older: Connection) -> None:
    older.execute(
        "insert into auth.users (id, phone, created_at) values (gen_random_uuid(), '14155550101', now() - interval '1 day')"
    )
    as_postgres(older, TABLE)
    set_aside(older)
    user = uuid.uuid4()
    older.execute("insert into auth.users (id, phone, created_at) values (%s, '14155550102', now())", (user,))
    database.migrate(postgres, "test_older")
    stopped_at = older.execute("select now() - interval '1 hour'").fetchone()
    assert stopped_at is not None
    for _ in range(2):
        older.execute(IN_BETWEEN.replace("<the time of step 1>", str(stopped_at[0])).encode())
    jobs = older.execute("select user_id, phone_e164, signup_mode from public.outbound_call_jobs").fetchall()
    assert jobs == [(user, "+14155550102", "default")]
