"""Results under fire: a receiver that is down, slow, answers 500, or dies while it reads; and the function is killed, too.

    python -m tests.chaos.results [--jobs 400] [--seed N]

The jobs come in waves, one for each thing that goes wrong; some people press the opt-out key, and some failed jobs are
retried by hand, so that they end twice. Then all is well again, and the receiver's own record is the judge: every outcome
of the job table was told at least once, with one id and one body each time, signed, and in the order of its job.

Then new calls beside a receiver that hangs: the time from the sign-up to Twilio, without results (twice) and with, by turns.
Last line, and exit code 1 unless nothing is missing, changed, unsigned or out of order:
    events N, posts P, missing 0, changed 0, unsigned 0, out of order 0
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.sandbox.numbers import numbers
from tests.sandbox.receiver import Receiver
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import Server

Row = dict[str, Any]
Say = Callable[[str], None]

KINDS = ("down", "slow", "answers 500", "dies", "function killed", "well")
COMPARED = ("without", "without, again", "with")
PATIENCE_S = 120.0
MODE = "demo"  # its script has a question, and an opt-out key
SETTINGS = {"CALL_MAX_ATTEMPTS": "1", "RESULT_RETRY_SECONDS": "0.5,1,2", "CALL_DISPATCHER_LIMIT": "400"}


@dataclass(frozen=True)
class Count:
    """missing: outcomes that were never taken. changed: ids with two bodies. out_of_order: taken after a later one of its job."""

    events: int
    posts: int
    missing: int
    changed: int
    unsigned: int
    out_of_order: int

    @property
    def is_clean(self) -> bool:
        return self.missing == self.changed == self.unsigned == self.out_of_order == 0

    def __str__(self) -> str:
        return (
            f"events {self.events}, posts {self.posts}, missing {self.missing}, changed {self.changed},"
            f" unsigned {self.unsigned}, out of order {self.out_of_order}"
        )


def judge(rows: Sequence[Row], ends: int, posts: Sequence[Row]) -> Count:
    """`rows`: the outbox, by seq. `ends`: how many jobs ended and numbers opted out, counted elsewhere. `posts`: what arrived."""
    taken: dict[str, int] = {}
    bodies = defaultdict(set)
    for place, post in enumerate(posts):
        bodies[post["id"]].add(post["body"])
        if isinstance(post["answer"], int) and post["answer"] < 300:
            taken.setdefault(post["id"], place)
    by_subject = defaultdict(list)
    for row in rows:
        by_subject[row["subject"]].append(str(row["id"]))
    late = 0
    for ids in by_subject.values():
        for earlier, later in itertools.combinations(ids, 2):
            arrivals = [place for place, post in enumerate(posts) if post["id"] == later]
            late += bool(arrivals) and arrivals[0] < taken.get(earlier, len(posts))
    return Count(
        events=len(rows),
        posts=len(posts),
        missing=sum(str(row["id"]) not in taken or row["state"] != "told" for row in rows) + max(0, ends - len(rows)),
        changed=sum(len(texts) > 1 for texts in bodies.values()),
        unsigned=sum(not post["verified"] for post in posts),
        out_of_order=late,
    )


class Scene:
    def __init__(self, sandbox: Sandbox, seed: int, say: Say) -> None:
        self.sandbox, self._receiver, self._server = sandbox, sandbox.receiver, sandbox.receiver_server
        self.random, self.say = random.Random(seed), say
        self._numbers = numbers()
        self.ends = 0

    @property
    def receiver(self) -> Receiver:
        assert self._receiver is not None
        return self._receiver

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def rows(self, query: str, *values: object) -> list[Row]:
        while True:
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self.sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database,
            ):
                cursor = database.execute(query.encode(), values)
                return cursor.fetchall() if cursor.description is not None else []

    def until(self, query: str, what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.rows(query):
            if time.monotonic() > end:
                return self.say(f"given up after {PATIENCE_S:.0f} s: {what}")
            time.sleep(0.1)
        return None

    def sign_up(self, count: int) -> list[str]:
        """A fifth does not answer, a tenth opts out."""
        phones = list(itertools.islice(self._numbers, count))
        for number in phones:
            fate = self.random.random()
            if fate < 0.2:
                self.sandbox.twilio.behave(to=number, outcome="busy", times=1)
            elif fate < 0.3:
                self.sandbox.twilio.behave(to=number, digits=["9"])
                self.ends += 1
            else:
                self.sandbox.twilio.behave(to=number, digits=["1", "1"])
        self.rows(
            "insert into public.outbound_call_jobs (user_id, phone_number, signup_mode)"
            " select gen_random_uuid(), n, %s from unnest(%s::text[]) n", MODE, phones,
        )  # fmt: skip
        self.ends += count
        return phones

    def wave(self, kind: str, count: int) -> None:
        self.sign_up(count)
        match kind:
            case "down":
                self.server.stop()
            case "slow":
                self.receiver.behave(do="hang", seconds=self.random.uniform(0.2, 1.2))
            case "answers 500":
                self.receiver.behave(do="refuse", status=self.random.choice((500, 502, 429, 404)))
            case "dies":
                self.receiver.behave(do="close")
            case "function killed":
                self.receiver.behave(do="hang", seconds=1.0)
        for _ in range(3):
            time.sleep(self.random.uniform(0.5, 1.2))
            if kind == "function killed":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.sandbox.ready.function_pid or 0, signal.SIGKILL)
        self.until("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end")
        again = [row["id"] for row in self.rows("select id from public.outbound_call_jobs where status = 'failed'")]
        for job in again:  # while its first event may still be due
            self.rows("select public.retry_call_job(%s)", job)
        self.ends += len(again)
        self.until("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end again")
        due = len(self.rows("select 1 from private.call_results where state = 'due'"))
        if kind == "down":
            self.server.start()
        self.receiver.behave()
        self.say(f"{kind}: {count} jobs, {len(again)} of them twice; {due} events were due when all was well again")

    def judge(self) -> Count:
        self.until("select 1 from private.call_results where state = 'due'", "events that are told")
        return judge(self.rows("select * from private.call_results order by seq"), self.ends, list(self.receiver.posts))

    def sign_up_one(self) -> str:
        number = next(self._numbers)
        self.sandbox.twilio.behave(to=number, digits=["1", "1"])
        self.rows(
            "insert into public.outbound_call_jobs (user_id, phone_number, signup_mode) values (gen_random_uuid(), %s, %s)",
            number, MODE,
        )  # fmt: skip
        return number

    def delays(self, phones: Sequence[str]) -> list[float]:
        """Seconds from the sign-up to Twilio, of these jobs, in order of length."""
        self.until("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end")
        query = "select phone_e164, created_at from public.outbound_call_jobs where phone_e164 = any (%s)"
        began = {row["phone_e164"]: row["created_at"] for row in self.rows(query, list(phones))}
        calls = [call.report() for call in self.sandbox.twilio.calls]
        return sorted(
            (datetime.fromisoformat(str(call["accepted_at"])) - began[call["to"]]).total_seconds()
            for call in calls
            if call["to"] in began
        )


def run(jobs: int, seed: int, kinds: Sequence[str] = KINDS, say: Say = print) -> Count:
    """All waves, in one sandbox, in the seed's order."""
    with Sandbox(environ=SETTINGS, results=True) as sandbox:
        scene = Scene(sandbox, seed, say)
        order = list(kinds)
        scene.random.shuffle(order)
        for number, kind in enumerate(order):
            scene.wave(kind, jobs * (number + 1) // len(order) - jobs * number // len(order))
        return scene.judge()


def compare(count: int, say: Say = print) -> None:
    """Say how long the way to Twilio takes without results, twice, and with results and a receiver that hangs.

    Three sandboxes at once, a sign-up in each by turns: so what else the machine does falls on all, and the first two show how
    much is chance.
    """
    with (
        Sandbox(environ=SETTINGS) as without,
        Sandbox(environ=SETTINGS) as control,
        Sandbox(environ=SETTINGS, results=True) as beside,
    ):
        scenes = {
            name: Scene(sandbox, 1, say) for name, sandbox in zip(COMPARED, (without, control, beside), strict=True)
        }
        scenes["with"].receiver.behave(do="hang", seconds=60)
        phones: dict[str, list[str]] = {name: [] for name in COMPARED}
        for _ in range(count + 20):
            for name in random.sample(COMPARED, len(COMPARED)):
                phones[name].append(scenes[name].sign_up_one())
                time.sleep(0.1)
        for name, scene in scenes.items():
            ms = [1000 * delay for delay in scene.delays(phones[name][20:])]  # the first calls of a process take longer
            say(f"{name}: p50 {ms[len(ms) // 2]:.0f} ms, p99 {ms[len(ms) * 99 // 100]:.0f} ms of {len(ms)} calls")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.results", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)

    def say(line: str) -> None:
        print(line, flush=True)

    count = run(options.jobs, options.seed, say=say)
    if options.jobs >= 100:
        compare(options.jobs, say)
    print(count)
    return 0 if count.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
