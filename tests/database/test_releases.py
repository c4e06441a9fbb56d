"""Migrations go forward only: what was released stays as it is, the code of that release goes on, no row is lost, nobody waits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.conftest import Connection
from tests.database.released import RECORDS, hashes, record, service
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

RELEASE = max(RECORDS.glob("*.json"))
VERSION = RELEASE.stem
RELEASED: dict[str, Any] = json.loads(RELEASE.read_text())
NEWER = sorted(file for file in database.MIGRATIONS.glob("*.sql") if file.name.split("_")[0] > VERSION)

# What the code of a release decides by; times and texts may come out differently.
DECISIVE = {"outcome", "then", "state", "call_status", "job_status", "status"} | {
    "moved",
    "end",
    "put_off",
    "lease_ran_out",
}
HOT = ("public.outbound_call_jobs", "public.outbound_call_attempts", "private.call_settings", "auth.users")
STATEMENT_TIMEOUT = "10s"  # what a push that waits for ever runs into, here

_numbers = count(1)


@pytest.fixture
def at_release(postgres: Postgres) -> Iterator[str]:
    """The name of a database that stands where the release left it."""
    name = f"at_release_{next(_numbers)}"
    database.create_database(postgres, name)
    database.bootstrap(postgres, name)
    database.migrate(postgres, name, upto=VERSION)
    yield name
    database.drop_database(postgres, name)


@pytest.fixture
def eyes(postgres: Postgres, at_release: str) -> Iterator[Connection]:
    with psycopg.connect(postgres.url(database=at_release), autocommit=True) as connection:
        yield connection


# --- what was released stays as it is ---------------------------------------------------------------------------------


def test_a_released_migration_is_not_changed_any_more() -> None:
    advice = f"databases have had it: write a new migration (or, before the release: python -m tests.database.released {VERSION})"
    assert hashes(VERSION) == RELEASED["migrations"], advice


# --- the code of that release goes on ---------------------------------------------------------------------------------


def decisive(answer: Any) -> Any:
    """The parts of an answer that code acts on: its words and its plain values."""
    if isinstance(answer, dict):
        return {key: value for key, value in answer.items() if key in DECISIVE}
    return answer


def test_the_released_code_still_gets_answers_that_it_understands(postgres: Postgres, at_release: str) -> None:
    database.migrate(postgres, at_release)
    with service(postgres, at_release) as (client, world):
        for step in RELEASED["story"]:
            if "sql" in step:
                world.execute(step["sql"].encode())
                continue
            answer = client.rpc(step["rpc"], step["arguments"]).execute().data
            told = f"{step['rpc']}({step['arguments']})"
            if step["rpc"] in RELEASED["answers"]:
                schema = RELEASED["answers"][step["rpc"]]
                wrong = [
                    e.message for e in Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(answer)
                ]
                assert wrong == [], told
            if step["answer"] == []:  # it answered nothing, so nobody reads what it answers now
                continue
            was, now = decisive(step["answer"]), decisive(answer)
            assert (now if not isinstance(was, dict) else {key: now.get(key) for key in was}) == was, told


def test_the_story_has_every_function_of_the_released_code_and_every_kind_of_answer() -> None:
    told = {(step["rpc"], decisive(step["answer"]).get("outcome") if isinstance(step["answer"], dict) else None)
            for step in RELEASED["story"] if "rpc" in step}  # fmt: skip
    for function, schema in RELEASED["answers"].items():
        outcomes = schema["discriminator"]["mapping"] if "discriminator" in schema else [None]
        assert {outcome for name, outcome in told if name == function} == set(outcomes), function
    thens = {
        step["answer"]["then"] for step in RELEASED["story"] if step.get("rpc") in ("accept_call", "record_call_status")
    }
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
def test_a_function_that_is_gone_or_answers_otherwise_would_be_noticed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, at_release: str, eyes: Connection, change: str, complaint: str
) -> None:
    database.migrate(postgres, at_release)
    eyes.execute(change.encode())
    monkeypatch.setattr(database, "migrate", lambda *_: [])
    with pytest.raises(Exception, match=complaint):
        test_the_released_code_still_gets_answers_that_it_understands(postgres, at_release)


def test_the_record_is_what_the_released_migrations_answer(postgres: Postgres) -> None:
    """Not in vain: told to the release itself, the story comes out as it was written down."""
    if NEWER:
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
insert into public.call_opt_outs values ('+14155550199', now(), 'by hand');
insert into private.missed_signups values (gen_random_uuid(), 'x', now());
insert into private.deleted_calls values ('CAgone', now());
insert into private.deleted_users values (gen_random_uuid(), now(), true);
update private.call_settings set paused_until = 'infinity', paused_by = 'hand', pause_reason = 'dinner time', halts = 2;
"""
TABLES = """
select c.oid::regclass::text from pg_class c
where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind = 'r' order by 1
"""


def rows_of(eyes: Connection) -> dict[str, list[dict[str, Any]]]:
    eyes.execute("set search_path = ''")
    tables = [name for (name,) in eyes.execute(TABLES)]
    return {
        name: [row for (row,) in eyes.execute(f"select to_jsonb(t) from {name} t order by 1".encode())]
        for name in tables
    }


def test_a_database_in_use_keeps_every_row(postgres: Postgres, at_release: str, eyes: Connection) -> None:
    eyes.execute(ROWS)
    before = rows_of(eyes)
    assert all(before.values()), "there is a row in every table"
    assert database.migrate(postgres, at_release) == [file.name for file in NEWER]
    after = rows_of(eyes)
    for table, rows in before.items():
        kept = [{key: row.get(key) for key in rows[0]} for row in after[table]]
        assert sorted(map(str, kept)) == sorted(map(str, rows)), table


@pytest.mark.parametrize("table", HOT)
def test_a_push_never_waits_long_for_a_transaction_that_is_open(
    postgres: Postgres, at_release: str, eyes: Connection, table: str
) -> None:
    """Whoever waits for a table makes everybody queue behind them: so it gives up, changes nothing, and is pushed again."""
    if not NEWER:
        pytest.skip("no migration is newer than the release")
    eyes.execute(f"alter database {at_release} set statement_timeout = '{STATEMENT_TIMEOUT}'".encode())
    with psycopg.connect(postgres.url(database=at_release)) as other:
        other.execute(f"lock table {table} in row exclusive mode".encode())  # what every insert and update takes
        try:
            database.migrate(postgres, at_release)
        except database.MigrationError as blocked:
            assert isinstance(blocked.__cause__, psycopg.errors.LockNotAvailable), blocked  # noqa: PT017 - it may also succeed
    database.migrate(postgres, at_release)
    assert database.migrate(postgres, at_release) == []


@pytest.mark.parametrize("file", NEWER, ids=lambda file: file.name)
def test_a_newer_migration_says_first_how_long_it_waits_for_a_lock(file: Any) -> None:
    first = re.sub(r"--[^\n]*|\s+", " ", file.read_text()).strip()
    assert re.match(r"set local lock_timeout = '[1-5]s';", first), (
        f"begin with: set local lock_timeout = '2s';  ({file.name})"
    )
