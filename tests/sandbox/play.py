"""make play: try things in the demo that runs in another terminal. It needs neither psql nor curl."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.rows import dict_row

from tests.sandbox.environment import isolate

READY_FILE: Final = Path(os.environ.get("SANDBOX_READY_FILE") or Path(sys.prefix, ".sandbox.json"))
"""The demo and `make sandbox` write their addresses here."""

Ready = dict[str, Any]


def sql(ready: Ready, query: str) -> str:
    with psycopg.connect(ready["database_url"], autocommit=True, row_factory=dict_row) as database:
        cursor = database.execute(query.encode())
        rows = cursor.fetchall() if cursor.description else []
    blocks = ["\n".join(f"{name:16} {value}" for name, value in row.items() if value is not None) for row in rows]
    return "\n\n".join(blocks) or "no rows"


def person(ready: Ready, number: str) -> str:
    number = number or f"+1415555{random.randint(110, 199):04}"
    return sql(ready, f"select enqueue_call_job(gen_random_uuid(), '{number}', 'demo', 'Cleo')")


def calls(ready: Ready, _: str) -> str:
    taken = httpx.get(f"{ready['twilio_url']}/_sandbox/calls").json()
    return "\n".join(f"{call['sid']}  {call['to']:16} {call['status']}" for call in taken) or "no calls"


def fail(ready: Ready, _: str) -> str:
    behaviour = {"create": "accept_then_500", "times": 1}
    httpx.put(f"{ready['twilio_url']}/_sandbox/behaviour", json=behaviour).raise_for_status()
    return "Twilio takes the next call and answers 500. Now: make play DO=person"


def kill(ready: Ready, _: str) -> str:
    os.killpg(ready["function_pid"], signal.SIGKILL)
    return f"killed process group {ready['function_pid']}; it comes back, and nobody is called twice"


ACTIONS: Final[dict[str, tuple[str, Callable[[Ready, str], str]]]] = {
    "person": ("another person signs up (or with TO=+14155550150)", person),
    "jobs": ("the jobs and their state", lambda ready, _: sql(ready, "table outbound_call_overview")),
    "calls": ("the calls that Twilio took", calls),
    "fail": ("Twilio takes the next call and answers 500", fail),
    "pause": ("stop all calls", lambda ready, _: sql(ready, "select pause_calls('lunch')")),
    "resume": ("go on", lambda ready, _: sql(ready, "select resume_calls()")),
    "kill": ("kill the function; it comes back, and nobody is called twice", kill),
    "sql": ('any SQL: make play DO=sql Q="table call_stats"', sql),
}


def hints() -> str:
    return "\n".join(f"  make play DO={name:8} {meaning}" for name, (meaning, _) in ACTIONS.items())


def main(arguments: list[str]) -> int:
    isolate()
    assert hasattr(sys.stdout, "reconfigure")
    sys.stdout.reconfigure(encoding="utf-8")
    action, argument, *_ = *arguments, "", ""
    if action not in ACTIONS:
        print(hints(), file=sys.stderr)
        return 2
    try:
        ready = json.loads(READY_FILE.read_text())
    except FileNotFoundError:
        print("No sandbox runs here: start one in another terminal (make demo, or make sandbox).", file=sys.stderr)
        return 1
    try:
        print(ACTIONS[action][1](ready, argument))
    except (psycopg.Error, httpx.HTTPError, ProcessLookupError) as error:
        print(f"It did not work: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
