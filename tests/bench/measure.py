"""One measurement of one contender, in a process of its own. Prints one JSON object.

python -m tests.bench.measure costs|drain|promises|cold|claims CONTENDER [--seed N] [--jobs N] [--workers N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from tests.bench.contenders import BY_MODULE, OURS, ROOT, Contender, Peer, Producer, arena, cpu_s, kill, wal_bytes
from tests.chaos.crash import kill_group
from tests.sandbox.numbers import numbers
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.twilio.server import Twilio

RATES = (20, 50)
LATENCY_MS = 100
DIALERS = 8
PATIENCE_S = 60.0
SETTINGS = {
    "CALL_DISPATCHER_LIMIT": "1000", "CALLS_PER_SECOND": "1000", "TWILIO_TIMEOUT_SECONDS": "10",
    "REQUEST_TIMEOUT_SECONDS": "55",
    # Nobody asks after a call, and nobody is called again, while the first calls are measured.
    "CALL_ASK_SECONDS": "600", "CALL_REDIAL_SECONDS": "3600",
}  # fmt: skip

# The rounds with crashes. A dead worker's jobs come back after STALLED_S at every contender.
WAVE = 100
TIMEOUT_S, REQUEST_S, STALLED_S = 4.0, 16.0, 17
SLOW_MS = (1000, 1600)
FAULTS: Sequence[tuple[int, dict[str, object]]] = (
    (7, {"create": "accept_then_drop"}), (7, {"create": "accept_then_500"}),
    (3, {"create": "accept_late", "late_s": 1}), (5, {"create": "hang"}), (3, {"create": "drop"}),
)  # fmt: skip
CRASH_SETTINGS = {
    "TWILIO_TIMEOUT_SECONDS": str(TIMEOUT_S), "REQUEST_TIMEOUT_SECONDS": str(REQUEST_S), "CALL_SETTLING_SECONDS": "3",
    "CALL_RETRY_SECONDS": "1", "CALL_REDIAL_SECONDS": "1", "CALLS_PER_SECOND": "1000", "CALL_DISPATCHER_LIMIT": "400",
}  # fmt: skip
QUIET_S = STALLED_S + 6.0


def until(come_true: Callable[[], object], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not come_true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def costs(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Latency, CPU and WAL at both rates, with Twilio answering in 100 ms."""
    result: dict[str, Any] = {}
    with arena(contender, SETTINGS, webhooks=False) as sandbox:
        sandbox.twilio.behave(latency_ms=LATENCY_MS, callbacks="none", outcome="busy")
        peer = Peer(contender, sandbox, {"BENCH_FUNCTION_URL": sandbox.ready.function_url})
        peer.install()
        phones = numbers()
        with peer.working() as worker, peer.producer() as producer:
            # Each of the gateway's ten connections plans a function of ours anew in its first five calls.
            warm = list(itertools.islice(phones, 120))
            producer.feed(warm, 40)
            await_calls(sandbox, len(warm))
            time.sleep(1)
            for rate in RATES:
                result[str(rate)] = _cost(sandbox, worker, producer, list(itertools.islice(phones, 6 * rate)), rate)
            result["memory_mb"] = sum(each.memory_full_info().pss for each in (worker, *worker.children(True))) / 1e6
    return result


def _cost(
    sandbox: Sandbox, worker: psutil.Process, producer: Producer, phones: list[str], rate: float
) -> dict[str, float]:
    url, postgres = sandbox.ready.database_url, psutil.Process(sandbox.postgres.pid)
    before = len(sandbox.twilio.calls)
    worker_s, postgres_s, wal = cpu_s(worker), cpu_s(postgres), wal_bytes(url)
    committed = producer.feed(phones, rate)
    left = await_calls(sandbox, before + len(phones))
    time.sleep(0.5)  # until the last answers are recorded
    calls = len(phones)
    accepted = {call.to: call.accepted_at.timestamp() for call in sandbox.twilio.calls}
    delays = sorted((accepted[phone] - committed[phone]) * 1000 for phone in phones)
    return {
        "p50_ms": statistics.median(delays),
        "p99_ms": delays[int(len(delays) * 0.99)],
        "worker_cpu_ms": (cpu_s(worker) - worker_s) * 1000 / calls,
        "postgres_cpu_ms": (cpu_s(postgres) - postgres_s) * 1000 / calls,
        "wal": (wal_bytes(url) - wal) / calls,
        "left_to_sweep": left,
    }


