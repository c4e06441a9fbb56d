"""Twilio: place a call once, find out what became of it, end it; and what each failure means.

Creating a call is not idempotent and takes no idempotency key, so the one POST is never repeated: not by us, not by
twilio-python (no retries; its async client repeats on 5xx and is not used), not by a pooled socket that died (each request
has a connection of its own: on a reused one a dead socket looks like a call in doubt).
"""

import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast, get_args
from urllib.parse import urlencode
from uuid import UUID

import requests
from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from urllib3.exceptions import NameResolutionError, NewConnectionError

from shared.models import CallStatus, Placed, TwilioCall, Verdict
from shared.settings import Settings

STATUS_EVENTS = ["initiated", "ringing", "answered", "completed"]

# By default Twilio repeats a callback only when it could not connect. rc: how often; rp=all: after any failure. The
# fragment is for Twilio alone: it is neither sent nor signed.
CALLBACK_RETRIES = "#rc=5&rp=all"

CALL_SID = re.compile(r"CA[0-9a-f]{32}")

# Twilio's clock and the database's are not the same clock, and date_created has whole seconds.
CLOCK_SKEW = timedelta(seconds=5)

# What Twilio's error codes mean for a call that we asked for. The code decides, the HTTP status only when the code is
# unknown. https://www.twilio.com/docs/api/errors/<code>
REFUSED = {
    "21202": "premium or emergency number",
    "21203": "international calls are not enabled",
    "21211": "not a valid phone number",
    "21214": "the number cannot be reached",
    "21215": "our account may not call this country",
    "21216": "Twilio blocks calls to this number",
    "21217": "not a valid phone number",
    "21219": "a trial account may call verified numbers only",
}
LATER = {
    "20429": "too many requests at once",  # documented: never processed, always safe to repeat
    "429": "too many requests at once",
    "10004": "too many calls at once",
}
HALT = {
    "10001": "the account is not active",
    "10002": "a trial account lacks this feature",
    "20001": "a parameter is wrong",
    "20003": "the credentials are wrong, or the account is suspended",
    "20004": "the method is not allowed",
    "20005": "the account is not active",
    "20006": "access denied",
    "20008": "these are test credentials",
    "20403": "access denied",
    "20404": "the account does not exist",
    "20422": "a parameter is wrong",
    "21201": "no To",
    "21205": "Url is wrong",
    "21206": "SendDigits is wrong",
    "21207": "IfMachine is wrong",
    "21208": "Timeout is wrong",
    "21209": "Method is wrong",
    "21210": "From is not a number of this account",
    "21212": "From is not a valid number",
    "21213": "no From",
    "21218": "ApplicationSid is wrong",
    "21234": "MachineDetection is wrong",
    "21609": "StatusCallback is wrong",
    "21626": "StatusCallbackEvent is wrong",
    "22005": "Twilio's queue is full: over 24 hours of calls",
    **{str(code): "a SIP parameter is wrong" for code in range(21221, 21230)},
}
IN_DOUBT = {
    "20500": "Twilio had an internal error",  # its page warns: repeating a call request may call twice
    "20503": "Twilio was unavailable",
}


class CallNotPlaced(Exception):
    """The request for a call failed; `verdict` says what that means."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{verdict.kind}: {verdict.code}: {verdict.reason}")
        self.verdict = verdict


class TwilioUnavailable(Exception):
    """Twilio did not say what we asked. What we believed stands, and we ask again later."""


class DeadlinePassed(Exception):
    """The process was held up until nobody may dial for this claim any more. Without its body a request is none."""


class DeadlineBody:
    """The body of a request for a call. It looks at the clocks when connection and headers are behind it, not before."""

    def __init__(self, body: bytes, in_time: Callable[[], bool]) -> None:
        self._body, self._in_time = body, in_time

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        if not self._in_time():
            raise DeadlinePassed
        yield self._body


class _Http(TwilioHttpClient):
    """twilio-python's client, with timeouts, without retries, and with a body that goes out in time or not at all."""

    def __init__(self, settings: Settings, in_time: Callable[[], bool] | None = None) -> None:
        super().__init__(pool_connections=False, max_retries=None)
        # A pair, which the constructor refuses and requests takes. The default is to wait for ever.
        self.timeout = cast(float, (settings.twilio_connect_seconds, settings.twilio_timeout_seconds))
        self._in_time = in_time

    def request(self, method: str, url: str, params: Any = None, data: Any = None, *more: Any, **others: Any) -> Any:
        if self._in_time is not None:
            data = DeadlineBody(urlencode(data, doseq=True).encode(), self._in_time)
        return super().request(method, url, params, data, *more, **others)


