"""What happens in the tables, told as it is committed; and the counts, which Twilio's own record decides."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import scalar_row

from tests.sandbox.events import Events
from tests.sandbox.twilio.call_simulator import Call, attempt_of
from tests.sandbox.twilio.server import Twilio

Row = dict[str, Any]

TRIGGERS = Path(__file__).with_name("watch.sql")
KINDS = {
    "outbound_call_jobs": "job", "outbound_call_attempts": "attempt", "outbound_call_answers": "answer",
    "call_opt_outs": "opt-out", "call_settings": "pause",
}  # fmt: skip
FINAL = ("completed", "failed", "canceled")
COUNT_S = 0.2
RECONNECT_S = 0.2
FORGET_S = 10.0
MAX_ATTEMPTS = 3
IN_VAIN = ("busy", "no-answer", "failed")


class Watch:
    """`jobs` and `attempts`: their rows by id. They outlive a restart of Postgres, and what is deleted stays among the attempts."""

    def __init__(self, database_url: str, events: Events, twilio: Twilio) -> None:
        self._database_url, self._events, self._twilio = database_url, events, twilio
        self.jobs: dict[int, Row] = {}
        self.attempts: dict[str, Row] = {}
        self.counts: dict[str, int] = {}
        self.ready = asyncio.Event()
        self._forgotten = threading.Event()

    def forget(self) -> None:
        """The tables were emptied: what was told before is of no interest. Returns when it is forgotten. From another thread."""
        self._forgotten.clear()
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            connection.execute("notify sandbox, '{}'")  # notices arrive in the order of the commits
        if not self._forgotten.wait(FORGET_S):
            raise TimeoutError("the page does not hear the database")

    async def run(self) -> None:
        """Until cancelled; a database that goes away is waited for."""
        counting = asyncio.ensure_future(self._count())
        try:
            while True:
                try:
                    await self._listen()
                except psycopg.OperationalError:
                    await asyncio.sleep(RECONNECT_S)
        finally:
            counting.cancel()

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(self._database_url, autocommit=True)
        async with connection:
            await connection.execute("listen sandbox")
            async with connection.cursor(row_factory=scalar_row) as cursor:
                for table in ("outbound_call_jobs", "outbound_call_attempts"):
                    await cursor.execute(f"select to_jsonb(t) from public.{table} t order by 1".encode())
                    for row in await cursor.fetchall():
                        self._take(table, row, False, time.time() * 1000)
            self.ready.set()
            async for notice in connection.notifies():
                if not (told := json.loads(notice.payload)):
                    self.jobs.clear()
                    self.attempts.clear()
                    self.counts = self._judge()
                    self._forgotten.set()
                    continue
                self._take(told["table"], told["row"], told["gone"], told["at"])

    def _take(self, table: str, row: Row, gone: bool, at: float) -> None:
        kind = KINDS[table]
        kept: dict[Any, Row] = self.jobs if kind == "job" else self.attempts if kind == "attempt" else {}
        if not gone and kept.get(row.get("id"), {}).items() >= row.items():
            return
        if kind == "job" and gone:
            kept.pop(row["id"], None)
        elif kind in ("job", "attempt"):
            kept[row["id"]] = row
        job = row.get("job_id") or (row["id"] if kind == "job" else None)
        attempt = row.get("attempt_id") or (row["id"] if kind == "attempt" else None)
        to = row["phone_e164"] if kind == "opt-out" else None
        self._events.tell(kind, at=at, job=job, attempt=attempt, to=to, row=row, gone=gone)

    # -- the counts ---------------------------------------------------------------------------------------------------

    async def _count(self) -> None:
        while True:
            counts = self._judge()
            if counts != self.counts:
                self.counts = counts
                self._events.tell("counts", counts=counts)
            await asyncio.sleep(COUNT_S)

    def _judge(self) -> dict[str, int]:
        """twice: see _repeats. lost: people whom nobody called, and whose job is over although no rule allows that."""
        calls: dict[int | None, list[Call]] = defaultdict(list)
        attempts: dict[int, list[Row]] = defaultdict(list)
        for attempt in self.attempts.values():
            attempts[attempt["job_id"]].append(attempt)
        first_legs = [call for call in self._twilio.calls if call.parent is None]
        for call in first_legs:
            calls[self.attempts.get(attempt_of(call.url) or "", {}).get("job_id")].append(call)
        statuses = Counter(job["status"] for job in self.jobs.values())
        lost = sum(is_lost(job, attempts[job["id"]], calls[job["id"]]) for job in self.jobs.values())
        return {
            **{name: statuses[name] for name in ("queued", "dialing", "in_doubt", "calling", *FINAL)},
            "ended": sum(statuses[name] for name in FINAL),
            "jobs": len(self.jobs),
            "calls": len(first_legs),
            "twice": sum(_repeats(theirs) for job, theirs in calls.items() if job is not None),
            "lost": lost,
        }


def _repeats(calls: list[Call]) -> int:
    """Calls of one sign-up that rang although an earlier one was picked up by a person, or was not over yet."""
    rang = [call for call in calls if call.started_at]
    return sum(
        any(e.picked_up_by == "human" or e.ended_at is None or e.ended_at > call.accepted_at for e in rang[:place])
        for place, call in enumerate(rang)
    )


def is_lost(job: Row, attempts: list[Row], calls: list[Call]) -> bool:
    if job["status"] == "completed":
        return not any(call.status in ("completed", "in-progress") for call in calls)
    if job["status"] != "failed":
        return False  # open, or canceled by somebody
    if not job["attempts"] or any(attempt["state"] == "refused" for attempt in attempts):
        return False  # screening or Twilio refused the number
    at_twilio = {attempt_of(call.url) for call in calls}
    absent = [a for a in attempts if a["state"] == "absent" and a["id"] not in at_twilio]
    in_vain = [a for a in attempts if a["state"] == "ended" and a["call_status"] in IN_VAIN]
    return len(absent + in_vain) < MAX_ATTEMPTS
