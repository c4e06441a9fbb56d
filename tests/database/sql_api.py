"""The SQL functions as the steps of a story, called as the service calls them, and eyes to see what came of them."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Connection

T = TypeVar("T")
U = TypeVar("U")
Row = dict[str, Any]

OURS = "+15005550006"  # Twilio's own magic From
LEASE_S = 30.0
BUSY_S = 45.0
HOLD_S = 20.0
ASK_S = 600.0
SETTLING_S = 120.0
GIVE_UP_S = 90_000.0
PACE = 1e6  # calls a second: no test but those of the pace waits for it
DELAYS_S = (60.0, 240.0)  # two delays are three attempts
OPEN = ("started", "in_doubt", "accepted")
FINAL = ("completed", "failed", "canceled")

# Blocks of another test's numbers do not matter: each test begins with an empty table.
_numbers = itertools.cycle(
    f"+1{npa}5550{last}" for npa in range(201, 990) for last in range(100, 200) if npa % 100 != 11
)
_sids = (f"CA{n:032x}" for n in itertools.count(1))


def a_number() -> str:
    return next(_numbers)


def a_sid() -> str:
    return next(_sids)


class Call(NamedTuple):
    job: int
    attempt: uuid.UUID
    sid: str


class Steps:
    """`service` runs the functions as role service_role; `eyes` looks, and arranges what no function would."""

    def __init__(self, service: Connection, eyes: Connection) -> None:
        service.execute("set role service_role")
        self.service = service
        self._eyes = eyes

    def call(self, function: str, **arguments: object) -> Any:
        """public.function(p_argument => value, ...), in a transaction of its own."""
        pairs = [sql.SQL("{} => %s").format(sql.Identifier(f"p_{name}")) for name in arguments]
        query = sql.SQL("select public.{}({})").format(sql.Identifier(function), sql.SQL(", ").join(pairs))
        row = self.service.execute(query, list(arguments.values())).fetchone()
        assert row is not None
        return row[0]

    def answer(self, function: str, **arguments: object) -> Row:
        """As `call`, of a function that answers with an object."""
        answer: Row = self.call(function, **arguments)
        return answer

    def rows(self, query: str, *values: object) -> list[Row]:
        with self._eyes.cursor(row_factory=dict_row) as cursor:
            cursor.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *values: object) -> Any:
        """The one value of the one row."""
        (row,) = self.rows(query, *values)
        (value,) = row.values()
        return value

    def job(self, job_id: int) -> Row:
        (row,) = self.rows("select * from public.outbound_call_jobs where id = %s", job_id)
        return row

    def fields(self, job_id: int, *columns: str) -> tuple[Any, ...]:
        """These columns of the job."""
        row = self.job(job_id)
        return tuple(row[column] for column in columns)

    def attempt(self, attempt: uuid.UUID) -> Row:
        (row,) = self.rows("select * from public.outbound_call_attempts where id = %s", attempt)
        return row

    def attempts(self, job_id: int) -> list[Row]:
        query = "select * from public.outbound_call_attempts where job_id = %s order by number, accepted_at, id"
        return self.rows(query, job_id)

    def brief(self, job_id: int) -> tuple[str, int, str | None]:
        """The status, the attempts and the reason code of a job."""
        job = self.job(job_id)
        return job["status"], job["attempts"], job["reason_code"]

    def change_job(self, job_id: int, **columns: object) -> None:
        """As no function would."""
        changes = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns)
        query = sql.SQL("update public.outbound_call_jobs set {} where id = %s").format(changes)
        self._eyes.execute(query, [*columns.values(), job_id])

    def sign_up(self, phone: str | None = None, metadata: object = None, app: object = None) -> uuid.UUID:
        """As Supabase Auth does it, whose role has no right to anything of ours. -> the user"""
        user, jsons = uuid.uuid4(), [None if value is None else Jsonb(value) for value in (metadata, app)]
        self.as_auth(
            "insert into auth.users (id, phone, raw_user_meta_data, raw_app_meta_data, created_at)"
            " values (%s, %s, %s, %s, now())",
            user, phone and phone.removeprefix("+"), *jsons,
        )  # fmt: skip
        return user

    def as_auth(self, query: str, *values: object) -> None:
        self._eyes.execute("set role supabase_auth_admin")
        try:
            self._eyes.execute(query.encode(), values)
        finally:
            self._eyes.execute("reset role")

    def jobs_of(self, user: uuid.UUID) -> list[Row]:
        return self.rows("select * from public.outbound_call_jobs where user_id = %s order by id", user)

    def job_of(self, user: uuid.UUID) -> Row:
        (job,) = self.jobs_of(user)
        return job

    def settings(self) -> Row:
        """Without next_call_at, which begins at -infinity: Python has no such time."""
        (row,) = self.rows("select halts, probe_until, paused_until from private.call_settings")
        return row

    def everything(self) -> list[list[Row]]:
        """All that a step could change: to say that one changed nothing."""
        tables = ("public.outbound_call_jobs", "public.outbound_call_attempts", "private.call_settings")
        return [self.rows(f"select to_jsonb(t) as row from {table} t order by 1") for table in tables]

    def now(self) -> datetime:
        now: datetime = self.one("select private.clock() as now")
        return now

    def pass_time(self, seconds: float) -> None:
        """private.clock() goes on; the real one does not wait."""
        self.rows("update sandbox.clock set offset_by = offset_by + make_interval(secs => %s)", seconds)

    # --- a job's life -------------------------------------------------------------------------------------------------
    def queue(self, number: str | None = None, **columns: object) -> int:
        """A job, as a plain insert makes it."""
        number = number or a_number()
        if "user_id" not in columns:  # a number is one user's, and may be called again at once
            columns = {"user_id": uuid.uuid5(uuid.NAMESPACE_URL, number), "dedupe_key": str(uuid.uuid4()), **columns}
        columns = {"phone_number": number, **columns}
        query = sql.SQL("insert into public.outbound_call_jobs ({}) values ({}) returning id").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        )
        row = self._eyes.execute(query, list(columns.values())).fetchone()
        assert row is not None
        return int(row[0])

    def claim(
        self,
        job_id: int | None = None,
        attempt: uuid.UUID | None = None,
        *,
        pace: float = PACE,
        per_number: int | None = None,
        per_prefix: int = 0,
        per_day: int | None = None,
    ) -> Row:
        """Without caps, but for those that are given."""
        return self.answer(
            "claim_call_job", attempt=attempt or uuid.uuid4(), **{"from": OURS}, lease_s=LEASE_S, busy_s=BUSY_S,
            job_id=job_id, calls_per_second=pace, calls_per_number_per_day=per_number,
            calls_per_prefix_per_hour=per_prefix, calls_per_day=per_day,
        )  # fmt: skip

    def start(self, job_id: int) -> uuid.UUID:
        """Claim this job, which must succeed. -> the attempt"""
        claim = self.claim(job_id)
        assert claim["outcome"] == "claimed", claim
        return uuid.UUID(claim["attempt"]["id"])

    def release(self, attempt: uuid.UUID, *, delay_s: float = 0.0, halt_s: float | None = None) -> bool:
        why = {"code": "hours", "reason": "too early there"}
        return bool(self.call("release_call_job", attempt=attempt, delay_s=delay_s, halt_s=halt_s, **why))

    def accept(self, attempt: uuid.UUID, sid: str) -> Row:
        return self.answer("accept_call", attempt=attempt, call_sid=sid, ask_s=ASK_S)

    def refuse(self, attempt: uuid.UUID) -> bool:
        return bool(self.call("refuse_call", attempt=attempt, code="number_invalid", reason="Twilio: no such number"))

    def doubt(self, attempt: uuid.UUID) -> bool:
        return bool(self.call("doubt_call", attempt=attempt, code="read_timeout", reason="no answer", ask_s=5.0))

    def status(
        self, attempt: uuid.UUID, sid: str, status: str, *, delays_s: Sequence[float] = DELAYS_S, **more: object
    ) -> Row:
        return self.answer(
            "record_call_status", attempt=attempt, call_sid=sid, call_status=status, ask_s=ASK_S,
            redial_delays_s=list(delays_s), **more,
        )  # fmt: skip

    def says(self, attempt: uuid.UUID, word: str, **more: Any) -> Row:
        """Twilio's word about the attempt's call, which has a SID or gets one."""
        known = self.rows("select call_sid from public.outbound_call_attempts where id = %s", attempt)
        return self.status(attempt, (known and known[0]["call_sid"]) or a_sid(), word, **more)

    def press(
        self,
        attempt: uuid.UUID,
        sid: str,
        question: str | None = None,
        meaning: str | None = None,
        digits: str | None = "1",
        **more: object,
    ) -> Row:
        """The person presses a key (digits None: speaks, or the agent reports); it counts if it has a question and a meaning."""
        said = {"question": question, "meaning": meaning, "digits": digits, **more}
        return self.answer("record_call_answer", attempt=attempt, call_sid=sid, ask_s=ASK_S, **said)

    def ask_for_later(self, attempt: uuid.UUID, sid: str, at: datetime) -> Row:
        """The person presses the key of an answer with `later`."""
        return self.press(attempt, sid, "good_time", "later", "2", later_at=at)

    def ask(self) -> Row:
        """What the sweep takes to look after."""
        return self.answer("claim_open_call", hold_s=HOLD_S, ask_s=ASK_S, give_up_s=GIVE_UP_S)

    def settle(
        self, attempt: uuid.UUID, *listed: tuple[str, str], delays_s: Sequence[float] = DELAYS_S, **more: Any
    ) -> Row:
        """Twilio listed these, as (sid, status). Without asked_at: in an ask that began now."""
        calls = Jsonb([{"sid": sid, "status": status} for sid, status in listed])
        asked = {"asked_at": self.now(), "settling_s": 0.0, "gives_up": False, **more}
        return self.answer(
            "settle_call", attempt=attempt, calls=calls, ask_s=10.0, poll_s=ASK_S, delays_s=list(delays_s), **asked
        )

    # --- places in that life ------------------------------------------------------------------------------------------
    def dial(self, job: int | None = None, **columns: Any) -> Call:
        """Claim this job (or a new one, of these columns), and Twilio takes the call."""
        job = self.queue(**columns) if job is None else job
        call = Call(job, self.start(job), a_sid())
        assert self.accept(call.attempt, call.sid)["then"] == "keep"
        return call

    def call_and_end(self, ends: str = "completed", job: int | None = None, **more: Any) -> int:
        """Dial this job (or a new one), and its call ends so. -> the job"""
        job, attempt, sid = self.dial(job)
        self.status(attempt, sid, ends, **more)
        return job

    def attempt_in(self, state: str, number: str | None = None) -> tuple[int, uuid.UUID]:
        """A job of its own, with its attempt brought to this state by the steps that lead there. -> (job, attempt)

        `released` is not in the table: the attempt is gone. `ended` is by a busy line, of three attempts; the job is queued.
        """
        job = self.queue(number)
        return job, self.bring_to(state, job)

    def bring_to(self, state: str, job: int) -> uuid.UUID:
        """Dial this job and bring its attempt to this state. -> the attempt"""
        attempt = self.start(job)
        ways: dict[str, Callable[[], Any]] = {
            "started": lambda: True,
            "released": lambda: self.release(attempt),
            "in_doubt": lambda: self.doubt(attempt),
            "accepted": lambda: self.accept(attempt, a_sid())["then"] == "keep",
            "ended": lambda: self.status(attempt, a_sid(), "busy")["moved"],
            "refused": lambda: self.refuse(attempt),
            "absent": lambda: self.doubt(attempt) and self.settle(attempt)["outcome"] == "absent",
            "duplicate": lambda: self.refuse(attempt) and self.accept(attempt, a_sid())["then"] == "end",
        }
        assert ways[state]()
        if state != "released":
            assert self.attempt(attempt)["state"] == state
        return attempt

    def make_due(self, job_id: int) -> None:
        self.change_job(job_id, due_at=self.now())

    def make_all_due(self) -> None:
        self.rows("update public.outbound_call_jobs set due_at = private.clock() where status = 'queued'")


def until(look: Callable[[], T], what: str, timeout_s: float = 10.0) -> T:
    """Await what must come true."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.002)
    return found


