"""A stand-in for pg_net's worker: takes what net.http_post queued and posts it, as the real one does, faults included.

In batches of up to 200, all at once and in no order; the next batch a second after the slowest has ended; no retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time

import aiohttp
import psycopg
from psycopg.rows import TupleRow

from tests.sandbox.events import Events
from tests.sandbox.serve import join

BATCH = 200
BETWEEN_BATCHES_S = 1.0
RECONNECT_S = 0.05
POLL_S = 0.25  # net.http_post wakes the worker before, as the real one is woken

_TAKE = """
delete from net.http_request_queue
where id in (select id from net.http_request_queue order by id limit %s)
returning id, url, headers, body, timeout_milliseconds
"""
_KEEP = """
insert into net._http_response (id, status_code, content_type, headers, content, timed_out, error_msg)
values (%s, %s, %s, %s, %s, %s, %s)
"""


class PgNetWorker:
    """Runs in a thread of its own from start() to stop(); survives a database that goes away.

    `loses`: from now on requests are taken from the queue and never sent, as pg_net does when it is restarted.
    """

    def __init__(self, database_url: str, events: Events | None = None) -> None:
        self.loses = False
        self._database_url = database_url
        self._events = events or Events()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="pg_net", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        join(self._thread)

    async def _run(self) -> None:
        connector = aiohttp.TCPConnector(limit=BATCH)
        async with aiohttp.ClientSession(connector=connector, headers={"User-Agent": "pg_net/0.20.4"}) as session:
            while not self._stopping.is_set():
                with contextlib.suppress(psycopg.OperationalError):
                    await self._work(session)
                await asyncio.sleep(RECONNECT_S)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        async with await psycopg.AsyncConnection.connect(self._database_url, autocommit=True) as connection:
            await connection.execute("listen pg_net")
            while not self._stopping.is_set():
                if await self._deliver_batch(connection, session) == BATCH:
                    await asyncio.sleep(BETWEEN_BATCHES_S)
                else:
                    async for _ in connection.notifies(timeout=POLL_S, stop_after=1):
                        pass

    async def _deliver_batch(
        self, connection: psycopg.AsyncConnection[TupleRow], session: aiohttp.ClientSession
    ) -> int:
        async with connection.transaction():
            rows = await (await connection.execute(_TAKE, (BATCH,))).fetchall()
            for answer in await asyncio.gather(*(self._post(session, *row) for row in rows)):
                await connection.execute(_KEEP, answer)
            return len(rows)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        number: int,
        url: str,
        headers: dict[str, str],
        body: bytes,
        timeout_ms: int,
    ) -> tuple[object, ...]:
        """-> the row of net._http_response"""
        began = time.monotonic()
        said: tuple[object, ...] = (None, None, None, None)  # status, content type, headers, content
        timed_out, problem = False, "lost" if self.loses else None
        try:
            if not self.loses:
                timeout = aiohttp.ClientTimeout(total=timeout_ms / 1000)
                async with session.post(url, data=bytes(body), headers=headers, timeout=timeout) as answer:
                    said = (answer.status, answer.content_type, json.dumps(dict(answer.headers)), await answer.text())
        except TimeoutError:
            timed_out, problem = True, f"Timeout of {timeout_ms} ms reached."
        except aiohttp.ClientError as error:
            problem = str(error) or type(error).__name__
        ms = round((time.monotonic() - began) * 1000)
        self._events.tell("webhook", job=_job_of(body), answer=said[0], error=problem, ms=ms)
        return (number, *said, timed_out, problem)


def _job_of(body: bytes) -> int | None:
    """The id of the row that a Database Webhook is about."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return int(json.loads(bytes(body))["record"]["id"])
    return None
