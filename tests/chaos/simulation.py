"""A seeded simulation: one seed, one history of a few jobs in a world where nearly everything goes wrong, in virtual time.

    python -m tests.chaos.simulation [--runs 1000] [--seed 1]

Real: the dispatcher, its policy, the SQL functions on a real Postgres, the handlers of callbacks. Virtual: time, Twilio (a
model, because the stand-in lives in real time), and the transport to the database, which loses answers. Workers are killed
and frozen at the dispatcher's fault points, before and after each write and the request to Twilio. The one case that the
README does not promise, a call that Twilio lists only after the settling time and never calls back about, is not drawn.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import structlog
from psycopg import sql
from psycopg.types.json import Jsonb

from shared import backoff
from shared.deadline import ClaimClock
from shared.dispatcher import Dispatcher
from shared.http import HttpError, NotConnected
from shared.jobs import Jobs, JobsUnavailable
from shared.models import FINAL_CALL_STATUSES, Answer, CallEvent, CallStatus, Placed, TwilioCall, Verdict, finished
from shared.settings import DIAL_WITHIN_SECONDS, Settings, load_settings
from shared.telephony import CallNotPlaced, Telephony, TwilioUnavailable
from tests.chaos.scene import begin, parser, positive, say
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database as sandbox_database

DATABASE = "simulation"
# Not the sandbox's clock, which runs: here no time passes but what the history lets pass, or no seed would replay exactly.
CLOCK = """
create table sandbox.moment (at timestamptz not null);
insert into sandbox.moment values ('-infinity');
grant select on sandbox.moment to postgres;
create or replace function private.clock() returns timestamptz
language sql stable set search_path = '' as 'select at from sandbox.moment';
"""
SWEEP_EVERY_S = 60.0
GIVE_UP_S = 6 * 86400.0  # virtual; a history that is not quiet by then never will be
LISTED_WITHIN_S = 100.0  # below CALL_SETTLING_SECONDS, as it has to be
THERE = ZoneInfo("America/Los_Angeles")  # where the numbers of the histories are: a guessed zone, so 09:00 to 20:00
BEGAN = datetime(2026, 1, 5, 12, tzinfo=THERE)
SOON_DAY, SOON_NIGHT = BEGAN.replace(hour=8, minute=50), BEGAN.replace(hour=19, minute=50)
ALLOWED_REASONS = {"absent", "busy", "no-answer", "failed", "canceled", "call_canceled", "twilio_21211"}

SETTINGS = {
    "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_KEY": "unused", "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "unused", "TWILIO_PHONE_NUMBER": "+15005550006", "API_BASE_URL": "https://calls.example.com",
    "CALLS_PER_SECOND": "100", "CALLS_PER_NUMBER_PER_DAY": "3",
}  # fmt: skip


class Killed(BaseException):
    """The worker's process is gone. Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


@dataclass
class Call:
    """A call as Twilio knows it. `reached`: a person heard our words. `asked`: they asked to be called later; `agreed`: and
    heard the time."""

    sid: str
    attempt: UUID
    to: str
    created_at: float
    listed_at: float
    callbacks: str
    outcome: CallStatus
    queue_s: float
    status: CallStatus = "queued"
    reached: bool = False
    asked: bool = False
    agreed: bool = False
    held: list[CallStatus] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.status in FINAL_CALL_STATUSES


