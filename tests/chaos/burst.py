"""Hundreds sign up within a second, and each phone rings once, at the pace, in its hours; counted in Twilio's own record.

    python -m tests.chaos.burst [--sign-ups 500] [--evening 200] [--pace 5]

Noon       all sign up at once. Webhooks and a sweep each second dial them at CALLS_PER_SECOND, which is also what Twilio
           lets out of its queue: who asks faster fills the queue, who asks slower keeps people waiting.
Evening    more sign up shortly before the hours end where their phones are. Who cannot be called any more waits for the
           morning, and is called then.

The clock is the sandbox's, which the database and Twilio share; everything between them takes the time that it takes.
Last line (here two), and exit code 1 unless all are called, and nothing was spent in vain, queued for long, late or out of turn:
    signed up N, called N, spent in vain 0, most in Twilio's queue Q, rang outside the hours 0, out of turn by T,
    S s (P s at the pace)
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import phonenumbers
import psycopg
from phonenumbers import timezone
from psycopg.rows import dict_row

from function.sweep import DIALING_THREADS
from shared.screening import LAST_CALL
from tests.sandbox.numbers import numbers as us_numbers
from tests.sandbox.sandbox import Sandbox

Row = dict[str, Any]

THERE = ZoneInfo("America/Los_Angeles")
OPENS, CLOSES = 9, 20  # o'clock: of CALL_HOURS 08:00-21:00, what is left where the zone is a guess from the number
PATIENCE = (
    1.5  # times what the pace takes, and START_S: longer is too slow, on a machine that has other work to do as well
)
START_S = 10.0
A_FEW = 5  # in Twilio's queue: one that came early, as it may, and a few that the machine held up and let go together


@dataclass(frozen=True)
class Figures:
    """What Twilio's record and the job table say in the end. out_of_turn: by how many who came later somebody was overtaken."""

    signed_up: int
    called: int
    spent: int
    most_queued: int
    outside: int
    out_of_turn: int
    seconds: float
    at_the_pace: float

    @property
    def is_clean(self) -> bool:
        return (
            self.called == self.signed_up
            and self.spent == self.outside == 0
            and self.most_queued <= A_FEW
            and self.out_of_turn <= 2 * DIALING_THREADS
            and self.seconds <= PATIENCE * self.at_the_pace + START_S
        )

    def __str__(self) -> str:
        return (
            f"signed up {self.signed_up}, called {self.called}, spent in vain {self.spent},"
            f" most in Twilio's queue {self.most_queued}, rang outside the hours {self.outside},"
            f" out of turn by {self.out_of_turn}, {self.seconds:.0f} s ({self.at_the_pace:.0f} s at the pace)"
        )


def run(sign_ups: int, evening: int, pace: float, say: Callable[[str], None] = print) -> Figures:
    """Both bursts, in one sandbox. pace: calls a second, ours and Twilio's."""
    environ = {
        "CALL_HOURS": "08:00-21:00",
        "CALLS_PER_SECOND": f"{pace:g}",
        "CALL_DISPATCHER_LIMIT": "400",
        # As in production: what goes wrong must not be mended within seconds here.
        "CALL_RETRY_SECONDS": "60",
        "CALL_REDIAL_SECONDS": "900",
        "CALL_ASK_SECONDS": "60",
        "TWILIO_TIMEOUT_SECONDS": "20",
        "REQUEST_TIMEOUT_SECONDS": "55",
    }
    with Sandbox(environ=environ, twilio_calls_per_second=pace) as sandbox:
        scene = Scene(sandbox, pace, say)
        scene.turn_clock_to(12)
        seconds = scene.burst(sign_ups)
        # The clock runs on from there, so the window closes when half of what the pace allows has been dialed.
        scene.turn_clock_to(CLOSES, less_s=LAST_CALL.total_seconds() + evening / 2 / pace)
        seconds += scene.burst(evening)
        scene.turn_clock_to(24 + OPENS, less_s=3)
        seconds += scene.await_calls() - 3
        return judge(
            scene.jobs(), scene.attempts(), scene.calls(), scene.called_by_webhook(),
            seconds=seconds, at_the_pace=(sign_ups + evening) / pace,
        )  # fmt: skip


def judge(
    jobs: Sequence[Row],
    attempts: Sequence[Row],
    calls: Sequence[Row],
    by_webhook: set[int],
    *,
    seconds: float,
    at_the_pace: float,
) -> Figures:
    reached = Counter(call["to"] for call in calls if call["reached"])
    sweeps = [job["id"] for job in in_order_of_calls(jobs, calls) if job["id"] not in by_webhook]
    return Figures(
        signed_up=len(jobs),
        called=sum(reached[job["phone_e164"]] == 1 and job["status"] == "completed" for job in jobs),
        spent=sum(max(0, job["attempts"] - 1) for job in jobs)
        + sum(a["state"] in ("refused", "absent") for a in attempts),
        most_queued=most_queued(calls),
        outside=sum(not OPENS <= rang.astimezone(THERE).hour < CLOSES for call in calls if (rang := rang_at(call))),
        out_of_turn=max((sum(later > job for later in sweeps[:n]) for n, job in enumerate(sweeps)), default=0),
        seconds=seconds,
        at_the_pace=at_the_pace,
    )


