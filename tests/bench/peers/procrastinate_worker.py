"""procrastinate, as its documentation advises: an async task, a retry strategy, and the periodic task for stalled jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from procrastinate import App, JobContext, PsycopgConnector, RetryStrategy

from tests.bench.peers.common import CONCURRENCY, DATABASE_URL, RETRY_S, STALLED_S, TRIES, Enqueue, main, twilio

app = App(connector=PsycopgConnector(conninfo=DATABASE_URL))


@app.task(queue="calls", retry=RetryStrategy(max_attempts=TRIES, wait=RETRY_S), pass_context=True)
async def call(context: JobContext, phone: str) -> None:
    await context.additional_context["call"](phone)


# Every tenth minute is the documentation's; the rounds with crashes cannot wait so long.
@app.periodic(cron="* * * * * */2" if STALLED_S else "*/10 * * * *")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:
    for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=STALLED_S or 30):
        await app.job_manager.retry_job(job)


async def install() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    async with app.open_async():
        yield lambda phone: call.defer_async(phone=phone)


async def work() -> None:
    patience = {"update_heartbeat_interval": STALLED_S / 3, "stalled_worker_timeout": STALLED_S} if STALLED_S else {}
    async with app.open_async(), twilio() as dial:
        await app.run_worker_async(concurrency=CONCURRENCY, additional_context={"call": dial}, **patience)


if __name__ == "__main__":
    main(install, producer, work)
