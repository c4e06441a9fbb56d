"""A claim costs the same however many jobs are finished, due or for later: each reads its index, in order, and stops.

The statements are the functions' own, taken from the database; what a whole function reads is measured in blocks of 8 kB.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import Connection
from tests.database.sql_api import ASK_S, BUSY_S, GIVE_UP_S, HOLD_S, LEASE_S, PACE
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

FINISHED, LATER, DUE, TWICE = 60_000, 5_000, 5_000, 100
FINISHED_A_DAY = 1_000
CALLS, CALLS_A_DAY = 200_000, 2_880  # of ten weeks, one each 30 seconds; to 10,000 numbers of 100 prefixes
A_FEW_BLOCKS = 25  # of one statement: an index's three levels, some dead entries, the row
A_STEP_READS = 150  # a whole function, its writes and the catalogs included: 30 to 60 measured; a scan is 1,500

# Without triggers and the exclusion constraint: ten times quicker, and no claim reads it.
FILL = """
set session_replication_role = replica;
alter table public.outbound_call_jobs drop constraint one_job_per_key_and_hour;
alter table private.call_history set unlogged;
alter table public.outbound_call_answers set unlogged;
alter table public.outbound_call_attempts set unlogged;
alter table public.outbound_call_jobs set unlogged;
update pg_index set indisready = false
where indrelid in ('public.outbound_call_jobs'::regclass, 'public.outbound_call_attempts'::regclass);

insert into public.outbound_call_jobs
  (user_id, phone_number, phone_e164, status, attempts, due_at, finished_at, created_at, dedupe_key, dedupe_window,
   database_id)
select gen_random_uuid(), '+1' || n, '+1' || n, status, attempts, due_at, finished_at, now(), 'k' || n, 'empty',
       private.database_id()
from (
  select 1000000000 + n as n, (array['completed', 'failed', 'canceled'])[1 + n % 3] as status, 1 as attempts,
         null::timestamptz as due_at, now() - n * interval '1 day' / {finished_a_day} as finished_at
  from generate_series(1, {finished}) n
  union all
  select 2000000000 + n, 'queued', 0, now() + n * interval '1 minute', null from generate_series(1, {later}) n
  union all
  select 3000000000 + n, 'queued', 0, now() - n * interval '1 second', null from generate_series(1, {due}) n
  union all
  select 4000000000 + n, (array['dialing', 'in_doubt', 'calling'])[1 + n % 3], 1, now() + n * interval '1 minute', null
  from generate_series(1, {later}) n
  union all
  select 5000000000 + n, (array['dialing', 'in_doubt', 'calling'])[1 + n % 3], 1, now() - n * interval '1 second', null
  from generate_series(1, {due}) n
) as rows (n, status, attempts, due_at, finished_at);

insert into public.outbound_call_attempts
  (id, job_id, number, phone_e164, state, call_sid, call_status, started_at, doubted_at, accepted_at, closed_at)
select gen_random_uuid(), id, 1, phone_e164,
       case status when 'dialing' then 'started' when 'in_doubt' then 'in_doubt' when 'calling' then 'accepted' else 'ended' end,
       case when status not in ('dialing', 'in_doubt') then 'CA' || id end, 'queued',
       now() - id % 1000 * interval '1 day', now(), now(), finished_at
from public.outbound_call_jobs where attempts > 0;

insert into public.outbound_call_attempts
  (id, job_id, number, phone_e164, state, call_sid, call_status, started_at, accepted_at, end_due_at)
select gen_random_uuid(), id, 1, phone_e164, 'duplicate', 'CB' || id, 'ringing', now(), now(), now() - id * interval '1 second'
from public.outbound_call_jobs where status = 'completed' order by id limit {twice};

insert into public.outbound_call_attempts
  (id, job_id, number, phone_e164, state, call_sid, call_status, started_at, accepted_at, closed_at)
select lpad(to_hex(n), 32, '0')::uuid, n, 1, '+1415' || 1000000 + n % 100 * 10000 + n / 100 % 100,
       'ended', 'CC' || n, 'completed', at, at, at
from (select n, now() - n * interval '30 seconds' as at from generate_series(1, {calls}) n) as rows;

update pg_index set indisready = true
where indrelid in ('public.outbound_call_jobs'::regclass, 'public.outbound_call_attempts'::regclass);
set maintenance_work_mem = '128MB';
reindex table public.outbound_call_jobs;
reindex table public.outbound_call_attempts;

