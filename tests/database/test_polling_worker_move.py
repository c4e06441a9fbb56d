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

from tests.database.projects import Project, a_project
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

HISTORY = "select version || name from supabase_migrations.schema_migrations order by 1"


@pytest.fixture
def older(postgres: Postgres, tmp_path: Path) -> Iterator[Project]:
    """A Supabase project that has had no migration yet."""
    with a_project(postgres, "test_older") as project:
        project.migrate(folder=tmp_path)
        yield project


def set_aside(older: Project) -> None:
    """The page's block. Its trigger is dropped by the superuser."""
    # The hosted `postgres` may drop a trigger of a table that it does not own: supautils' drop_trigger_grants, which no
    # stand-in of ours has.
    drop = next(line for line in SET_ASIDE.splitlines() if line.startswith("drop trigger"))
    script = SET_ASIDE.replace(drop, "")
    if older.column("select to_regclass('public.profiles')") == [None]:  # nothing to keep
        script = script[: script.index("-- Your function")] + "commit;"
    older.eyes.execute(drop.replace("drop trigger", "drop trigger if exists").encode())
    older.run(script)


def sign_up(older: Project, phone: str | None = None, metadata: object = None, ago: str = "0 s") -> uuid.UUID:
    user = uuid.uuid4()
    query = (
        "insert into auth.users (id, phone, raw_user_meta_data, created_at) values (%s, %s, %s, now() - %s::interval)"
    )
    older.eyes.execute(query, (user, phone, Jsonb(metadata), ago))
    return user


def job(
    older: Project, status: str = "queued", attempts: int = 0, user: uuid.UUID | None = None, **columns: object
) -> uuid.UUID:
    """A row of the worker's. -> its user, a new one if none is given"""
    user = user or sign_up(older)
    row = {
        "user_id": user, "status": status, "attempts": attempts, "phone_e164": "+14155550100",
        "artifacts": Jsonb({"signup_mode": "demo"}), **columns,
    }  # fmt: skip
    query = sql.SQL("insert into public.outbound_call_jobs ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join([sql.Placeholder()] * len(row))
    )
    older.eyes.execute(query, list(row.values()))
    return user


@pytest.mark.parametrize("there", ["the table", "both", "the trigger"])
def test_older_database_is_refused_and_left_unchanged(older: Project, there: str) -> None:
    older.run(TABLE)
    job(older)
    job(older, "succeeded", 1, twilio_call_sid="CA1")
    if there != "the table":
        older.run(TRIGGER)
    if there == "the trigger":
        older.run("drop table public.outbound_call_jobs")

    def everything() -> list[object]:
        table = "public.outbound_call_jobs" if there != "the trigger" else "auth.users"
        return [older.everything(), older.column(HISTORY), older.column(f"select t::text from {table} t order by 1")]

    before = everything()
    with pytest.raises(database.MigrationError, match="of an earlier version: nothing was changed") as refused:
        older.migrate()
    assert "20261201000100" in str(refused.value)
    assert isinstance(refused.value.__cause__, psycopg.Error)
    assert "Coming from the polling worker" in str(refused.value.__cause__.diag.message_hint)
    assert everything() == before


def test_move_carries_over_waiting_rows_only(older: Project) -> None:
    older.run(TABLE)
    later = datetime(2031, 1, 2, tzinfo=UTC)
    waiting = {job(older), job(older), job(older, next_run_at=later)}
    for status, attempts, sid in [
        ("succeeded", 1, "CA1"), ("running", 1, "CA2"), ("running", 1, None), ("running", 0, None),
        ("failed", 3, None), ("queued", 1, None), ("queued", 0, "CA3"),
    ]:  # fmt: skip
        job(older, status, attempts, twilio_call_sid=sid)
    job(older, user=job(older, "succeeded", 1))  # called, and asked for again since
    job(older, user=(twice := job(older)))
    job(older, user=uuid.uuid4())  # deleted
    job(older, phone_e164="")
    set_aside(older)
    older.migrate()
    older.run(DECIDE)
    assert older.eyes.execute(COUNT.encode()).fetchall() == [
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
    assert older.column("select id from public.outbound_call_jobs") == []  # nothing yet
    for _ in range(2):  # a second time does no harm
        older.run(CARRY_OVER)
    columns = "user_id, phone_e164, signup_mode, status, attempts"
    jobs = older.eyes.execute(f"select {columns} from public.outbound_call_jobs".encode()).fetchall()
    assert {row[0] for row in jobs} == waiting | {twice}
    assert [row[1:] for row in jobs] == [("+14155550100", "demo", "queued", 0)] * 4
    assert older.column("select count(*) from public.outbound_call_jobs where due_at = %s", later) == [1]


def test_page_shows_the_function_that_must_be_changed(older: Project) -> None:
    older.run(TABLE + TRIGGER)
    ((function, definition),) = older.eyes.execute(LOOK.encode()).fetchall()
    assert function == "handle_new_user()"
    assert "insert into outbound_call_jobs" in definition


def test_sign_up_after_the_move_has_one_job(older: Project) -> None:
    """The old function is found by its search_path: with its insert, it would write to the new table."""
    older.run(TABLE + TRIGGER)
    sign_up(older, "14155550101")
    set_aside(older)
    sign_up(older, "14155550102")
    older.migrate()
    sign_up(older, "14155550103")
    assert older.column("select count(*) from public.profiles") == [3]
    assert older.column("select phone_number from public.outbound_call_jobs") == ["+14155550103"]
    assert older.column("select phone_e164 from polling_worker.outbound_call_jobs") == ["+14155550101"]


def test_sign_ups_in_between_are_queued_once(older: Project) -> None:
    sign_up(older, "14155550101", ago="1 day")
    older.run(TABLE)
    set_aside(older)
    user = sign_up(older, "14155550102", {"first_name": "A" * 300})
    typed = sign_up(older, None, {"phone": "+14155550103"})
    sign_up(older)
    older.migrate()
    (stopped_at,) = older.column("select now() - interval '1 hour'")
    for _ in range(2):
        older.eyes.execute(IN_BETWEEN.replace("<the time of step 1>", str(stopped_at)).encode())
    columns = "user_id, phone_e164, signup_mode"
    jobs = older.eyes.execute(f"select {columns} from public.outbound_call_jobs".encode()).fetchall()
    assert set(jobs) == {(user, "+14155550102", "default"), (typed, "+14155550103", "default")}
