"""Crash everything that dials, in the middle of its work, and count from outside who was called twice and who never.

    python -m tests.chaos.crash [--jobs 400] [--what function|sweep|postgres|frozen|all] [--seed N]

A sandbox gets the jobs in waves. In each wave, when as many requests to Twilio are under way as the strike wants, one of
these happens; Twilio has by then taken calls whose answers nobody will read:

    function   SIGKILL to the function's whole process group; the sandbox starts it again, as Cloud Run would
    sweep      SIGKILL to all sweep workers; they are started again
    postgres   SIGKILL to the database; it comes back after a moment
    frozen     SIGSTOP to the function for longer than the lease and the settling time, SIGCONT when others have dialed

The seed draws what else goes wrong at Twilio: answers lost, requests that hang, lists and callbacks that are late or never
come. All of it stays within what the README promises; a call that Twilio lists only after the settling time would not.

The judge is Twilio's own record, not what the product believes. Last line, and exit code 1 unless the last three are 0:
    histories N, dialed twice D, lost L, in doubt at the end Q
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qsl, urlsplit

import psutil

from shared.settings import REQUEST_PARTS
from tests.chaos.scene import ROOT, Row, Say, Scene, begin, parser, positive, say
from tests.sandbox.sandbox import Sandbox

KINDS = ("frozen", "function", "sweep", "postgres")
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Size:
    """How many, and how fast; times in seconds.

    wave: jobs per strike, all of which the function may dial at once. workers: of eight dialers each. latency: Twilio's, so
    long that a whole wave is under way before the first answer. timeout: leaves room for a machine with two cores. lease: the
    shortest that the settings allow with it, and a little.
    """

    wave: int = 100
    workers: int = 6
    latency: tuple[float, float] = (1.0, 1.6)
    timeout: float = 4.0
    lease: float = 12.1

    def settings(self) -> dict[str, str]:
        return {
            "TWILIO_TIMEOUT_SECONDS": str(self.timeout),
            "REQUEST_TIMEOUT_SECONDS": str(self.lease * REQUEST_PARTS / (REQUEST_PARTS + 1)),
            "CALL_SETTLING_SECONDS": str(SETTLING_S),
            "CALL_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "CALL_RETRY_SECONDS": "0.5",
            "CALL_REDIAL_SECONDS": "1",
            "CALLS_PER_SECOND": "1000",
            "CALL_DISPATCHER_LIMIT": "400",
        }


FULL = Size()
SMALL = Size(wave=25, workers=2, latency=(1.0, 1.4), timeout=2.0, lease=7.7)

SETTLING_S = 3.0
# Slower than the function asks: calls that were taken wait in Twilio's queue when the crash comes, and nobody has heard of
# them yet. Faster, and the person would have hung up again before the answer to the request is lost.
TWILIO_CALLS_PER_SECOND = 25.0

STRIKE_WITHIN_S = 20.0  # a wave that never gets as far is struck as it is
QUIET_S = 3.0  # nothing may happen for so long: more than a dispatcher's 2 s from claim to request
PATIENCE_S = 150.0  # three attempts, each of lease and settling time, twice over

# Of a hundred numbers, so many meet this at Twilio; the others meet nothing but the crash. Late ones stay, with the lease's
# slack, below the settling time: beyond it one repeat is possible, and the README says so.
FAULTS: Sequence[tuple[int, Row]] = (
    (7, {"create": "accept_then_drop", "times": 1}),
    (7, {"create": "accept_then_500", "times": 1}),
    (5, {"create": "hang", "times": 1}),
    (3, {"create": "drop", "times": 1}),
    (3, {"create": "accept_late", "late_s": 1, "times": 1}),
    (8, {"callbacks": "none"}),
    (8, {"callbacks": "late", "callback_delay_s": 4}),
    (3, {"callbacks": "twice"}),
    (3, {"callbacks": "shuffled"}),
    (5, {"list_delay_s": 1.5}),
    (4, {"outcome": "busy", "times": 1}),
)


@dataclass(frozen=True)
class Count:
    """What Twilio's record says in the end. `apologies`: answered while the function was down, and told so by Twilio."""

    histories: int
    twice: int
    lost: int
    in_doubt: int
    apologies: int
    seconds: float

    @property
    def is_clean(self) -> bool:
        return not (self.twice or self.lost or self.in_doubt)

    def __str__(self) -> str:
        return f"histories {self.histories}, dialed twice {self.twice}, lost {self.lost}, in doubt at the end {self.in_doubt}"


