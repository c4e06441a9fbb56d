"""Migrations go forward only: what was released stays as it is, the code of that release goes on, no row is lost, nobody waits."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.conftest import Connection
from tests.database.projects import Project, a_project
from tests.database.released import RECORDS, hashes, record, service
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

RELEASE = max(RECORDS.glob("*.json"))
VERSION = RELEASE.stem
RELEASED: dict[str, Any] = json.loads(RELEASE.read_text())
LATER = "20991231000000_later.sql"
"""The migration in later.sql, as if it followed the newest one: the rules for later migrations are never idle."""

# What the code of a release decides by; times and texts may come out differently.
DECISIVE = {"outcome", "then", "state", "call_status", "job_status", "status"} | {
    "moved", "end", "put_off", "lease_ran_out",
}  # fmt: skip
RUNNING = """
select distinct relation::regclass::text from pg_locks
where pid = pg_backend_pid() and mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
  and relation = any (%s::regclass[])
"""
"""The tables among these that this transaction keeps others from writing to."""
HOT = ("public.outbound_call_jobs", "public.outbound_call_attempts", "private.call_settings", "auth.users")
STATEMENT_TIMEOUT = "10s"  # what a push that waits for ever runs into, here


@pytest.fixture
def at_release(postgres: Postgres) -> Iterator[Project]:
    """A database that stands where the release left it."""
    with a_project(postgres, "at_release") as project:
        project.migrate(upto=VERSION)
        yield project


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The migrations of this tree, and a later one."""
    folder = tmp_path_factory.mktemp("migrations")
    for file in database.MIGRATIONS.glob("*.sql"):
        shutil.copy(file, folder)
    shutil.copy(Path(__file__).with_name("later.sql"), folder / LATER)
    return folder


def newer(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.sql") if file.name.split("_")[0] > VERSION)


# --- what was released stays as it is ---------------------------------------------------------------------------------
def test_released_migration_is_not_changed_any_more() -> None:
    advice = f"databases have had it: write a new migration (or, before the release: python -m tests.database.released {VERSION})"
    assert hashes(VERSION) == RELEASED["migrations"], advice


# --- the code of that release goes on ---------------------------------------------------------------------------------
def decisive(answer: Any) -> Any:
    """The parts of an answer that code acts on: its words and its plain values."""
    if isinstance(answer, dict):
        return {key: value for key, value in answer.items() if key in DECISIVE}
    return answer


def tell_again(project: Project) -> None:
    """The release's story: each call resolves, and its answer has the release's shape and says the same."""
    schemas = {
        function: Draft202012Validator(schema, format_checker=FormatChecker())
        for function, schema in RELEASED["answers"].items()
    }
    with service(project) as client:
        for step in RELEASED["story"]:
            if "sql" in step:
                project.eyes.execute(step["sql"].encode())
                continue
            answer = client.rpc(step["rpc"], step["arguments"]).execute().data
            told = f"{step['rpc']}({step['arguments']})"
            if schema := schemas.get(step["rpc"]):
                assert [error.message for error in schema.iter_errors(answer)] == [], told
            if step["answer"] == []:  # it answered nothing, so nobody reads what it answers now
                continue
            was, now = decisive(step["answer"]), decisive(answer)
            assert (now if not isinstance(was, dict) else {key: now.get(key) for key in was}) == was, told


def test_released_code_still_gets_answers_that_it_understands(at_release: Project, folder: Path) -> None:
    at_release.migrate(folder=folder)
    tell_again(at_release)


def test_story_has_every_released_function_and_answer() -> None:
    steps = [step for step in RELEASED["story"] if "rpc" in step]
    told = {(step["rpc"], step["answer"].get("outcome")) for step in steps if isinstance(step["answer"], dict)}
    told |= {(step["rpc"], None) for step in steps if not isinstance(step["answer"], dict)}
    for function, schema in RELEASED["answers"].items():
        outcomes = schema["discriminator"]["mapping"] if "discriminator" in schema else [None]
        assert {outcome for name, outcome in told if name == function} == set(outcomes), function
    thens = {step["answer"]["then"] for step in steps if step["rpc"] in ("accept_call", "record_call_status")}
    assert thens == {"keep", "end", "unknown"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("drop function public.doubt_call", "PGRST202"),
        ("alter function public.refuse_call(uuid, text, text, text, double precision) rename to turn_down", "PGRST202"),
        ("alter table private.call_settings rename column halts to breaks", "halts"),
        (
            "create or replace function public.call_job_stats() returns jsonb language sql security definer"
            """ set search_path = '' as $$ select '{"queued": "many"}'::jsonb $$""",
            "many",
        ),
    ],
)
def test_changed_or_missing_function_would_be_noticed(at_release: Project, change: str, complaint: str) -> None:
    at_release.run(change)
    with pytest.raises(Exception, match=complaint):
        tell_again(at_release)


def test_record_is_what_the_released_migrations_answer(postgres: Postgres) -> None:
    """Not in vain: told to the release itself, the story comes out as it was written down."""
    if newer(database.MIGRATIONS):
        pytest.skip("the code here is newer than the release: its record is the last word")
    assert record(postgres, VERSION) == {"answers": RELEASED["answers"], "story": RELEASED["story"]}