class Telephony:
    """Calls from our number. Thread-safe; makes no connection before it is used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = self._connect()

    def _connect(self, in_time: Callable[[], bool] | None = None) -> Client:
        settings = self._settings
        http = _Http(settings, in_time)
        client = Client(settings.twilio_account_sid, settings.twilio_auth_tokens[0], http_client=http)
        if settings.twilio_api_base_url:
            client.api.base_url = settings.twilio_api_base_url
        return client

    def place(self, attempt: UUID, to: str, in_time: Callable[[], bool]) -> Placed:
        """Ask Twilio, once, for a call to `to` (E.164), if it is still `in_time` when the request leaves.

        Raises CallNotPlaced.
        """
        base, settings = self._settings.api_base_url, self._settings
        detection: dict[str, Any] = {}
        if settings.call_machines != "ignore":
            callback = f"{base}/status?attempt={attempt}{CALLBACK_RETRIES}"
            # The message to a machine is heard only after its own: so it is waited for. A person hears us meanwhile.
            detection = {
                "machine_detection": "DetectMessageEnd",
                "async_amd": "true",
                "async_amd_status_callback": callback,
            }
        try:
            call = self._connect(in_time).calls.create(
                to=to,
                from_=settings.twilio_phone_number,
                url=f"{base}/voice?attempt={attempt}",
                method="POST",
                status_callback=f"{base}/status?attempt={attempt}{CALLBACK_RETRIES}",
                status_callback_method="POST",
                status_callback_event=STATUS_EVENTS,
                timeout=settings.call_ring_seconds,
                time_limit=settings.call_time_limit_seconds,
                **detection,
            )
        except Exception as error:
            raise CallNotPlaced(verdict_on(error)) from error
        if not isinstance(call.sid, str) or not CALL_SID.fullmatch(call.sid):
            raise CallNotPlaced(Verdict("in_doubt", "no_sid", "Twilio took the call and gave no SID"))
        # Milliseconds, as a string. Without it, or odd, the call is expected to leave at once: the sweep looks again.
        queued_ms = str(call.queue_time)
        return Placed(call.sid, int(queued_ms) / 1000 if queued_ms.isdecimal() else 0.0)

    def find(self, to: str, since: datetime, our_number: str | None = None) -> list[TwilioCall]:
        """Every call from our number to `to` that Twilio lists and made since `since`, newest first. Raises TwilioUnavailable.

        `our_number` is the one that was to call, which may not be today's. Never filtered by StartTime: a call that still
        waits in Twilio's queue has none.
        """
        found: list[TwilioCall] = []
        with _asking():
            our_number = our_number or self._settings.twilio_phone_number
            for call in self._client.calls.stream(to=to, from_=our_number, page_size=50):
                listed = _read(call)
                if listed.created_at < since - CLOCK_SKEW:
                    break
                if call.direction == "outbound-api":
                    found.append(listed)
        return found

    def fetch(self, call_sid: str) -> TwilioCall | None:
        """One call; None when Twilio has none by this SID, which of a fresh one means nothing. Raises TwilioUnavailable."""
        try:
            with _asking():
                return _read(self._client.calls(call_sid).fetch())
        except TwilioUnavailable as silent:
            if isinstance(silent.__cause__, TwilioRestException) and silent.__cause__.code == 20404:
                return None
            raise

    def end(self, call_sid: str) -> None:
        """End a call, in the queue, ringing or answered. A call that is over already is fine. Raises TwilioUnavailable."""
        self._update(call_sid, status="completed")

    def cancel(self, call_sid: str) -> None:
        """End a call that nobody has answered yet. One that somebody has goes on. Raises TwilioUnavailable."""
        self._update(call_sid, status="canceled")

    def play_twiml(self, call_sid: str, twiml: str) -> None:
        """Let an answered call go on with this document, of at most 4,000 characters, instead of the one that it is in.

        A call that is over already is fine. Raises TwilioUnavailable. https://www.twilio.com/docs/voice/tutorials/how-to-modify-calls-in-progress
        """
        self._update(call_sid, twiml=twiml)

    def _update(self, call_sid: str, **change: str) -> None:
        try:
            with _asking():
                self._client.calls(call_sid).update(**change)
        except TwilioUnavailable as silent:
            if not (isinstance(silent.__cause__, TwilioRestException) and silent.__cause__.code in (21220, 20404)):
                raise


class _asking:
    """Whatever goes wrong while Twilio is asked becomes TwilioUnavailable: asking again is always safe."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TwilioException | requests.RequestException | ValueError | TypeError | KeyError):
            raise TwilioUnavailable(f"{type(error).__name__}: {_one_line(error)}") from error


