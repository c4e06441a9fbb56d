"""A consumer of Supabase Queues (pgmq): long polls, a visibility timeout, archive when done; pgmq's own SQL and client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgmq import AsyncPGMQueue
from pgmq.install import get_embedded_install_sql
from pgmq.messages import Message

from tests.bench.peers.common import CONCURRENCY, DATABASE_URL, STALLED_S, TRIES, Call, Enqueue, main, twilio


@asynccontextmanager
async def connected() -> AsyncIterator[AsyncPGMQueue]:
    queue = AsyncPGMQueue(conn_string=DATABASE_URL, init_extension=False, vt=STALLED_S or 30)
    await queue.init()
    yield queue


async def install() -> None:
    async with connected() as queue:
        await queue.pool.execute(get_embedded_install_sql())
        await queue.create_queue("calls")


@asynccontextmanager
async def producer() -> AsyncIterator[Enqueue]:
    async with connected() as queue:
        yield lambda phone: queue.send("calls", {"phone": phone})


async def consume(queue: AsyncPGMQueue, message: Message, dial: Call) -> None:
    try:
        if message.read_ct <= TRIES:
            await dial(message.message["phone"])
        await queue.archive("calls", message.msg_id)
    except Exception:
        logging.exception("the message becomes visible again")


async def work() -> None:
    calls: set[asyncio.Task[None]] = set()
    async with connected() as queue, twilio() as dial:
        while True:
            free = CONCURRENCY - len(calls)
            for message in (
                await queue.read_with_poll("calls", qty=free, max_poll_seconds=5, poll_interval_ms=100) or ()
            ):
                calls.add(task := asyncio.create_task(consume(queue, message, dial)))
                task.add_done_callback(calls.discard)
            if len(calls) == CONCURRENCY:
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)


if __name__ == "__main__":
    main(install, producer, work)
