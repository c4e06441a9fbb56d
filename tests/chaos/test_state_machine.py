"""Never twice, never lost: the real SQL functions under any history that hypothesis can think of, with a model of Twilio.

Workers die, report late or twice; callbacks come in any order, or never; Twilio lists late; people cancel, retry, delete and
pause; hours pass. After each call of a function all that must hold is looked at, and at the end the sweep alone must bring
every job to its end. HYPOTHESIS_PROFILE=chaos looks much longer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.chaos.model_twilio import FINAL_WORDS, NEXT, WORDS, Call, Request, Twilio, rank
from tests.database.conftest import EMPTY
from tests.database.steps import DELAYS_S, FINAL, OPEN, SETTLING_S, Row, Steps
from tests.sandbox import database
from tests.sandbox.postgres import Postgres

T = TypeVar("T")

USERS = tuple(UUID(int=n) for n in range(1, 5))
NUMBERS = ("+12015550100", "+12015550101")  # fewer than users: they are shared
DIAL_WITHIN_S = 2.0
MAX_ATTEMPTS = len(DELAYS_S) + 1
NEVER = float("inf")

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
    "completed": {"gone"},
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

settings.register_profile("machine", max_examples=40, stateful_step_count=30, deadline=None)
settings.register_profile("chaos", max_examples=2_000, stateful_step_count=60, deadline=None)
SETTINGS = settings(
    settings.get_profile("chaos" if os.environ.get("HYPOTHESIS_PROFILE") == "chaos" else "machine"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class Broken(AssertionError):
    """An invariant does not hold; the message begins with its name."""

    def __init__(self, invariant: str, detail: object) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


Saw = Literal["answered", "answer lost", "request lost", "refused", "later", "halt", "refused by screening", "put off"]


@dataclass(eq=False)
class Worker:
    """A dispatcher that holds a claim; it may die at any moment, or wake up much later."""

    request: Request
    claimed_at: float
    saw: Saw | None = None  # what came of its request; None: not asked yet
    sid: str = ""

    def __repr__(self) -> str:
        return f"<worker of job {self.request.job}, saw {self.saw}>"


@dataclass(eq=False)
class Look:
    """A sweep that has asked Twilio for its list and has not said yet what it learned."""

    attempt: UUID
    asked_at: datetime
    listed: tuple[Call, ...]


def of(name: str) -> st.SearchStrategy[Any]:
    """One of the machine's own things, as they are now."""
    return st.runner().flatmap(lambda machine: st.sampled_from(tuple(getattr(machine, name))))