def await_calls(sandbox: Sandbox, count: int) -> int:
    """Until Twilio has taken so many calls. -> how many of them no webhook dialed, and a sweep did"""
    if until(lambda: len(sandbox.twilio.calls) >= count, 3):
        return 0
    left = count - len(sandbox.twilio.calls)
    if sandbox.function:
        sweep(sandbox)
    assert until(lambda: len(sandbox.twilio.calls) >= count, PATIENCE_S), "some were never called"
    return left


def sweep(sandbox: Sandbox) -> None:
    authorization = {"Authorization": f"Bearer {sandbox.dispatch_secret}"}
    httpx.post(f"{sandbox.ready.function_url}/sweep", headers=authorization, timeout=60).raise_for_status()


@contextmanager
def waiting(
    contender: Contender, settings: Mapping[str, str], jobs: int, *, function: bool = True, latency_ms: int = LATENCY_MS
) -> Iterator[tuple[Sandbox, Peer]]:
    """An arena with so many due jobs, and nobody who dials yet."""
    with arena(contender, settings, function=function, webhooks=False) as sandbox:
        sandbox.twilio.behave(latency_ms=latency_ms, callbacks="none", outcome="busy")
        peer = Peer(contender, sandbox, {"BENCH_CONCURRENCY": str(DIALERS)})
        peer.install()
        with peer.producer() as producer:
            producer.feed(list(itertools.islice(numbers(), jobs)), 10_000)
        yield sandbox, peer


