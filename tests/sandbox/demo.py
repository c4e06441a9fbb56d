"""make demo: one sign-up travels the whole way, shown as a timeline; then somebody who is busy first. Then try it yourself."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import httpx
import psycopg
from psycopg.rows import dict_row
from supabase import create_client

from tests.sandbox.__main__ import describe
from tests.sandbox.sandbox import Sandbox

PATIENCE_S = 30.0
T = TypeVar("T")
ADA, BOB = "+14155550101", "+14155550102"


class DidNotHappen(Exception):
    """The message says what, and what there was instead."""


@dataclass
class Timeline:
    """Prints each event once, with milliseconds since the sign-up."""

    began: float
    seen: set[str] = field(default_factory=set)

    def show(self, at: float, key: str, what: str) -> None:
        if key not in self.seen:
            self.seen.add(key)
            print(f"  {(at - self.began) * 1000:7.0f} ms  {what}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.demo")
    parser.add_argument("--once", action="store_true", help="end when it has been shown")
    options = parser.parse_args()
    started = time.monotonic()
    print("Starting Postgres, the stand-ins and the function ...", flush=True)
    try:
        with Sandbox() as sandbox:
            print(f"ready after {time.monotonic() - started:.1f} s\n")
            show(sandbox)
            if options.once:
                return 0
            print("\nIt all stays up. Try it by hand:\n" + hints(sandbox) + "\n\n" + describe(sandbox), flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
            return 0
    except DidNotHappen as reason:
        print(f"\nfailed: {reason}", file=sys.stderr)
        return 1


def show(sandbox: Sandbox) -> None:
    print(f"1. Ada signs up by phone for a demo ({ADA}). She answers, once with a key that nobody offered.")
    httpx.put(
        f"{sandbox.ready.twilio_url}/_sandbox/behaviour", json={"to": ADA, "digits": ["2", "7", "1", "2"]}
    ).raise_for_status()
    follow(sandbox, ADA, {"first_name": "Ada", "signup_mode": "demo", "company": "Analytical Engines"})
    print(f"\n2. Bob tries it for free, in Spanish ({BOB}). His line is busy the first time; then he says nothing.")
    httpx.put(
        f"{sandbox.ready.twilio_url}/_sandbox/behaviour", json={"to": BOB, "outcome": "busy", "times": 1}
    ).raise_for_status()
    follow(sandbox, BOB, {"first_name": "Bob", "signup_mode": "prueba"})


def follow(sandbox: Sandbox, phone: str, metadata: dict[str, str]) -> None:
    """Sign up through supabase-py, then tell what the database and Twilio saw, until the job is completed."""
    client = create_client(sandbox.ready.supabase_url, sandbox.ready.supabase_anon_key)
    timeline = Timeline(time.time())
    client.auth.sign_up({"phone": phone, "password": "correct horse", "options": {"data": metadata}})
    timeline.show(time.time(), "signup", "signed up (supabase-py, auth.sign_up)")

    with psycopg.connect(sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database:
        job = _await(
            lambda: _one(database, "select * from public.outbound_call_jobs where phone_e164 = %s", phone),
            "no job was queued",
        )
        timeline.show(job["created_at"].timestamp(), "job", f"job {job['id']} queued by the trigger on auth.users")

        def done() -> bool:
            tell_attempts(sandbox, database, timeline, job["id"])
            row = _one(database, "select status, reason from public.outbound_call_jobs where id = %s", job["id"])
            if row and row["status"] in ("failed", "canceled"):
                raise DidNotHappen(f"job {job['id']} is {row['status']}: {row['reason']}")
            return bool(row and row["status"] == "completed")

        _await(done, f"job {job['id']} was not completed within {PATIENCE_S:.0f} s")
        tell_attempts(sandbox, database, timeline, job["id"])
        row = _one(database, "select finished_at, attempts from public.outbound_call_jobs where id = %s", job["id"])
        assert row is not None
        timeline.show(row["finished_at"].timestamp(), "end", f"job completed, attempts spent: {row['attempts']}")
        overview = _one(database, "select answers from public.outbound_call_overview where id = %s", job["id"])
        print(f"              outbound_call_overview: answers = {json.dumps(overview and overview['answers'])}")


def tell_attempts(
    sandbox: Sandbox, database: psycopg.Connection[dict[str, Any]], timeline: Timeline, job_id: int
) -> None:
    attempts = database.execute(
        "select * from public.outbound_call_attempts where job_id = %s order by number", (job_id,)
    ).fetchall()
    calls = {call["sid"]: call for call in httpx.get(f"{sandbox.ready.twilio_url}/_sandbox/calls").json()}
    events: list[tuple[float, str, str]] = []
    for attempt in attempts:
        n, sid = attempt["number"], attempt["call_sid"]
        events.append((attempt["started_at"].timestamp(), f"claim{n}", f"claimed: attempt {n}"))
        if sid in calls:
            call = calls[sid]
            events.append((_at(call["accepted_at"]) - 0.001, f"taken{n}", f"Twilio took the call: {sid}"))
            for i, line in enumerate(call["transcript"]):
                what = f'said: "{line["text"]}"' if line["who"] == "call" else f"pressed: {line['digits']}"
                events.append((_at(line["at"]), f"{n}said{i}", what))
            events += [(_at(e["at"]), f"{n}{e['status']}", e["status"]) for e in call["history"]]
    for at, key, what in sorted(events, key=lambda event: event[0]):  # of what has one time, the words come first
        timeline.show(at, key, what)


def hints(sandbox: Sandbox) -> str:
    ready = sandbox.ready
    return "\n".join(
        [
            "  what Twilio took:    curl -s " + f"{ready.twilio_url}/_sandbox/calls",
            "  the next call fails: curl -s -X PUT " + f"{ready.twilio_url}/_sandbox/behaviour"
            """ -d '{"create": "accept_then_500", "times": 1}'""",
            f"  another person:      psql '{ready.database_url}' -c \"insert into outbound_call_jobs (user_id, phone_number)"
            " values (gen_random_uuid(), '+14155550150')\"",
            f"  what became of it:   psql '{ready.database_url}' -x -c 'table outbound_call_overview'",
            f"  stop all calls:      psql '{ready.database_url}' -c \"select pause_calls('lunch')\"",
            f"  kill the function:   kill -9 -{ready.function_pid}      (it comes back, and nobody is called twice)",
        ]
    )


def _one(database: psycopg.Connection[dict[str, Any]], query: str, *values: object) -> dict[str, Any] | None:
    return database.execute(query.encode(), values).fetchone()


def _await(look: Callable[[], T | None], otherwise: str) -> T:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.02)
    raise DidNotHappen(otherwise)


def _at(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


if __name__ == "__main__":
    sys.exit(main())
