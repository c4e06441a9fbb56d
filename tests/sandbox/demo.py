"""make demo: the sandbox with its page, where a phone rings. TEXT=1: two sign-ups in the terminal instead, each a timeline
from the trigger to the end of the call; then it stays up to try by hand. ONCE=1: the two sign-ups, then it ends."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.rows import dict_row
from supabase import Client, create_client

from tests.sandbox.__main__ import STARTUP_ERRORS, describe
from tests.sandbox.play import READY_FILE, hints
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.twilio.call_simulator import Call

PATIENCE_S = 30.0
POLL_S = 0.02
WATCH_S = 0.25
T = TypeVar("T")
ADA, BOB = "+14155550101", "+14155550102"

Database: TypeAlias = psycopg.Connection[dict[str, Any]]


class DidNotHappen(Exception):
    """An expected step was not seen. The message names it, and the state that was seen instead."""


@dataclass
class Timeline:
    """Prints each event of one job once, with milliseconds since `began`."""

    began: float
    seen: set[str] = field(default_factory=set)

    def show(self, at: float, key: str, what: str) -> None:
        if key not in self.seen:
            self.seen.add(key)
            print(f"  {(at - self.began) * 1000:7.0f} ms  {what}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.demo")
    parser.add_argument("--text", action="store_true", help="two sign-ups in the terminal, and no page")
    parser.add_argument("--once", action="store_true", help="the same, and end after the two sign-ups")
    parser.add_argument("--write", action="store_true", help="let the page write the scripts that are edited there")
    parser.add_argument("--port", type=int, default=0, help="of the function")
    options = parser.parse_args()
    assert hasattr(sys.stdout, "reconfigure")
    sys.stdout.reconfigure(line_buffering=True, encoding="utf-8")
    started, text = time.monotonic(), options.text or options.once
    try:
        signal.signal(signal.SIGINT, interrupt)
        print("Starting Postgres, the stand-ins and the function ...")
        # Nothing of the environment: the demo shows the same wherever it runs.
        with Sandbox(
            environ={}, port=options.port, ready_file=READY_FILE, page=not text, write=options.write, results=not text
        ) as sandbox:
            print(f"ready after {time.monotonic() - started:.1f} s\n")
            if not text:
                print(f"Open this page in a browser, and sign up there: a phone rings.\n\n  {sandbox.ready.page_url}\n")
                print(f"In another terminal:\n{hints()}\n\n{describe(sandbox)}")
                threading.Event().wait()
            with psycopg.connect(sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database:
                show(sandbox, database)
                if not options.once:
                    print(f"\nIt all stays up. In another terminal:\n{hints()}\n\n{describe(sandbox)}")
                    watch(sandbox, database)
    except KeyboardInterrupt:
        print("\nStopped; nothing is left behind.")
        return 130 if options.once else 0
    except (DidNotHappen, *STARTUP_ERRORS) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def interrupt(*_: object) -> None:
    """A second Ctrl-C must not interrupt the cleaning up after the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def show(sandbox: Sandbox, database: Database) -> None:
    client = create_client(sandbox.ready.supabase_url, sandbox.ready.supabase_anon_key)
    print(f"1. Ada signs up by phone for a demo ({ADA}). She answers, once with a key that is not offered.")
    sandbox.twilio.behave(to=ADA, digits=["2", "7", "1", "2"])
    ada = {"first_name": "Ada", "signup_mode": "demo", "company": "Analytical Engines"}
    follow(sandbox, database, client, ADA, ada)
    print(f"\n2. Bob tries it for free, in Spanish ({BOB}). His line is busy the first time; then he says nothing.")
    sandbox.twilio.behave(to=BOB, outcome="busy", times=1)
    follow(sandbox, database, client, BOB, {"first_name": "Bob", "signup_mode": "prueba"})