reset session_replication_role;
vacuum analyze public.outbound_call_jobs, public.outbound_call_attempts;
"""


@pytest.fixture(scope="module")
def full(postgres: Postgres, template_database: str) -> Iterator[Connection]:
    """A table as after a year."""
    database.create_database(postgres, "test_claim_plans", template_database)
    with psycopg.connect(postgres.url(database="test_claim_plans"), autocommit=True) as connection:
        for statement in FILL.format(
            finished=FINISHED, finished_a_day=FINISHED_A_DAY, later=LATER, due=DUE, twice=TWICE, calls=CALLS
        ).split(";\n"):
            connection.execute(statement.encode())
        yield connection
    database.drop_database(postgres, "test_claim_plans")


@pytest.fixture
def undone(full: Connection) -> Iterator[Connection]:
    """Whatever the test does to it."""
    with full.transaction(force_rollback=True):
        yield full


# --- the functions' own statements ------------------------------------------------------------------------------------
def source(connection: Connection, function: str) -> str:
    ((text,),) = connection.execute("select prosrc from pg_proc where proname = %s", (function,)).fetchall()
    return str(text)


def plan_of(connection: Connection, statement: str, options: str = "analyze, buffers, ") -> dict[str, Any]:
    ((plans,),) = connection.execute(f"explain ({options}format json) {statement}".encode()).fetchall()
    plan: dict[str, Any] = plans[0]["Plan"]
    return plan


def blocks(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def drop(connection: Connection, index: str) -> None:
    connection.execute(f"drop index public.{index}".encode())


def statement_of(connection: Connection, function: str, where: str) -> str:
    """The one `select ... ;` of the function that has this condition, its variables as parameters."""
    pattern = r"\(?(select (?:(?!select)[^;])*?" + re.escape(where) + r"[^;]*?)(?:\)?;|\)\n)"
    selects = re.findall(pattern, source(connection, function))
    assert len(selects) == 1, f"{function} has {len(selects)} statements with: {where}"
    statement = re.sub(r"\binto v_job\b", "", selects[0])
    return statement.replace("v_now", "$1::timestamptz").replace("p_job_id", "$2::bigint")


def faults(connection: Connection, index: str, mode: str) -> list[str]:
    """Why the claim's plan, of this plan_cache_mode, is not: one scan, of this index, in order, that stops at the first row."""
    connection.execute(f"set local plan_cache_mode = {mode}".encode())
    statement = statement_of(connection, *CLAIMS[index])
    connection.execute(f"prepare claim (timestamptz, bigint) as {statement}".encode())
    query = "select max(id) from public.outbound_call_jobs where status = 'queued' and due_at < now()"
    ((a_due_job,),) = connection.execute(query).fetchall()
    plan = plan_of(connection, f"execute claim (now(), {a_due_job})")
    connection.execute("deallocate claim")
    kinds = {node["Node Type"] for node in nodes(plan)}
    found = sorted(kinds & {"Sort", "Incremental Sort", "Seq Scan", "Bitmap Heap Scan", "Bitmap Index Scan"})
    scans = [node for node in nodes(plan) if "Scan" in node["Node Type"]]
    found += [f"reads {node.get('Index Name')}" for node in scans if node.get("Index Name") != index]
    rows = sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in scans)
    if rows > 1:
        found.append(f"reads {rows} rows")
    if blocks(plan) > A_FEW_BLOCKS:
        found.append(f"reads {blocks(plan)} blocks")
    return found


# By the index that it must use: a claim's function, and a condition that only this statement of it has.
CLAIMS = {
    "outbound_call_jobs_to_dial": (
        "claim_call_job",
        "where status = 'queued' and due_at <= v_now\n      order by due_at, id limit 1",
    ),
    "outbound_call_jobs_pkey": ("claim_call_job", "where id = p_job_id and status = 'queued'"),
    "outbound_call_jobs_open": ("claim_open_call", "status in ('dialing', 'in_doubt', 'calling')"),
    "outbound_call_attempts_to_end": (
        "claim_open_call",
        "state = 'duplicate' and a.closed_at is null and a.end_due_at",
    ),
}


@pytest.mark.parametrize("index", CLAIMS)
def test_claim_stops_at_the_first_row_of_its_index(undone: Connection, index: str) -> None:
    assert faults(undone, index, "force_custom_plan") == []
    assert faults(undone, index, "force_generic_plan") == []
    if not index.endswith("pkey"):
        drop(undone, index)
        assert faults(undone, index, "force_generic_plan")


@pytest.mark.parametrize("columns", ["(id) where status = 'queued'", "(created_at, due_at, id)"])
def test_index_of_other_order_or_states_would_be_noticed(undone: Connection, columns: str) -> None:
    drop(undone, "outbound_call_jobs_to_dial")
    undone.execute(f"create index outbound_call_jobs_to_dial on public.outbound_call_jobs {columns}".encode())
    assert faults(undone, "outbound_call_jobs_to_dial", "force_generic_plan")


# --- the caps ---------------------------------------------------------------------------------------------------------
VALUES = {
    "p_phone_e164": "'+14151010001'",
    "p_now": "now()",
    "p_attempt": "'00000000-0000-0000-0000-000000000000'",
    "p_calls_per_number_per_day": "3",
    "p_calls_without_key": "7",
}


def cap_plan(connection: Connection, condition: str) -> dict[str, Any]:
    selects = re.findall(r"select [^;]*;", source(connection, "cap_reached"))
    (statement,) = (select for select in selects if condition in select)
    statement = re.sub(r"into \w+(, \w+)?", "", statement)
    for variable, value in VALUES.items():
        statement = statement.replace(variable, value)
    return plan_of(connection, statement)


