"""The job table, through its SQL functions: one method a function, no query text, every answer checked.

Supabase's client for the database (`postgrest`, a part of supabase-py) sends its requests through `shared.http`, which adds
a deadline and a limit. supabase-py's own transport, HTTP/2 over one connection, fails under threads: 13 to 80 of 3,000
calls (measured). Importing the rest of supabase-py costs 100 to 150 ms of each cold start (measured).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from postgrest import SyncPostgrestClient
from postgrest.exceptions import APIError
from pydantic import TypeAdapter, ValidationError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from shared.http import Http
from shared.models import (
    Answer,
    CallEvent,
    Claim,
    ClaimPolicy,
    LiveCall,
    NextOpenCall,
    Settlement,
    SettlePolicy,
    Stats,
    TwilioCall,
)
from shared.settings import Settings
from shared.setup_facts import SetupFacts

T = TypeVar("T")

CONNECT_SECONDS = 2.5
# Supabase's statement_timeout for API roles is 8 s: no answer comes later.
ANSWER_SECONDS = 10.0
# A kept connection may be dead, so an idempotent call is made once more, on a new connection. Sum 13 s, below Twilio's
# 15 s limit for TwiML, so the person hears at least the apology.
FIRST_TRY_SECONDS = 5.0
SECOND_TRY_SECONDS = 8.0
REPEATABLE = ("record_call_status", "record_call_answer", "accept_call")

# The SQL functions that `Jobs` calls, for the doctor.
RPCS = (
    "claim_call_job",
    "set_call_number",
    "release_call_job",
    "accept_call",
    "refuse_call",
    "put_off_call",
    "doubt_call",
    "record_call_status",
    "record_call_answer",
    "claim_open_call",
    "settle_call",
    "heal_onboarding_calls",
    "prune_call_jobs",
    "call_job_stats",
    "check_call_setup",
)

_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
_NEXT_OPEN_CALL: TypeAdapter[NextOpenCall] = TypeAdapter(NextOpenCall)
_SETTLEMENT: TypeAdapter[Settlement] = TypeAdapter(Settlement)
_LIVE_CALL = TypeAdapter(LiveCall)
_STATS = TypeAdapter(Stats)
_SETUP_FACTS = TypeAdapter(SetupFacts)
_BOOL = TypeAdapter(bool)
_INT = TypeAdapter(int)
_COUNTS = TypeAdapter(dict[str, int])


class JobsUnavailable(Exception):
    """The database did not answer, or not as it should. Nothing is lost: a sweep looks again."""


class Transport(httpx.BaseTransport):
    """Carries the client's requests. Each has a deadline; a repeatable one has a second try on a new connection."""

    def __init__(self, base_url: str) -> None:
        self._http = Http(base_url, kept=True)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith(REPEATABLE):
            return self._send(request, ANSWER_SECONDS)
        try:
            return self._send(request, FIRST_TRY_SECONDS)
        except httpx.TransportError:
            self._http.forget_connections()
            return self._send(request, SECOND_TRY_SECONDS)

    def _send(self, request: httpx.Request, total_s: float) -> httpx.Response:
        connect_s = min(CONNECT_SECONDS, total_s)
        url, body = str(request.url), request.read()
        try:
            answer = self._http.request(
                request.method, url, request.headers, body, connect_s=connect_s, total_s=total_s
            )
        except NewConnectionError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        except ConnectTimeoutError as error:
            raise httpx.ConnectTimeout(str(error), request=request) from error
        except ReadTimeoutError as error:
            raise httpx.ReadTimeout(str(error), request=request) from error
        except (HTTPError, OSError) as error:
            raise httpx.NetworkError(f"{type(error).__name__}: {error}", request=request) from error
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() != "content-encoding"]
        return httpx.Response(answer.status, headers=headers, content=answer.body)


def connect(settings: Settings) -> SyncPostgrestClient:
    """Make a client with its own connection pool. `sb_` keys are not JWTs: Supabase wants them in `apikey` alone."""
    key = settings.supabase_service_key.get_secret_value()
    headers = {"apikey": key} | ({} if key.startswith("sb_") else {"Authorization": f"Bearer {key}"})
    http = httpx.Client(transport=Transport(settings.supabase_url))
    return SyncPostgrestClient(f"{settings.supabase_url}/rest/v1", headers=headers, http_client=http)