def follow(sandbox: Sandbox, database: Database, client: Client, phone: str, metadata: dict[str, str]) -> None:
    """Sign up through supabase-py, then print the events of the job until it is completed."""
    timeline = Timeline(time.time())
    timeline.show(timeline.began, "signup", "signs up (supabase-py, auth.sign_up)")
    client.auth.sign_up({"phone": phone, "password": "correct horse", "options": {"data": metadata}})

    query = "select * from public.outbound_call_jobs where phone_e164 = %s"
    job = _await(lambda: next(_rows(database, query, phone), None), "no job was queued")
    timeline.show(job["created_at"].timestamp(), "job", f"job {job['id']} queued by the trigger on auth.users")

    def done() -> bool:
        status, reason = tell(sandbox, database, timeline, job["id"])
        if status in ("failed", "canceled"):
            raise DidNotHappen(f"job {job['id']} is {status}: {reason}")
        return status == "completed"

    _await(done, f"job {job['id']} was not completed within {PATIENCE_S:.0f} s")


def watch(sandbox: Sandbox, database: Database) -> None:
    """Print the events of every later job, until Ctrl-C."""
    last = next(_rows(database, "select coalesce(max(id), 0) id from public.outbound_call_jobs"))["id"]
    open_jobs: dict[int, Timeline] = {}
    while True:
        for job in _rows(database, "select * from public.outbound_call_jobs where id > %s order by id", last):
            last, number = job["id"], job["phone_e164"] or job["phone_number"]
            print(f"\njob {last}: {number}")
            open_jobs[last] = Timeline(job["created_at"].timestamp())
        for job_id, timeline in list(open_jobs.items()):
            status, reason = tell(sandbox, database, timeline, job_id)
            if status in ("failed", "canceled"):
                timeline.show(time.time(), "end", f"job {job_id} {status}: {reason}")
            if status in ("completed", "failed", "canceled", "deleted"):
                del open_jobs[job_id]
        time.sleep(WATCH_S)


def tell(sandbox: Sandbox, database: Database, timeline: Timeline, job_id: int) -> tuple[str, str | None]:
    """Print the new events of a job. -> its status and reason; "deleted" when it is gone."""
    job = next(_rows(database, "select * from public.outbound_call_jobs where id = %s", job_id), None)
    attempts = _rows(database, "select * from public.outbound_call_attempts where job_id = %s order by number", job_id)
    calls = {call.sid: call for call in sandbox.twilio.calls}
    for at, key, what in sorted(_events(attempts, calls), key=lambda event: event[0]):  # stable: words before statuses
        timeline.show(at, key, what)
    if job is None:
        return "deleted", None
    if job["status"] == "completed" and "end" not in timeline.seen:
        timeline.show(job["finished_at"].timestamp(), "end", f"job completed, attempts spent: {job['attempts']}")
        overview = next(_rows(database, "select answers from public.outbound_call_overview where id = %s", job_id))
        print(f"              outbound_call_overview: answers = {json.dumps(overview['answers'])}")
    return job["status"], job["reason"]


def _events(attempts: Iterable[dict[str, Any]], calls: dict[str, Call]) -> Iterable[tuple[float, str, str]]:
    for attempt in attempts:
        n, sid = attempt["number"], attempt["call_sid"]
        yield attempt["started_at"].timestamp(), f"claim{n}", f"claimed: attempt {n}"
        if (call := calls.get(sid)) is None:
            continue
        yield call.accepted_at.timestamp() - 0.001, f"taken{n}", f"Twilio took the call: {sid}"
        for i, line in enumerate(list(call.transcript)):
            what = f'said: "{line["text"]}"' if line["who"] == "call" else f"pressed: {line['digits']}"
            yield _at(line["at"]), f"{n}said{i}", what
        for change in list(call.history):
            yield _at(change["at"]), f"{n}{change['status']}", change["status"]


def _rows(database: Database, query: str, *values: object) -> Iterator[dict[str, Any]]:
    return iter(database.execute(query.encode(), values).fetchall())


def _await(look: Callable[[], T | None], otherwise: str) -> T:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(POLL_S)
    raise DidNotHappen(otherwise)


def _at(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


if __name__ == "__main__":
    sys.exit(main())