def in_order_of_calls(jobs: Sequence[Row], calls: Sequence[Row]) -> list[Row]:
    """By the call that reached them."""
    of = {job["phone_e164"]: job for job in jobs}
    return [of[call["to"]] for call in sorted(calls, key=taken_at) if call["reached"] and call["to"] in of]


def most_queued(calls: Sequence[Row]) -> int:
    """At any one moment, the calls that Twilio had taken and not yet dialed or dropped."""
    moves = [(taken_at(call), 1) for call in calls] + [
        (left, -1) for call in calls if (left := left_the_queue_at(call))
    ]
    return max(itertools.accumulate(change for _, change in sorted(moves)), default=0)


def taken_at(call: Row) -> datetime:
    return datetime.fromisoformat(call["accepted_at"])


def left_the_queue_at(call: Row) -> datetime | None:
    return next((datetime.fromisoformat(became["at"]) for became in call["history"]), None)


def rang_at(call: Row) -> datetime | None:
    rang = (datetime.fromisoformat(became["at"]) for became in call["history"] if became["status"] == "ringing")
    return next(rang, None)


def numbers() -> Iterator[str]:
    """Of area codes that lie in one time zone whole: +1 NPA 555-0100 to 0199."""
    of_there = (THERE.key,)
    return (number for number in us_numbers() if timezone.time_zones_for_number(phonenumbers.parse(number)) == of_there)


class Scene:
    def __init__(self, sandbox: Sandbox, pace: float, say: Callable[[str], None]) -> None:
        self._sandbox = sandbox
        self._pace = pace
        self._say = say
        self._numbers = numbers()
        self._midnight = datetime.now(THERE).replace(hour=0, minute=0, second=0, microsecond=0)
        self._http = httpx.Client(base_url=sandbox.ready.twilio_url, timeout=30)

    def rows(self, query: str, *values: object) -> list[Row]:
        with psycopg.connect(self._sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database:
            cursor = database.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    def jobs(self) -> list[Row]:
        return self.rows("select * from public.outbound_call_jobs order by id")

    def attempts(self) -> list[Row]:
        return self.rows("select * from public.outbound_call_attempts")

    def calls(self) -> list[Row]:
        calls: list[Row] = self._http.get("/_sandbox/calls").raise_for_status().json()
        return calls

    def called_by_webhook(self) -> set[int]:
        """Jobs that a webhook dialed, as pg_net keeps its answers; and those of which it has none."""
        kept = self.rows("select content from net._http_response where status_code = 200")
        answers = [json.loads(row["content"]) for row in kept]
        left_to_sweeps = {answer["job"] for answer in answers if answer.get("did") != "called"}
        return {job["id"] for job in self.jobs()} - left_to_sweeps

    def turn_clock_to(self, hour: float, less_s: float = 0.0) -> None:
        """On the clock there, of the day on which this began; 24 is the next midnight."""
        at = self._midnight + timedelta(hours=hour, seconds=-less_s)
        offset_s = (at - datetime.now(UTC)).total_seconds()
        self._http.put("/_sandbox/clock", json={"offset_s": offset_s}).raise_for_status()

    def burst(self, count: int) -> float:
        """All at once. -> seconds until nobody waits any more, but for the morning"""
        phones = [number[1:] for number in itertools.islice(self._numbers, count)]
        began = time.monotonic()
        self.rows("insert into auth.users (id, phone) select gen_random_uuid(), * from unnest(%s::text[])", phones)
        self._say(f"{count} signed up within {time.monotonic() - began:.1f} s")
        return self.await_calls()

    def await_calls(self) -> float:
        began = time.monotonic()
        soon = "finished_at is null and due_at < private.clock() + interval '1 hour'"
        patience_s = 60 + 4 * len(self.jobs()) / self._pace
        while self.rows(f"select id from public.outbound_call_jobs where {soon} limit 1"):
            if time.monotonic() - began > patience_s:
                self._say(f"given up after {patience_s:.0f} s")
                break
            time.sleep(0.2)
        seconds = time.monotonic() - began
        by_webhook = self.called_by_webhook()
        each = Counter(f"{job['status']} {job['reason_code'] or ''}".strip() for job in self.jobs())
        told = ", ".join(f"{status} {n}" for status, n in sorted(each.items()))
        self._say(f"after {seconds:.0f} s: {told}; {len(by_webhook)} by a webhook")
        return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.burst", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sign-ups", type=int, default=500)
    parser.add_argument("--evening", type=int, default=200, help="sign-ups shortly before the hours end")
    parser.add_argument("--pace", type=float, default=5.0, help="calls a second, ours and Twilio's")
    options = parser.parse_args()
    if options.sign_ups < 1 or options.evening < 1 or not options.pace > 0:
        parser.error("--sign-ups, --evening and --pace: must be more than 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    figures = run(options.sign_ups, options.evening, options.pace, say=lambda line: print(line, flush=True))
    print(figures)
    return 0 if figures.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
