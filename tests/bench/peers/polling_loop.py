"""A loop that polls each second, sets `running`, posts, and marks the job: as most people write it first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.bench.peers.common import CONCURRENCY, DATABASE_URL, RETRY_S, TRIES, Call, Enqueue, main, twilio

TABLE = """
create table call_jobs (
  id bigint generated always as identity primary key, phone_e164 text not null, status text not null default 'queued',
  attempts int not null default 0, next_run_at timestamptz not null default now(), last_error text, twilio_call_sid text
);
create index on call_jobs (next_run_at) where status = 'queued';
"""
CLAIM = """
update call_jobs set status = 'running', attempts = attempts + 1 where id in (
  select id from call_jobs where status = 'queued' and next_run_at <= now()
  order by next_run_at limit $1 for update skip locked
) returning id, phone_e164, attempts
"""
DONE = "update call_jobs set status = 'succeeded', twilio_call_sid = $2 where id = $1"
AGAIN = """
update call_jobs set status = $2, last_error = $3, next_run_at = now() + make_interval(secs => $4) where id = $1
"""


async def install() -> None:
    await (await asyncpg.connect(DATABASE_URL)).execute(TABLE)


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    connection = await asyncpg.connect(DATABASE_URL)
    yield lambda phone: connection.execute("insert into call_jobs (phone_e164) values ($1)", phone)


async def run(database: asyncpg.Pool, job: asyncpg.Record, dial: Call) -> None:
    try:
        await database.execute(DONE, job["id"], await dial(job["phone_e164"]))
    except Exception as error:  # noqa: BLE001 (as most people write it)
        status = "queued" if job["attempts"] < TRIES else "failed"
        await database.execute(AGAIN, job["id"], status, repr(error), float(RETRY_S))


async def work() -> None:
    async with asyncpg.create_pool(DATABASE_URL) as database, twilio() as dial:
        while True:
            jobs = await database.fetch(CLAIM, CONCURRENCY)
            await asyncio.gather(*(run(database, job, dial) for job in jobs))
            if not jobs:
                await asyncio.sleep(1)


if __name__ == "__main__":
    main(install, producer, work)
