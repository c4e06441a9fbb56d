"""This product: an insert into its table, and the webhook that pg_net would send. The sandbox installs and runs the rest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import asyncpg

from tests.bench.peers.common import DATABASE_URL, Enqueue, main

INSERT = "insert into public.outbound_call_jobs (user_id, phone_number) values (gen_random_uuid(), $1) returning id"
FUNCTION_URL, SECRET = os.environ.get("BENCH_FUNCTION_URL"), os.environ["BENCH_SECRET"]


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    connection = await asyncpg.connect(DATABASE_URL)
    sending: set[asyncio.Task[None]] = set()
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(force_close=True)) as session:

        async def send(job: int) -> None:
            body = {"type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "record": {"id": job}}
            async with session.post(f"{FUNCTION_URL}/", json=body) as answer:
                await answer.read()

        async def enqueue(phone: str) -> None:
            job = await connection.fetchval(INSERT, phone)
            if FUNCTION_URL:
                sending.add(task := asyncio.create_task(send(job)))
                task.add_done_callback(sending.discard)

        yield enqueue


async def nothing() -> None:
    """The sandbox does it."""


if __name__ == "__main__":
    main(nothing, producer, nothing)