@dataclass(frozen=True)
class History:
    """One job with its attempts, and every call to its number in Twilio's record."""

    job: Row
    attempts: list[Row]
    calls: list[Row]

    @property
    def picked_up(self) -> list[Row]:
        """Calls that a person answered: `reached` ones, and those in which they heard a hang-up or Twilio's apology."""
        return [call for call in self.calls if call["reached"] or call["answered_by"] == "human"]

    @property
    def is_twice(self) -> bool:
        return len(self.picked_up) > 1

    @property
    def is_lost(self) -> bool:
        """Whether nobody called this person, and the job is not over or no rule allows that it is."""
        if self.job["finished_at"] is None:
            return True
        if any(call["status"] == "completed" for call in self.calls) or self.job["status"] == "canceled":
            return False
        if any(attempt["state"] == "refused" for attempt in self.attempts):
            return False
        at_twilio = {attempt_of(call) for call in self.calls}
        in_vain = [
            attempt for attempt in self.attempts
            if (attempt["state"] == "absent" and str(attempt["id"]) not in at_twilio)
            or (attempt["state"] == "ended" and attempt["call_status"] in ("busy", "no-answer", "failed"))
        ]  # fmt: skip
        return not (self.job["status"] == "failed" and len(in_vain) == MAX_ATTEMPTS)


class GroupSurvived(Exception):
    """Processes of a killed group are still there, and may dial."""


def run(jobs: int, what: Sequence[str], seed: int, size: Size = FULL, say: Say = say) -> Count:
    """`jobs` histories in waves, each struck by the next of `what`; returns when all is quiet, or patience ends."""
    with (
        patch.dict(os.environ, THREADS=str(size.wave * 2)),  # five eighths of them may wait for Twilio
        Sandbox(environ=size.settings(), twilio_calls_per_second=TWILIO_CALLS_PER_SECOND) as sandbox,
        tempfile.TemporaryDirectory() as folder,
    ):
        scene = Crashes(sandbox, size, random.Random(seed), Path(folder) / "workers.log", say)
        began = time.monotonic()
        for left, kind in zip(range(jobs, 0, -size.wave), itertools.cycle(what), strict=False):
            scene.wave(kind, min(left, size.wave))
        scene.await_quiet()
        return scene.count(time.monotonic() - began)