# --- no row is lost, nobody waits -------------------------------------------------------------------------------------
# One job in each status, one attempt in each state, and a row in every other table: written as the release's own tables take it.
ROWS = """
insert into auth.users (id, phone, raw_user_meta_data) values (gen_random_uuid(), '14155550100', '{"first_name": "Ada"}');
insert into public.outbound_call_jobs
  (user_id, phone_number, status, due_at, attempts, finished_at, reason_code, metadata)
select gen_random_uuid(), '+1415555010' || i, s,
       case when i < 5 then now() end, 2, case when i >= 5 then now() end, 'x', '{"a": 1}'
from unnest(array['queued', 'dialing', 'in_doubt', 'calling', 'completed', 'failed', 'canceled']) with ordinality as t (s, i);
insert into public.outbound_call_attempts
  (id, job_id, number, phone_e164, state, call_sid, call_status, started_at, doubted_at, closed_at, end_due_at)
select gen_random_uuid(), 1 + i, 1, '+1415555010' || i, s,
       case when taken then 'CA' || i end, case when taken then 'ringing' end, now(),
       case when s = 'in_doubt' then now() end, case when closed then now() end, case when s = 'duplicate' then now() end
from unnest(array['started', 'in_doubt', 'accepted', 'ended', 'refused', 'absent', 'duplicate']) with ordinality as t (s, i),
     lateral (select s in ('accepted', 'ended', 'duplicate') as taken, s in ('ended', 'refused', 'absent') as closed) as u;
insert into public.outbound_call_answers values (5, 'topic', 'sales', '1', gen_random_uuid(), now());
insert into public.call_opt_outs values ('+14155550199', now(), 'by hand');
insert into private.missed_signups values (gen_random_uuid(), 'x', now());
insert into private.call_results (subject, type, data, created_at, due_at, give_up_at)
values ('5', 'call.failed', '{}', now(), now(), now());
insert into private.deleted_calls values ('CAgone', now());
insert into private.call_counts values (now(), 1);
insert into private.deleted_users values (gen_random_uuid(), now(), true);
update private.call_settings set paused_until = 'infinity', paused_by = 'hand', pause_reason = 'dinner time', halts = 2;
"""
TABLES = """
select c.oid::regclass::text from pg_class c
where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind = 'r' order by 1
"""


def rows_of(project: Project) -> dict[str, list[dict[str, Any]]]:
    project.eyes.execute("set search_path = ''")
    return {name: project.column(f"select to_jsonb(t) from {name} t order by 1") for name in project.column(TABLES)}


def test_database_in_use_keeps_every_row(at_release: Project, folder: Path) -> None:
    at_release.eyes.execute(ROWS)
    before = rows_of(at_release)
    assert all(before.values()), "there is a row in every table"
    assert at_release.migrate(folder=folder) == [file.name for file in newer(folder)]
    after = rows_of(at_release)
    for table, rows in before.items():
        kept = [{key: row.get(key) for key in rows[0]} for row in after[table]]
        assert sorted(map(str, kept)) == sorted(map(str, rows)), table


@pytest.mark.parametrize("table", HOT)
def test_push_never_waits_long_for_open_transaction(at_release: Project, folder: Path, table: str) -> None:
    """A push that waits for a table makes everybody queue behind it: it gives up, changes nothing, and is pushed again."""
    at_release.eyes.execute(f"alter database {at_release.name} set statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
    with at_release.eyes.transaction():
        at_release.eyes.execute(
            f"lock table {table} in row exclusive mode".encode()
        )  # what every insert and update takes
        try:
            at_release.migrate(folder=folder)
        except database.MigrationError as blocked:
            assert isinstance(blocked.__cause__, psycopg.errors.LockNotAvailable), blocked  # noqa: PT017 - it may also succeed
    at_release.migrate(folder=folder)
    assert at_release.migrate(folder=folder) == []


def faults(migration: str, connection: Connection) -> list[str]:
    """The rules that a later migration breaks. Runs it, in a transaction that is rolled back."""
    found = []
    first = re.sub(r"--[^\n]*|\s+", " ", migration).strip()
    if not re.match(r"set local lock_timeout = '[1-5]s';", first):
        found.append("begin with: set local lock_timeout = '2s';")
    if not first.endswith("select private.apply_rights();"):
        found.append("end with: select private.apply_rights();")
    with connection.transaction(force_rollback=True):
        connection.execute(migration.encode())
        both = ["public.outbound_call_jobs", "private.missed_signups"]
        if len(connection.execute(RUNNING, (both,)).fetchall()) == 2:
            found.append(f"do not lock {' and '.join(both)} together: a sign-up could be neither queued nor noted")
    return found


def test_later_migrations_keep_the_rules(at_release: Project, folder: Path) -> None:
    for file in newer(folder):
        with at_release.connected() as connection:
            assert faults(file.read_text(), connection) == [], file.name
        at_release.migrate(folder=folder, upto=file.name)


BOTH = "alter table public.outbound_call_jobs add a int; alter table private.missed_signups add a int"
BREAKING = {
    "select private.apply_rights();": "begin with",
    "set local lock_timeout = '60s'; select private.apply_rights();": "begin with",
    "set local lock_timeout = '2s'; create table private.more ()": "end with",
    f"set local lock_timeout = '2s'; {BOTH}; select private.apply_rights();": "together",
}


def test_later_migration_that_breaks_a_rule_is_noticed(at_release: Project) -> None:
    with at_release.connected() as connection:
        for migration, complaint in BREAKING.items():
            (found,) = faults(migration, connection)
            assert complaint in found
