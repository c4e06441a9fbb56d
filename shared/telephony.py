"""Twilio: place a call once, ask about it, end it. A verdict is the meaning of a failure.

Creating a call is not idempotent and takes no idempotency key, so the one POST is never repeated: not by us, not by
twilio-python (its async client repeats on 5xx and is not used), not by a pool. Each create has a connection of its own: on
a kept connection that died, a request looks like a call in doubt. Requests that only ask, or end a call, share a pool.
"""

import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast, get_args
from urllib.parse import urlencode
from uuid import UUID

from twilio.base.exceptions import TwilioException, TwilioRestException

from shared.http import DeadlineBody, DeadlinePassed, Http, HttpError, NotConnected, TooLate
from shared.models import CALL_SID, CallStatus, Placed, TwilioCall, Verdict
from shared.settings import Settings

TWILIO: Final = "https://api.twilio.com"
STATUS_EVENTS = ["initiated", "ringing", "answered", "completed"]

# By default Twilio repeats a callback only after a failed connection. rc: the number of repeats; rp=all: after any failure.
# The fragment is for Twilio alone. It is neither sent nor signed.
CALLBACK_RETRIES = "#rc=5&rp=all"

# Twilio's clock and the database's clock differ, and date_created has whole seconds.
CLOCK_SKEW = timedelta(seconds=5)

# The meaning of Twilio's error codes for a requested call. The code decides; the HTTP status decides for unknown codes.
# https://www.twilio.com/docs/api/errors/<code>
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
    """The request for a call failed. `verdict` gives the meaning."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{verdict.kind}: {verdict.code}: {verdict.reason}")
        self.verdict = verdict


class TwilioUnavailable(Exception):
    """Twilio did not answer a question. Our record stands, and we ask again later."""


class TwilioHttp:
    """A transport for twilio-python, with a deadline. `http` None: each request has a connection to its own host."""

    def __init__(
        self, http: Http | None, *, connect_s: float, total_s: float, may_still_send: Callable[[], bool] | None = None
    ) -> None:
        self._http = http
        self._connect_s, self._total_s = connect_s, total_s
        self._may_still_send = may_still_send
        self.body: DeadlineBody | None = None

    def request(
        self,
        method: str,
        url: str,
        params: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,
        allow_redirects: bool = False,
    ) -> Any:
        from twilio.http.response import Response

        given = dict(headers or {})
        if auth:
            given["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
        query = urlencode({name: value for name, value in (params or {}).items() if value is not None}, doseq=True)
        form = urlencode(data, doseq=True).encode() if data else None
        if form is not None and self._may_still_send is not None:
            self.body = DeadlineBody(form, self._may_still_send)
            given["Content-Length"] = str(len(form))
        http, url = self._http or Http(url, kept=False), f"{url}?{query}" if query else url
        body = self.body or form
        answer = http.request(method, url, given, body, connect_s=self._connect_s, total_s=self._total_s)
        return Response(answer.status, answer.body.decode("utf-8", "replace"), answer.headers)


class Telephony:
    """Calls from our number. Thread-safe; connects at the first request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        base_url = settings.twilio_api_base_url or TWILIO
        self._creates = Http(base_url, kept=False)
        self._client = self._connect(self._transport(Http(base_url, kept=True)))

    def _transport(self, http: Http, may_still_send: Callable[[], bool] | None = None) -> TwilioHttp:
        connect_s = self._settings.twilio_connect_seconds
        total_s = connect_s + self._settings.twilio_timeout_seconds
        return TwilioHttp(http, connect_s=connect_s, total_s=total_s, may_still_send=may_still_send)

    def _connect(self, http: TwilioHttp) -> Any:
        """`twilio.rest` is imported with the first request: it brings `requests`."""
        from twilio.rest import Client

        settings = self._settings
        # Settings refuse TWILIO_REGION and TWILIO_EDGE. twilio-python would read them from os.environ.
        environment = {"TWILIO_REGION": "", "TWILIO_EDGE": ""}
        account, token = settings.twilio_account_sid, settings.twilio_auth_tokens[0]
        client = Client(account, token, http_client=http, environment=environment)
        if settings.twilio_api_base_url:
            client.api.base_url = settings.twilio_api_base_url
        return client

    def place(self, attempt: UUID, job_id: int, to: str, may_still_send: Callable[[], bool]) -> Placed:
        """Ask Twilio once for a call to `to` (E.164), if `may_still_send()` as the body leaves. Raises CallNotPlaced.

        Takes at most TWILIO_TIMEOUT_SECONDS plus the time to connect, however slowly Twilio answers.
        """
        settings = self._settings
        about = f"?attempt={attempt}&job_id={job_id}"
        callback = f"{settings.status_url}{about}{CALLBACK_RETRIES}"
        # Wait for the end of the machine's greeting, or it talks over our message. A person hears us meanwhile.
        detection = {
            "machine_detection": "DetectMessageEnd",
            "async_amd": "true",
            "async_amd_status_callback": callback,
        }
        request = self._transport(self._creates, may_still_send)
        try:
            call = self._connect(request).calls.create(
                to=to,
                from_=settings.twilio_phone_number,
                url=f"{settings.voice_url}{about}",
                method="POST",
                status_callback=callback,
                status_callback_method="POST",
                status_callback_event=STATUS_EVENTS,
                timeout=settings.call_ring_seconds,
                time_limit=settings.call_time_limit_seconds,
                **(detection if settings.call_machines != "ignore" else {}),
            )
        except Exception as error:
            raise CallNotPlaced(verdict_on(error, was_sent=request.body is None or request.body.was_sent)) from error
        if not isinstance(call.sid, str) or not CALL_SID.fullmatch(call.sid):
            raise CallNotPlaced(Verdict("in_doubt", "no_sid", "Twilio took the call and gave no SID"))
        # Milliseconds, as a string. A missing or invalid value counts as 0; the sweep asks again.
        queued_ms = str(call.queue_time)
        return Placed(call.sid, int(queued_ms) / 1000 if queued_ms.isdecimal() else 0.0)

    def find(self, to: str, since: datetime, our_number: str | None = None) -> list[TwilioCall]:
        """List Twilio's calls from our number to `to` created since `since`, newest first. Raises TwilioUnavailable.

        `our_number` is the attempt's number, which may differ from today's. Never filtered by StartTime: a call in
        Twilio's queue has none. CLOCK_SKEW widens `since`.
        """
        found: list[TwilioCall] = []
        with twilio_errors():
            our_number = our_number or self._settings.twilio_phone_number
            for call in self._client.calls.stream(to=to, from_=our_number, page_size=50):
                listed = _read(call)
                if listed.created_at < since - CLOCK_SKEW:
                    break
                if call.direction == "outbound-api":
                    found.append(listed)
        return found

    def fetch(self, call_sid: str) -> TwilioCall | None:
        """Return one call; None if Twilio does not know the SID, which proves nothing for a fresh SID.

        Raises TwilioUnavailable.
        """
        with twilio_errors(20404):
            return _read(self._client.calls(call_sid).fetch())
        return None

    def end(self, call_sid: str) -> None:
        """End a call in any state. Succeeds for a call that has already ended. Raises TwilioUnavailable."""
        self._update(call_sid, status="completed")

    def cancel(self, call_sid: str) -> None:
        """End a call that is queued or ringing; an answered call continues. Raises TwilioUnavailable."""
        self._update(call_sid, status="canceled")

    def play_twiml(self, call_sid: str, twiml: str) -> None:
        """Replace an answered call's TwiML with this document, of at most 4,000 characters. Raises TwilioUnavailable.

        Succeeds for a call that has already ended.
        https://www.twilio.com/docs/voice/tutorials/how-to-modify-calls-in-progress
        """
        self._update(call_sid, twiml=twiml)

    def _update(self, call_sid: str, **change: str) -> None:
        with twilio_errors(21220, 20404):  # it is over already
            self._client.calls(call_sid).update(**change)