def verdict_on(error: BaseException) -> Verdict:
    """What the failure of a request for a call means. When in doubt: in doubt."""
    if isinstance(error, TwilioRestException):
        return _verdict_on_answer(error)
    causes = list(_chain(error))
    if any(isinstance(cause, DeadlinePassed) for cause in causes):
        return Verdict("later", "too_late", "the dispatcher was held up before it could dial; nothing was sent")
    if isinstance(error, requests.exceptions.ConnectTimeout) or any(
        isinstance(cause, NewConnectionError | NameResolutionError) for cause in causes
    ):
        return Verdict("later", "not_connected", "Twilio could not be reached; nothing was sent")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Verdict("halt", "certificate", "Twilio's certificate could not be verified; nothing was sent")
    if isinstance(error, requests.exceptions.ReadTimeout):
        return Verdict("in_doubt", "read_timeout", "Twilio did not answer in time")
    if isinstance(error, requests.RequestException):
        return Verdict("in_doubt", "connection_lost", "the connection to Twilio was lost after the request was sent")
    return Verdict("in_doubt", "unreadable", f"Twilio's answer could not be read ({type(error).__name__})")


def _verdict_on_answer(error: TwilioRestException) -> Verdict:
    code, status = str(error.code), int(error.status)
    for kind, table in (("in_doubt", IN_DOUBT), ("later", LATER), ("halt", HALT), ("refused", REFUSED)):
        if code in table:
            return Verdict(cast(Any, kind), f"twilio_{code}", f"{table[code]} (Twilio {code})")
    reason = f"Twilio answered {status} ({code})"
    if status >= 500 or status == 408 or status < 300:
        return Verdict("in_doubt", f"twilio_{code}", reason)
    if status == 429:
        return Verdict("later", f"twilio_{code}", reason)
    if status in (401, 403, 404, 405, 407) or status < 400:
        return Verdict("halt", f"twilio_{code}", reason)
    return Verdict("refused", f"twilio_{code}", reason)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and what requests and urllib3 keep in `args` and `reason`."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        item = pending.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            pending += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]


def _read(call: Any) -> TwilioCall:
    if call.status not in get_args(CallStatus):
        raise ValueError(f"an unknown call status: {call.status!r}")
    created: datetime = call.date_created
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    duration = int(call.duration) if call.duration else None
    return TwilioCall(call.sid, call.status, created, duration, call.answered_by)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