@contextmanager
def in_background(eyes: Connection) -> Iterator[Callable[[Steps, Callable[[], T]], Future[T]]]:
    """start(steps, step): run the step on another thread, and return once it waits for a lock, as Postgres itself sees it."""
    with ThreadPoolExecutor() as threads:

        def start(steps: Steps, step: Callable[[], T]) -> Future[T]:
            query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
            future = threads.submit(step)

            def waits() -> bool:
                row = eyes.execute(query, (steps.service.info.backend_pid,)).fetchone()
                assert not future.done(), f"it did not wait: {future.result()}"
                return row is not None and bool(row[0])

            until(waits, "the step waits for a lock")
            return future

        yield start


def behind(first: Steps, step: Callable[[], T], second: Steps, then: Callable[[], U]) -> tuple[T, U]:
    """`step` in a transaction of `first`, then `then` by `second`, which waits until the first commits. -> both answers"""
    with in_background(second._eyes) as start, first.service.transaction():
        done = step()
        future = start(second, then)
        first.service.execute("commit")
        waited = future.result(10)
        first.service.execute("begin")
    return done, waited


@contextmanager
def locked(other: Steps, *tables: str) -> Iterator[None]:
    """`other` holds these tables against everybody, as the superuser."""
    other.service.execute("reset role")
    with other.service.transaction():
        other.service.execute(f"lock table {', '.join(tables)}".encode())
        yield


def all_at_once(step: Callable[[Steps], T], callers: Sequence[Steps]) -> list[T]:
    """Each on a thread of its own, none before all are ready. Raises what any of them raises."""
    ready = threading.Barrier(len(callers))

    def run(caller: Steps) -> T:
        ready.wait(30)
        return step(caller)

    with ThreadPoolExecutor(len(callers)) as threads:
        return list(threads.map(run, callers))


def change_function(connection: psycopg.Connection[Any], function: str, old: str, new: str) -> None:
    """Replace a piece of a function as Postgres has it. A piece that is not there, or twice, fails the test."""
    row = connection.execute("select pg_get_functiondef(%s::regproc)", (function,)).fetchone()
    assert row is not None
    assert row[0].count(old) == 1, f"{function} does not have this once: {old}"
    connection.execute(row[0].replace(old, new).encode())
