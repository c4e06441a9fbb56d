"""What goes on is seen: each thing that an alert watches for is really provoked, and the metric's own filter takes our line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import World
from tests.e2e.test_failures import hook
from tests.e2e.test_requests import signed
from tests.sandbox.cloud_logging import Entry, entry_of, extract, matches

ROOT = Path(__file__).parents[2]
METRICS: dict[str, dict[str, Any]] = {
    file.stem.removeprefix("call_dispatcher_"): json.loads(file.read_text())
    for file in (ROOT / "shared" / "monitoring" / "metrics").iterdir()
}


def said(world: World, act: Callable[[], object]) -> list[Entry]:
    """What the function logged while this was done."""
    before = world.sandbox.function_log.stat().st_size
    act()
    with world.sandbox.function_log.open("rb") as log:
        log.seek(before)
        return [entry_of(line.decode()) for line in log if line.startswith(b"{")]


def counted(entries: list[Entry]) -> dict[str, int]:
    """How many lines each metric takes, if it takes any."""
    counts = {name: sum(matches(entry, metric["filter"]) for entry in entries) for name, metric in METRICS.items()}
    return {name: count for name, count in counts.items() if count}


def values(entries: list[Entry], name: str) -> list[object]:
    """What a distribution extracts."""
    field = METRICS[name]["valueExtractor"].removeprefix("EXTRACT(").removesuffix(")")
    return [extract(entry, field) for entry in entries if matches(entry, METRICS[name]["filter"])]


def sweep(world: World) -> bool:
    headers = {"Authorization": f"Bearer {world.sandbox.dispatch_secret}"}
    return world.post("/sweep", headers=headers, json={}).status_code == 200


def swept_alone(world: World, **settings: str) -> list[Entry]:
    """A sweep of a cron job, with settings of its own."""
    command = [sys.executable, "-m", "function.sweep"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **world.sandbox.settings, **settings}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=90)
    return [entry_of(line) for line in done.stdout.splitlines()]


@pytest.fixture
def still(quiet: World) -> Iterator[World]:
    """Nothing is open, and nothing is to be done."""
    yield quiet
    quiet.rows("select resume_calls()")


@contextmanager
def nothing_else_open(world: World) -> Iterator[None]:
    """Jobs of other tests are put aside for a while."""
    world.rows(
        "with open_jobs as materialized (select id from public.outbound_call_jobs"
        " where finished_at is null and not cancel_requested for update)"  # some of them are ending just now
        " select cancel_call_job(id) from open_jobs"
    )
    open_jobs = "select from public.outbound_call_jobs where finished_at is null"
    world.until(lambda: sweep(world) and not world.rows(open_jobs))
    yield


def test_a_sweep_is_counted_and_says_how_long_the_oldest_waits(still: World) -> None:
    with nothing_else_open(still):
        entries = said(still, lambda: sweep(still))
        assert counted(entries) == {"sweeps": 1, "oldest_due_s": 1, "oldest_doubt_s": 1}
        assert values(entries, "oldest_due_s") == values(entries, "oldest_doubt_s") == [0]
        (line,) = [entry["jsonPayload"] for entry in entries]
        assert line["message"] == line["kind"] == "sweep"


def test_while_calls_are_paused_no_job_is_late(still: World) -> None:
    still.rows("select pause_calls('lunch')")
    entries = said(still, lambda: sweep(still))
    assert counted(entries) == {"sweeps": 1, "oldest_doubt_s": 1}
    assert (entries[-1]["severity"], entries[-1]["jsonPayload"]["stats"]["pause_reason"]) == ("WARNING", "lunch")


def test_a_job_that_is_due_too_long_is_seen(still: World) -> None:
    """Calls wait for the probe of a halt, which never comes back."""
    job = still.insert_job(still.number())
    still.database.execute("update private.call_settings set halts = 1, probe_until = 'infinity'")
    late = "set created_at = created_at - interval '400 s', due_at = due_at - interval '400 s'"
    still.database.execute(f"update public.outbound_call_jobs {late} where id = %s".encode(), (job,))
    entries = said(still, lambda: sweep(still))
    (value,) = values(entries, "oldest_due_s")
    assert isinstance(value, float)
    assert 400 <= value < 500
    assert entries[-1]["severity"] == "ERROR"


def test_a_call_that_is_in_doubt_too_long_is_seen(still: World) -> None:
    number = still.number()
    still.behave(to=number, create="drop")
    job = still.insert_job(number)
    assert [entry["jsonPayload"]["kind"] for entry in said(still, lambda: still.webhook(hook(job)))] == [
        "call_in_doubt"
    ]
    still.database.execute(
        "update public.outbound_call_attempts set doubted_at = doubted_at - interval '1000 s' where job_id = %s", (job,)
    )
    still.database.execute(
        "update public.outbound_call_jobs set due_at = 'infinity' where id = %s", (job,)
    )  # nobody settles it
    try:
        entries = said(still, lambda: sweep(still))
    finally:
        still.database.execute("update public.outbound_call_jobs set due_at = now() where id = %s", (job,))
    (value,) = values(entries, "oldest_doubt_s")
    assert isinstance(value, float)
    assert 1000 <= value < 1100
    assert entries[-1]["severity"] == "ERROR"


def test_the_part_of_the_days_ceiling_is_logged_where_there_is_one(still: World) -> None:
    with nothing_else_open(still):
        calls = still.rows("select calls_24h from public.call_stats")[0]["calls_24h"]
        entries = swept_alone(still, CALLS_PER_DAY=str(10 * (calls + 1)))
        assert counted(entries) == {"sweeps": 1, "oldest_due_s": 1, "oldest_doubt_s": 1, "day_used": 1}
        assert values(entries, "day_used") == [pytest.approx(calls / (10 * (calls + 1)))]


@pytest.mark.parametrize("path", ["/", "/sweep", "/voice", "/status"])
def test_a_request_without_proof_is_counted_by_its_path(still: World, path: str) -> None:
    entries = said(still, lambda: still.post(path, json={}))
    assert counted(entries) == {"unauthorized": 1}
    extractor = METRICS["unauthorized"]["labelExtractors"]["path"].removeprefix("EXTRACT(").removesuffix(")")
    assert extract(entries[0], extractor) == path


def test_a_halt_is_counted(still: World) -> None:
    number = still.number()
    still.behave(to=number, create="error:20003", times=1)
    job = still.insert_job(number)
    entries = said(still, lambda: still.webhook(hook(job)))
    assert counted(entries) == {"halts": 1}
    assert entries[0]["severity"] == "CRITICAL"
    assert counted(said(still, lambda: sweep(still)))["sweeps"] == 1


def test_a_second_call_of_a_job_is_counted(still: World) -> None:
    number = still.number()
    job = still.insert_job(number)
    still.webhook(hook(job))
    (attempt,) = still.attempts(job)
    path = f"/status?attempt={attempt['id']}"
    form = {"CallSid": "CA" + uuid.uuid4().hex, "CallStatus": "ringing"}
    entries = said(still, lambda: still.post(path, data=form, headers=signed(still, path, form)))
    assert counted(entries) == {"duplicates": 1}
    assert counted(said(still, lambda: still.post(path, data=form, headers=signed(still, path, form)))) == {
        "duplicates": 1
    }
    still.database.execute(
        "update public.outbound_call_attempts set closed_at = now() where call_sid = %s", (form["CallSid"],)
    )


@pytest.mark.parametrize("attempt", ["nonsense", str(uuid.UUID(int=4))])
def test_a_call_of_no_attempt_of_ours_is_counted(still: World, attempt: str) -> None:
    path = f"/voice?attempt={attempt}"
    form = {"CallSid": "CA" + uuid.uuid4().hex, "CallStatus": "in-progress"}
    entries = said(still, lambda: still.post(path, data=form, headers=signed(still, path, form)))
    assert counted(entries) == {"unknown_calls": 1}


def test_a_call_that_was_canceled_and_is_picked_up_is_no_second_call(still: World) -> None:
    job = still.insert_job(still.number())
    still.webhook(hook(job))
    (attempt,) = still.attempts(job)
    still.rows("select cancel_call_job(%s)", job)
    path = f"/voice?attempt={attempt['id']}"
    form = {"CallSid": attempt["call_sid"], "CallStatus": "in-progress"}
    entries = said(still, lambda: still.post(path, data=form, headers=signed(still, path, form)))
    assert counted(entries) == {}
    assert "call_unwanted" in [entry["jsonPayload"].get("kind") for entry in entries]


def test_our_number_is_kept_with_each_call(still: World) -> None:
    job = still.insert_job(still.number())
    still.webhook(hook(job))
    assert [row["from_e164"] for row in still.attempts(job)] == [still.sandbox.ready.twilio_phone_number]