class Jobs:
    """Durations are seconds. Every method raises JobsUnavailable."""

    def __init__(self, client: SyncPostgrestClient) -> None:
        self._client = client

    def claim(self, attempt: UUID, job_id: int | None, policy: ClaimPolicy, *, busy_s: float) -> Claim:
        return self._call("claim_call_job", _CLAIM, attempt=attempt, job_id=job_id, busy_s=busy_s, **vars(policy))

    def set_number(
        self,
        job_id: int,
        phone_number: str,
        phone_e164: str | None,
        *,
        code: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Store the typed number's E.164 form; or, with None, end the job for `code` and `reason`."""
        return self._call(
            "set_call_number",
            _BOOL,
            job_id=job_id,
            phone_number=phone_number,
            phone_e164=phone_e164,
            code=code,
            reason=reason,
        )

    def release(
        self,
        attempt: UUID,
        *,
        code: str,
        reason: str,
        delay_s: float = 0.0,
        not_before: datetime | None = None,
        halt_s: float | None = None,
        slot_s: float = 0.0,
    ) -> bool:
        return self._call(
            "release_call_job",
            _BOOL,
            attempt=attempt,
            code=code,
            reason=reason,
            delay_s=delay_s,
            not_before=not_before,
            halt_s=halt_s,
            slot_s=slot_s,
        )

    def accept(self, attempt: UUID, call_sid: str, *, ask_s: float) -> LiveCall:
        return self._call("accept_call", _LIVE_CALL, attempt=attempt, call_sid=call_sid, ask_s=ask_s)

    def refuse(self, attempt: UUID, *, code: str, reason: str, slot_s: float = 0.0) -> bool:
        return self._call("refuse_call", _BOOL, attempt=attempt, code=code, reason=reason, slot_s=slot_s)

    def put_off(self, attempt: UUID, *, not_before: datetime, code: str, reason: str) -> bool:
        return self._call("put_off_call", _BOOL, attempt=attempt, not_before=not_before, code=code, reason=reason)

    def doubt(self, attempt: UUID, *, code: str, reason: str, ask_s: float) -> bool:
        return self._call("doubt_call", _BOOL, attempt=attempt, code=code, reason=reason, ask_s=ask_s)

    def record_status(
        self,
        attempt: UUID,
        event: CallEvent,
        *,
        ask_s: float,
        redial_delays_s: Sequence[float],
        machine_counts_as: str,
    ) -> LiveCall:
        return self._call(
            "record_call_status",
            _LIVE_CALL,
            attempt=attempt,
            ask_s=ask_s,
            redial_delays_s=list(redial_delays_s),
            machine_counts_as=machine_counts_as,
            **vars(event),
        )

    def record_answer(self, attempt: UUID, call_sid: str, answer: Answer, *, ask_s: float) -> LiveCall:
        return self._call(
            "record_call_answer", _LIVE_CALL, attempt=attempt, call_sid=call_sid, ask_s=ask_s, **vars(answer)
        )

    def claim_open(self, *, hold_s: float, ask_s: float, give_up_s: float) -> NextOpenCall:
        return self._call("claim_open_call", _NEXT_OPEN_CALL, hold_s=hold_s, ask_s=ask_s, give_up_s=give_up_s)

    def settle(
        self,
        attempt: UUID,
        asked_at: datetime,
        listed: Sequence[TwilioCall],
        policy: SettlePolicy,
        *,
        delays_s: Sequence[float],
    ) -> Settlement:
        calls = [{"sid": call.sid, "status": call.status} for call in listed]
        return self._call(
            "settle_call",
            _SETTLEMENT,
            attempt=attempt,
            asked_at=asked_at,
            calls=calls,
            delays_s=list(delays_s),
            **vars(policy),
        )

    def heal_signups(self) -> int:
        return self._call("heal_onboarding_calls", _INT)

    def prune(self, *, retention_days: int) -> dict[str, int]:
        return self._call("prune_call_jobs", _COUNTS, retention_days=retention_days)

    def stats(self) -> Stats:
        return self._call("call_job_stats", _STATS)

    def check_setup(self, nonce: str) -> SetupFacts:
        """For the doctor; `nonce` is 32 hexadecimal digits."""
        return self._call("check_call_setup", _SETUP_FACTS, nonce=nonce)

    def _call(self, function: str, answer: TypeAdapter[T], **arguments: Any) -> T:
        """Call an SQL function. Each argument `x` (or `x_`, where x is a Python keyword) is its parameter `p_x`."""
        try:
            data = self._request(function, {f"p_{name.rstrip('_')}": value for name, value in arguments.items()})
        except APIError as error:
            raise JobsUnavailable(f"{function}: {error.code}: {error.message}") from error
        except httpx.TransportError as error:
            raise JobsUnavailable(f"{function}: {type(error).__name__}: {error}") from error
        except ValueError as error:  # not JSON, or a number that Python does not read
            raise JobsUnavailable(f"{function}: unreadable answer: {error}") from error
        try:
            return answer.validate_python(data)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()[:3])
            raise JobsUnavailable(f"{function}: an answer of another shape: {wrong}") from error

    def _request(self, function: str, parameters: dict[str, Any]) -> Any:
        return self._client.rpc(function, parameters).execute().data