class Transport:
    """Stands in for supabase-py: the SQL functions over a plain connection, with answers that get lost."""

    def __init__(self, history: History) -> None:
        self._history = history

    def rpc(self, function: str, arguments: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(execute=lambda: SimpleNamespace(data=self._call(function, arguments)))

    def _call(self, function: str, arguments: dict[str, Any]) -> Any:
        history = self._history
        history.maybe_die(f"before {function}")
        if history.chance(0.02):
            raise NotConnected("the database is away")
        values = {name: Jsonb(value) if name == "p_calls" else value for name, value in arguments.items()}
        named = sql.SQL(", ").join(sql.SQL("{} => {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in values)
        query = sql.SQL("select to_jsonb(public.{}({}))").format(sql.Identifier(function), named)
        answer = history.one(query, values)
        if history.chance(0.02):
            raise HttpError("the answer was lost after the commit")
        history.maybe_die(f"after {function}")
        return answer


class VirtualTwilio:
    """The part of Telephony that the dispatcher sees, over a model of Twilio with everything that goes wrong there."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.calls: list[Call] = []

    def place(self, attempt: UUID, _job_id: int, to: str, may_still_send: Callable[[], bool]) -> Placed:
        history = self.history
        history.maybe_die("before the request")
        history.maybe_freeze("about to ask Twilio")
        if not may_still_send():
            raise CallNotPlaced(Verdict("later", "too_late", "held up"))
        history.watch_the_rules(to)
        kind = history.draw(
            ok=10, accept_then_drop=2, accept_then_500=2, accept_late=2, hang=2, drop=2, refused=1, later=1
        )
        if kind == "refused":
            raise CallNotPlaced(Verdict("refused", "twilio_21211", "not a valid phone number"))
        if kind == "later":
            raise CallNotPlaced(Verdict("later", "twilio_20429", "too many requests at once"))
        if kind in ("ok", "accept_then_drop", "accept_then_500"):
            call = self.take(attempt, to)
            history.maybe_die("after the request")
            if kind == "ok":
                history.maybe_freeze("an answer under way")
                return Placed(call.sid, call.queue_s)
        if kind == "accept_late":
            history.after(history.random.uniform(0.1, 10), lambda: self.take(attempt, to))
        if kind in ("hang", "accept_late"):
            history.run_for(history.settings.twilio_timeout_seconds)
        raise CallNotPlaced(Verdict("in_doubt", "read_timeout", f"Twilio did not answer ({kind})"))

    def take(self, attempt: UUID, to: str) -> Call:
        history = self.history
        outcome = cast(CallStatus, history.draw(completed=6, busy=1, **{"no-answer": 1, "failed": 1}))
        listed_at = history.now + history.random.choice([0.0, 0.0, 5.0, history.random.uniform(0, LISTED_WITHIN_S)])
        callbacks = history.draw(ok=6, none=2, twice=1, shuffled=1, late=1)
        queue_s = history.random.uniform(*((60, 3600) if history.chance(0.1) else (0.1, 5)))
        sid = f"CA{len(self.calls):032x}"
        call = Call(sid, attempt, to, history.now, listed_at, callbacks, outcome, queue_s)
        self.calls.append(call)
        history.after(call.queue_s, lambda: self._ring(call))
        return call

    def _ring(self, call: Call) -> None:
        if call.is_over:
            return
        self._tell(call, "initiated")
        call.status = "ringing"
        self._tell(call, "ringing")
        self.history.after(self.history.random.uniform(1, 20), lambda: self._answer(call))

    def _answer(self, call: Call) -> None:
        if call.is_over or call.outcome != "completed":
            return self._finish(call, call.outcome)
        call.status = "in-progress"
        self._tell(call, "in-progress")
        call.reached = self.history.voice(call)
        talk_s = self.history.random.uniform(5, 60) if call.reached else 0.0
        if call.reached and self.history.chance(0.3):
            call.asked = True
            self.history.after(talk_s * self.history.random.uniform(0.5, 1.1), lambda: self.history.ask_for_later(call))
        return self.history.after(talk_s, lambda: self._finish(call, "completed"))

    def _finish(self, call: Call, status: CallStatus) -> None:
        if not call.is_over:
            call.status = status
            self._tell(call, status)

    def _tell(self, call: Call, status: CallStatus) -> None:
        history = self.history
        match call.callbacks:
            case "none":
                pass
            case "shuffled":
                call.held.append(status)
                if status in FINAL_CALL_STATUSES:
                    for held in history.random.sample(call.held, len(call.held)):
                        history.after(history.random.uniform(0, 5), partial(history.callback, call, held))
            case "late":
                history.after(history.random.uniform(30, 3600), lambda: history.callback(call, status))
            case _:
                for _ in range(2 if call.callbacks == "twice" else 1):
                    history.after(history.random.uniform(0, 2), lambda: history.callback(call, status))

    def _ask(self) -> None:
        if self.history.chance(0.1):
            raise TwilioUnavailable("no answer")

    def find(self, to: str, since: datetime, _our_number: str | None = None) -> list[TwilioCall]:
        self._ask()
        began, now = since - timedelta(seconds=5), self.history.now
        listed = [call for call in reversed(self.calls) if call.to == to and call.listed_at <= now]
        return [self._as_listed(call) for call in listed if self.history.wall(call.created_at) >= began]

    def _call(self, sid: str) -> Call:
        self._ask()
        return next(call for call in self.calls if call.sid == sid)

    def fetch(self, call_sid: str) -> TwilioCall | None:
        return self._as_listed(self._call(call_sid))

    def end(self, call_sid: str) -> None:
        call = self._call(call_sid)
        self._finish(call, "completed" if call.status == "in-progress" else "canceled")

    def cancel(self, call_sid: str) -> None:
        if (call := self._call(call_sid)).status != "in-progress":
            self._finish(call, "canceled")

    def _as_listed(self, call: Call) -> TwilioCall:
        return TwilioCall(call.sid, call.status, self.history.wall(call.created_at).replace(microsecond=0), None, None)


class History:
    """One seed's history. Everything happens in one thread; a frozen worker is one in whose middle the others go on."""

    def __init__(self, seed: int, connection: psycopg.Connection[Any], settings: Settings) -> None:
        self.random, self.connection, self.settings, self.now = random.Random(seed), connection, settings, 0.0
        self.twilio = VirtualTwilio(self)
        self.log: list[str] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._frozen = 0
        # API_BASE_URL is another service: it speaks to everybody and tells us nothing, so Twilio's list is all there is.
        self._elsewhere = self.random.random() < 0.3
        self._began = self.random.choices([BEGAN, SOON_DAY, SOON_NIGHT], [7, 2, 1])[0]
        self._at_any_hour = self._began == BEGAN
        if self._at_any_hour:
            self.settings = settings.model_copy(update={"call_hours": "always"})
        self._stopped: dict[str, float] = {}  # number -> since when
        self._paused_at: float | None = None
        self.against_the_rules = 0
        self._calm = False  # near the end nothing new goes wrong, so that the history can become quiet
        self._worker_lives = False
        self._reset()

    # --- chance -------------------------------------------------------------------------------------------------------
    def chance(self, probability: float) -> bool:
        return not self._calm and self.random.random() < probability

    def draw(self, **weights: int) -> str:
        if self._calm:
            return next(iter(weights))
        return self.random.choices(list(weights), list(weights.values()))[0]

    def maybe_die(self, point: str) -> None:
        if self._worker_lives and self.chance(0.02):
            self.note(f"killed {point}")
            raise Killed(point)

    def maybe_freeze(self, point: str) -> None:
        if self._worker_lives and self._frozen < 2 and self.chance(0.03):
            seconds = self.random.choice([1.0, 10.0, 90.0, 400.0])
            self.note(f"frozen for {seconds:g} s: {point}")
            self._frozen += 1
            self.run_for(seconds)
            self._frozen -= 1

    def at(self, point: str) -> None:
        self.maybe_die(f"at {point}")
        self.maybe_freeze(f"at {point}")

    def note(self, what: str) -> None:
        self.log.append(f"{self.now:9.1f}  {what}")

    def one(self, query: Any, values: Any = ()) -> Any:
        """The first column of the first row, if there is one."""
        row = self.connection.execute(query, values).fetchone()
        return row and row[0]

    # --- time ---------------------------------------------------------------------------------------------------------
    def wall(self, at: float) -> datetime:
        return self._began.astimezone(UTC) + timedelta(seconds=at)

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run_for(self, seconds: float) -> None:
        """Let the rest of the world go on for so long."""
        until, lives = self.now + seconds, self._worker_lives
        while self._events and self._events[0][0] <= until:
            at, _, event = heapq.heappop(self._events)
            self._set_now(max(at, self.now))
            self._worker_lives = False  # whoever acts now is another process
            event()
        self._set_now(max(until, self.now))
        self._worker_lives = lives

    def _set_now(self, now: float) -> None:
        self.now = now
        self.connection.execute("update sandbox.moment set at = %s", (self.wall(now),))

    def _reset(self) -> None:
        self.connection.execute(
            "truncate public.outbound_call_jobs, public.outbound_call_attempts restart identity cascade;"
            "truncate private.missed_signups, private.deleted_calls, public.call_opt_outs, private.call_counts;"
            "update private.call_settings"
            " set paused_until = null, paused_by = null, halts = 0, probe_until = null, next_call_at = '-infinity'"
        )
        self._set_now(0.0)

    # --- those who act ------------------------------------------------------------------------------------------------
    def worker(self, at: Callable[[str], None] | None = None) -> Dispatcher:
        jobs = Jobs(cast(Any, Transport(self)))
        return Dispatcher(self.settings, jobs, cast(Telephony, self.twilio), at or self.at)

    @contextmanager
    def _living(self) -> Iterator[None]:
        """One process at work: it may be killed, and the database may fail it."""
        outer, self._worker_lives = self._worker_lives, True
        try:
            yield
        except (Killed, JobsUnavailable) as end:
            self.note(f"{type(end).__name__}: {end}")
        finally:
            self._worker_lives = outer

    def webhook(self, job_id: int) -> None:
        with self._living():
            self.note(f"webhook for job {job_id}: {self.worker().dial_one(job_id).outcome}")

    def sweep(self) -> None:
        with self._living():
            worker = self.worker()
            for step in (worker.claim_to_dial, worker.claim_to_follow_up):
                while (done := finished(step())).outcome not in ("nothing", "waiting", "paused"):
                    self.note(f"sweep: job {done.job_id} {done.outcome} {done.detail}")
        self.after(SWEEP_EVERY_S * max(1, math.ceil(self._idle_s() / SWEEP_EVERY_S)), self.sweep)

    def _idle_s(self) -> float:
        """How long nothing will happen and nothing is due: the sweeps in between would find nothing to do."""
        due_s = self.one(
            "select extract(epoch from least((select min(due_at) from public.outbound_call_jobs),"
            " (select min(end_due_at) from public.outbound_call_attempts where closed_at is null)) - private.clock())::float8"
        )
        next_event = min((at for at, _, event in self._events if event != self.sweep), default=GIVE_UP_S)
        return min(GIVE_UP_S if due_s is None else due_s, next_event - self.now)

    def voice(self, call: Call) -> bool:
        """What /voice does. -> whether the person hears our words; when the database is away, the apology is words, too."""
        worker = self.worker(lambda _point: None)
        try:
            return self._elsewhere or worker.record_status(call.attempt, CallEvent(call.sid, "in-progress")).is_wanted
        except JobsUnavailable:
            return True

    def ask_for_later(self, call: Call, tries: int = 2) -> None:
        """What /voice does with an answer's `later`; the person waits while the database is away. It may come late."""
        with self._living():
            worker = self.worker()
            try:
                live = worker.record_status(call.attempt, CallEvent(call.sid, "in-progress"))
                later_at = worker.find_later(live, "2h")
                answer = Answer("2", "good_time", "later", later_at=later_at)
                stored = worker.record_answer(call.attempt, call.sid, answer)
            except JobsUnavailable:
                if tries:
                    self.after(2.0, lambda: self.ask_for_later(call, tries - 1))
                return
            call.agreed = stored.is_wanted and worker.later_in_words(stored, "en-US") is not None
            self.note(f"{call.to[-4:]} asks for a later call: {stored.later_at}")

    def callback(self, call: Call, status: CallStatus, tries: int = 5) -> None:
        """What /status does; Twilio repeats it when it fails."""
        if self._elsewhere:
            return
        worker = self.worker(lambda _point: None)
        try:
            told = worker.record_status(call.attempt, CallEvent(call.sid, status))
            if status not in FINAL_CALL_STATUSES:
                worker.end_if_unwanted(told, call.sid)
        except JobsUnavailable:
            if tries:
                self.after(1.0, lambda: self.callback(call, status, tries - 1))

    def cancel(self, job_id: int) -> None:
        open_ = "select public.cancel_call_job(id) from public.outbound_call_jobs where id = %s and finished_at is null"
        self.connection.execute(open_, (job_id,))

    def opt_out(self, number: str) -> None:
        self.note(f"{number[-4:]} opts out")
        self.connection.execute("select public.opt_out(%s)", (number,))
        self._stopped.setdefault(number, self.now)

    def pause(self) -> None:
        self.note("all calls are paused")
        self.connection.execute("select public.pause_calls('somebody pulled the switch')")
        self._paused_at = self.now
        self.after(self.random.uniform(60, 7200), self._resume)

    def _resume(self) -> None:
        self.connection.execute("select public.resume_calls()")
        self._paused_at = None

    def watch_the_rules(self, number: str) -> None:
        """At the moment of a request for a call: its claim was at most so long ago, and must have been right then."""
        claimed = self.now - DIAL_WITHIN_SECONDS
        there = {self.wall(at).astimezone(THERE).hour for at in (claimed, self.now)}
        wrong = [
            not self._at_any_hour and not any(9 <= hour < 20 for hour in there) and "it is night there",
            self._stopped.get(number, claimed) < claimed and "they opted out",
            self._paused_at is not None and self._paused_at < claimed and "calls are paused",
        ]
        for why in filter(None, wrong):
            self.note(f"AGAINST THE RULES: {number[-4:]} is dialed, and {why}")
            self.against_the_rules += 1

    # --- a history ----------------------------------------------------------------------------------------------------
    def run(self) -> Verdicts:
        """From a few jobs until all is quiet."""
        numbers = [f"+1415555{100 + n:04d}" for n in range(3)]
        for number in self.random.choices(numbers, k=self.random.randint(1, 5)):
            insert = "insert into public.outbound_call_jobs (user_id, phone_number) values (%s, %s) returning id"
            job_id = self.one(insert, (uuid.UUID(int=self.random.getrandbits(128)), number))
            for _ in range(self.random.choice([0, 1, 1, 2])):  # lost, delivered, repeated
                self.after(self.random.choice([0.05, 0.05, 30.0, 200.0]), partial(self.webhook, job_id))
            if self.random.random() < 0.1:
                self.after(self.random.uniform(0, 300), partial(self.cancel, job_id))
            if self.random.random() < 0.1:
                self.after(self.random.choice([1.0, 20.0, 300.0, 50_000.0]), partial(self.opt_out, number))
        if self.random.random() < 0.2:
            self.after(self.random.choice([0.1, 5.0, 30.0, 600.0]), self.pause)
        self.after(self.random.uniform(0, SWEEP_EVERY_S), self.sweep)
        self.after(self.random.uniform(0, SWEEP_EVERY_S), self.sweep)  # two of them, in no step

        while self.now < GIVE_UP_S and not self._is_quiet():
            self._calm = self.now > 12 * 3600
            self.run_for(max(SWEEP_EVERY_S, self._events[0][0] - self.now))
        return self._judge()

    def _is_quiet(self) -> bool:
        waiting = [event for _, _, event in self._events if event != self.sweep]
        return not waiting and not self.one(
            "select exists (select from public.outbound_call_jobs where finished_at is null)"
            " or exists (select from public.outbound_call_attempts where state = 'duplicate' and closed_at is null)"
        )

    def _judge(self) -> Verdicts:
        query = "select id, status, reason_code from public.outbound_call_jobs order by id"
        jobs = self.connection.execute(query).fetchall()
        owners = dict(self.connection.execute("select id, job_id from public.outbound_call_attempts").fetchall())
        reached = [(owners.get(call.attempt), call) for call in self.twilio.calls if call.reached]
        last = dict(reached)
        calls = Counter(job_id for job_id, call in reached if job_id is None or not call.asked)
        strangers = calls.pop(None, 0)
        return Verdicts(
            twice=sum(count - 1 for count in calls.values()) + strangers,
            lost=sum(
                status not in ("completed", "failed", "canceled")
                or (status == "completed" and (job_id not in last or last[job_id].agreed))
                or (status == "failed" and reason not in ALLOWED_REASONS)
                for job_id, status, reason in jobs
            ),
            in_doubt=sum(status == "in_doubt" for _, status, _ in jobs),
            against_the_rules=self.against_the_rules,
        )


@dataclass
class Verdicts:
    """Of one history, or of all."""

    twice: int = 0
    lost: int = 0
    in_doubt: int = 0
    against_the_rules: int = 0

    @property
    def is_clean(self) -> bool:
        return self == Verdicts()


@contextmanager
def prepared(server: Postgres, template: str | None = None) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database (a copy of `template`, if there is one), and the database's clock replaced by virtual time."""
    sandbox_database.create_database(server, DATABASE, template or "template1")
    if template is None:
        sandbox_database.bootstrap(server, DATABASE)
        sandbox_database.migrate(server, DATABASE)
        sandbox_database.install_clock(server, DATABASE)
    # A million lines that nobody reads.
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    with psycopg.connect(server.url(database=DATABASE), autocommit=True) as connection:
        connection.execute(CLOCK)
        yield connection


def run_history(
    seed: int, connection: psycopg.Connection[Any], settings: Settings | None = None
) -> tuple[History, Verdicts]:
    """Replays exactly: whatever is drawn comes from the seed alone."""
    history = History(seed, connection, settings or load_settings(http=False, environ=SETTINGS))
    jitter, ids = random.Random(f"jitter {seed}"), random.Random(f"ids {seed}")
    with (
        patch.object(ClaimClock, "now", lambda: ClaimClock(history.now, history.now)),
        patch("shared.dispatcher.backoff.delays", partial(backoff.delays, uniform=jitter.uniform)),
        patch("shared.dispatcher.backoff.jittered", partial(backoff.jittered, uniform=jitter.uniform)),
        patch("shared.dispatcher.uuid4", lambda: uuid.UUID(int=ids.getrandbits(128), version=4)),
    ):
        return history, history.run()


def main() -> int:
    arguments = parser("simulation", __doc__)
    arguments.add_argument("--runs", type=positive, default=1000)
    arguments.add_argument("--seed", type=int, default=int(time.time()), help="of the first history")
    options = begin(arguments)
    total = Verdicts()
    with Postgres() as server, prepared(server) as connection:
        for n, seed in enumerate(range(options.seed, options.seed + options.runs), 1):
            history, verdicts = run_history(seed, connection)
            total = Verdicts(*map(sum, zip(astuple(total), astuple(verdicts), strict=True)))
            if not verdicts.is_clean:
                say("\n  ".join([f"seed {seed}: {verdicts}", *history.log]))
                say(f"  again: make chaos RUNS=1 SEED={seed}")
            elif n % 100 == 0:
                say(f"{n} histories ...")
    say(f"dialed at night, after an opt-out or in a pause: {total.against_the_rules}")
    say(
        f"histories {options.runs}, dialed twice {total.twice}, lost {total.lost}, in doubt at the end {total.in_doubt}"
    )
    return 0 if total.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
