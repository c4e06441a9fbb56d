"""How soon a phone rings, and how many calls go out in an hour, for each way of running. Takes about twice --minutes.

    python -m tests.bench.delays --minutes 3 --limit 10 --pace 1

Each way has a sandbox of its own, with the defaults of production for what matters here, and all are measured at once. First
sign-ups come in at random: the delay is from the sign-up's job to Twilio's acceptance of the call. Then very many come in at
once, and the calls that go out are counted; beside it, what limit, pace and interval let one expect.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import TypeAlias

import psycopg
from psycopg.rows import TupleRow

from shared.settings import DIAL_WITHIN_SECONDS, REQUEST_PARTS, TWILIO_CONNECT_SECONDS
from tests.sandbox.numbers import numbers
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.scheduler import Scheduler

ROOT = Path(__file__).parents[2]
MINUTE_S = 60.0
WORKER_S = 5.0
REQUEST_S, TWILIO_S = 55.0, 20.0  # the defaults of production
SIGN_UPS_A_MINUTE = 8
CALLED = """
select extract(epoch from a.accepted_at - j.created_at)::float8
from public.outbound_call_jobs j join public.outbound_call_attempts a on a.job_id = j.id where a.accepted_at is not null
"""
Database: TypeAlias = psycopg.Connection[TupleRow]


@dataclass(frozen=True)
class Way:
    """A way of running. `sweeps` sweeps until it is told to stop."""

    name: str
    webhooks: bool
    interval_s: float
    rests: bool  # the interval is a rest between sweeps, and not from one's beginning to the next's
    sweeps: Callable[[Sandbox, threading.Event], None]

    def expected_an_hour(self, limit: int, pace: float) -> float:
        """Calls an hour when very many are due: each sweep dials up to its limit, or until its last claim, at the pace."""
        last_claim_s = REQUEST_S - REQUEST_S / REQUEST_PARTS - DIAL_WITHIN_SECONDS - TWILIO_CONNECT_SECONDS - TWILIO_S
        calls = min(limit, int(last_claim_s * pace) + 1)
        cycle_s = (calls - 1) / pace + self.interval_s if self.rests else max(self.interval_s, (calls - 1) / pace)
        return min(calls * 3600 / cycle_s, 3600 * pace)


@dataclass(frozen=True)
class Measured:
    way: Way
    delays_s: list[float]
    calls_an_hour: float

    def row(self, limit: int, pace: float) -> str:
        *_, p50 = quantiles(self.delays_s, n=2)
        p95 = quantiles(self.delays_s, n=20, method="inclusive")[-1]
        expected = self.way.expected_an_hour(limit, pace)
        return (
            f"| {self.way.name} | {p50:.1f} s | {p95:.1f} s | {max(self.delays_s):.1f} s"
            f" | {self.calls_an_hour:,.0f} | {expected:,.0f} |"
        )


def by_scheduler(sandbox: Sandbox, stop: threading.Event) -> None:
    scheduler = Scheduler(sandbox.ready.function_url, sandbox.dispatch_secret, MINUTE_S)
    scheduler.start()
    stop.wait()
    scheduler.stop()


def by_worker(sandbox: Sandbox, stop: threading.Event) -> None:
    command = [sys.executable, "-m", "function.sweep", "--every", f"{WORKER_S:g}"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ(sandbox), stdout=subprocess.DEVNULL)
    stop.wait()
    process.terminate()
    process.wait()


def by_cron(sandbox: Sandbox, stop: threading.Event) -> None:
    begins = time.monotonic()
    while not stop.wait(max(0.0, begins - time.monotonic())):
        command = [sys.executable, "-m", "function.sweep"]
        subprocess.run(command, cwd=ROOT, env=environ(sandbox), stdout=subprocess.DEVNULL)
        begins += MINUTE_S


WAYS = (
    Way("webhook, and a sweep each minute", True, MINUTE_S, False, by_scheduler),
    Way(f"worker, `--every {WORKER_S:g}`", False, WORKER_S, True, by_worker),
    Way("cron job each minute", False, MINUTE_S, False, by_cron),
)


def environ(sandbox: Sandbox) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **sandbox.settings}


def measure(way: Way, minutes: float, limit: int, pace: float) -> Measured:
    settings = {
        "CALL_DISPATCHER_LIMIT": str(limit), "CALLS_PER_SECOND": str(pace),
        "TWILIO_TIMEOUT_SECONDS": str(TWILIO_S), "REQUEST_TIMEOUT_SECONDS": str(REQUEST_S),
    }  # fmt: skip
    phones = (number.removeprefix("+") for number in numbers())  # as Supabase Auth stores them
    stop = threading.Event()
    with Sandbox(webhooks=way.webhooks, scheduler=False, environ=settings) as sandbox, ThreadPoolExecutor(1) as threads:
        sweeping = threads.submit(way.sweeps, sandbox, stop)
        try:
            with psycopg.connect(sandbox.ready.database_url, autocommit=True) as database:
                delays = _delays(database, phones, minutes)
                calls = _burst(database, phones, minutes, pace)
        finally:
            stop.set()
        sweeping.result()
    return Measured(way, delays, calls * 60 / minutes)


def _sign_up(database: Database, numbers: Iterator[str]) -> None:
    query = "insert into auth.users (id, phone, raw_user_meta_data) values (gen_random_uuid(), %s, '{}')"
    database.execute(query, (next(numbers),))


def _delays(database: Database, numbers: Iterator[str], minutes: float) -> list[float]:
    """Sign-ups at random moments of so many minutes. -> for each, how long until Twilio had taken its call"""
    moments = sorted(random.uniform(0, minutes * 60) for _ in range(int(SIGN_UPS_A_MINUTE * minutes)))
    began = time.monotonic()
    for moment in moments:
        time.sleep(max(0.0, began + moment - time.monotonic()))
        _sign_up(database, numbers)
    until = time.monotonic() + 2 * MINUTE_S
    while len(rows := database.execute(CALLED).fetchall()) < len(moments):
        if time.monotonic() > until:
            raise SystemExit(f"{len(moments)} signed up, and only {len(rows)} were called")
        time.sleep(0.5)
    return [float(row[0]) for row in rows]


def _burst(database: Database, numbers: Iterator[str], minutes: float, pace: float) -> int:
    """More sign-ups at once than can be called in so many minutes. -> how many were, in that time"""
    before = len(database.execute(CALLED).fetchall())
    time.sleep(random.uniform(0, MINUTE_S))  # at no special moment between two sweeps
    began = time.monotonic()
    with database.transaction():
        for _ in range(int(1.2 * minutes * 60 * pace) + 1):
            _sign_up(database, numbers)
    time.sleep(max(0.0, began + minutes * 60 - time.monotonic()))
    return len(database.execute(CALLED).fetchall()) - before


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.delays", description="Delays and calls an hour.")
    parser.add_argument("--minutes", type=int, default=3, help="of sign-ups at random, and then of sign-ups at once")
    parser.add_argument("--limit", type=int, default=10, help="CALL_DISPATCHER_LIMIT")
    parser.add_argument("--pace", type=float, default=1.0, help="CALLS_PER_SECOND")
    options = parser.parse_args()
    minutes = f"{options.minutes} min"
    print(f"CALL_DISPATCHER_LIMIT={options.limit} CALLS_PER_SECOND={options.pace:g}, {minutes} and {minutes}")
    with ThreadPoolExecutor(len(WAYS)) as threads:
        found = list(threads.map(lambda way: measure(way, options.minutes, options.limit, options.pace), WAYS))
    print("| way | delay p50 | p95 | longest | calls an hour, measured | expected |\n|---|---|---|---|---|---|")
    print("\n".join(one.row(options.limit, options.pace) for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
