"""The guarantee: sweeps alone call everybody, over HTTP, as a cron job and as a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import World, fresh_world, open_world
from tests.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bare_sandbox() -> Iterator[Sandbox]:
    """Twilio and Supabase, and nobody who dials."""
    with Sandbox(function=False, webhooks=False, scheduler=False, environ={}) as sandbox:
        yield sandbox


@pytest.fixture
def bare(bare_sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(bare_sandbox) as world:
        yield world


def environ(world: World, **changed: str) -> dict[str, str]:
    """As a worker has it: without DISPATCH_SECRET, because it serves no HTTP."""
    settings = {name: value for name, value in world.sandbox.settings.items() if name != "DISPATCH_SECRET"}
    # API_BASE_URL is the function's, which is not there: Twilio hears nothing, and its callbacks are lost.
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings, **changed}


def sweep(world: World, **changed: str) -> subprocess.CompletedProcess[str]:
    """One sweep, of production's length: the sandbox's short lease leaves it a second to claim in."""
    command = [sys.executable, "-m", "function.sweep"]
    env = environ(world, **{"REQUEST_TIMEOUT_SECONDS": "55", **changed})
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)


@contextmanager
def worker(world: World, every: str = "0.3", **changed: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "function.sweep", "--every", every], cwd=ROOT, env=environ(world, **changed),
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def insert_many(world: World, count: int) -> list[str]:
    numbers = [world.number() for _ in range(count)]
    with world.database.cursor() as cursor:
        cursor.executemany(
            "insert into public.outbound_call_jobs (user_id, phone_number) values (gen_random_uuid(), %s)",
            [(number,) for number in numbers],
        )
    return numbers


def taken(world: World, numbers: list[str]) -> list[str]:
    return [call["to"] for call in world.all_calls() if call["to"] in numbers]


def test_cron_jobs_sweep_dials_up_to_its_limit(bare: World) -> None:
    numbers = insert_many(bare, 15)
    done = sweep(bare, CALL_DISPATCHER_LIMIT="10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(taken(bare, numbers)) == sorted(numbers[:10])  # in the order of arrival


def test_idle_sweep_makes_five_requests(bare: World) -> None:
    before = bare.sandbox.gateway.requests.total()
    assert sweep(bare).returncode == 0
    assert bare.sandbox.gateway.requests.total() - before == 5


def test_sweep_dials_more_jobs_than_it_has_threads(bare: World) -> None:
    numbers = insert_many(bare, 60)
    assert sweep(bare, CALL_DISPATCHER_LIMIT="400").returncode == 0
    assert sorted(taken(bare, numbers)) == sorted(numbers)


def test_malformed_numbers_do_not_end_a_sweep_early(bare: World) -> None:
    jobs = [bare.insert_job(f"nonsense {n}") for n in range(20)]
    numbers = insert_many(bare, 5)
    assert sweep(bare, CALL_DISPATCHER_LIMIT="50").returncode == 0
    assert {bare.job(job)["reason_code"] for job in jobs} == {"number_invalid"}
    assert len(taken(bare, numbers)) == 5


def test_metadata_that_python_cannot_read_stops_nobody(bare: World) -> None:
    numbers = [bare.number(), bare.number()]
    for number, odd in zip(numbers, ["[" * 2000 + "]" * 2000, "1" * 5000], strict=True):  # deep; a long number
        bare.insert_job(number, metadata=f'{{"odd": {odd}, "company": "Acme"}}')
    numbers += insert_many(bare, 5)
    done = sweep(bare)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(taken(bare, numbers)) == 7
    bare.rows("update public.outbound_call_jobs set due_at = now() where status = 'calling' returning id")
    done = sweep(bare)  # asks after them
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_sweep_keeps_the_pace_and_waits_for_it(bare: World) -> None:
    numbers = insert_many(bare, 5)
    began = time.monotonic()
    assert sweep(bare, CALLS_PER_SECOND="2").returncode == 0
    assert len(taken(bare, numbers)) == 5
    # Five calls at two a second: the fifth may go out 2 s after the first, half a second early.
    assert time.monotonic() - began >= 1.5


def test_two_sweeps_at_once_dial_each_job_once(bare: World) -> None:
    numbers = insert_many(bare, 40)
    with worker(bare, CALL_DISPATCHER_LIMIT="50"), worker(bare, CALL_DISPATCHER_LIMIT="50"):
        bare.until(lambda: len(taken(bare, numbers)) >= 40)
        bare.until(lambda: not bare.rows("select from public.outbound_call_jobs where status in ('queued', 'dialing')"))
    assert sorted(taken(bare, numbers)) == sorted(numbers)


def test_worker_stops_cleanly_when_told(bare: World) -> None:
    numbers = insert_many(bare, 1)
    with worker(bare, every="30") as process:
        bare.until(lambda: taken(bare, numbers))  # its first sweep; then it rests for half a minute
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_worker_survives_a_database_that_goes_away() -> None:
    with Sandbox(function=False, webhooks=False, scheduler=False, environ={}) as sandbox, ExitStack() as opened:
        before = opened.enter_context(open_world(sandbox))
        process = opened.enter_context(worker(before))
        first = insert_many(before, 1)
        before.until(lambda: taken(before, first))
        sandbox.postgres.kill()
        time.sleep(1)  # a few sweeps meet nobody
        sandbox.postgres.restart()
        after = opened.enter_context(open_world(sandbox))
        second = insert_many(after, 1)
        after.until(lambda: taken(after, second))
        assert process.poll() is None
        assert len(taken(after, first)) == 1


def test_sweep_that_cannot_reach_the_database_says_so(bare: World) -> None:
    done = sweep(bare, SUPABASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "sweep failed" in done.stdout


def test_wrong_settings_are_all_named_and_the_process_exits(bare: World) -> None:
    done = sweep(bare, TWILIO_ACCOUNT_SID="nonsense", CALL_MAX_ATTEMPTS="-1")
    assert done.returncode == 2
    assert "TWILIO_ACCOUNT_SID" in done.stderr
    assert "CALL_MAX_ATTEMPTS" in done.stderr
