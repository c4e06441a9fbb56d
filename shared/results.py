"""Results leave: one signed POST to RESULT_URL for each job that ends and each opt-out, repeated until it is taken.

SQL writes the event in the transaction of the outcome, and keeps the order. Here: send one, judge the answer.
"""

import email.utils
import json
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPMessage
from typing import Final, Literal

import structlog

from shared.backoff import jittered
from shared.deadline import ClaimClock
from shared.http import DeadlineBody, DeadlinePassed, Http, HttpError, NotConnected, TooLate
from shared.jobs import Jobs
from shared.models import ClaimedResult, Nothing
from shared.settings import Settings
from shared.signing import sign

log = structlog.get_logger()

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 10.0  # the whole exchange; less where REQUEST_TIMEOUT_SECONDS is short
LONGEST_RETRY_AFTER: Final = 24 * 3600.0


@dataclass(frozen=True)
class Outcome:
    """What came of one POST: told (2xx), gone (410), or due again after `delay_s`. `note`: the answer, in words."""

    state: Literal["told", "gone", "due"]
    note: str
    delay_s: float = 0.0


def judge(status: int, headers: Mapping[str, str] | HTTPMessage, next_delay_s: float, least_s: float) -> Outcome:
    """The meaning of an answer. Retry-After replaces the next delay; `least_s` keeps the receiver from asking for a storm."""
    note = f"HTTP {status}" + (" (redirects are not followed)" if 300 <= status < 400 else "")
    if 200 <= status < 300:
        return Outcome("told", note)
    if status == 410:
        return Outcome("gone", note)
    asked = _retry_after_s(headers.get("Retry-After", ""))
    if asked is None:
        return Outcome("due", note, next_delay_s)
    return Outcome("due", note, min(max(asked, least_s), LONGEST_RETRY_AFTER))


def _retry_after_s(value: str) -> float | None:
    """Seconds, or an HTTP date. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


class Results:
    """Tells results at RESULT_URL. Thread-safe; each POST has a connection of its own."""

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self._settings = settings
        self._jobs = jobs
        self._lease_s = settings.call_lease_seconds

    def claim(self) -> "tuple[ClaimedResult, ClaimClock] | None":
        """Hold the next due event. From the first claim on, SQL writes events. Raises JobsUnavailable."""
        since = ClaimClock.now()
        result = self._jobs.claim_result(lease_s=self._lease_s, results=self._settings.result_policy)
        return None if isinstance(result, Nothing) else (result, since)

    def tell(self, result: ClaimedResult, since: ClaimClock) -> None:
        """Send a claimed event once, and record the outcome. Raises JobsUnavailable: then it is sent again."""
        about = {"job": result.job_id, "result": str(result.id), "type": result.type, "tries": result.try_}
        try:
            # A frozen process must not send an old event after newer ones: others may hold it by now.
            outcome = post(self._settings, str(result.id), result.body, since, result.try_)
        except DeadlinePassed:
            log.warning("result not sent: its claim is too old, and another process tells it", **about)
            return
        state = self._jobs.record_result(
            result.id, result.try_, state=outcome.state, note=outcome.note, delay_s=outcome.delay_s
        )
        about["reason"] = outcome.note
        match state:
            case "told":
                log.info("result told", **about)
            case "gone":
                log.error("the receiver answered 410: this result is not sent again", kind="result_gone", **about)
            case "gave_up":
                log.critical("result given up after three days", kind="result_gave_up", **about)
            case _:
                again = round(outcome.delay_s)
                log.warning("result not told; it is sent again", kind="result_not_told", again_in_s=again, **about)


def post(settings: Settings, id_: str, body: str, since: ClaimClock, tries: int = 1) -> Outcome:
    """Send an event now, for the `tries`-th time, signed with every secret. Raises DeadlinePassed: the claim is too old."""
    url, delays = str(settings.result_url), settings.result_retry_seconds
    next_delay_s = jittered(delays[min(tries, len(delays)) - 1])
    content = body.encode()
    total_s = min(ANSWER_SECONDS, settings.call_lease_seconds / 4)
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "User-Agent": "call-dispatcher",
        **sign(settings.result_secrets, id_, body),
    }
    try:
        answer = Http(url, kept=False).request(
            "POST",
            url,
            headers,
            DeadlineBody(content, partial(since.is_fresh, settings.call_lease_seconds / 2)),
            connect_s=min(CONNECT_SECONDS, total_s),
            total_s=total_s,
            with_body=False,
        )
    except NotConnected as error:
        match error.__cause__:
            case TimeoutError():
                note = "no connection in time"
            case ssl.SSLCertVerificationError():
                note = "its certificate could not be verified"
            case _:
                note = "no connection"
        return Outcome("due", note, next_delay_s)
    except TooLate:
        return Outcome("due", f"no answer within {total_s:g} s", next_delay_s)
    except HttpError:
        return Outcome("due", "the connection was lost", next_delay_s)
    return judge(answer.status, answer.headers, next_delay_s, delays[0])


def post_test(settings: Settings) -> Outcome:
    """Send an event of the type `test`, for the doctor."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    body = json.dumps({"type": "test", "timestamp": now, "data": {}})
    return post(settings, str(uuid.uuid4()), body, ClaimClock.now())