def cap_faults(plan: dict[str, Any], index: str) -> list[str]:
    scans = [node for node in nodes(plan) if "Scan" in node["Node Type"] and "Bitmap Heap" not in node["Node Type"]]
    found = [f"reads {node.get('Index Name')}" for node in scans if node.get("Index Name") != index]
    if (rows := sum(node["Actual Rows"] for node in scans)) > CALLS_A_DAY:
        found.append(f"reads {rows} calls")
    return found


@pytest.mark.parametrize(
    ("index", "condition"),
    [
        ("outbound_call_attempts_per_number", "p_calls_per_number_per_day - 1"),
        ("outbound_call_attempts_per_number", "p_calls_without_key - 1"),
        ("outbound_call_attempts_per_prefix", "left(phone_e164, -4)"),
    ],
    ids=["number", "without key", "prefix"],
)
def test_cap_reads_only_the_calls_that_it_counts(undone: Connection, index: str, condition: str) -> None:
    plan = cap_plan(undone, condition)
    assert cap_faults(plan, index) == []
    assert blocks(plan) < A_FEW_BLOCKS
    drop(undone, index)
    assert cap_faults(cap_plan(undone, condition), index)


# --- whole functions --------------------------------------------------------------------------------------------------
def read(connection: Connection, call: str, times: int = 5) -> int:
    """The blocks of one call, once the session knows its catalogs and plans: the fewest of some, for caches fill up and spill."""
    return min(blocks(plan_of(connection, f"select {call}")) for _ in range(times))


def claim(job_id: str = "null", caps: str = "3, 20, null") -> str:
    return f"public.claim_call_job(gen_random_uuid(), {LEASE_S}, {PACE}, {BUSY_S}, {job_id}, {caps})"


ALL_ENDED = b"update public.outbound_call_attempts set closed_at = now(), end_due_at = null where state = 'duplicate'"
ASK = f"public.claim_open_call({HOLD_S}, {ASK_S}, {GIVE_UP_S})"


def test_whole_functions_read_little_of_the_tables(undone: Connection) -> None:
    """A claim (of the next job, of one by id, under a ceiling), what is done by hand, each answer, and the sweep's look."""
    undone.execute("create temp sequence next_due")
    query = "select id, call_sid from public.outbound_call_attempts where state = 'accepted' limit 1"
    ((attempt, sid),) = undone.execute(query).fetchall()
    by_id = f"(select min(id) from public.outbound_call_jobs) + {FINISHED + LATER} + nextval('next_due')"
    calls = [
        claim(),
        claim(by_id),
        claim(caps=f"3, 20, {10 * CALLS_A_DAY}"),
        "public.opt_out('+14151010001')",
        "public.prune_call_jobs(3000)",
        f"public.record_call_status('{attempt}', '{sid}', 'ringing', 60, '{{60}}')",
        ASK,  # a duplicate
    ]
    reads = {call: read(undone, call) for call in calls}
    undone.execute(ALL_ENDED)
    reads["an open call"] = read(undone, ASK)
    assert {call: count for call, count in reads.items() if count >= A_STEP_READS} == {}
    assert read(undone, f"public.accept_call('{uuid.uuid4()}', 'CAnew', 60)") < A_FEW_BLOCKS
    begun = "select from public.outbound_call_attempts where state = 'started' and started_at = now()"
    assert undone.execute(begun).rowcount >= 3 * 5  # the three claims, five times each


@pytest.mark.parametrize(
    ("index", "call"),
    [("outbound_call_jobs_to_dial", claim()), ("outbound_call_jobs_open", ASK), ("outbound_call_attempts_to_end", ASK)],
    ids=["dial", "look after", "end"],
)
def test_function_without_its_index_reads_far_more(undone: Connection, index: str, call: str) -> None:
    if index == "outbound_call_jobs_open":
        undone.execute(ALL_ENDED)
    drop(undone, index)
    assert read(undone, call) > 4 * A_STEP_READS


OF_THE_DAY = FINISHED + LATER + DUE + TWICE + CALLS_A_DAY  # attempts: those of the table's jobs all began just now


def read_whole(connection: Connection) -> set[str]:
    """The tables that the one statement of call_job_stats reads from end to end."""
    (statement,) = re.findall(r"return \((.*)\);\nend", source(connection, "call_job_stats"), re.DOTALL)
    plan = plan_of(connection, statement.replace("v_now", "now()"), options="")
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


@pytest.mark.parametrize("index", ["outbound_call_jobs_finished", "call_opt_outs_recent"])
def test_stats_read_open_and_todays_rows_by_index(undone: Connection, index: str) -> None:
    assert read_whole(undone) <= {"call_settings", "missed_signups"}  # one row, and hardly ever one
    assert read(undone, "public.call_job_stats()") < OF_THE_DAY / 5
    drop(undone, index)
    assert read_whole(undone) & {"outbound_call_jobs", "call_opt_outs"}


def test_hourly_statistics_read_no_older_call(undone: Connection) -> None:
    few = read(undone, "public.call_stats_by_hour(48)")
    assert few < OF_THE_DAY / 5
    drop(undone, "outbound_call_attempts_uncounted")
    assert read(undone, "public.call_stats_by_hour(48)") > 2 * few
