"""What all contenders share: where the database and Twilio are, the request for a call, and their three commands.

    python -m tests.bench.peers.procrastinate_worker install | enqueue | work

`enqueue` reads a phone number from each line of its input and answers each with the time of the commit. `work` ends with its
input. The request is aiohttp's: one TLS context per process, connections kept, nothing repeated.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp

DATABASE_URL = os.environ["BENCH_DATABASE_URL"]
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "16"))
TIMEOUT_S = float(os.environ.get("BENCH_TIMEOUT_SECONDS", "4"))
STALLED_S = int(os.environ.get("BENCH_STALLED_SECONDS", "0"))  # a dead worker's jobs come back; 0: after the default
TRIES = 3
RETRY_S = 1
RINGING = {"From": os.environ["BENCH_FROM"], "Twiml": "<Response><Say>Welcome</Say></Response>"}

Call = Callable[[str], Awaitable[str]]
Enqueue = Callable[[str], Awaitable[object]]


@asynccontextmanager
async def twilio() -> AsyncIterator[Call]:
    """A function that asks Twilio for a call to a number, once, and returns its SID. It raises what aiohttp raises."""
    account, token = os.environ["BENCH_ACCOUNT"], os.environ["BENCH_TOKEN"]
    url = f"{os.environ['BENCH_TWILIO_URL']}/2010-04-01/Accounts/{account}/Calls.json"
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        auth=aiohttp.BasicAuth(account, token), connector=connections, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    ) as session:

        async def call(phone: str) -> str:
            async with session.post(url, data={"To": phone, **RINGING}) as answer:
                answer.raise_for_status()
                return str((await answer.json())["sid"])

        yield call


def main(
    install: Callable[[], Coroutine[None, None, None]],
    producer: Callable[[], AbstractAsyncContextManager[Enqueue]],
    work: Callable[[], Coroutine[None, None, None]],
) -> None:
    async def feed() -> None:
        async with producer() as enqueue:
            while phone := (await asyncio.to_thread(sys.stdin.readline)).strip():
                await enqueue(phone)
                print(repr(time.time()), flush=True)

    match sys.argv[1:]:
        case ["install"]:
            asyncio.run(install())
        case ["enqueue"]:
            asyncio.run(feed())
        case ["work"]:
            threading.Thread(target=_end_with_input, daemon=True).start()
            asyncio.run(work())
        case _:
            sys.exit("one of: install, enqueue, work")


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)
