"""The sweep: dial due jobs, settle calls in doubt, ask about calls without news. Webhooks are a hint; this is the guarantee.

Over HTTP (Cloud Scheduler, pg_cron), or as a command:
    python -m function.sweep              one sweep, for a cron job
    python -m function.sweep --every 5    a worker: sweep, pause for 5 seconds, sweep again, until SIGTERM
"""

import argparse
import functools
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import structlog

from function.sender import Sender
from shared.jobs import Jobs, JobsUnavailable
from shared.logs import configure_logs
from shared.models import Step, StepResult, finished
from shared.settings import DIAL_WITHIN_SECONDS, Settings, SettingsError, load_settings
from shared.stats import Stats

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

log = structlog.get_logger()

DIALING_THREADS = 8  # more do not help: CALLS_PER_SECOND is the limit
FOLLOW_UP_THREADS = 4
POLL_SECONDS = 0.5  # the longest sleep between two checks of `stop`

# Thresholds of the alerts in shared/monitoring.
LATE_SECONDS = 300.0
DOUBT_SECONDS = 900.0
NEAR_THE_CEILING = 0.8
UNTOLD_SECONDS = 3600.0  # of the oldest result; no alert has it


def sweep_once(
    settings: Settings, jobs: Jobs, dispatcher: "Dispatcher", stop: threading.Event | None = None
) -> dict[str, Any]:
    """Run one sweep, shorter than REQUEST_TIMEOUT_SECONDS, and return its counts. Raises JobsUnavailable."""
    stop = stop or threading.Event()
    # The last claim leaves time for its request to Twilio, timeouts included.
    last_claim = time.monotonic() + max(1.0, settings.sweep_timeout_seconds - _longest_step_s(settings))

    healed = jobs.heal_signups()
    limit = settings.call_dispatcher_limit
    dial = WorkerPool(dispatcher.claim_to_dial, DIALING_THREADS, limit, last_claim, stop)
    follow_up = WorkerPool(dispatcher.claim_to_follow_up, FOLLOW_UP_THREADS, limit, last_claim, stop)
    with ThreadPoolExecutor(DIALING_THREADS + FOLLOW_UP_THREADS) as executor:
        for pool in (dial, follow_up):
            pool.start(executor)
        failed = [error for pool in (dial, follow_up) for error in pool.join()]
    counts = {"healed_signups": healed, **dial.counts, **follow_up.counts}
    for error in failed:
        if not isinstance(error, JobsUnavailable):
            raise error
    if failed:
        log.error("sweep cut short: the database did not answer", kind="sweep_failed", reason=str(failed[0]), **counts)
        raise failed[0]
    counts |= jobs.prune(retention_days=settings.call_retention_days, results=settings.result_policy)
    stats = jobs.stats()
    report: dict[str, Any] = {"did": counts, "stats": stats.model_dump(mode="json")}
    # The used share of CALLS_PER_DAY, which the database does not know.
    report["day_used"] = stats.calls_24h / settings.calls_per_day if settings.calls_per_day else None
    log.log(severity(stats, report["day_used"]), "sweep", kind="sweep", **report)
    return report


def severity(stats: Stats, day_used: float | None) -> int:
    """The log level of the sweep's line: an error where a person must act, a warning where something is unusual."""
    late = not stats.paused and stats.oldest_due_s > LATE_SECONDS
    doubtful = stats.oldest_doubt_s > DOUBT_SECONDS
    if late or doubtful or stats.live_duplicates or stats.held_by_prefix or stats.paused_by in ("halt", "restore"):
        return logging.ERROR
    odd = stats.in_doubt or stats.missed_signups or stats.halts or stats.paused
    # People with a new area code are not called until an upgrade (shared/docs/who-and-when.md).
    odd = odd or "area_code_unknown" in stats.failures_24h
    odd = odd or stats.results_gave_up or stats.results_oldest_s > UNTOLD_SECONDS
    return logging.WARNING if odd or (day_used or 0) >= NEAR_THE_CEILING else logging.INFO


def _longest_step_s(settings: Settings) -> float:
    return DIAL_WITHIN_SECONDS + settings.twilio_connect_seconds + settings.twilio_timeout_seconds


class WorkerPool:
    """Threads that claim and work until nothing is left, the limit or the time is reached, or `stop` is set.

    Claims come one at a time: one thread waits for the next slot of the rate, and the others stand by. The first thread
    is alone until it claims something, so an idle sweep makes one claim of each kind.
    """

    def __init__(
        self, claim: Callable[[], Step], most_threads: int, limit: int, last_claim: float, stop: threading.Event
    ) -> None:
        self._claim = claim
        self._idle_threads = most_threads
        self._left = limit
        self._last_claim = last_claim
        self._stop = stop
        self._done = threading.Event()
        self._workers: list[Future[None]] = []
        self._claiming = threading.Lock()
        self._counting = threading.Lock()
        self.counts: Counter[str] = Counter()

    def start(self, executor: Executor) -> None:
        if self._idle_threads:
            self._idle_threads -= 1
            self._workers.append(executor.submit(self._work, executor))

    def join(self) -> list[BaseException]:
        """Wait for all threads. -> their errors. A thread starts another before it ends, so the list is then complete."""
        return [error for worker in self._workers if (error := worker.exception())]

    def _work(self, executor: Executor) -> None:
        try:
            while (step := self._next_step(executor)) is not None:
                result = finished(step)
                with self._counting:
                    self.counts[result.outcome] += 1
                if result.outcome in ("paused", "halted"):
                    self._done.set()
        except BaseException:
            self._done.set()
            raise

    def _next_step(self, executor: Executor) -> Step | None:
        with self._claiming:
            while self._left and not self._over():
                step = self._claim()
                if not isinstance(step, StepResult):
                    self.start(executor)
                elif step.outcome == "waiting":
                    self._wait(step.wait_s)
                    continue
                elif step.outcome == "nothing":
                    if step.job_id is None:
                        return None
                    continue  # another process has just taken this thread's job
                self._left -= 1
                return step
            return None

    def _over(self) -> bool:
        return self._done.is_set() or self._stop.is_set() or time.monotonic() > self._last_claim

    def _wait(self, seconds: float) -> None:
        until = min(time.monotonic() + seconds, self._last_claim)
        while not self._over() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))


def work(sweep: Callable[[], object], every_s: float, stop: threading.Event) -> None:
    """Sweep until `stop` is set. An unavailable database costs one sweep after another, and nothing else."""
    while not stop.is_set():
        try:
            sweep()
        except JobsUnavailable as error:
            log.error("sweep failed; trying again", kind="sweep_failed", reason=str(error), again_in_s=every_s)
        stop.wait(every_s)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m function.sweep", description="Dial due jobs and follow up open calls."
    )
    parser.add_argument("--every", type=float, metavar="SECONDS", help="sweep for ever, with this pause in between")
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
        # A signal may interrupt this thread inside stop.wait(), which holds the lock that set() needs.
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    from shared.dispatcher import wire

    jobs, dispatcher = wire(settings)
    sender = Sender(settings, jobs, patient=options.every is None)  # a worker's next sweep must not wait for a receiver
    sweep = functools.partial(sender.tell_beside, functools.partial(sweep_once, settings, jobs, dispatcher, stop))
    if options.every is not None:
        work(sweep, options.every, stop)
        return 0
    try:
        sweep()
    except JobsUnavailable as error:
        log.error("sweep failed", kind="sweep_failed", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
