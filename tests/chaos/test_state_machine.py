"""Never twice, never lost: the real SQL functions under any history that hypothesis can think of, with a model of Twilio.

Workers die, report late or twice; callbacks come in any order, or never; Twilio lists late; people cancel, retry, delete, opt
out and pause; hours pass. After each call of a function all that must hold is looked at, and at the end the sweep alone must bring
every job to its end. HYPOTHESIS_PROFILE=chaos looks much longer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, cast, get_args
from unittest.mock import patch
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from shared.models import JobStatus
from tests.chaos.model_twilio import FINAL_WORDS, LATE_S, LISTED_WITHIN_S, NEXT, WORDS, Call, Request, Twilio
from tests.database.sql_api import DELAYS_S, FINAL, OPEN, SETTLING_S, Steps
from tests.database.test_explain import faults, story
from tests.sandbox.postgres import Postgres
from tests.sandbox.supabase import database
from tests.sandbox.supabase.database import EMPTY

T = TypeVar("T")

USERS = tuple(UUID(int=n) for n in range(1, 5))
NUMBERS = ("+12015550100", "+12015550101")  # fewer than users: they are shared
DIAL_WITHIN_S = 2.0
MAX_ATTEMPTS = len(DELAYS_S) + 1
NEVER = float("inf")
SWEEP_EVERY_S = 60.0

# The clock stands still unless the machine moves it: a history that failed fails again.
STILL_CLOCK = """
create or replace function private.clock() returns timestamptz language sql stable set search_path = '' as
$$ select timestamptz '2026-11-24 12:00Z' + (select offset_by from sandbox.clock) $$
"""

# The tables of the design, "life of a job" and "an attempt"; `gone` is a deleted row. One step may go two ways at once: a late
# callback that says how the call ended takes a queued job to its end.
JOB_MAY_BECOME: dict[str, set[str]] = {
    "new": {"queued"},
    "queued": {"dialing", "calling", "completed", "failed", "canceled", "gone"},
    "dialing": {"queued", "in_doubt", "calling", "completed", "failed", "canceled"},
    "in_doubt": {"queued", "calling", "completed", "failed", "canceled"},
    "calling": {"queued", "completed", "failed", "canceled"},
    "completed": {"queued", "gone"},
    "failed": {"queued", "calling", "completed", "canceled", "gone"},
    "canceled": {"queued", "gone"},
}
ATTEMPT_MAY_BECOME: dict[str, set[str]] = {
    "new": {"started"},
    "started": {"in_doubt", "accepted", "ended", "refused", "gone"},
    "in_doubt": {"accepted", "ended", "absent", "refused", "gone"},
    "accepted": {"ended"},
    "ended": {"gone"},
    "refused": {"gone"},
    "absent": {"accepted", "ended", "duplicate", "gone"},
    "duplicate": {"gone"},
}
STATE_OF_THE_OPEN_ATTEMPT = {"dialing": "started", "in_doubt": "in_doubt", "calling": "accepted"}

IN_CHAOS = os.environ.get("HYPOTHESIS_PROFILE") == "chaos"
# The same histories each time: what lands passes, and new ones are looked for on purpose, in chaos.
settings.register_profile("machine", max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
settings.register_profile("chaos", max_examples=2_000, stateful_step_count=60, deadline=None)
SETTINGS = settings(
    settings.get_profile("chaos" if IN_CHAOS else "machine"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Brief(dict[str, Any]):
    """A row that shows only what is told here."""

    def __repr__(self) -> str:
        shown = "id status state reason_code attempts cancel_requested call_sid call_status phone_e164".split()
        return " ".join(f"{name}={self[name]}" for name in shown if self.get(name) is not None)


class Broken(AssertionError):
    """An invariant does not hold; the message begins with its name."""

    def __init__(self, invariant: str, detail: object) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


Saw = Literal["answered", "answer lost", "request lost", "refused", "later", "halt", "refused by screening", "put off"]
LIKELIER: tuple[Saw, ...] = ("answer lost", "answered") * 3
SAWS: tuple[Saw, ...] = (*LIKELIER, *get_args(Saw))

INTERFERENCES = {  # what people do, and to jobs in which states
    "cancels": ("queued", "dialing", "in_doubt", "calling"),
    "deletes": get_args(JobStatus),
    "retries": ("failed", "canceled"),
    "pauses": (),
    "opts out": (),
    "is deleted": (),
    "puts off": (),
}
ALSO = (
    *INTERFERENCES,
    *("contradictions", "sign-ups", "webhooks", "repeated reports", "repeated callbacks", "late lists", "long waits"),
)
LATER = "wishes for a later call"
"""Not in ALSO: the seeds of the mutations were found without it."""
ALL = (*ALSO, LATER)


class OneOf(Protocol):
    """Draws."""

    def __call__(self, choices: Sequence[T], /) -> T: ...


@dataclass(eq=False)
class Worker:
    """A dispatcher that holds a claim; it may die at any moment, or wake up much later."""

    request: Request
    claimed_at: float
    saw: Saw | None = None  # what came of its request; None: not asked yet
    sid: str = ""
    reports: int = 0

    def __repr__(self) -> str:
        return f"<worker of job {self.request.job}, saw {self.saw}>"


@dataclass(eq=False)
class Look:
    """A sweep that has asked Twilio for its list and has not said yet what it learned."""

    attempt: UUID
    asked_at: datetime
    listed: tuple[Call, ...]


class Dispatching(RuleBasedStateMachine):
    def __init__(self, steps: Steps, watched: Container[str] | None = None, may: Collection[str] = ALL) -> None:
        """`watched`: look at these invariants only. `may`: of ALL, what may happen."""
        super().__init__()
        self.watched = watched
        self.may = may
        self.steps = steps
        steps.rows(EMPTY + "alter sequence public.outbound_call_jobs_id_seq restart")  # so that a seed replays exactly
        self.twilio = Twilio()
        self.workers: list[Worker] = []
        self.looks: list[Look] = []
        self.rounds: Counter[int] = Counter()  # job -> how often it was retried by hand
        self.cancels: set[int] = set()  # jobs that somebody wanted to cancel, or delete
        self.out: dict[str, float] = {}  # numbers that opted out, and when
        self.ever_paused = False
        self.also: set[str] = set()
        self.paused = False
        self.broken = False
        self.claims = 0
        self.started_at: dict[UUID, float] = {}
        self.jobs: dict[int, Brief] = {}
        self.attempts: dict[UUID, Brief] = {}

    # --- what may happen ----------------------------------------------------------------------------------------------
    @initialize(numbers=st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=3), also=st.sets(st.sampled_from(ALSO)))
    def people_sign_up(self, numbers: list[str], also: set[str]) -> None:
        self.also = also.intersection(self.may)
        for user, number in zip(USERS, numbers, strict=False):
            self._enqueue(user, number)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        """One rule for all that may happen: of several, hypothesis leaves out a random half in each example, and without
        workers, Twilio or the sweep there is no story. What a story can do without is left out here (`also`)."""
        waiting, open_ = self.next_due_s("queued") is not None, self.next_due_s("open") is not None
        acts = [
            *[self.a_worker_claims] * (3 if waiting else 0),
            *[self.a_worker_wakes_up] * (1 if self.awake else 0),
            *[self.the_sweep_looks] * (3 if open_ else 0),
            *[self.a_sweep_settles] * (1 if self.looks else 0),
            *[self.a_call_goes_on] * (3 if self.twilio.live else 0),
            *[self.a_callback_arrives] * (2 if any(c.told != c.status for c in self.twilio.made) else 0),
            *[self.a_callback_arrives] * (1 if self.twilio.made and "repeated callbacks" in self.also else 0),
            *[self.twilio_contradicts_itself] * (1 if self.over_and_told and "contradictions" in self.also else 0),
            *[self.somebody_asks_for_later] * (1 if self.reached and LATER in self.may else 0),
            *[self.somebody_signs_up] * (1 if "sign-ups" in self.also else 0),
            *[self.somebody_interferes] * (1 if self.jobs and self.also & INTERFERENCES.keys() else 0),
            *[self.a_webhook_claims] * (1 if self.jobs and "webhooks" in self.also else 0),
            self.time_passes,
        ]
        act = data.draw(st.sampled_from([act.__name__ for act in acts]), label="act")
        getattr(self, act)(lambda choices: data.draw(st.sampled_from(choices)))

    def somebody_signs_up(self, one_of: OneOf) -> None:
        self._enqueue(one_of(USERS), one_of(NUMBERS))

    def _enqueue(self, user: UUID, number: str) -> None:
        an_hour_ago = self.steps.now() - timedelta(hours=1)
        ends = {job: row["finished_at"] for job, row in self.jobs.items() if row["user_id"] == user}
        recent = [job for job, end in ends.items() if end is None or end > an_hour_ago]
        answer = self.do(lambda: self.steps.call("enqueue_call_job", user_id=user, phone_number=number))
        self.require(answer["created"] is not bool(recent), "one job an hour and user", (answer, recent))
        self.require(answer["job_id"] in (recent or self.jobs), "a second sign-up is told of the first", answer)

    def somebody_interferes(self, one_of: OneOf) -> None:
        what = one_of(sorted(self.also & INTERFERENCES.keys()))
        jobs = [job for job, row in self.jobs.items() if row["status"] in INTERFERENCES[what]]
        match what:
            case "pauses" if self.paused:
                self._resume()
            case "pauses":
                self.paused = self.ever_paused = True
                self.do(lambda: self.steps.call("pause_calls", reason="by hand"))
            case "opts out":
                self._opt_out(one_of(NUMBERS))
            case "is deleted":
                user = one_of(USERS)
                self.cancels |= {job for job, row in self.jobs.items() if row["user_id"] == user}
                self.steps.rows("insert into auth.users (id) values (%s)", user)
                self.do(lambda: self.steps.rows("delete from auth.users where id = %s", user))
            case "puts off":
                if waiting := [a["id"] for a in self.attempts.values() if a["state"] == "accepted"]:
                    put_off = {"attempt": one_of(waiting), "code": "outside_calling_hours", "reason": "night there"}
                    at = self.steps.now() + timedelta(hours=9)
                    self.do(lambda: self.steps.call("put_off_call", not_before=at, **put_off))
            case "retries":
                if possible := [job for job in jobs if self._may_be_retried(job)]:
                    job = one_of(possible)
                    self.cancels.discard(job)
                    self.rounds[job] += 1
                    self.do(lambda: self.steps.call("retry_call_job", job_id=job))
            case "cancels" if jobs:
                self.cancels.add(job := one_of(jobs))
                self.do(lambda: self.steps.call("cancel_call_job", job_id=job))
            case "deletes" if jobs:
                self.cancels.add(job := one_of(jobs))
                self.do(lambda: self.steps.rows("delete from public.outbound_call_jobs where id = %s", job))

    def _may_be_retried(self, job: int) -> bool:
        """Else it is refused: opted out, erased, its number has a call that is not over, or its user a newer job."""
        row = self.jobs[job]
        number, user = row["phone_e164"], row["user_id"]
        in_use = any(a["phone_e164"] == number and a["closed_at"] is None for a in self.attempts.values())
        newer = any(j > job and r["user_id"] == user and r["status"] not in FINAL for j, r in self.jobs.items())
        return number not in self.out and row["phone_number"] != "erased" and not in_use and not newer

    def _opt_out(self, number: str) -> None:
        self.cancels |= {job for job, row in self.jobs.items() if row["phone_e164"] == number}
        self.out.setdefault(number, self.twilio.now)
        self.do(lambda: self.steps.call("opt_out", phone_number=number))
        queued = [j for j in self.jobs.values() if j["phone_e164"] == number and j["status"] == "queued"]
        self.require(not queued, "an opt-out cancels what is queued", queued)

    def _resume(self) -> None:
        self.paused = False
        self.do(lambda: self.steps.call("resume_calls"))

    def time_passes(self, one_of: OneOf) -> None:
        self._wait(one_of([1.0, 3.0, 20.0, 45.0, 120.0, *self.long_waits]))

    def _wait(self, seconds: float) -> None:
        self.twilio.pass_time(seconds)
        self.steps.pass_time(seconds)

    # --- workers ------------------------------------------------------------------------------------------------------
    def a_worker_claims(self, one_of: OneOf) -> None:
        """The next job, as soon as it is due; and does no more for now, or all of it."""
        self._wait(self.next_due_s("queued") or 0.0)
        then = one_of(["waits", "dials", "dials and reports", "dials and reports"])
        if (worker := self._claim(None)) and "dials" in then:
            self._dials(worker, one_of)
            if "reports" in then:
                self._report(worker)

    def a_webhook_claims(self, one_of: OneOf) -> None:
        """This job, whatever its state."""
        self._claim(one_of(list(self.jobs)))

    def a_worker_wakes_up(self, one_of: OneOf) -> None:
        """And dials, within two seconds of its claim: the lease is built on that. Else it reports: now, much later, once more."""
        worker = one_of(self.awake)
        if worker.saw is None and self.twilio.now - worker.claimed_at <= DIAL_WITHIN_S:
            self._dials(worker, one_of)
        else:
            self._report(worker)

    def _dials(self, worker: Worker, one_of: OneOf) -> None:
        late_s = one_of([0.0, 0.0, 5.0, LATE_S])
        listed_after_s = one_of([0.0, 30.0, LISTED_WITHIN_S, *([600.0, NEVER] if "late lists" in self.also else [])])
        self._dial(worker, one_of(SAWS), late_s, listed_after_s)

    def _claim(self, job: int | None) -> Worker | None:
        self.claims += 1
        attempt = UUID(int=self.claims)
        answer = self.do(lambda: self.steps.claim(job, attempt))
        if answer["outcome"] != "claimed":
            return None
        self.require(not self.paused, "a pause holds", answer)
        claimed = answer["job"]
        self.require(claimed["phone_e164"] not in self.out, "who opted out is not dialed", answer)
        self.require(job in (None, claimed["id"]), "who asks for a job gets that job", answer)
        request = Request(attempt, claimed["id"], self.rounds[claimed["id"]], claimed["phone_e164"])
        self.started_at[attempt] = self.twilio.now
        worker = Worker(request, self.twilio.now)
        self.workers.append(worker)
        return worker

    def _dial(self, worker: Worker, saw: Saw, late_s: float, listed_after_s: float) -> None:
        worker.saw = saw
        if saw == "answered":
            worker.sid = self.twilio.make(worker.request, late_s=0.0, listed_after_s=listed_after_s).sid
        elif saw == "answer lost":
            self.twilio.make(worker.request, late_s=late_s, listed_after_s=listed_after_s)

    def _report(self, worker: Worker) -> None:
        attempt = worker.request.attempt
        worker.reports += 1
        match worker.saw:
            case "answered":
                self._tell(self._call(worker.sid), None, attempt)
            case "answer lost" | "request lost":
                self.do(lambda: self.steps.doubt(attempt))
            case "refused" | "refused by screening":
                self.do(lambda: self.steps.refuse(attempt))
            case "later":
                self.do(lambda: self.steps.release(attempt, delay_s=60.0))
            case "halt":
                self.do(lambda: self.steps.release(attempt, halt_s=60.0))
            case "put off" | None:
                self.do(lambda: self.steps.release(attempt, delay_s=1800.0 if worker.saw else 0.0))

    # --- the sweep ----------------------------------------------------------------------------------------------------
    def the_sweep_looks(self, one_of: OneOf) -> None:
        """After the first that is due; it may come late."""
        late_s = one_of([0.0, 0.0, 0.0, 60.0, 150.0, *self.long_waits])
        self._wait((self.next_due_s("open") or 0.0) + late_s)
        answers, settles = one_of([True, True, True, False]), one_of([True, True, False])
        self._look_after_one(answers=answers, settles=settles)

    def a_sweep_settles(self, one_of: OneOf) -> None:
        """With what it was told some time ago."""
        look = one_of(self.looks)
        self.looks.remove(look)
        self._settle(look)

    def _look_after_one(self, *, answers: bool = True, settles: bool = True) -> bool:
        """-> whether there was one to look after."""
        found = self.do(self.steps.ask)
        if found["outcome"] == "none":
            return False
        attempt = UUID(found["attempt"])
        row = self.attempts[attempt]
        unwanted = row["state"] == "duplicate" or self.jobs[row["job_id"]]["cancel_requested"]
        self.require(found["end"] is unwanted, "the sweep ends what is not wanted, and nothing else", found)
        back = row["put_off_until"] is not None
        self.require(found["put_off"] is back, "the sweep takes back what is put off, and nothing else", found)
        if not answers:
            return True
        if found["call_sid"] is None:
            listed = self.twilio.listed(found["phone_e164"], self.started_at[attempt])
            look = Look(attempt, datetime.fromisoformat(found["asked_at"]), tuple(listed))
            if settles:
                self._settle(look)
            else:
                self.looks.append(look)
            return True
        call = self._call(found["call_sid"])
        if found["end"] or (found["put_off"] and call.status == "queued"):
            self.twilio.end(call)
        self._tell(call, call.status, attempt)
        return True

    def _settle(self, look: Look) -> None:
        listed = [(call.sid, call.status) for call in look.listed]
        settle = partial(self.steps.settle, asked_at=look.asked_at, settling_s=SETTLING_S)
        answer = self.do(lambda: settle(look.attempt, *listed))
        self.require(answer["outcome"] != "ambiguous", "a listed call can be of one attempt only", (answer, look))
        if answer["outcome"] == "found":
            call = self._call(answer["call_sid"])
            call.told = call.told or "queued"
            self._tell(call, answer["call_status"], look.attempt)

    # --- Twilio -------------------------------------------------------------------------------------------------------
    def a_call_goes_on(self, one_of: OneOf) -> None:
        call = one_of(self.twilio.live)
        later = WORDS[WORDS.index(call.status) + 1 :] if call.status != "in-progress" else NEXT["in-progress"]
        self.twilio.goes_on(call, one_of(later))
        if one_of([True, False]):
            self._tell(call, call.status, call.request.attempt, ending_works=one_of([True, False]))

    def a_callback_arrives(self, one_of: OneOf) -> None:
        """Any word that was true at some time, as often as it likes; of a call that nobody here knows of, if there is one."""
        call = one_of([c for c in self.twilio.made if c.told is None] or self.twilio.made)
        word = one_of([*dict.fromkeys(call.words)])
        self._tell(call, word, call.request.attempt, ending_works=one_of([True, False]))

    def twilio_contradicts_itself(self, one_of: OneOf) -> None:
        """How the call ended is known; a second telling says otherwise."""
        call = one_of(self.over_and_told)
        self._tell(call, one_of(FINAL_WORDS), call.request.attempt)

    def somebody_asks_for_later(self, one_of: OneOf) -> None:
        """The answer may come after the end of its call, and more than once."""
        call = one_of(self.reached)
        row = self._row_of(call)
        job = self.jobs[row["job_id"]] if row else None
        ended_its_job = (
            row is not None
            and job is not None
            and (row["state"], row["call_status"], row["later_at"]) == ("ended", "completed", None)
            and (job["status"], job["attempts"]) == ("completed", row["number"])
        )
        call.is_told("in-progress")
        at = self.steps.now() + timedelta(hours=one_of([0, 2, 20]))
        answer = self.do(lambda: self.steps.ask_for_later(call.request.attempt, call.sid, at))
        after = self._row_of(call)
        call.asked_for_later |= answer["later_at"] is not None
        if after and (ended_its_job or (after["state"] == "accepted" and answer["then"] == "keep")):
            self.require(after["later_at"] == at, "a wish for a later call is stored", (call, after))
        if after and ended_its_job and job is not None:
            goes_on = self.jobs[job["id"]]["status"] == "queued" or job["phone_number"] == "erased"
            self.require(goes_on, "a late wish takes its job up again", (call, after))

    def _tell(self, call: Call, word: str | None, attempt: UUID, *, ending_works: bool = True) -> None:
        """A SID comes in: by the answer to the request (no word), a callback, or our own asking."""
        late_truth = call.told is None and self._came_to_nothing(attempt)
        call.is_told(word or "queued")
        if word is None:
            answer = self.do(lambda: self.steps.accept(attempt, call.sid))
        else:
            answer = self.do(lambda: self.steps.status(attempt, call.sid, word))
        row = self._row_of(call)
        if row is None:
            then = "unknown"
        else:
            unwanted = row["state"] == "duplicate" or self.jobs[row["job_id"]]["cancel_requested"]
            then = "end" if unwanted and word not in FINAL_WORDS else "keep"
        self.require(answer["then"] == then, "a live call is kept when it is wanted, and ended when it is not", answer)
        if late_truth:
            revived = row is not None and row["state"] in ("accepted", "ended")
            self.require(revived, "late truth revives a job that came to nothing", (call, row))
        if then != "keep" and ending_works:
            self.twilio.end(call)

    def _came_to_nothing(self, attempt: UUID) -> bool:
        """Its call was absent, its job waits or failed by that, and its number is free."""
        row = self.attempts.get(attempt)
        if row is None or row["state"] != "absent":
            return False
        job, others = self.jobs[row["job_id"]], [a for a in self.attempts.values() if a["state"] in OPEN]
        in_vain = job["status"] == "queued" or job["reason_code"] in ("absent", "gave_up")
        return in_vain and all(other["phone_e164"] != row["phone_e164"] for other in others)

    def _row_of(self, call: Call) -> Brief | None:
        return next((a for a in self.attempts.values() if a["call_sid"] == call.sid), None)

    def _of(self, job: int) -> list[Brief]:
        return [a for a in self.attempts.values() if a["job_id"] == job]

    # --- what must hold -----------------------------------------------------------------------------------------------
    def do(self, step: Callable[[], T]) -> T:
        """One call of a function, and a look at all that it left behind."""
        try:
            answer = step()
        except psycopg.Error as error:
            self.broken = True
            raise Broken("no function ever raises", error) from error
        jobs = {row["id"]: Brief(row) for row in self.steps.rows("select * from public.outbound_call_jobs order by id")}
        rows = self.steps.rows("select * from public.outbound_call_attempts order by job_id, number, id")
        attempts = {row["id"]: Brief(row) for row in rows}
        self._ways_are_known(jobs, attempts)
        self.jobs, self.attempts = jobs, attempts
        self._rows_agree()
        self._calls_are_bound()
        return answer

    def _ways_are_known(self, jobs: dict[int, Brief], attempts: dict[UUID, Brief]) -> None:
        self._are_known("a job goes only the ways of the design", "status", JOB_MAY_BECOME, self.jobs, jobs)
        ways = ATTEMPT_MAY_BECOME
        self._are_known("an attempt goes only the ways of the design", "state", ways, self.attempts, attempts)

    def _are_known(
        self, invariant: str, column: str, known: dict[str, set[str]], before: dict[T, Brief], after: dict[T, Brief]
    ) -> None:
        for row in before.keys() | after.keys():
            old, new = before.get(row), after.get(row)
            way = (old[column] if old else "new", new[column] if new else "gone")
            self.require(way[0] == way[1] or way[1] in known[way[0]], invariant, (row, way, old, new))

    def _rows_agree(self) -> None:
        opened = [a for a in self.attempts.values() if a["state"] in OPEN]
        for column in ("phone_e164", "job_id"):
            most = Counter(a[column] for a in opened).most_common(1)
            self.require(not most or most[0][1] == 1, f"one open attempt per {column}", opened)
        for job in self.jobs.values():
            mine = self._of(job["id"])
            is_final = job["status"] in FINAL
            self.require((job["due_at"] is None) == is_final, "every open job is due at some time", job)
            self.require((job["finished_at"] is not None) == is_final, "every final job is finished", job)
            states = [a["state"] for a in mine if a["state"] in OPEN]
            wanted = STATE_OF_THE_OPEN_ATTEMPT.get(job["status"])
            self.require(
                states == ([wanted] if wanted else []),
                "a job's open attempt is in the state that the job says",
                (job, states),
            )
            given_back = [a for a in mine if a["put_off_until"] and a["call_status"] == "canceled"]
            given_back += [a for a in mine if a["later_at"] and a["state"] == "ended"]
            spent = [a for a in mine if a not in given_back]
            self.require(job["attempts"] == len(spent), "every attempt is counted once", (job, mine))
            limit = MAX_ATTEMPTS + self.rounds[job["id"]]
            self.require(job["attempts"] <= limit, "no more attempts than allowed", job)

    def _calls_are_bound(self) -> None:
        for call in self.twilio.calls:
            if call.told is None or call.request.job not in self.jobs:
                continue
            row = self._row_of(call)
            self.require(row, "a call that we were told of is bound", call)
            if row is None:
                continue
            right = row["id"] == call.request.attempt
            self.require(right, "a call is bound to the attempt that asked for it", (call, row))
            forward = row["call_status"] == call.told
            self.require(forward, "a call moves only forward, and the first final word wins", (call, call.told, row))
        rows = [(call.request.to, row) for call in self.twilio.live if (row := self._row_of(call))]
        wanted = Counter(
            to for to, row in rows
            if row["state"] == "accepted" and not self.jobs[row["job_id"]]["cancel_requested"]
        )  # fmt: skip
        self.require(max(wanted.values(), default=1) == 1, "at most one live and wanted call per number", wanted)

    @invariant()
    def nobody_is_called_twice(self) -> None:
        late = {(c.request.job, c.request.round) for c in self.twilio.calls if c.listed_late}
        reached = Counter((c.request.job, c.request.round) for c in self.twilio.made if c.wants_no_more)
        twice = [job for job, calls in reached.items() if calls > 1 and job not in late]
        calls = [c for c in self.twilio.calls if c.request.job in dict(twice)]
        self.require(not twice, "nobody is called twice", calls)

    @invariant()
    def no_phone_rings_for_two_calls_at_once(self) -> None:
        ringing = Counter(c.request.to for c in self.twilio.live if not c.listed_late)
        self.require(all(n == 1 for n in ringing.values()), "no phone rings for two calls at once", self.twilio.live)

    @invariant()
    def every_job_has_a_story(self) -> None:
        """explain_call_job tells it in order, without a whole number, and is never an error."""
        if self.watched is None:
            for job in self.jobs:
                lines = story(self.steps, job_id=job)
                wrong = list(faults(lines, numbers=NUMBERS))
                self.require(not wrong, "every job has a story", (wrong, lines))

    # --- the end: the sweep alone must finish it ----------------------------------------------------------------------
    def teardown(self) -> None:
        """No callback comes any more, no worker that was away comes back; Twilio answers, and who is called picks up."""
        if self.broken:
            return
        if self.paused:
            self._resume()
        for _ in range(300):  # sweeps
            self._everybody_picks_up()
            while self._look_after_one():
                pass
            while self._dial_one():
                self._everybody_picks_up()
            if (due_s := self.next_due_s("open", "queued")) is None:
                break
            self._wait(max(due_s, SWEEP_EVERY_S))
        else:
            self.require(False, "it comes to rest", self.jobs)
        self.nobody_is_called_twice()
        self._nothing_is_lost()

    def _everybody_picks_up(self) -> None:
        for call in self.twilio.live:
            self.twilio.goes_on(call, "completed")
        self.nobody_is_called_twice()

    def _dial_one(self) -> bool:
        if worker := self._claim(None):
            self._dial(worker, "answered", 0.0, 0.0)
            self._report(worker)
        return worker is not None

    def _nothing_is_lost(self) -> None:
        for attempt in self.attempts.values():
            blocks = attempt["state"] in OPEN or attempt["closed_at"] is None
            self.require(not blocks, "no number stays blocked", attempt)
        for job in self.jobs.values():
            mine = self._of(job["id"])
            words = {a["call_status"] for a in mine if a["state"] == "ended" and not a["later_at"]}
            match job["status"], job["reason_code"]:
                case "completed", None:
                    fair = "completed" in words
                case "canceled", "canceled" | "user_deleted" | "outcome_unknown":
                    fair = job["id"] in self.cancels
                case "canceled", "opted_out":
                    fair = job["phone_e164"] in self.out
                case "canceled", "paused":
                    fair = self.ever_paused
                case "canceled", "number_reached":
                    others = [c for c in self.twilio.made if c.request.job != job["id"] and c.reached_a_person]
                    fair = any(call.request.to == job["phone_e164"] for call in others)  # that job may be gone
                case "canceled", "call_canceled":
                    fair = "canceled" in words
                case "failed", "busy" | "no-answer" | "failed" as word:
                    fair = word in words and job["attempts"] >= MAX_ATTEMPTS
                case "failed", "absent":
                    fair = any(a["state"] == "absent" for a in mine) and job["attempts"] >= MAX_ATTEMPTS
                case "failed", "number_invalid":
                    refused = {w.request.attempt for w in self.workers if w.saw in ("refused", "refused by screening")}
                    fair = any(a["id"] in refused for a in mine)
                case "failed", "outcome_unknown":
                    fair = any(a["error_code"] == "outcome_unknown" for a in mine)
                case _:
                    fair = False
            self.require(fair, "no job is lost", (job, mine))

    # --- what the rules choose from -----------------------------------------------------------------------------------
    @property
    def long_waits(self) -> list[float]:
        return [900.0, 3600.0, 90_000.0] if "long waits" in self.also else []

    @property
    def awake(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.reports < (2 if "repeated reports" in self.also else 1)]

    @property
    def reached(self) -> list[Call]:
        return [call for call in self.twilio.made if call.reached_a_person]

    @property
    def over_and_told(self) -> list[Call]:
        return [call for call in self.twilio.calls if call.told in FINAL_WORDS]

    def next_due_s(self, *kinds: Literal["queued", "open"]) -> float | None:
        """How long until a job is to be dialed, or a call to be looked after. None: never."""
        due = self.steps.rows("""
            select extract(epoch from least(
                     (select min(due_at) from public.outbound_call_jobs where status <> 'queued'),
                     (select min(end_due_at) from public.outbound_call_attempts where state = 'duplicate' and closed_at is null)
                   ) - private.clock())::float8 as open,
                   (select extract(epoch from greatest(
                             min(j.due_at), max(s.paused_until) filter (where s.paused_until <> 'infinity'),
                             max(s.probe_until) filter (where s.halts > 0)) - private.clock())::float8
                    from public.outbound_call_jobs j cross join private.call_settings s
                    where j.status = 'queued' having count(*) > 0) as queued""")[0]
        seconds = [due[kind] for kind in kinds if due[kind] is not None]
        return max(0.0, min(seconds)) if seconds else None

    def _call(self, sid: str) -> Call:
        return next(call for call in self.twilio.calls if call.sid == sid)

    def require(self, holds: object, invariant: str, detail: object) -> None:
        if not holds and (self.watched is None or invariant in self.watched):
            self.broken = True
            raise Broken(invariant, detail)


@contextmanager
def a_copy(postgres: Postgres, template: str, name: str) -> Iterator[str]:
    """The URL of a database of one's own, its clock standing still."""
    database.create_database(postgres, name, template)
    try:
        with psycopg.connect(postgres.url(database=name)) as connection:
            connection.execute(STILL_CLOCK)
        yield postgres.url(database=name)
    finally:
        database.drop_database(postgres, name)


@contextmanager
def the_machine(
    url: str, watched: Container[str] | None = None, may: Collection[str] = ALL
) -> Iterator[Callable[[], Dispatching]]:
    """Makes machines that share two connections to this database, one after the other."""
    with (
        # It draws constants of the modules that are loaded: beside other tests a seed would be another history.
        patch.object(HypothesisProvider, "_maybe_draw_constant", lambda *_args, **_more: None),
        closing(psycopg.connect(url, autocommit=True)) as service,
        closing(psycopg.connect(url, autocommit=True)) as eyes,
    ):
        steps = Steps(service, eyes)
        yield lambda: Dispatching(steps, watched, may)


@pytest.mark.timeout(7200 if IN_CHAOS else 180)
def test_every_history_calls_nobody_twice_and_loses_nobody(postgres: Postgres, template_database: str) -> None:
    with a_copy(postgres, template_database, "state_machine") as url, the_machine(url) as machine:
        run_state_machine_as_test(cast(Any, machine), settings=SETTINGS)
