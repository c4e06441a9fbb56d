"""The job table, through its SQL functions: one method a function, no query text, every answer checked.

Supabase's client is made once a process, after the fork, on plain HTTP/1.1: its default, HTTP/2 over one connection, fails
under threads (13 to 80 of 3,000 calls, measured). An RPC is never repeated here: the next sweep is the retry.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import httpx
from postgrest.exceptions import APIError
from pydantic import TypeAdapter, ValidationError
from supabase import Client, ClientOptions, create_client

from shared.models import CallStatus, Claim, LiveCall, NextOpenCall, Settlement, Stats, TwilioCall
from shared.settings import Settings
from shared.setup_facts import SetupFacts

T = TypeVar("T")

# Together less than the 15 s that Twilio waits for what to say: whoever picks up hears at least the apology.
POOL_SECONDS = 1.5
CONNECT_SECONDS = 2.5
WRITE_SECONDS = 2.0
READ_SECONDS = 8.0  # Supabase's own statement_timeout for API roles: later than that nobody answers

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
    """The database did not do what it was asked, as far as we know. Nothing is lost: a sweep will look again."""


def connect(settings: Settings) -> Client:
    """A client of its own connection pool. `sb_` keys are no JWTs: Supabase wants them in `apikey` alone."""

    def drop_repeated_key(request: httpx.Request) -> None:
        if request.headers.get("authorization", "").startswith("Bearer sb_"):
            del request.headers["authorization"]

    http = httpx.Client(
        http2=False,
        timeout=httpx.Timeout(pool=POOL_SECONDS, connect=CONNECT_SECONDS, write=WRITE_SECONDS, read=READ_SECONDS),
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
        event_hooks={"request": [drop_repeated_key]},
    )
    options = ClientOptions(httpx_client=http, auto_refresh_token=False, persist_session=False)
    client = create_client(settings.supabase_url, settings.supabase_service_key.get_secret_value(), options)
    client.postgrest  # noqa: B018 - made lazily and without a lock: make it before there are threads
    return client


class Jobs:
    """Durations are seconds. Every method raises JobsUnavailable."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def claim(
        self,
        attempt: UUID,
        job_id: int | None,
        *,
        lease_s: float,
        busy_s: float,
        calls_per_second: float,
        calls_per_number_per_day: int,
        calls_per_prefix_per_hour: int,
        calls_per_day: int | None,
        our_number: str,
    ) -> Claim:
        return self._call(
            "claim_call_job",
            _CLAIM,
            p_attempt=str(attempt),
            p_job_id=job_id,
            p_lease_s=lease_s,
            p_busy_s=busy_s,
            p_calls_per_second=calls_per_second,
            p_calls_per_number_per_day=calls_per_number_per_day,
            p_calls_per_prefix_per_hour=calls_per_prefix_per_hour,
            p_calls_per_day=calls_per_day,
            p_from=our_number,
        )

    def set_number(self, job_id: int, typed: str, e164: str | None, code: str | None, reason: str | None) -> bool:
        return self._call(
            "set_call_number",
            _BOOL,
            p_job_id=job_id,
            p_phone_number=typed,
            p_phone_e164=e164,
            p_code=code,
            p_reason=reason,
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
            p_attempt=str(attempt),
            p_delay_s=delay_s,
            p_code=code,
            p_reason=reason,
            p_halt_s=halt_s,
            p_not_before=not_before.isoformat() if not_before else None,
            p_slot_s=slot_s,
        )

    def accept(self, attempt: UUID, call_sid: str, *, ask_s: float) -> LiveCall:
        return self._call("accept_call", _LIVE_CALL, p_attempt=str(attempt), p_call_sid=call_sid, p_ask_s=ask_s)

    def refuse(self, attempt: UUID, *, code: str, reason: str, slot_s: float = 0.0) -> bool:
        return self._call("refuse_call", _BOOL, p_attempt=str(attempt), p_code=code, p_reason=reason, p_slot_s=slot_s)

    def put_off(self, attempt: UUID, *, not_before: datetime, code: str, reason: str) -> bool:
        return self._call(
            "put_off_call",
            _BOOL,
            p_attempt=str(attempt),
            p_not_before=not_before.isoformat(),
            p_code=code,
            p_reason=reason,
        )

    def doubt(self, attempt: UUID, *, code: str, reason: str, ask_s: float) -> bool:
        return self._call("doubt_call", _BOOL, p_attempt=str(attempt), p_code=code, p_reason=reason, p_ask_s=ask_s)

    def record_status(
        self,
        attempt: UUID,
        call_sid: str,
        status: CallStatus,
        *,
        ask_s: float,
        redial_delays_s: Sequence[float],
        machine_counts_as: str,
        answered_by: str | None = None,
        duration_s: int | None = None,
        sip_code: int | None = None,
        error_code: str | None = None,
    ) -> LiveCall:
        return self._call(
            "record_call_status",
            _LIVE_CALL,
            p_attempt=str(attempt),
            p_call_sid=call_sid,
            p_call_status=status,
            p_ask_s=ask_s,
            p_redial_delays_s=list(redial_delays_s),
            p_answered_by=answered_by,
            p_duration_s=duration_s,
            p_sip_code=sip_code,
            p_error_code=error_code,
            p_machine_counts_as=machine_counts_as,
        )

    def record_answer(
        self,
        attempt: UUID,
        call_sid: str,
        *,
        ask_s: float,
        question: str | None,
        meaning: str | None,
        digits: str,
        opts_out: bool,
    ) -> LiveCall:
        return self._call(
            "record_call_answer",
            _LIVE_CALL,
            p_attempt=str(attempt),
            p_call_sid=call_sid,
            p_ask_s=ask_s,
            p_question=question,
            p_meaning=meaning,
            p_digits=digits,
            p_opt_out=opts_out,
        )

    def claim_open(self, *, hold_s: float, ask_s: float, give_up_s: float) -> NextOpenCall:
        return self._call("claim_open_call", _NEXT_OPEN_CALL, p_hold_s=hold_s, p_ask_s=ask_s, p_give_up_s=give_up_s)

    def settle(
        self,
        attempt: UUID,
        asked_at: datetime,
        calls: Sequence[TwilioCall],
        *,
        settling_s: float,
        ask_s: float,
        poll_s: float,
        delays_s: Sequence[float],
        gives_up: bool,
    ) -> Settlement:
        return self._call(
            "settle_call",
            _SETTLEMENT,
            p_attempt=str(attempt),
            p_asked_at=asked_at.isoformat(),
            p_calls=[{"sid": call.sid, "status": call.status} for call in calls],
            p_settling_s=settling_s,
            p_ask_s=ask_s,
            p_poll_s=poll_s,
            p_delays_s=list(delays_s),
            p_gives_up=gives_up,
        )

    def heal_signups(self) -> int:
        return self._call("heal_onboarding_calls", _INT)

    def prune(self, *, retention_days: int) -> dict[str, int]:
        return self._call("prune_call_jobs", _COUNTS, p_retention_days=retention_days)

    def stats(self) -> Stats:
        return self._call("call_job_stats", _STATS)

    def check_setup(self, nonce: str) -> SetupFacts:
        """For the doctor; `nonce` is 32 hexadecimal digits."""
        return self._call("check_call_setup", _SETUP_FACTS, p_nonce=nonce)

    def _call(self, function: str, answer: TypeAdapter[T], **arguments: Any) -> T:
        try:
            data = self._client.rpc(function, arguments).execute().data
        except APIError as error:
            raise JobsUnavailable(f"{function}: {error.code}: {error.message}") from error
        except httpx.TransportError as error:
            raise JobsUnavailable(f"{function}: {type(error).__name__}: {error}") from error
        except ValueError as error:  # no JSON, or a number in it that Python will not read
            raise JobsUnavailable(f"{function}: an answer that cannot be read: {error}") from error
        try:
            return answer.validate_python(data)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()[:3])
            raise JobsUnavailable(f"{function}: an answer of another shape: {wrong}") from error
