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

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.chaos.scene import Row, Say, Scene, begin, parser, positive, say
from tests.sandbox.sandbox import Sandbox

KINDS = ("down", "slow", "answers 500", "dies", "function killed", "well")
COMPARED = ("without", "without, again", "with")
PATIENCE_S = 120.0
MODE = "demo"  # its script has a question, and an opt-out key
BUSY: Row = {"outcome": "busy", "times": 1}
OPTS_OUT: Row = {"digits": ["9"]}
ANSWERS: Row = {"digits": ["1", "1"]}
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


class Deliveries(Scene):
    def __init__(self, sandbox: Sandbox, seed: int, say: Say) -> None:
        super().__init__(sandbox, say)
        self.random = random.Random(seed)
        self.ends = 0

    def await_none(self, query: str, what: str) -> None:
        if not self.until(lambda: not self.rows(query), PATIENCE_S):
            self.say(f"given up after {PATIENCE_S:.0f} s: {what}")

    def sign_up(self, *fates: Row) -> list[str]:
        """A person for each: their conduct at the phone."""
        phones = list(itertools.islice(self.phones, len(fates)))
        for number, fate in zip(phones, fates, strict=True):
            self.sandbox.twilio.behave(to=number, **fate)
        self.rows(
            "insert into public.outbound_call_jobs (user_id, phone_number, signup_mode)"
            " select gen_random_uuid(), n, %s from unnest(%s::text[]) n", MODE, phones,
        )  # fmt: skip
        return phones

    def wave(self, kind: str, count: int) -> None:
        receiver, server = self.sandbox.receiver, self.sandbox.receiver_server
        assert receiver is not None
        assert server is not None
        drawn = [self.random.random() for _ in range(count)]
        fates = [BUSY if fate < 0.2 else OPTS_OUT if fate < 0.3 else ANSWERS for fate in drawn]
        self.sign_up(*fates)
        self.ends += count
        match kind:
            case "down":
                server.stop()
            case "slow":
                receiver.behave(do="hang", seconds=self.random.uniform(0.2, 1.2))
            case "answers 500":
                receiver.behave(do="refuse", status=self.random.choice((500, 502, 429, 404)))
            case "dies":
                receiver.behave(do="close")
            case "function killed":
                receiver.behave(do="hang", seconds=1.0)
        for _ in range(3):
            time.sleep(self.random.uniform(0.5, 1.2))
            if kind == "function killed":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.sandbox.ready.function_pid or 0, signal.SIGKILL)
        self.await_none("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end")
        again = [row["id"] for row in self.rows("select id from public.outbound_call_jobs where status = 'failed'")]
        for job in again:  # while its first event may still be due
            self.rows("select public.retry_call_job(%s)", job)
        self.ends += len(again)
        self.await_none("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end again")
        due = len(self.rows("select 1 from private.call_results where state = 'due'"))
        if kind == "down":
            server.start()
        receiver.behave()
        self.say(f"{kind}: {count} jobs, {len(again)} of them twice; {due} events were due when all was well again")

    def judge(self) -> Count:
        self.await_none("select 1 from private.call_results where state = 'due'", "events that are told")
        assert self.sandbox.receiver is not None
        # Counted here, not drawn: an opt-out key that is pressed while the function is dead is not stored.
        ends = self.ends + len(self.rows("select 1 from public.call_opt_outs"))
        outbox = self.rows("select * from private.call_results order by seq")
        return judge(outbox, ends, list(self.sandbox.receiver.posts))

    def delays(self, phones: Sequence[str]) -> list[float]:
        """Seconds from the sign-up to Twilio, of these jobs, in order of length."""
        self.await_none("select 1 from public.outbound_call_jobs where finished_at is null", "jobs that end")
        query = "select phone_e164, created_at from public.outbound_call_jobs where phone_e164 = any (%s)"
        began = {row["phone_e164"]: row["created_at"] for row in self.rows(query, list(phones))}
        at_twilio = [(call["to"], datetime.fromisoformat(call["accepted_at"])) for call in self.calls()]
        return sorted((taken - began[number]).total_seconds() for number, taken in at_twilio if number in began)


def run(jobs: int, seed: int, kinds: Sequence[str] = KINDS, say: Say = say) -> Count:
    """All waves, in one sandbox, in the seed's order."""
    with Sandbox(environ=SETTINGS, results=True) as sandbox:
        scene = Deliveries(sandbox, seed, say)
        order = list(kinds)
        scene.random.shuffle(order)
        for number, kind in enumerate(order):
            scene.wave(kind, jobs * (number + 1) // len(order) - jobs * number // len(order))
        return scene.judge()


def compare(count: int, say: Say = say) -> None:
    """Say how long the way to Twilio takes without results, twice, and with results and a receiver that hangs.

    Three sandboxes at once, a sign-up in each by turns: so what else the machine does falls on all, and the first two show how
    much is chance.
    """
    with (
        Sandbox(environ=SETTINGS) as without,
        Sandbox(environ=SETTINGS) as control,
        Sandbox(environ=SETTINGS, results=True) as beside,
    ):
        scenes = [Deliveries(sandbox, 1, say) for sandbox in (without, control, beside)]
        assert beside.receiver is not None
        beside.receiver.behave(do="hang", seconds=60)
        phones: dict[Deliveries, list[str]] = {scene: [] for scene in scenes}
        for _ in range(count + 20):
            for scene in random.sample(scenes, len(scenes)):
                phones[scene] += scene.sign_up(ANSWERS)
                time.sleep(0.1)
        for name, scene in zip(COMPARED, scenes, strict=True):
            ms = [
                1000 * delay for delay in scene.delays(phones[scene][20:])
            ]  # the first calls of a process take longer
            say(f"{name}: p50 {ms[len(ms) // 2]:.0f} ms, p99 {ms[len(ms) * 99 // 100]:.0f} ms of {len(ms)} calls")


def main() -> int:
    arguments = parser("results", __doc__)
    arguments.add_argument("--jobs", type=positive, default=400)
    arguments.add_argument("--seed", type=int, default=1)
    options = begin(arguments)
    count = run(options.jobs, options.seed)
    if options.jobs >= 100:
        compare(options.jobs)
    say(count)
    return 0 if count.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
