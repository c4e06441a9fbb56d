"""The guarantee: sweeps alone call everybody, as a cron job and as a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.conftest import ROOT, World, fresh_world, open_world
from tests.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module")
def bare_sandbox() -> Iterator[Sandbox]:
    """Twilio and Supabase, and nobody who dials. Twilio hears nothing from API_BASE_URL, and its callbacks are lost."""
    with Sandbox(function=False, webhooks=False, scheduler=False, environ={}) as sandbox:
        yield sandbox


@pytest.fixture
def bare(bare_sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(bare_sandbox) as world:
        yield world


def sweep(world: World, **changed: str) -> subprocess.CompletedProcess[str]:
    """One sweep, of production's length: the sandbox's short lease leaves it a second to claim in. It serves no HTTP."""
    return world.sweep_command(**{"DISPATCH_SECRET": "", "REQUEST_TIMEOUT_SECONDS": "55", **changed})


def swept_well(world: World, **changed: str) -> None:
    done = sweep(world, **changed)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@contextmanager
def worker(world: World, every: str = "0.3") -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "function.sweep", "--every", every], cwd=ROOT, stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **world.sandbox.settings, "DISPATCH_SECRET": ""},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def taken(world: World) -> list[str]:
    return [call["to"] for call in world.all_calls()]


def test_sweep_keeps_the_pace_and_its_limit(bare: World) -> None:
    numbers = bare.insert_many(8)
    began = time.monotonic()
    swept_well(bare, CALLS_PER_SECOND="2", CALL_DISPATCHER_LIMIT="5")
    assert sorted(taken(bare)) == sorted(numbers[:5])  # in the order of arrival
    # Five calls at two a second: the fifth may go out 2 s after the first, half a second early.
    assert time.monotonic() - began >= 1.5


def test_sweep_dials_all_beside_jobs_that_cannot_be_called(bare: World) -> None:
    """More than it has threads. Metadata that Python cannot read, too deep or with a long number, stops nobody."""
    malformed = [bare.insert_job(f"nonsense {n}") for n in range(20)]
    numbers = [bare.number(), bare.number()]
    for number, odd in zip(numbers, ["[" * 2000 + "]" * 2000, "1" * 5000], strict=True):
        bare.insert_job(number, metadata=f'{{"odd": {odd}, "company": "Acme"}}')
    numbers += bare.insert_many(58)
    swept_well(bare, CALL_DISPATCHER_LIMIT="400")
    assert {bare.job(job)["reason_code"] for job in malformed} == {"number_invalid"}
    assert sorted(taken(bare)) == sorted(numbers)
    bare.rows("update public.outbound_call_jobs set due_at = now() where status = 'calling' returning id")
    swept_well(bare)  # asks after them


def test_idle_sweep_makes_five_requests(bare: World) -> None:
    before = bare.sandbox.gateway.requests.total()
    swept_well(bare)
    assert bare.sandbox.gateway.requests.total() - before == 5


def test_worker_stops_cleanly_when_told(bare: World) -> None:
    bare.insert_many(1)
    with worker(bare, every="30") as process:
        bare.until(lambda: taken(bare))  # its first sweep; then it rests for half a minute
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_worker_survives_a_database_that_goes_away() -> None:
    with Sandbox(function=False, webhooks=False, scheduler=False, environ={}) as sandbox, ExitStack() as opened:
        before = opened.enter_context(open_world(sandbox))
        process = opened.enter_context(worker(before))
        first = before.insert_many(1)
        before.until(lambda: taken(before) == first)
        sandbox.postgres.kill()
        time.sleep(1)  # a few sweeps meet nobody
        sandbox.postgres.restart()
        after = opened.enter_context(open_world(sandbox))
        second = after.insert_many(1)
        after.until(lambda: taken(after) == first + second)
        assert process.poll() is None


def test_sweep_that_cannot_work_says_why(bare: World) -> None:
    unreachable = sweep(bare, SUPABASE_URL="http://127.0.0.1:9")
    assert (unreachable.returncode, "sweep failed" in unreachable.stdout) == (1, True)
    misspelled = sweep(bare, TWILIO_ACCOUNT_SID="nonsense", CALL_MAX_ATTEMPTS="-1")
    assert misspelled.returncode == 2
    assert {name in misspelled.stderr for name in ("TWILIO_ACCOUNT_SID", "CALL_MAX_ATTEMPTS")} == {True}
