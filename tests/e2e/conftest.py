"""One sandbox for the whole folder, with everything in it real or a stand-in; it is emptied before each test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
from psycopg.rows import dict_row
from twilio.request_validator import RequestValidator

from shared.conversation.library import FOLDER
from tests.sandbox.numbers import numbers
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.supabase.gateway import Fault

T = TypeVar("T")
Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
EVENT: Row = {"type": "INSERT", "table": "outbound_call_jobs", "schema": "public", "old_record": None}

_numbers = numbers()


@dataclass
class World:
    """What a test says of the sandbox, in the product's words."""

    sandbox: Sandbox
    database: psycopg.Connection[Row]
    http: httpx.Client

    def number(self) -> str:
        """A number that no other test has: +1 NPA 555-0100 to 0199."""
        return next(_numbers)

    def rows(self, query: str, *values: object) -> list[Row]:
        return self.database.execute(query.encode(), values).fetchall()

    def insert_job(self, number: str, mode: str = "default", **columns: object) -> int:
        columns = {"user_id": uuid.uuid4(), "phone_number": number, "signup_mode": mode, **columns}
        names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
        query = f"insert into public.outbound_call_jobs ({names}) values ({marks}) returning id"
        return int(self.rows(query, *columns.values())[0]["id"])

    def insert_many(self, count: int) -> list[str]:
        """Jobs, in one statement. -> their numbers"""
        phones = [self.number() for _ in range(count)]
        query = (
            "insert into public.outbound_call_jobs (user_id, phone_number) select gen_random_uuid(), unnest(%s::text[])"
        )
        self.database.execute(query, (phones,))
        return phones

    def job(self, job_id: int) -> Row:
        return self.rows("select * from public.outbound_call_jobs where id = %s", job_id)[0]

    def attempts(self, job_id: int) -> list[Row]:
        return self.rows(
            "select * from public.outbound_call_attempts where job_id = %s order by number, started_at", job_id
        )

    def calls(self, number: str) -> list[Row]:
        return [call for call in self.all_calls() if call["to"] == number]

    def all_calls(self) -> list[Row]:
        """Every call that Twilio took, in order, as `/_sandbox/calls` shows it."""
        return [call.report() for call in self.sandbox.twilio.calls]

    def behave(self, **rule: object) -> None:
        self.sandbox.twilio.behave(**rule)

    @contextmanager
    def fault(self, kind: Fault, *functions: str, times: int | None = None) -> Iterator[None]:
        """The database's gateway fails like this meanwhile, for these functions or for all."""
        gateway = self.sandbox.gateway
        gateway.fault, gateway.fault_on, gateway.fault_times = kind, {*functions} or None, times
        yield
        gateway.fault = gateway.fault_on = gateway.fault_times = None

    def kill_function(self) -> Callable[[], bool]:
        """-> whether the next instance is there"""
        pid = self.sandbox.ready.function_pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return lambda: self.sandbox.ready.function_pid != pid

    def log_lines(self, text: str = "") -> list[Row]:
        """What the function has logged with this text in its message."""
        lines = [line for line in self.sandbox.function_log.read_text().splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if text in line["message"]]

    def set_clock(self, offset_s: float) -> None:
        asyncio.run(self.sandbox.twilio.set_clock(offset_s))

    def until(self, look: Callable[[], T], timeout_s: float = 30.0) -> T:
        """Await what must come true; the failure shows what there was instead."""
        end = time.monotonic() + timeout_s
        found = look()
        while not found and time.monotonic() < end:
            time.sleep(0.05)
            found = look()
        assert found, (
            f"not within {timeout_s:.0f} s; the function said:\n" + self.sandbox.function_log.read_text()[-3000:]
        )
        return found

    def until_status(self, job_id: int, *statuses: str, timeout_s: float = 30.0) -> Row:
        return self.until(lambda: job if (job := self.job(job_id))["status"] in statuses else None, timeout_s) or {}

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.http.post(f"{self.sandbox.ready.function_url}{path}", **request)

    def webhook(self, body: object, secret: str | None = None) -> httpx.Response:
        """As Supabase's dashboard sends it: the bearer secret."""
        return self.post("/", json=body, headers={"Authorization": f"Bearer {secret or self.sandbox.dispatch_secret}"})

    def dial(self, job_id: int, secret: str | None = None) -> Row:
        """The webhook of this job's insert. -> what was done"""
        answer = self.webhook({**EVENT, "record": {"id": job_id}}, secret)
        assert answer.status_code == 200, answer.text
        done: Row = answer.json()
        return done

    def sweep(self) -> None:
        answer = self.post("/sweep", headers={"Authorization": f"Bearer {self.sandbox.dispatch_secret}"}, json={})
        assert answer.status_code == 200, answer.text

    def sweep_command(self, **settings: str) -> subprocess.CompletedProcess[str]:
        """A cron job's sweep, with settings of its own."""
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **self.sandbox.settings, **settings}
        command = [sys.executable, "-m", "function.sweep"]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90)

    def signature(self, path: str, form: dict[str, str]) -> dict[str, str]:
        """The header of a request that Twilio signed."""
        ready = self.sandbox.ready
        validator = RequestValidator(ready.twilio_auth_token)
        return {"X-Twilio-Signature": validator.compute_signature(f"{ready.function_url}{path}", form)}

    def twilio_posts(self, path: str, form: dict[str, str]) -> httpx.Response:
        """`path` may be a whole URL of the function."""
        path = path.removeprefix(self.sandbox.ready.function_url)
        return self.post(path, data=form, headers=self.signature(path, form))


def scripts_and(folder: Path, **scripts: str) -> Path:
    """A folder with the scripts that ship, and these."""
    shutil.copytree(FOLDER, folder / "scripts")
    for name, text in scripts.items():
        (folder / "scripts" / f"{name}.toml").write_text(text)
    return folder / "scripts"


@contextmanager
def open_world(sandbox: Sandbox) -> Iterator[World]:
    with (
        psycopg.connect(sandbox.ready.database_url, autocommit=True, row_factory=dict_row) as database,
        httpx.Client(timeout=60) as http,
    ):
        yield World(sandbox, database, http)


@contextmanager
def fresh_world(sandbox: Sandbox) -> Iterator[World]:
    """A world in which nothing has happened yet, whatever an earlier test left in the sandbox. Afterwards sweeps rest."""
    sandbox.reset()
    sweeps = sandbox.scheduler.wanted if sandbox.scheduler else threading.Event()
    sweeps.set()
    with open_world(sandbox) as world:
        yield world
    sweeps.clear()


@pytest.fixture(scope="session")
def whole_sandbox() -> Iterator[Sandbox]:
    """Webhooks and sweeps on, Twilio over TLS; failures are settled within seconds."""
    environ = {"CALL_SETTLING_SECONDS": "3", "TWILIO_TIMEOUT_SECONDS": "1", "REQUEST_TIMEOUT_SECONDS": "5.1"}
    with Sandbox(environ=environ, tls=True) as sandbox:
        yield sandbox


@pytest.fixture
def world(whole_sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(whole_sandbox) as world:
        yield world


@pytest.fixture(scope="session")
def quiet_sandbox() -> Iterator[Sandbox]:
    """No webhooks and no sweeps but those that the test sends."""
    with Sandbox(webhooks=False, scheduler=False, environ={}) as sandbox:
        yield sandbox


@pytest.fixture
def quiet(quiet_sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(quiet_sandbox) as world:
        yield world
