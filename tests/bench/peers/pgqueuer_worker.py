"""pgqueuer, as its documentation advises: one asyncpg connection, shared resources, retries in the database, a heartbeat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.executors import DatabaseRetryEntrypointExecutor
from pgqueuer.models import Context, Job
from pgqueuer.queries import Queries

from tests.bench.peers.common import CONCURRENCY, DATABASE_URL, RETRY_S, STALLED_S, TRIES, Enqueue, main, twilio

# A dead worker's jobs come back when their heartbeat is old. The queue is polled as often.
PATIENCE = dict.fromkeys(("heartbeat_timeout", "dequeue_timeout"), timedelta(seconds=STALLED_S or 30))


async def install() -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(DATABASE_URL)))
    await queries.install()
    await queries.optimize_autovacuum()


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(DATABASE_URL)))
    yield lambda phone: queries.enqueue("call", phone.encode())


async def work() -> None:
    async with twilio() as dial:
        queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(DATABASE_URL)), resources={"call": dial})

        @queue.entrypoint(
            "call",
            accepts_context=True,
            executor_factory=lambda parameters: DatabaseRetryEntrypointExecutor(
                parameters=parameters, max_attempts=TRIES - 1, initial_delay=timedelta(seconds=RETRY_S)
            ),
        )
        async def call(job: Job, context: Context) -> None:
            await context.resources["call"]((job.payload or b"").decode())

        await queue.run(batch_size=CONCURRENCY // 2, max_concurrent_tasks=CONCURRENCY, **PATIENCE)


if __name__ == "__main__":
    main(install, producer, work)
