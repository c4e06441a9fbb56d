"""The job table, through its SQL functions: one method a function, no query text, every answer checked.

`httpx` and `postgrest` are imported with the first call: they cost a third of the time until a new instance listens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from pydantic import ConfigDict, TypeAdapter, ValidationError

from shared.http import HttpError
from shared.models import Answer, CallEvent, Claim, LiveCall, NextOpenCall, NextResult, Settlement, TwilioCall
from shared.setup_facts import SetupFacts
from shared.stats import Stats, Waiting

if TYPE_CHECKING:
    from postgrest import SyncPostgrestClient

T = TypeVar("T")

# The SQL functions that `Jobs` calls, for the doctor.
RPCS = tuple(
    "claim_call_job set_call_number release_call_job accept_call refuse_call put_off_call doubt_call "
    "record_call_status record_call_answer claim_open_call settle_call heal_onboarding_calls prune_call_jobs "
    "call_job_stats waiting_calls claim_call_result record_call_result check_call_setup".split()
)

_LATER = ConfigDict(defer_build=True)  # with the first answer, not while an instance starts
_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim, config=_LATER)
_NEXT_OPEN_CALL: TypeAdapter[NextOpenCall] = TypeAdapter(NextOpenCall, config=_LATER)
_NEXT_RESULT: TypeAdapter[NextResult] = TypeAdapter(NextResult, config=_LATER)
_SETTLEMENT: TypeAdapter[Settlement] = TypeAdapter(Settlement, config=_LATER)
_LIVE_CALL = TypeAdapter(LiveCall)
_STATS = TypeAdapter(Stats)
_WAITING = TypeAdapter(Waiting)
_SETUP_FACTS = TypeAdapter(SetupFacts)
_BOOL = TypeAdapter(bool, config=_LATER)
_STATE: TypeAdapter[str | None] = TypeAdapter(str | None, config=_LATER)
_INT = TypeAdapter(int, config=_LATER)
_COUNTS = TypeAdapter(dict[str, int], config=_LATER)


@dataclass(frozen=True)
class ClaimPolicy:
    """The settings of a claim, made once. The fields are the arguments of claim_call_job; `from_` is our number."""

    lease_s: float
    calls_per_second: float
    calls_per_number_per_day: int
    calls_per_prefix_per_hour: int
    calls_per_day: int | None
    from_: str


@dataclass(frozen=True)
class SettlePolicy:
    """The settings of settle_call, made once."""

    settling_s: float
    ask_s: float
    poll_s: float
    gives_up: bool


class JobsUnavailable(Exception):
    """The database did not answer, or not as it should. Nothing is lost: a sweep looks again."""


class Jobs:
    """Durations are seconds. Every method raises JobsUnavailable."""

    def __init__(self, client: "SyncPostgrestClient") -> None:
        self._client = client

    def claim(self, attempt: UUID, job_id: int | None, policy: ClaimPolicy, *, busy_s: float) -> Claim:
        """Take a due job and write its attempt; SQL checks pause, rate, caps and opt-outs. `busy_s`: a busy number's wait."""
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
        self, attempt: UUID, event: CallEvent, *, ask_s: float, redial_delays_s: Sequence[float], machine_counts_as: str
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

    def claim_result(self, *, lease_s: float, results: dict[str, Any] | None = None) -> NextResult:
        return self._call("claim_call_result", _NEXT_RESULT, lease_s=lease_s, results=results)

    def record_result(self, id: UUID, try_: int, *, state: str, note: str, delay_s: float = 0.0) -> str | None:
        return self._call("record_call_result", _STATE, id=id, try_=try_, state=state, note=note, delay_s=delay_s)

    def prune(self, *, retention_days: int, results: dict[str, Any] | None = None) -> dict[str, int]:
        return self._call("prune_call_jobs", _COUNTS, retention_days=retention_days, results=results)

    def waiting(self, after: int, *, calls_per_number_per_day: int, calls_per_prefix_per_hour: int) -> Waiting:
        """For explain: up to 1,000 queued jobs with greater ids than `after`."""
        return self._call(
            "waiting_calls",
            _WAITING,
            after=after,
            calls_per_number_per_day=calls_per_number_per_day,
            calls_per_prefix_per_hour=calls_per_prefix_per_hour,
        )

    def stats(self) -> Stats:
        return self._call("call_job_stats", _STATS)

    def check_setup(self, nonce: str) -> SetupFacts:
        """For the doctor; `nonce` is 32 hexadecimal digits."""
        return self._call("check_call_setup", _SETUP_FACTS, nonce=nonce)

    def _call(self, function: str, answer: TypeAdapter[T], **arguments: Any) -> T:
        """Call an SQL function. Each argument `x` (or `x_`, where x is a Python keyword) is its parameter `p_x`."""
        from postgrest.exceptions import APIError

        try:
            data = self._request(function, {f"p_{name.rstrip('_')}": value for name, value in arguments.items()})
        except APIError as error:
            raise JobsUnavailable(f"{function}: {error.code}: {error.message}") from error
        except HttpError as error:
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
