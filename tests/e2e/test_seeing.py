"""What goes on is seen: each thing that an alert watches for is really provoked, and the metric's own filter takes our line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import ROOT, World
from tests.sandbox.cloud_logging import Entry, entry_of, extract, matches

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


def test_each_sweep_is_counted_with_its_oldest_wait(quiet: World) -> None:
    """While calls are paused no job is late, and a restored database is counted each time."""
    entries = said(quiet, quiet.sweep)
    assert counted(entries) == {"sweeps": 1, "oldest_due_s": 1, "oldest_doubt_s": 1}
    assert values(entries, "oldest_due_s") == values(entries, "oldest_doubt_s") == [0]
    (line,) = [entry["jsonPayload"] for entry in entries]
    assert line["message"] == line["kind"] == "sweep"
    quiet.rows("select pause_calls('lunch')")
    entries = said(quiet, quiet.sweep)
    assert counted(entries) == {"sweeps": 1, "oldest_doubt_s": 1}
    assert (entries[-1]["severity"], entries[-1]["jsonPayload"]["stats"]["pause_reason"]) == ("WARNING", "lunch")
    quiet.database.execute("update private.call_settings set paused_until = 'infinity', paused_by = 'restore'")
    entries = said(quiet, quiet.sweep)
    assert counted(entries) == {"sweeps": 1, "oldest_doubt_s": 1, "restores": 1}
    assert entries[-1]["severity"] == "ERROR"


def oldest(world: World, metric: str) -> int:
    """What a sweep says of the oldest wait of this kind, which is an error. -> hundreds of seconds"""
    entries = said(world, world.sweep)
    (value,) = values(entries, metric)
    assert isinstance(value, float)
    assert entries[-1]["severity"] == "ERROR"
    return int(value // 100)


def test_job_that_is_due_too_long_is_seen(quiet: World) -> None:
    """Calls wait for the probe of a halt, which never comes back."""
    quiet.insert_job(quiet.number())
    quiet.database.execute("update private.call_settings set halts = 1, probe_until = 'infinity'")
    late = "set created_at = created_at - interval '400 s', due_at = due_at - interval '400 s'"
    quiet.database.execute(f"update public.outbound_call_jobs {late}".encode())
    assert oldest(quiet, "oldest_due_s") == 4


def test_call_in_doubt_too_long_is_seen(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, create="drop")
    job = quiet.insert_job(number)
    (entry,) = said(quiet, lambda: quiet.dial(job))
    assert entry["jsonPayload"]["kind"] == "call_in_doubt"
    quiet.database.execute("update public.outbound_call_attempts set doubted_at = doubted_at - interval '1000 s'")
    quiet.database.execute("update public.outbound_call_jobs set due_at = 'infinity'")  # nobody settles it
    assert oldest(quiet, "oldest_doubt_s") == 10


def test_part_of_the_days_ceiling_is_logged(quiet: World) -> None:
    quiet.dial(quiet.insert_job(quiet.number()))
    entries = [entry_of(line) for line in quiet.sweep_command(CALLS_PER_DAY="8").stdout.splitlines()]
    assert counted(entries) == {"sweeps": 1, "oldest_due_s": 1, "oldest_doubt_s": 1, "day_used": 1}
    assert values(entries, "day_used") == [1 / 8]


def test_request_without_proof_is_counted_by_its_path(quiet: World) -> None:
    extractor = METRICS["unauthorized"]["labelExtractors"]["path"].removeprefix("EXTRACT(").removesuffix(")")
    for path in ("/", "/sweep", "/voice", "/status"):
        entries = said(quiet, lambda path=path: quiet.post(path, json={}))  # type: ignore[misc]
        assert (counted(entries), extract(entries[0], extractor)) == ({"unauthorized": 1}, path)


def test_halt_at_twilio_is_counted(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, create="error:20003", times=1)
    job = quiet.insert_job(number)
    entries = said(quiet, lambda: quiet.dial(job))
    assert counted(entries) == {"halts": 1}
    assert entries[0]["severity"] == "CRITICAL"
    assert counted(said(quiet, quiet.sweep))["sweeps"] == 1


def test_calls_too_many_and_unwanted_are_told_apart(quiet: World) -> None:
    job = quiet.insert_job(quiet.number())

    def twilio_says(path: str, attempt: object, status: str, sid: str = "") -> list[Entry]:
        form = {"CallSid": sid or "CA" + uuid.uuid4().hex, "CallStatus": status}
        return said(quiet, lambda: quiet.twilio_posts(f"{path}?attempt={attempt}", form))

    quiet.dial(job)
    (attempt,) = quiet.attempts(job)
    assert attempt["from_e164"] == quiet.sandbox.ready.twilio_phone_number
    another = "CA" + uuid.uuid4().hex
    for _ in range(2):
        assert counted(twilio_says("/status", attempt["id"], "ringing", another)) == {"duplicates": 1}
    for unknown in ("nonsense", uuid.UUID(int=4)):
        assert counted(twilio_says("/voice", unknown, "in-progress")) == {"unknown_calls": 1}
    quiet.rows("select cancel_call_job(%s)", job)
    entries = twilio_says("/voice", attempt["id"], "in-progress", attempt["call_sid"])
    assert counted(entries) == {}  # canceled and picked up: no second call
    assert "call_unwanted" in [entry["jsonPayload"].get("kind") for entry in entries]
