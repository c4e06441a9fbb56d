"""What the commands of this folder share: a sandbox, looked at from outside; and how each command begins."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from tests.sandbox.numbers import numbers
from tests.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
Say = Callable[[str], None]


class Scene:
    def __init__(self, sandbox: Sandbox, say: Say, phones: Iterator[str] | None = None) -> None:
        self.sandbox, self.say = sandbox, say
        self.phones = phones or numbers()
        self.twilio = httpx.Client(base_url=sandbox.ready.twilio_url, timeout=30)

    def rows(self, query: str, *values: object) -> list[Row]:
        """On a connection of its own: Postgres may be killed in between."""
        with psycopg.connect(self.sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database:
            cursor = database.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    def jobs(self) -> list[Row]:
        return self.rows("select * from public.outbound_call_jobs order by id")

    def attempts(self) -> list[Row]:
        return self.rows("select * from public.outbound_call_attempts order by started_at")

    def calls(self) -> list[Row]:
        """Twilio's own record, in order."""
        calls: list[Row] = self.twilio.get("/_sandbox/calls").raise_for_status().json()
        return calls

    def behave(self, **rule: object) -> None:
        self.twilio.put("/_sandbox/behaviour", json=rule).raise_for_status()

    def until(self, look: Callable[[], object], within_s: float) -> bool:
        """Whether it came true."""
        end = time.monotonic() + within_s
        while not look():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m tests.chaos.{name}", description=(doc or "").partition("\n")[0])


def begin(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """The options. SIGTERM ends all that was started; the stand-ins do not log clients that were killed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    return arguments.parse_args()


def say(line: object) -> None:
    print(line, flush=True)


def positive(number: str) -> int:
    """An argument's type."""
    if int(number) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(number)