@contextmanager
def twilio_errors(*harmless: int) -> Iterator[None]:
    """Turn each failure of a question to Twilio into TwilioUnavailable, but for harmless codes. Asking again is safe."""
    try:
        yield
    except (TwilioException, HttpError, ValueError, TypeError, KeyError) as error:
        if not (isinstance(error, TwilioRestException) and error.code in harmless):
            raise TwilioUnavailable(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def verdict_on(error: BaseException, *, was_sent: bool = True) -> Verdict:
    """Return the meaning of a failed request for a call: in doubt, unless something proves otherwise.

    `was_sent` False proves that Twilio has no complete request.
    """
    if isinstance(error, TwilioRestException):
        return _verdict_on_answer(error)
    if isinstance(error, DeadlinePassed):
        return Verdict("later", "too_late", "the dispatcher was held up before it could dial; nothing was sent")
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in (error, error.__cause__)):
        return Verdict("halt", "certificate", "Twilio's certificate could not be verified; nothing was sent")
    if isinstance(error, NotConnected) or not was_sent:
        return Verdict("later", "not_connected", "Twilio could not be reached; nothing was sent")
    if isinstance(error, TooLate):
        return Verdict("in_doubt", "read_timeout", "Twilio did not answer in time")
    if isinstance(error, HttpError):
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


def _read(call: Any) -> TwilioCall:
    if call.status not in get_args(CallStatus):
        raise ValueError(f"an unknown call status: {call.status!r}")
    created: datetime = call.date_created
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    duration = int(call.duration) if call.duration else None
    return TwilioCall(call.sid, call.status, created, duration, call.answered_by)