class Crashes(Scene):
    """What is done to the sandbox, and what is seen of it."""

    def __init__(self, sandbox: Sandbox, size: Size, chance: random.Random, workers_log: Path, say: Say) -> None:
        super().__init__(sandbox, say)
        self._size, self._chance, self._workers_log = size, chance, workers_log
        self._faults: dict[str, Row] = {}

    def under_way(self) -> list[str]:
        rows = self.rows("select id::text from public.outbound_call_attempts where state = 'started'")
        return [row["id"] for row in rows]

    # --- a wave, and its strike ---------------------------------------------------------------------------------------
    def wave(self, kind: str, count: int) -> None:
        latency_ms = round(self._chance.uniform(*self._size.latency) * 1000)
        self.behave(latency_ms=latency_ms)
        match kind:
            case "function":
                self._insert(count)
                self._await_requests(kind, count)
                self._kill_function()
            case "sweep":
                with self._workers(self._size.workers) as workers:
                    # Due in a moment: such a job sends no webhook, and the sweeps find it.
                    self._insert(count, due_in_s=0.5)
                    self._await_requests(kind, min(count, self._size.workers * 8))
                    for worker in workers:
                        kill_group(worker.pid)
                        worker.wait()
                with self._workers(self._size.workers):
                    queued = "select from public.outbound_call_jobs where status = 'queued' limit 1"
                    self.until(lambda: not self.rows(queued), self._size.lease)
            case "postgres":
                self._insert(count)
                self._await_requests(kind, count)
                self.sandbox.postgres.kill()
                time.sleep(self._chance.uniform(0, 2))  # how long it is away is part of what is drawn
                self.sandbox.postgres.restart()
            case "frozen":
                # `accept_late` waits until the client has gone, and a frozen one has not: Twilio would take the call longer
                # after the request than it ever keeps one. So none is drawn, and none may be left over.
                self.twilio.delete("/_sandbox/behaviour").raise_for_status()
                self.behave(latency_ms=latency_ms)
                self.until(lambda: not self.under_way(), 2 * self._size.lease)
                self._insert(count, unless="accept_late")
                self._await_requests(kind, round(count / 2))  # early: many are on their way from claim to request
                self._freeze_function()

    def _insert(self, count: int, due_in_s: float = 0.0, unless: str = "") -> None:
        called = list(itertools.islice(self.phones, count))
        faults = [(weight, fault) for weight, fault in FAULTS if fault.get("create") != unless]
        nothing: tuple[int, Row] = (100 - sum(weight for weight, _ in faults), {})
        weights, drawn = zip(*faults, nothing, strict=True)
        for number, fault in zip(called, self._chance.choices(drawn, weights, k=count), strict=True):
            if fault:
                self.behave(to=number, **fault)
                self._faults[number] = fault
        self.rows(
            "insert into public.outbound_call_jobs (user_id, phone_number, due_at)"
            " select gen_random_uuid(), number, case when %s > 0 then now() + make_interval(secs => %s) end"
            " from unnest(%s::text[]) as number returning id",
            due_in_s, due_in_s, called,
        )  # fmt: skip

    def _await_requests(self, kind: str, possible: int) -> None:
        """Until most of what is possible at once is under way: then some have been answered, some not even sent.

        On a slow machine the first are answered before the last are sent: then, at the latest, when none waits any more.
        """
        wanted = round(possible * self._chance.uniform(0.5, 0.9))
        waiting = "select from public.outbound_call_jobs where status = 'queued' and attempts = 0 limit 1"
        self.until(lambda: len(self.under_way()) >= wanted or not self.rows(waiting), STRIKE_WITHIN_S)
        under_way = self.under_way()
        taken = sum(attempt_of(call) in under_way for call in self.calls())
        self.say(f"{kind}: strikes with {len(under_way)} requests under way; Twilio has taken {taken} of them")

    def _kill_function(self) -> None:
        old = self.sandbox.ready.function_pid
        assert old is not None
        kill_group(old)
        assert self.until(lambda: self.sandbox.ready.function_pid != old, 60), "the sandbox did not start it again"

    def _freeze_function(self) -> None:
        """Thawed when the lease and the settling time are over and others have dealt with all that it held."""
        pid = self.sandbox.ready.function_pid
        assert pid is not None
        held = self.under_way()
        os.killpg(pid, signal.SIGSTOP)
        began = time.monotonic()
        least = self._size.lease + SETTLING_S
        open_still = (
            "select from public.outbound_call_attempts where id = any(%s::uuid[]) and state in ('started', 'in_doubt')"
        )
        try:
            with self._workers(2):
                self.until(lambda: time.monotonic() - began > least and not self.rows(open_still, held), 3 * least)
        finally:
            os.killpg(pid, signal.SIGCONT)
        self.say(f"frozen: thawed after {time.monotonic() - began:.0f} s")

    @contextmanager
    def _workers(self, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Sweep workers, as an operator would run them: without DISPATCH_SECRET, for they serve no HTTP."""
        settings = {name: value for name, value in self.sandbox.settings.items() if name != "DISPATCH_SECRET"}
        with self._workers_log.open("ab") as log:
            workers = [
                subprocess.Popen(
                    [sys.executable, "-m", "function.sweep", "--every", "1"], cwd=ROOT, stdout=log, stderr=log,
                    env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **settings}, start_new_session=True,
                )
                for _ in range(count)
            ]  # fmt: skip
        try:
            yield workers
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(60)

    # --- to judge -----------------------------------------------------------------------------------------------------
    def await_quiet(self) -> None:
        """Until nothing is open anywhere and nothing has happened for QUIET_S."""
        end = time.monotonic() + PATIENCE_S
        quiet_since, seen = time.monotonic(), -1
        while time.monotonic() - quiet_since < QUIET_S and time.monotonic() < end:
            time.sleep(0.2)
            asked = self.sandbox.twilio.requests["create"]
            if asked != seen or self._is_busy():
                quiet_since, seen = time.monotonic(), asked

    def _is_busy(self) -> bool:
        return bool(
            self.rows("select from public.outbound_call_jobs where finished_at is null limit 1")
            or self.rows("select from public.outbound_call_attempts where closed_at is null limit 1")
            or any(call["status"] in ("queued", "ringing", "in-progress") for call in self.calls())
        )

    def count(self, seconds: float) -> Count:
        """Tells the whole history of each job that went wrong."""
        calls: dict[str, list[Row]] = defaultdict(list)
        for call in self.calls():
            calls[call["to"]].append(call)
        attempts: dict[int, list[Row]] = defaultdict(list)
        for attempt in self.attempts():
            attempts[attempt["job_id"]].append(attempt)
        histories = [History(job, attempts[job["id"]], calls[job["phone_e164"]]) for job in self.jobs()]
        for table, rows, column in (
            ("jobs", self.jobs(), "status"), ("attempts", self.attempts(), "state"), ("attempts", self.attempts(), "error_code"),
        ):  # fmt: skip
            each = Counter(str(row[column]) for row in rows if row[column])
            told = ", ".join(f"{name} {count}" for name, count in sorted(each.items()))
            self.say(f"{table} by {column}: {told}")
        for history in histories:
            if history.is_twice or history.is_lost:
                self._tell(history)
        return Count(
            histories=len(histories),
            twice=sum(history.is_twice for history in histories),
            lost=sum(history.is_lost for history in histories),
            in_doubt=sum(history.job["status"] == "in_doubt" for history in histories),
            apologies=sum(not call["reached"] for history in histories for call in history.picked_up),
            seconds=seconds,
        )

    def _tell(self, history: History) -> None:
        self.say(f"{'DIALED TWICE' if history.is_twice else 'LOST'}: job {shown(history.job)}")
        self.say(f"  drawn {shown(self._faults.get(history.job['phone_e164'], {}))}")
        for kind, rows in (("attempt", history.attempts), ("call", history.calls)):
            for row in rows:
                self.say(f"  {kind} {shown(row)}")
        ids = {str(attempt["id"]) for attempt in history.attempts} | {attempt_of(call) for call in history.calls}
        for log in (self.sandbox.function_log, self._workers_log):
            for line in log.read_text(errors="replace").splitlines() if log.exists() else ():
                if any(known in line for known in ids):
                    self.say(f"  {log.stem}: {line}")


def kill_group(pgid: int) -> None:
    """SIGKILL to all of it. Raises GroupSurvived."""
    os.killpg(pgid, signal.SIGKILL)
    end = time.monotonic() + 5
    while alive := [pid for pid in psutil.pids() if is_alive_in(pgid, pid)]:
        if time.monotonic() > end:
            raise GroupSurvived(f"{alive} outlived SIGKILL to group {pgid}")
        time.sleep(0.01)


def is_alive_in(pgid: int, pid: int) -> bool:
    try:
        return os.getpgid(pid) == pgid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def attempt_of(call: Row) -> str:
    """The attempt's id, which travels in the URL."""
    return dict(parse_qsl(urlsplit(str(call["url"])).query))["attempt"]


def shown(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items() if value not in (None, [], {}))


def main() -> int:
    arguments = parser("crash", __doc__)
    arguments.add_argument("--jobs", type=positive, default=400)
    arguments.add_argument("--what", choices=(*KINDS, "all"), default="all")
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = begin(arguments)
    say(f"seed {options.seed}")
    count = run(options.jobs, KINDS if options.what == "all" else (options.what,), options.seed)
    say(f"{count.apologies} were picked up while nobody could say what to say, and heard Twilio's apology")
    say(f"all was settled after {count.seconds:.0f} s")
    say(count)
    return 0 if count.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