def drain(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Due jobs and eight dialers: the time from the first request to the last answer, over that of ideal dialers."""
    settings = SETTINGS | {"CALL_DISPATCHER_LIMIT": str(options.jobs)}
    with waiting(contender, settings, options.jobs) as (sandbox, peer):
        with peer.working():
            if contender.is_ours:
                sweep(sandbox)
            assert until(lambda: len(sandbox.twilio.calls) >= options.jobs, PATIENCE_S), "some were never called"
        times = [call.accepted_at.timestamp() for call in sandbox.twilio.calls]
    took_s = max(times) - min(times) + LATENCY_MS / 1000
    ideal_s = -(-options.jobs // DIALERS) * LATENCY_MS / 1000
    return {"seconds": took_s, "ideal": took_s / ideal_s}


def cold(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """From the start of the process to Twilio's acceptance of a call whose job waits."""
    with waiting(contender, SETTINGS, 1, function=False, latency_ms=0) as (sandbox, peer):
        began = time.time()
        worker = start_sweeper(sandbox) if contender.is_ours else peer.start()
        try:
            assert until(lambda: sandbox.twilio.calls, PATIENCE_S), "it does not dial"
        finally:
            kill(worker)
        (call,) = sandbox.twilio.calls
    return {"ms": (call.accepted_at.timestamp() - began) * 1000}


def start_sweeper(sandbox: Sandbox) -> subprocess.Popen[bytes]:
    """A sweep worker, as an operator would run it."""
    settings = {name: value for name, value in sandbox.settings.items() if name != "DISPATCH_SECRET"}
    return subprocess.Popen(
        [sys.executable, "-m", "function.sweep", "--every", "1"], cwd=ROOT, env={"PYTHONPATH": str(ROOT), **settings},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def claims(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """One call a second, many due jobs, and so many sweep workers: claims, WAL and CPU for each call."""
    assert contender is OURS, "only this product limits the rate of all workers together"
    seconds = 12.0
    settings = SETTINGS | {"CALLS_PER_SECOND": "1", "CALL_DISPATCHER_LIMIT": "400"}
    with waiting(contender, settings, 100, function=False) as (sandbox, _):
        url = sandbox.ready.database_url
        with psycopg.connect(url, autocommit=True) as database:
            database.execute("alter system set track_functions = 'all'")
            database.execute("select pg_reload_conf()")
        workers = [start_sweeper(sandbox) for _ in range(options.workers)]
        try:
            time.sleep(4 + 1.5 * options.workers)  # until all have started
            processes = [psutil.Process(worker.pid) for worker in workers]
            processes.append(psutil.Process(sandbox.postgres.pid))
            (asked, called), cpu, wal = _claimed(sandbox), sum(map(cpu_s, processes)), wal_bytes(url)
            time.sleep(seconds)
            (asked_then, called_then), cpu_then, wal_then = (
                _claimed(sandbox),
                sum(map(cpu_s, processes)),
                wal_bytes(url),
            )
        finally:
            for worker in workers:
                kill(worker)
    calls = called_then - called
    return {
        "claims": (asked_then - asked) / calls, "cpu_ms": (cpu_then - cpu) * 1000 / calls, "wal": (wal_then - wal) / calls,
        "calls_a_second": calls / seconds,
    }  # fmt: skip


def _claimed(sandbox: Sandbox) -> tuple[int, int]:
    with psycopg.connect(sandbox.ready.database_url) as database:
        rows = database.execute("select calls from pg_stat_user_functions where funcname = 'claim_call_job'").fetchall()
    return sum(int(calls) for (calls,) in rows), len(sandbox.twilio.calls)


def promises(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """Jobs in waves. In each, all dialers are killed when Twilio has taken calls whose answers are still to come."""
    chance = random.Random(options.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        arena(contender, CRASH_SETTINGS, scheduler=True, threads=3 * WAVE, calls_per_second=25.0) as sandbox,
    ):
        options_of_peer = {
            "BENCH_CONCURRENCY": str(WAVE), "BENCH_TIMEOUT_SECONDS": str(TIMEOUT_S), "BENCH_STALLED_SECONDS": str(STALLED_S),
        }  # fmt: skip
        peer = Peer(contender, sandbox, options_of_peer, Path(folder) / "log")
        peer.install()
        phones = list(itertools.islice(numbers(), options.jobs))
        worker = None if contender.is_ours else peer.start()
        twilio = sandbox.twilio
        try:
            with peer.producer() as producer:
                for begin in range(0, len(phones), WAVE):
                    wave = phones[begin : begin + WAVE]
                    twilio.behave(latency_ms=chance.uniform(*SLOW_MS))
                    _spoil(sandbox, wave, chance)
                    wanted = twilio.requests["create"] + round(len(wave) * chance.uniform(0.5, 0.9))
                    producer.feed(wave, 10_000)
                    until(partial(_asked, twilio, wanted), 20)
                    if worker is None:
                        _crash(sandbox)
                    else:
                        kill(worker)
                        worker = peer.start()
            _await_quiet(peer)
            calls = Counter(call.to for call in sandbox.twilio.calls)
            stuck = peer.unfinished()
        finally:
            if worker is not None:
                kill(worker)
    return {
        "jobs": len(phones), "twice": sum(count > 1 for count in calls.values()),
        "never": sum(phone not in calls for phone in phones), "stuck": stuck, "calls": sum(calls.values()),
    }  # fmt: skip


def _asked(twilio: Twilio, times: int) -> bool:
    return twilio.requests["create"] >= times


def _spoil(sandbox: Sandbox, phones: list[str], chance: random.Random) -> None:
    weights, faults = zip(*FAULTS, (100 - sum(weight for weight, _ in FAULTS), {}), strict=True)
    for phone, fault in zip(phones, chance.choices(faults, weights, k=len(phones)), strict=True):
        if fault:
            sandbox.twilio.behave(to=phone, times=1, **fault)


def _crash(sandbox: Sandbox) -> None:
    old = sandbox.ready.function_pid
    assert old is not None
    kill_group(old)
    assert until(lambda: sandbox.ready.function_pid != old, 60), "the sandbox did not start it again"


def _await_quiet(peer: Peer) -> None:
    """Until every row is over, or no request has come for longer than a dead worker's jobs need to come back."""
    since, seen, end = time.monotonic(), -1, time.monotonic() + 400
    while time.monotonic() - since < QUIET_S and time.monotonic() < end:
        time.sleep(0.5)
        if peer.sandbox.twilio.requests["create"] != seen:
            since, seen = time.monotonic(), peer.sandbox.twilio.requests["create"]
        elif peer.unfinished() == 0 and time.monotonic() - since > 3:
            return


KINDS = {each.__name__: each for each in (costs, drain, cold, claims, promises)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.measure")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("contender", choices=BY_MODULE)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    # A request whose client was killed is no news here.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    print(json.dumps(KINDS[options.kind](BY_MODULE[options.contender], options)))


if __name__ == "__main__":
    main()