class Dispatching(RuleBasedStateMachine):
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps
        steps.rows(EMPTY)
        self.twilio = Twilio()
        self.workers: list[Worker] = []
        self.looks: list[Look] = []
        self.rounds: Counter[int] = Counter()  # job -> how often it was retried by hand
        self.cancels: set[int] = set()  # jobs that somebody wanted to cancel, or delete
        self.paused = False
        self.broken = False
        self.claims = 0
        self.started_at: dict[UUID, float] = {}
        self.jobs: dict[int, Row] = {}
        self.attempts: dict[UUID, Row] = {}
        self.born: dict[int, tuple[UUID, float]] = {}

    # --- people -------------------------------------------------------------------------------------------------------

    @rule(user=st.sampled_from(USERS), number=st.sampled_from(NUMBERS))
    def enqueue(self, user: UUID, number: str) -> None:
        recent = [j for j, (u, at) in self.born.items() if j in self.jobs and u == user and self.twilio.now - at < 3600]
        answer = self.do(lambda: self.steps.call("enqueue_call_job", user_id=user, phone_number=number))
        self.require(answer["created"] is not bool(recent), "one job an hour and user", (answer, recent))
        self.require(answer["job_id"] in (recent or self.jobs), "a second sign-up is told of the first", answer)
        self.born.setdefault(answer["job_id"], (user, self.twilio.now))

    @precondition(lambda self: self.jobs)
    @rule(what=st.sampled_from(["cancel", "delete", "retry", "retry", "pause", "resume", "resume"]), data=st.data())
    def somebody_interferes(self, what: str, data: st.DataObject) -> None:
        """One rule for all of it, so that it does not drown what the product does by itself."""
        final = {job: row["status"] in FINAL for job, row in self.jobs.items()}
        may_be = {
            "cancel": [job for job in final if not final[job]],
            "delete": list(final),
            "retry": [job for job in final if final[job] and self.jobs[job]["status"] != "completed"],
        }.get(what)
        if what == "pause":
            self.paused = True
            self.do(lambda: self.steps.call("pause_calls", reason="by hand"))
        elif what == "resume":
            self._resume()
        elif may_be:
            job = data.draw(st.sampled_from(may_be))
            if what == "delete":
                self.cancels.add(job)
                self.do(lambda: self.steps.rows("delete from public.outbound_call_jobs where id = %s", job))
            elif what == "cancel":
                self.cancels.add(job)
                self.do(lambda: self.steps.call("cancel_call_job", job_id=job))
            else:
                self.cancels.discard(job)
                self.rounds[job] += 1
                self.do(lambda: self.steps.call("retry_call_job", job_id=job))

    def _resume(self) -> None:
        self.paused = False
        self.do(lambda: self.steps.call("resume_calls"))

    # --- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 3, 20, 45, 120, 900, 3600, 90_000]))
    def time_passes(self, seconds: float) -> None:
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        self.twilio.pass_time(seconds)
        self.steps.pass_time(seconds)

    # --- workers ------------------------------------------------------------------------------------------------------

    @rule(by_id=st.booleans(), data=st.data())
    def claim(self, by_id: bool, data: st.DataObject) -> None:
        """And no more, for now."""
        job = data.draw(st.sampled_from(tuple(self.jobs))) if by_id and self.jobs else None
        self._claim(job)

    saws = st.sampled_from(
        ["answered", "answer lost", "answer lost", "request lost", "refused", "later", "halt", "refused by screening", "put off"]
    )
    lates = st.sampled_from([0.0, 0.0, 5.0, 15.0])
    listings = st.sampled_from([0.0, 30.0, 90.0, 90.0, 600.0, NEVER])

    @precondition(lambda self: self.next_due_s("queued") is not None)
    @rule(saw=saws, late_s=lates, listed_after_s=listings, reports=st.booleans())
    def claim_and_dial(self, saw: Saw, late_s: float, listed_after_s: float, reports: bool) -> None:
        """The next one, as soon as it is due."""
        self._wait(self.next_due_s("queued") or 0.0)
        if worker := self._claim(None):
            self._dial(worker, saw, late_s, listed_after_s)
            if reports:
                self._report(worker)

    @precondition(lambda self: self.may_dial)
    @rule(worker=of("may_dial"), saw=saws, late_s=lates, listed_after_s=listings)
    def dial(self, worker: Worker, saw: Saw, late_s: float, listed_after_s: float) -> None:
        self._dial(worker, saw, late_s, listed_after_s)

    @precondition(lambda self: self.may_report)
    @rule(worker=of("may_report"))
    def report(self, worker: Worker) -> None:
        """Now, much later, or once more."""
        self._report(worker)

    def _claim(self, job: int | None) -> Worker | None:
        self.claims += 1
        attempt = UUID(int=self.claims)
        answer = self.do(lambda: self.steps.claim(job, attempt))
        if answer["outcome"] != "claimed":
            return None
        self.require(not self.paused, "a pause holds", answer)
        claimed = answer["job"]
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

    @precondition(lambda self: self.next_due_s("open") is not None)
    @rule(
        late_s=st.sampled_from([0.0, 0.0, 0.0, 60.0, 150.0, 3600.0, 90_000.0]),
        twilio=st.sampled_from(["answers", "answers", "answers", "is silent"]),
        settles=st.booleans(),
    )
    def look_after_one(self, late_s: float, twilio: str, settles: bool) -> None:
        """The first that is due; the sweep may come late."""
        self._wait((self.next_due_s("open") or 0.0) + late_s)
        self._look_after_one(answers=twilio == "answers", settles=settles)

    @precondition(lambda self: self.looks)
    @rule(look=of("looks"))
    def settle(self, look: Look) -> None:
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
        if not answers:
            return True
        if found["call_sid"] is None:
            look = Look(
                attempt,
                datetime.fromisoformat(found["asked_at"]),
                tuple(self.twilio.listed(found["phone_e164"], self.started_at[attempt])),
            )
            if settles:
                self._settle(look)
            else:
                self.looks.append(look)
            return True
        call = self._call(found["call_sid"])
        if found["end"]:
            self.twilio.end(call)
        self._tell(call, call.status, attempt)
        return True

    def _settle(self, look: Look) -> None:
        listed = [(call.sid, call.status) for call in look.listed]
        answer = self.do(
            lambda: self.steps.settle(look.attempt, *listed, asked_at=look.asked_at, settling_s=SETTLING_S)
        )
        self.require(answer["outcome"] != "ambiguous", "a listed call can be of one attempt only", (answer, look))
        if answer["outcome"] == "found":
            call = self._call(answer["call_sid"])
            call.told = call.told or "queued"
            self._tell(call, answer["call_status"], look.attempt)

    # --- Twilio -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.twilio.live)
    @rule(data=st.data())
    def a_call_goes_on(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.twilio.live))
        later = WORDS[WORDS.index(call.status) + 1 :] if call.status != "in-progress" else NEXT["in-progress"]
        self.twilio.goes_on(call, data.draw(st.sampled_from(later)))

    @precondition(lambda self: self.twilio.made)
    @rule(data=st.data(), ending_works=st.booleans())
    def a_callback_arrives(self, data: st.DataObject, ending_works: bool) -> None:
        """Any word that was true at some time, as often as it likes."""
        call = data.draw(st.sampled_from(self.twilio.made))
        word = data.draw(st.sampled_from([*{word: None for word in call.words}]))
        self._tell(call, word, call.request.attempt, ending_works=ending_works)

    @precondition(lambda self: self.over_and_told)
    @rule(call=of("over_and_told"), word=st.sampled_from(FINAL_WORDS))
    def twilio_contradicts_itself(self, call: Call, word: str) -> None:
        """How the call ended is known; a second telling says otherwise."""
        self._tell(call, word, call.request.attempt)

    def _tell(self, call: Call, word: str | None, attempt: UUID, *, ending_works: bool = True) -> None:
        """A SID comes in: by the answer to the request (no word), a callback, or our own asking."""
        before = self.attempts.get(attempt)
        late_truth = (
            before is not None
            and before["state"] == "absent"
            and call.told is None
            and (
                self.jobs[before["job_id"]]["status"] == "queued"
                or self.jobs[before["job_id"]]["reason_code"] in ("absent", "gave_up")
            )
            and not any(a["phone_e164"] == before["phone_e164"] and a["state"] in OPEN for a in self.attempts.values())
        )
        if call.told is None or (word is not None and rank(word) > rank(call.told)):
            call.told = word or "queued"
        if word is None:
            answer = self.do(lambda: self.steps.accept(attempt, call.sid))
        else:
            answer = self.do(lambda: self.steps.status(attempt, call.sid, word))
        row = next((a for a in self.attempts.values() if a["call_sid"] == call.sid), None)
        if row is None:
            then = "unknown"
        elif word in FINAL_WORDS:
            then = "keep"
        else:
            then = "end" if row["state"] == "duplicate" or self.jobs[row["job_id"]]["cancel_requested"] else "keep"
        self.require(answer["then"] == then, "a live call is kept when it is wanted, and ended when it is not", answer)
        if late_truth:
            revived = row is not None and row["state"] in ("accepted", "ended")
            self.require(revived, "late truth revives a job that came to nothing", (call, row))
        if then != "keep" and ending_works:
            self.twilio.end(call)

    # --- what must hold -----------------------------------------------------------------------------------------------

    def do(self, step: Callable[[], T]) -> T:
        """One call of a function, and a look at all that it left behind."""
        try:
            answer = step()
        except psycopg.Error as error:
            self.broken = True
            raise Broken("no function ever raises", error) from error
        jobs = {row["id"]: row for row in self.steps.rows("select * from public.outbound_call_jobs order by id")}
        rows = self.steps.rows("select * from public.outbound_call_attempts order by job_id, number, id")
        attempts = {row["id"]: row for row in rows}
        self._ways_are_known(jobs, attempts)
        self.jobs, self.attempts = jobs, attempts
        self._rows_agree()
        self._calls_are_bound()
        return answer

    def _ways_are_known(self, jobs: dict[int, Row], attempts: dict[UUID, Row]) -> None:
        for job in self.jobs.keys() | jobs.keys():
            old, new = self.jobs.get(job), jobs.get(job)
            way = (old["status"] if old else "new", new["status"] if new else "gone")
            known = way[0] == way[1] or way[1] in JOB_MAY_BECOME[way[0]]
            self.require(known, "a job goes only the ways of the design", (job, way, old, new))
        for attempt in self.attempts.keys() | attempts.keys():
            old, new = self.attempts.get(attempt), attempts.get(attempt)
            way = (old["state"] if old else "new", new["state"] if new else "gone")
            known = way[0] == way[1] or way[1] in ATTEMPT_MAY_BECOME[way[0]]
            self.require(known, "an attempt goes only the ways of the design", (attempt, way, old, new))

    def _rows_agree(self) -> None:
        opened = [a for a in self.attempts.values() if a["state"] in OPEN]
        for column in ("phone_e164", "job_id"):
            most = Counter(a[column] for a in opened).most_common(1)
            self.require(not most or most[0][1] == 1, f"one open attempt per {column}", opened)
        for job in self.jobs.values():
            mine = [a for a in self.attempts.values() if a["job_id"] == job["id"]]
            is_final = job["status"] in FINAL
            self.require((job["due_at"] is None) == is_final, "every open job is due at some time", job)
            self.require((job["finished_at"] is not None) == is_final, "every final job is finished", job)
            states = [a["state"] for a in mine if a["state"] in OPEN]
            wanted = [STATE_OF_THE_OPEN_ATTEMPT[job["status"]]] if job["status"] in STATE_OF_THE_OPEN_ATTEMPT else []
            self.require(states == wanted, "a job's open attempt is in the state that the job says", (job, states))
            self.require(job["attempts"] == len(mine), "every attempt is counted once", (job, mine))
            limit = MAX_ATTEMPTS + self.rounds[job["id"]]
            self.require(job["attempts"] <= limit, "no more attempts than allowed", job)

    def _calls_are_bound(self) -> None:
        by_sid = {a["call_sid"]: a for a in self.attempts.values() if a["call_sid"]}
        for call in self.twilio.calls:
            if call.told is None or call.request.job not in self.jobs:
                continue
            row = by_sid.get(call.sid)
            if row is None:
                raise self._breaks("a call that we were told of is bound", call)
            right = row["id"] == call.request.attempt
            self.require(right, "a call is bound to the attempt that asked for it", (call, row))
            forward = row["call_status"] == call.told
            self.require(forward, "a call moves only forward, and the first final word wins", (call, call.told, row))
        wanted = [
            call.request.to
            for call in self.twilio.live
            if call.sid in by_sid
            and by_sid[call.sid]["state"] == "accepted"
            and not self.jobs[by_sid[call.sid]["job_id"]]["cancel_requested"]
        ]
        self.require(len(wanted) == len(set(wanted)), "at most one live and wanted call per number", wanted)

    @invariant()
    def nobody_is_called_twice(self) -> None:
        late = {(c.request.job, c.request.round) for c in self.twilio.calls if c.listed_late}
        reached = Counter((c.request.job, c.request.round) for c in self.twilio.made if c.reached_a_person)
        twice = [job for job, calls in reached.items() if calls > 1 and job not in late]
        self.require(not twice, "nobody is called twice", [c for c in self.twilio.calls if c.request.job in dict(twice)])

    @invariant()
    def no_phone_rings_for_two_calls_at_once(self) -> None:
        ringing = Counter(c.request.to for c in self.twilio.live if not c.listed_late)
        self.require(all(n == 1 for n in ringing.values()), "no phone rings for two calls at once", self.twilio.live)

    # --- the end: the sweep alone must finish it ----------------------------------------------------------------------

    def teardown(self) -> None:
        """No callback comes any more, no worker that was away comes back; Twilio answers, and who is called picks up."""
        if self.broken:
            return
        if self.paused:
            self._resume()
        for _ in range(300):
            self._everybody_picks_up()
            if self._look_after_one() or self._dial_one():
                continue
            if (due_s := self.next_due_s("open", "queued")) is None:
                break
            self.require(due_s > 0, "what is due gets done", (due_s, self.jobs))
            self._wait(due_s)
        else:
            raise self._breaks("it comes to rest", self.jobs)
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
            mine = [a for a in self.attempts.values() if a["job_id"] == job["id"]]
            words = {a["call_status"] for a in mine if a["state"] == "ended"}
            match job["status"], job["reason_code"]:
                case "completed", None:
                    fair = "completed" in words
                case "canceled", "canceled":
                    fair = job["id"] in self.cancels
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
    def may_dial(self) -> list[Worker]:
        """By the design, within two seconds of the claim, and never after: that is what the lease is built on."""
        return [w for w in self.workers if w.saw is None and self.twilio.now - w.claimed_at <= DIAL_WITHIN_S]

    @property
    def may_report(self) -> list[Worker]:
        """One that has not dialed gives its job back only when it is too late to."""
        return [w for w in self.workers if w.saw or self.twilio.now - w.claimed_at > DIAL_WITHIN_S]

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
        if not holds:
            raise self._breaks(invariant, detail)

    def _breaks(self, invariant: str, detail: object) -> Broken:
        self.broken = True
        return Broken(invariant, detail)


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
def the_machine(url: str) -> Iterator[Callable[[], Dispatching]]:
    """Makes machines that share two connections to this database, one after the other."""
    with (
        closing(psycopg.connect(url, autocommit=True)) as service,
        closing(psycopg.connect(url, autocommit=True)) as eyes,
    ):
        steps = Steps(service, eyes)
        yield lambda: Dispatching(steps)


@pytest.mark.timeout(7200)
def test_in_every_history_nobody_is_called_twice_and_nobody_is_lost(postgres: Postgres, template_database: str) -> None:
    with a_copy(postgres, template_database, "state_machine") as url, the_machine(url) as machine:
        run_state_machine_as_test(machine, settings=SETTINGS)
