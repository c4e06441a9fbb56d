"""The sweep: dial what is due, settle what is in doubt, ask after calls without news. Webhooks are a hint; this is the guarantee.

Over HTTP (Cloud Scheduler, pg_cron), or by itself:
    python -m function.sweep              one sweep, for a cron job
    python -m function.sweep --every 5    a worker: a sweep, 5 seconds of rest, a sweep, ... until SIGTERM
"""

import argparse
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from shared.dispatcher import Dispatcher, build_dispatcher
from shared.jobs import JobsUnavailable
from shared.logs import configure_logs
from shared.models import Stats, StepResult
from shared.settings import DIAL_WITHIN_SECONDS, Settings, SettingsError, load_settings

log = structlog.get_logger()

DIALERS = 8  # at once; what more would bring the pace of calls takes away again
FOLLOW_UP_THREADS = 4
POLL_SECONDS = 0.5  # the longest sleep between two looks at `stop`

# From here on somebody should look: the alerts in shared/monitoring say the same.
LATE_SECONDS = 300.0
DOUBT_SECONDS = 900.0
NEAR_THE_CEILING = 0.8


def sweep_once(dispatcher: Dispatcher, stop: threading.Event | None = None) -> dict[str, Any]:
    """One sweep, shorter than REQUEST_TIMEOUT_SECONDS. -> counts of its steps. Raises JobsUnavailable."""
    settings = dispatcher.settings
    stop = stop or threading.Event()
    # The last claim must leave time for its request to Twilio, timeouts and all.
    last_claim = time.monotonic() + max(1.0, settings.sweep_timeout_seconds - _longest_step_s(settings))

    healed = dispatcher.jobs.heal_signups()
    limit = settings.call_dispatcher_limit
    dial = WorkerPool(dispatcher.dial_one, limit, last_claim, stop)
    look = WorkerPool(dispatcher.follow_up_one, limit, last_claim, stop)
    with ThreadPoolExecutor(DIALERS + FOLLOW_UP_THREADS) as pool:
        workers = [pool.submit(dial.work) for _ in range(min(DIALERS, limit))]
        workers += [pool.submit(look.work) for _ in range(min(FOLLOW_UP_THREADS, limit))]
    failed = [error for worker in workers if (error := worker.exception())]
    counts = {"healed_signups": healed, **dial.counts, **look.counts}
    for error in failed:
        if not isinstance(error, JobsUnavailable):
            raise error
    if failed:
        log.error("sweep cut short: the database did not answer", kind="sweep_failed", reason=str(failed[0]), **counts)
        raise failed[0]
    counts |= dispatcher.jobs.prune(retention_days=settings.call_retention_days)
    stats = dispatcher.jobs.stats()
    report: dict[str, Any] = {"did": counts, "stats": stats.model_dump(mode="json")}
    # Of CALLS_PER_DAY, which the database does not know.
    report["day_used"] = stats.calls_24h / settings.calls_per_day if settings.calls_per_day else None
    log.log(severity(stats, report["day_used"]), "sweep", kind="sweep", **report)
    return report


def severity(stats: Stats, day_used: float | None) -> int:
    """How loud the sweep's line is: an error where somebody should look, a warning where something is not as always."""
    late = not stats.paused and stats.oldest_due_s > LATE_SECONDS
    doubtful = stats.oldest_doubt_s > DOUBT_SECONDS
    if late or doubtful or stats.live_duplicates or stats.held_by_prefix or stats.paused_by == "halt":
        return logging.ERROR
    odd = stats.in_doubt or stats.missed_signups or stats.halts or stats.paused
    return logging.WARNING if odd or (day_used or 0) >= NEAR_THE_CEILING else logging.INFO


def _longest_step_s(settings: Settings) -> float:
    return DIAL_WITHIN_SECONDS + settings.twilio_connect_seconds + settings.twilio_timeout_seconds


class WorkerPool:
    """Threads that do one kind of step until nothing is left, the limit or the time is reached, or they are told to stop."""

    def __init__(self, step: Callable[[], StepResult], limit: int, last_claim: float, stop: threading.Event) -> None:
        self._step = step
        self._permits = threading.Semaphore(limit)
        self._last_claim = last_claim
        self._stop = stop
        self._done = threading.Event()
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    def work(self) -> None:
        try:
            while not self._over() and self._permits.acquire(blocking=False):
                step = self._step()
                if step.outcome == "waiting":
                    self._permits.release()
                    self._wait(step.wait_s)
                    continue
                if step.outcome == "nothing":
                    self._permits.release()
                    if step.job_id is None:
                        # For this thread only: what is left, if anything, is in the hands of one that waits for the pace.
                        return
                    continue  # another has just taken the job that this thread had in hand
                with self._counting:
                    self.counts[step.outcome] += 1
                if step.outcome in ("paused", "halted"):
                    self._done.set()
        except BaseException:
            self._done.set()
            raise

    def _over(self) -> bool:
        return self._done.is_set() or self._stop.is_set() or time.monotonic() > self._last_claim

    def _wait(self, seconds: float) -> None:
        until = min(time.monotonic() + seconds, self._last_claim)
        while not self._over() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))


def work(dispatcher: Dispatcher, every_s: float, stop: threading.Event) -> None:
    """Sweep for ever. A database that is away costs one sweep after another, and nothing else."""
    while not stop.is_set():
        try:
            sweep_once(dispatcher, stop)
        except JobsUnavailable as down:
            log.error("sweep failed; trying again", kind="sweep_failed", reason=str(down), again_in_s=every_s)
        stop.wait(every_s)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m function.sweep", description="Dial what is due, look after the rest."
    )
    parser.add_argument("--every", type=float, metavar="SECONDS", help="go on for ever, with so much rest in between")
    options = parser.parse_args(arguments)
    if options.every is not None and not options.every > 0:
        parser.error("argument --every: must be more than 0 seconds")
    try:
        settings = load_settings(http=False)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    configure_logs(secrets=settings.secrets)

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Not set here: the signal may have interrupted this very thread inside stop.wait(), with the lock that set() needs.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    dispatcher = build_dispatcher(settings)
    if options.every is not None:
        work(dispatcher, options.every, stop)
        return 0
    try:
        sweep_once(dispatcher, stop)
    except JobsUnavailable as down:
        log.error("sweep failed", kind="sweep_failed", reason=str(down))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
