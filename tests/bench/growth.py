"""Whether the database's steps cost the same however many jobs there are: one Markdown table.

    python -m tests.bench.growth [--jobs 10000 100000 1000000] [--times 200]

Of the jobs 96 % are finished, the others wait or are open; half as many calls again, one each 30 seconds or, in the busy day,
86,400 within 24 hours. Times are medians in milliseconds, each step a transaction of its own on one connection. The idle sweep
is what a sweep asks when nothing is to be done. Bytes are tables, indexes and TOAST; WAL is of one whole call.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from collections.abc import Callable

import psycopg

from tests.database.sql_api import ASK_S, GIVE_UP_S, HOLD_S, a_sid
from tests.database.test_claim_plans import FILL
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database

Connection = psycopg.Connection[tuple[object, ...]]
CLAIM = "select public.claim_call_job(%s, 60, 1000, 60, null, 3, 20, %s)"
DENIED = "select public.claim_call_job(gen_random_uuid(), 60, 0.01, 60, null, 3, 20, 500)"
ACCEPT = "select public.accept_call(%s, %s, 60)"
END = "select public.record_call_status(%s, %s, 'completed', 60, '{60}')"
IDLE = (
    f"select public.claim_open_call({HOLD_S}, {ASK_S}, {GIVE_UP_S})",
    "select public.claim_call_job(gen_random_uuid(), 60, 1000, 60, null, 3, 20, 500)",
    "select public.heal_onboarding_calls()",
    "select public.prune_call_jobs(36500)",
    "select public.call_job_stats()",
)
BUSY_DAY = """
insert into private.call_counts (began, calls)
select date_bin('5 minutes', now() - n * interval '5 minutes', '2000-01-01Z'), 300 from generate_series(0, 287) n
on conflict do nothing
"""
SIZE = """
select sum(pg_total_relation_size(c.oid)) from pg_class c
where c.oid in ('public.outbound_call_jobs'::regclass, 'public.outbound_call_attempts'::regclass)
"""


def fill(postgres: Postgres, jobs: int) -> str:
    """-> the name of a database with so many jobs"""
    name = f"growth_{jobs}"
    database.create_database(postgres, name)
    database.bootstrap(postgres, name)
    database.migrate(postgres, name)
    rest = jobs // 100
    history = FILL.format(finished=jobs - 4 * rest, finished_a_day=1000, later=rest, due=rest, twice=0, calls=jobs // 2)
    with psycopg.connect(postgres.url(database=name), autocommit=True) as connection:
        for statement in history.split(";\n"):
            connection.execute(statement.encode())
        for table in ("jobs", "attempts"):
            connection.execute(f"alter table public.outbound_call_{table} set logged".encode())
        connection.execute(
            "update public.outbound_call_jobs set phone_e164 = '+13' || lpad((id % 100000)::text, 5, '0') || '0100'"
            " where status = 'queued'"
        )
        for table in ("jobs", "attempts"):
            connection.execute(f"vacuum analyze public.outbound_call_{table}".encode())
    return name


def median_ms(step: Callable[[], object], times: int) -> float:
    """The first ones, which load the catalogs, are left out."""
    measured = []
    for _ in range(times + 10):
        began = time.perf_counter()
        step()
        measured.append((time.perf_counter() - began) * 1000)
    return statistics.median(measured[10:])


def lsn(connection: Connection) -> int:
    ((bytes_written,),) = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchall()
    return int(str(bytes_written))


def calls(connection: Connection, times: int, ceiling: int | None = None) -> dict[str, list[float]]:
    """So many whole calls. -> milliseconds and bytes of WAL of each step"""
    found: dict[str, list[float]] = {"claim": [], "claim WAL": [], "call WAL": []}
    for _ in range(times + 10):
        attempt, sid, at = uuid.uuid4(), a_sid(), lsn(connection)
        began = time.perf_counter()
        ((answer,),) = connection.execute(CLAIM, (attempt, ceiling)).fetchall()
        found["claim"].append((time.perf_counter() - began) * 1000)
        assert isinstance(answer, dict)
        if answer["outcome"] == "wait":
            found["claim"].pop()
            time.sleep(float(answer["wait_s"]))
            continue
        assert answer["outcome"] == "claimed", answer
        found["claim WAL"].append(lsn(connection) - at)
        connection.execute(ACCEPT, (attempt, sid))
        connection.execute(END, (attempt, sid))
        found["call WAL"].append(lsn(connection) - at)
    return {name: values[10:] for name, values in found.items()}


def row(postgres: Postgres, jobs: int, times: int) -> list[str]:
    name = fill(postgres, jobs)
    with psycopg.connect(postgres.url(database=name), autocommit=True) as connection:
        ((size,),) = connection.execute(SIZE).fetchall()
        stats = median_ms(lambda: connection.execute("select public.call_job_stats()"), 20)
        connection.execute("checkpoint")
        plain = calls(connection, times)
        connection.execute(BUSY_DAY)
        ceiling = calls(connection, times, 1_000_000)
        connection.execute("update private.call_settings set next_call_at = now() + interval '1 hour'")
        at = lsn(connection)
        denied = median_ms(lambda: connection.execute(DENIED), times)
        denied_wal = (lsn(connection) - at) / (times + 10)
        connection.execute("update private.call_settings set next_call_at = '-infinity'")
        connection.execute(
            "update public.outbound_call_jobs set due_at = now() + interval '1 day' where finished_at is null"
        )
        connection.execute("vacuum analyze public.outbound_call_jobs")
        idle = median_ms(lambda: [connection.execute(query.encode()) for query in IDLE], 20)
        connection.execute("delete from public.outbound_call_answers")
        prune = median_ms(lambda: connection.execute("select public.prune_call_jobs(1, 50)"), 10)
    median = statistics.median
    return [
        f"{jobs:,}", f"{int(str(size)) / jobs:,.0f}", f"{median(plain['claim']):.2f}", f"{median(ceiling['claim']):.2f}",
        f"{median(plain['claim WAL']):,.0f}", f"{median(plain['call WAL']):,.0f}", f"{denied:.2f}", f"{denied_wal:.0f}",
        f"{idle:.1f}", f"{stats:.1f}", f"{prune:.1f}",
    ]  # fmt: skip


HEADINGS = [
    "jobs", "bytes a job", "claim ms", "claim ms, 86,400 calls in the day and a ceiling", "WAL a claim", "WAL a call",
    "denied claim ms", "WAL a denied claim", "idle sweep ms", "stats ms", "prune of 50 ms",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth")
    parser.add_argument("--jobs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--times", type=int, default=30, help="calls of each kind; a hundredth of the jobs are due")
    options = parser.parse_args()
    if min(options.jobs) < 10_000 or options.times > min(options.jobs) // 250:
        parser.error("--jobs must be at least 10,000, --times at most a 250th of the fewest jobs")
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + "---:|" * len(HEADINGS), flush=True)
    with Postgres() as postgres:
        for jobs in options.jobs:
            print("| " + " | ".join(row(postgres, jobs, options.times)) + " |", flush=True)


if __name__ == "__main__":
    main()
