"""The contenders of `make bench`: how each is installed, started, fed, and asked for its unfinished rows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import psycopg

from tests.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/bench/bin/python"
THREADS = 26  # of which 5/8, 16, may wait for Twilio; the others are for /voice and sweeps
START_SECONDS = 30.0


@dataclass(frozen=True)
class Contender:
    """`unfinished`: a query for the rows that are not over."""

    name: str
    module: str
    package: str
    unfinished: str
    is_ours: bool = False

    def __str__(self) -> str:
        return self.name


OURS = Contender(
    "this product", "dispatcher", "", "select count(*) from public.outbound_call_jobs where finished_at is null",
    is_ours=True,
)  # fmt: skip
CONTENDERS = (
    OURS,
    Contender(
        "procrastinate", "procrastinate_worker", "procrastinate",
        "select count(*) from procrastinate_jobs where task_name like '%.call' and status in ('todo', 'doing')",
    ),
    Contender(
        "pgqueuer", "pgqueuer_worker", "pgqueuer", "select count(*) from pgqueuer where status in ('queued', 'picked')",
    ),
    Contender("Supabase Queues (pgmq)", "pgmq_consumer", "pgmq", "select count(*) from pgmq.q_calls"),
    Contender(
        "a polling loop", "polling_loop", "asyncpg",
        "select count(*) from call_jobs where status in ('queued', 'running')",
    ),
)  # fmt: skip
BY_MODULE = {contender.module: contender for contender in CONTENDERS}


@dataclass
class Peer:
    """Processes of one contender beside one sandbox. Its workers end with this process, however it ends."""

    contender: Contender
    sandbox: Sandbox
    options: Mapping[str, str] = field(default_factory=dict)
    log: Path = Path(os.devnull)

    def __post_init__(self) -> None:
        ready, trusted = self.sandbox.ready, self.sandbox.settings["SSL_CERT_FILE"]
        self._env = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SSL_CERT_FILE": trusted,
            "BENCH_DATABASE_URL": ready.database_url, "BENCH_TWILIO_URL": ready.twilio_url,
            "BENCH_ACCOUNT": ready.twilio_account_sid, "BENCH_TOKEN": ready.twilio_auth_token,
            "BENCH_FROM": ready.twilio_phone_number, "BENCH_SECRET": ready.dispatch_secret,
            **self.options,
        }  # fmt: skip

    def install(self) -> None:
        subprocess.run(self._command("install"), cwd=ROOT, env=self._env, check=True)

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command("work"), cwd=ROOT, env=self._env, stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @contextlib.contextmanager
    def working(self) -> Iterator[psutil.Process]:
        """The function, or a worker of the peer."""
        if self.contender.is_ours:
            assert self.sandbox.ready.function_pid is not None
            yield psutil.Process(self.sandbox.ready.function_pid)
            return
        worker = self.start()
        try:
            yield psutil.Process(worker.pid)
        finally:
            kill(worker)

    @contextlib.contextmanager
    def producer(self) -> Iterator[Producer]:
        process = subprocess.Popen(
            self._command("enqueue"), cwd=ROOT, env=self._env, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Producer(process)
        finally:
            process.kill()
            process.wait()

    def unfinished(self) -> int:
        with psycopg.connect(self.sandbox.ready.database_url) as connection:
            ((count,),) = connection.execute(self.contender.unfinished.encode()).fetchall()
        return int(count)

    def _command(self, what: str) -> list[str]:
        return [str(PYTHON), "-m", f"tests.bench.peers.{self.contender.module}", what]


class Producer:
    """Commits jobs in a process of its own, whose clock nobody disturbs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    def feed(self, phones: Sequence[str], rate: float) -> dict[str, float]:
        """One job after the other, so many a second. -> the time of each commit, by number"""
        began = time.monotonic()
        for n, phone in enumerate(phones):
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
            self._stdin.write(f"{phone}\n")
            self._stdin.flush()
        return {phone: float(self._stdout.readline()) for phone in phones}


def kill(worker: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def cpu_s(root: psutil.Process) -> float:
    """CPU seconds of a process, its living children, and the dead ones."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def wal_bytes(url: str) -> int:
    with psycopg.connect(url) as connection:
        ((position,),) = connection.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchall()
    return int(position)


@contextlib.contextmanager
def arena(
    contender: Contender, settings: Mapping[str, str], *, function: bool = True, webhooks: bool = True,
    scheduler: bool = False, threads: int = THREADS, calls_per_second: float = 1000.0,
) -> Iterator[Sandbox]:  # fmt: skip
    """Postgres and Twilio over TLS; for this product, Supabase's stand-in and the function too."""
    ours = contender.is_ours
    with (
        patch.dict(os.environ, THREADS=str(threads)),
        Sandbox(
            function=ours and function, webhooks=ours and webhooks, scheduler=ours and scheduler, environ=settings,
            tls=True, prepares=True, twilio_calls_per_second=calls_per_second,
        ) as sandbox,
    ):  # fmt: skip
        yield sandbox
