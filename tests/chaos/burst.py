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

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers import timezone

from function.sweep import DIALING_THREADS
from shared.screening import LAST_CALL
from tests.chaos.scene import Row, Say, Scene, begin, parser, positive, say
from tests.sandbox.numbers import numbers as us_numbers
from tests.sandbox.sandbox import Sandbox

THERE = ZoneInfo("America/Los_Angeles")
OPENS, CLOSES = 9, 20  # o'clock: of CALL_HOURS 08:00-21:00, what is left where the zone is a guess from the number
# Times what the pace takes, and START_S: longer is too slow, on a machine that has other work to do as well.
PATIENCE, START_S = 1.5, 10.0
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


# As in production: what goes wrong must not be mended within seconds here.
SETTINGS = {
    "CALL_HOURS": "08:00-21:00", "CALL_DISPATCHER_LIMIT": "400", "CALL_RETRY_SECONDS": "60", "CALL_REDIAL_SECONDS": "900",
    "CALL_ASK_SECONDS": "60", "TWILIO_TIMEOUT_SECONDS": "20", "REQUEST_TIMEOUT_SECONDS": "55",
}  # fmt: skip


def run(sign_ups: int, evening: int, pace: float, say: Say = say) -> Figures:
    """Both bursts, in one sandbox. pace: calls a second, ours and Twilio's."""
    environ = {**SETTINGS, "CALLS_PER_SECOND": f"{pace:g}"}
    with Sandbox(environ=environ, twilio_calls_per_second=pace) as sandbox:
        scene = Bursts(sandbox, pace, say)
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
    jobs: Sequence[Row], attempts: Sequence[Row], calls: Sequence[Row], by_webhook: set[int],
    *, seconds: float, at_the_pace: float,
) -> Figures:  # fmt: skip
    reached = Counter(call["to"] for call in calls if call["reached"])
    sweeps = [job["id"] for job in in_order_of_calls(jobs, calls) if job["id"] not in by_webhook]
    return Figures(
        signed_up=len(jobs),
        called=sum(reached[job["phone_e164"]] == 1 and job["status"] == "completed" for job in jobs),
        spent=sum(max(0, job["attempts"] - 1) for job in jobs)
        + sum(a["state"] in ("refused", "absent") for a in attempts),
        most_queued=most_queued(calls),
        outside=sum(
            not OPENS <= rang.astimezone(THERE).hour < CLOSES for call in calls for rang in moments(call, "ringing")
        ),
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
    moves = [(taken_at(call), 1) for call in calls]
    moves += [(left, -1) for call in calls if (left := next(moments(call), None))]
    return max(itertools.accumulate(change for _, change in sorted(moves)), default=0)


def taken_at(call: Row) -> datetime:
    return datetime.fromisoformat(call["accepted_at"])


def moments(call: Row, *statuses: str) -> Iterator[datetime]:
    """When it became one of these, or anything: first of all it leaves the queue."""
    return (datetime.fromisoformat(b["at"]) for b in call["history"] if not statuses or b["status"] in statuses)


def numbers() -> Iterator[str]:
    """Of area codes that lie in one time zone whole: +1 NPA 555-0100 to 0199."""
    of_there = (THERE.key,)
    return (number for number in us_numbers() if timezone.time_zones_for_number(phonenumbers.parse(number)) == of_there)


class Bursts(Scene):
    def __init__(self, sandbox: Sandbox, pace: float, say: Say) -> None:
        super().__init__(sandbox, say, numbers())
        self._pace = pace
        self._midnight = datetime.now(THERE).replace(hour=0, minute=0, second=0, microsecond=0)

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
        self.twilio.put("/_sandbox/clock", json={"offset_s": offset_s}).raise_for_status()

    def burst(self, count: int) -> float:
        """All at once. -> seconds until nobody waits any more, but for the morning"""
        phones = [number[1:] for number in itertools.islice(self.phones, count)]
        began = time.monotonic()
        self.rows("insert into auth.users (id, phone) select gen_random_uuid(), * from unnest(%s::text[])", phones)
        self.say(f"{count} signed up within {time.monotonic() - began:.1f} s")
        return self.await_calls()

    def await_calls(self) -> float:
        began = time.monotonic()
        soon = "finished_at is null and due_at < private.clock() + interval '1 hour'"
        patience_s = 60 + 4 * len(self.jobs()) / self._pace
        if not self.until(
            lambda: not self.rows(f"select from public.outbound_call_jobs where {soon} limit 1"), patience_s
        ):
            self.say(f"given up after {patience_s:.0f} s")
        seconds = time.monotonic() - began
        by_webhook = self.called_by_webhook()
        each = Counter(f"{job['status']} {job['reason_code'] or ''}".strip() for job in self.jobs())
        told = ", ".join(f"{status} {n}" for status, n in sorted(each.items()))
        self.say(f"after {seconds:.0f} s: {told}; {len(by_webhook)} by a webhook")
        return seconds


def main() -> int:
    arguments = parser("burst", __doc__)
    arguments.add_argument("--sign-ups", type=positive, default=500)
    arguments.add_argument("--evening", type=positive, default=200, help="sign-ups shortly before the hours end")
    arguments.add_argument("--pace", type=float, default=5.0, help="calls a second, ours and Twilio's")
    options = begin(arguments)
    if not options.pace > 0:
        arguments.error("argument --pace: must be more than 0")
    figures = run(options.sign_ups, options.evening, options.pace)
    say(figures)
    return 0 if figures.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
