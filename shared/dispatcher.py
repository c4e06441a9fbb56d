"""Claim, screen, dial, record; and look after what is under way. The line that makes a phone ring is in `Dispatcher._dial`.

    claim (the attempt is written) -> screen -> one request to Twilio -> record what came of it

A step is safe to run twice, at once, and to be killed anywhere: what it wrote is true, and what it did not write the sweep
finds out from Twilio.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never
from uuid import UUID, uuid4

import structlog

from shared import backoff
from shared.conversation.turns import Turn
from shared.jobs import Jobs, connect
from shared.models import (
    FINAL_CALL_STATUSES,
    Absent,
    Ambiguous,
    CallStatus,
    Claimed,
    Found,
    LiveCall,
    NoOpenCall,
    NothingDue,
    NotYet,
    OpenCall,
    Paused,
    Settled,
    StepResult,
    TwilioCall,
    Unparsed,
    Verdict,
    Wait,
)
from shared.screening import PutOff, Refusal, hours, read_number, screen
from shared.settings import DIAL_WITHIN_SECONDS, Settings
from shared.telephony import CallNotPlaced, Telephony, TwilioUnavailable

log = structlog.get_logger()

# Twilio cancels what waited in its queue for 24 hours. https://www.twilio.com/docs/api/errors/22005
TWILIO_QUEUE_SECONDS = 24 * 3600.0
HALT_SECONDS = 60.0  # the first pause after a halt; SQL doubles it, up to an hour
# No call is begun so shortly before its hours end: 2 s until the request leaves, Twilio's answer, and then it rings for a while.
LAST_CALL_SECONDS = 30.0
ASKS_PER_SETTLING = 4  # Twilio is asked so often before "not listed" is believed


def no_fault(_point: str) -> None:
    """Fault points do nothing in production; tests stop the process, or time, at one."""


@dataclass(frozen=True)
class Since:
    """A moment by both clocks: the monotonic one does not jump, the wall clock does not stop when the machine does."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> "Since":
        return cls(time.monotonic(), time.time())

    def age_s(self) -> float:
        now = Since.now()
        return max(now.monotonic - self.monotonic, abs(now.wall - self.wall))

    def is_fresh(self) -> bool:
        """False for a process that froze since then: by now somebody else may be dialing."""
        return self.age_s() <= DIAL_WITHIN_SECONDS


class Dispatcher:
    """One a process, shared by its threads. Every method raises JobsUnavailable when the database does not answer."""

    def __init__(
        self, settings: Settings, jobs: Jobs, telephony: Telephony, fault_point: Callable[[str], None] = no_fault
    ) -> None:
        self.settings = settings
        self.jobs = jobs
        self._telephony = telephony
        self._fault_point = fault_point

    # --- to dial ------------------------------------------------------------------------------------------------------

    def dial_one(self, job_id: int | None = None) -> StepResult:
        """Claim one job, the one asked for or the next due, and dial it."""
        attempt = uuid4()
        since = Since.now()  # before the claim: the lease cannot have begun earlier
        claim = self.jobs.claim(
            attempt,
            job_id,
            lease_s=self.settings.call_lease_seconds,
            busy_s=backoff.jittered(self.settings.call_retry_seconds),
            calls_per_second=self.settings.calls_per_second,
            calls_per_number_per_day=self.settings.calls_per_number_per_day,
            calls_per_prefix_per_hour=self.settings.calls_per_prefix_per_hour,
            calls_per_day=self.settings.calls_per_day,
            our_number=self.settings.twilio_phone_number,
        )
        match claim:
            case Claimed():
                with structlog.contextvars.bound_contextvars(job=claim.job.id, attempt=str(claim.attempt.id)):
                    self._fault_point("claimed")
                    return self._dial(claim, since)
            case Unparsed():
                return self._read_number(claim.job_id, claim.phone_number)
            case Wait():
                return StepResult("waiting", job_id, wait_s=claim.wait_s)
            case Paused():
                if claim.just_now:
                    log.critical(
                        "all calls are paused: the ceiling of a day is reached",
                        kind="ceiling_reached",
                        until=str(claim.until),
                    )
                return StepResult("paused", job_id, f"{claim.reason} (until {claim.until})")
            case NothingDue():
                return StepResult("nothing", job_id, _why_not(claim))
            case _:
                assert_never(claim)

    def _dial(self, claim: Claimed, since: Since) -> StepResult:
        """From a claim to its outcome. Only here is a call placed."""
        job, attempt = claim.job, claim.attempt.id
        number = read_number(job.phone_number, self.settings)
        if isinstance(number, str) and number != job.phone_e164:
            reason = "the number was written otherwise"
            self.jobs.release(attempt, code="number_corrected", reason=reason, slot_s=self._slot_s)
            return self._read_number(job.id, job.phone_number)
        match self._screen(number, job.metadata, claim.now):
            case Refusal() as no:
                self.jobs.refuse(attempt, code=no.code, reason=no.reason, slot_s=self._slot_s)
                log.warning("call refused", kind="call_refused", code=no.code, reason=no.reason)
                return StepResult("refused", job.id, no.code)
            case PutOff() as no:
                self.jobs.release(attempt, code=no.code, reason=no.reason, not_before=no.until, slot_s=self._slot_s)
                log.info("call put off", code=no.code, until=str(no.until))
                return StepResult("put_off", job.id, no.code)
        self._fault_point("screened")
        try:
            placed = self._telephony.place(attempt, job.phone_e164, since.is_fresh)
        except CallNotPlaced as failure:
            self._fault_point("failed")
            return self._record_failure(job.id, attempt, failure.verdict)
        self._fault_point("placed")
        call = self.jobs.accept(attempt, placed.call_sid, ask_s=self.settings.call_ask_seconds)
        self._fault_point("accepted")
        log.info("called", call_sid=placed.call_sid, number=claim.attempt.number)
        self.end_if_unwanted(call, placed.call_sid)
        if call.is_wanted:
            rings_at = claim.now + timedelta(seconds=since.age_s() + placed.queue_s)
            self._put_off_if_late(attempt, placed.call_sid, job.phone_e164, job.metadata, rings_at)
        return StepResult("called", job.id, placed.call_sid)

    def _screen(self, number: str | Refusal, metadata: dict[str, Any], now: datetime) -> Refusal | PutOff | None:
        if isinstance(number, Refusal):
            return number
        last_ring = now + timedelta(seconds=LAST_CALL_SECONDS)
        return screen(number, metadata, self.settings, now) or hours(number, metadata, self.settings, last_ring)

    def _put_off_if_late(
        self, attempt: UUID, call_sid: str, e164: str, metadata: dict[str, Any], rings_at: datetime
    ) -> None:
        """Cancel a call that waits in Twilio's queue and would leave it when the phone may not ring any more."""
        late = hours(e164, metadata, self.settings, rings_at)
        if late is None:
            return
        not_before = (
            late.until if isinstance(late, PutOff) else rings_at
        )  # there is no right moment: then it is refused
        if self.jobs.put_off(attempt, not_before=not_before, code=late.code, reason=late.reason):
            log.warning("call put off: it would have left Twilio's queue too late", call_sid=call_sid)
            try:
                self._telephony.cancel(call_sid)
            except TwilioUnavailable as silent:
                log.error("the call could not be canceled; the sweep tries again", reason=str(silent))

    def _record_failure(self, job_id: int, attempt: UUID, verdict: Verdict) -> StepResult:
        code, reason = verdict.code, verdict.reason
        match verdict.kind:
            case "refused":
                self.jobs.refuse(attempt, code=code, reason=reason)
                log.error("call refused for good", kind="call_refused", code=code, reason=reason)
                return StepResult("refused", job_id, code)
            case "later":
                delay_s = backoff.jittered(self.settings.call_retry_seconds)
                slot_s = 0.0 if code.startswith("twilio_") else self._slot_s  # Twilio was asked, or it was not
                self.jobs.release(attempt, delay_s=delay_s, code=code, reason=reason, slot_s=slot_s)
                log.warning("call put off", code=code, reason=reason, delay_s=round(delay_s))
                return StepResult("put_off", job_id, code)
            case "halt":
                halt_s = min(HALT_SECONDS, self.settings.call_retry_seconds)
                self.jobs.release(attempt, code=code, reason=reason, halt_s=halt_s)
                log.critical(
                    "all calls are paused: our account or configuration is broken",
                    kind="halt",
                    code=code,
                    reason=reason,
                )
                return StepResult("halted", job_id, code)
            case "in_doubt":
                self.jobs.doubt(attempt, code=code, reason=reason, ask_s=self._ask_again_s)
                log.error(
                    "call in doubt: nobody dials until that is settled", kind="call_in_doubt", code=code, reason=reason
                )
                return StepResult("in_doubt", job_id, code)
            case _:
                assert_never(verdict.kind)

    def _read_number(self, job_id: int, typed: str) -> StepResult:
        """Write down what was typed as E.164 and dial it, or end the job because it is no number."""
        number = read_number(typed, self.settings)
        if isinstance(number, Refusal):
            if not self.jobs.set_number(job_id, typed, None, number.code, number.reason):
                return StepResult("nothing", job_id, "another has read its number meanwhile")
            log.warning("call refused", kind="call_refused", job=job_id, code=number.code, reason=number.reason)
            return StepResult("refused", job_id, number.code)
        self.jobs.set_number(job_id, typed, number, None, None)
        return self.dial_one(job_id)

    # --- to look after ------------------------------------------------------------------------------------------------

    def follow_up_one(self) -> StepResult:
        """Take the next call that is in doubt, without news or one too many, and find out, or end it."""
        settings = self.settings
        call = self.jobs.claim_open(
            hold_s=settings.call_lease_seconds,
            ask_s=settings.call_ask_seconds,
            give_up_s=TWILIO_QUEUE_SECONDS + settings.call_ring_seconds + settings.call_time_limit_seconds,
        )
        if isinstance(call, NoOpenCall):
            return StepResult("nothing")
        with structlog.contextvars.bound_contextvars(job=call.job_id, attempt=str(call.attempt)):
            self._fault_point("asking")
            if call.lease_ran_out:
                log.error("lease ran out: the call is in doubt", kind="call_in_doubt", code="lease_ran_out")
            try:
                return self._settle(call) if call.call_sid is None else self._ask_after(call, call.call_sid)
            except TwilioUnavailable as silent:
                log.error("Twilio could not be asked: the call stays as it is", state=call.state, reason=str(silent))
                return StepResult("unasked", call.job_id, call.state)

    def _settle(self, call: OpenCall) -> StepResult:
        settings = self.settings
        listed = self._telephony.find(call.phone_e164, call.started_at, call.from_e164)
        self._fault_point("listed")
        settlement = self.jobs.settle(
            call.attempt,
            call.asked_at,
            listed,
            settling_s=settings.call_settling_seconds,
            ask_s=self._ask_again_s,
            poll_s=settings.call_ask_seconds,
            delays_s=backoff.delays(settings.call_retry_seconds, settings.call_max_attempts),
            gives_up=settings.call_in_doubt == "give-up",
        )
        match settlement:
            case Found():
                log.warning("doubt settled: Twilio has the call", call_sid=settlement.call_sid)
                found = next(c for c in listed if c.sid == settlement.call_sid)
                self.end_if_unwanted(self._record(call.attempt, found), found.sid)
                return StepResult("settled", call.job_id, "found")
            case Absent():
                log.warning("doubt settled: Twilio has no such call", job_status=settlement.job_status)
                return StepResult("settled", call.job_id, "absent")
            case NotYet():
                return StepResult("still_in_doubt", call.job_id, "not_yet")
            case Ambiguous():
                log.critical(
                    "a call in doubt could be any of several: somebody must look",
                    kind="call_ambiguous",
                    calls=settlement.calls,
                )
                return StepResult("still_in_doubt", call.job_id, "ambiguous")
            case Settled():
                return StepResult("settled", call.job_id, "meanwhile")
            case _:
                assert_never(settlement)

    def _ask_after(self, call: OpenCall, call_sid: str) -> StepResult:
        if call.end:
            self._telephony.end(call_sid)
            log.warning("call ended: it is not wanted", state=call.state, call_sid=call_sid)
        known = self._telephony.fetch(call_sid)
        self._fault_point("fetched")
        if known is not None and known.status == "queued" and not call.end:
            if call.put_off:
                self._telephony.cancel(call_sid)
                log.warning("call canceled in Twilio's queue: it must not ring now", call_sid=call_sid)
                known = self._telephony.fetch(call_sid)
            else:  # it may leave the queue at any time before the next look, which may come late
                next_look = call.asked_at + timedelta(seconds=2 * self.settings.call_ask_seconds)
                self._put_off_if_late(call.attempt, call_sid, call.phone_e164, call.metadata, next_look)
        if known is None:  # of a fresh SID this is no absence; an old one is given up in time
            return StepResult("asked", call.job_id, "unknown")
        recorded = self._record(call.attempt, known)
        if not call.end:
            self.end_if_unwanted(recorded, call_sid)
        return StepResult("ended" if call.end else "asked", call.job_id, known.status)

    def _record(self, attempt: UUID, call: TwilioCall) -> LiveCall:
        return self.record_status(
            attempt, call.sid, call.status, duration_s=call.duration_s, answered_by=call.answered_by
        )

    # --- what Twilio tells us -----------------------------------------------------------------------------------------

    def record_status(
        self,
        attempt: UUID,
        call_sid: str,
        status: CallStatus,
        *,
        answered_by: str | None = None,
        duration_s: int | None = None,
        sip_code: int | None = None,
        error_code: str | None = None,
    ) -> LiveCall:
        """Write down what Twilio says of a call. Order and number of tellings do not matter."""
        redial_s = backoff.delays(self.settings.call_redial_seconds, self.settings.call_max_attempts)
        call = self.jobs.record_status(
            attempt,
            call_sid,
            status,
            ask_s=self.settings.call_ask_seconds,
            redial_delays_s=redial_s,
            machine_counts_as="missed" if self.settings.call_machines == "missed" else "reached",
            answered_by=answered_by,
            duration_s=duration_s,
            sip_code=sip_code,
            error_code=error_code,
        )
        if call.moved:
            log.info("call status", call_sid=call_sid, status=status, job_status=call.job and call.job.status)
        return call

    def record_answer(self, attempt: UUID, call_sid: str, turn: Turn, digits: str) -> LiveCall:
        """Write down what a turn of the conversation has brought, if anything. A turn told twice is written once."""
        call = self.jobs.record_answer(
            attempt,
            call_sid,
            ask_s=self.settings.call_ask_seconds,
            question=turn.learned.question if turn.learned else None,
            meaning=turn.learned.meaning if turn.learned else None,
            digits=digits,
            opts_out=turn.opts_out,
        )
        if turn.opts_out:
            log.warning("opted out by a key: this number is not called again", call_sid=call_sid)
        return call

    def play_twiml(self, call_sid: str, twiml: str) -> None:
        """Interrupt a call under way: it goes on with this document."""
        try:
            self._telephony.play_twiml(call_sid, twiml)
            log.info("a machine has answered: it is told its message, or hung up on", call_sid=call_sid)
        except TwilioUnavailable as silent:  # then it is told when it has not answered the question
            log.error("a machine has answered, and could not be told so", call_sid=call_sid, reason=str(silent))

    def end_if_unwanted(self, call: LiveCall, call_sid: str) -> None:
        """End a call that the database does not want: one too many, canceled, or of no attempt of ours."""
        if call.is_wanted or call.call_status in FINAL_CALL_STATUSES:
            return
        if call.state in ("duplicate", None):
            kind = "call_duplicate" if call.state else "call_unknown"
            log.critical("a call too many: it is being ended", kind=kind, call_sid=call_sid, state=call.state)
        try:
            self._telephony.end(call_sid)
        except TwilioUnavailable as silent:
            log.error("the call could not be ended; the sweep tries again", call_sid=call_sid, reason=str(silent))

    @property
    def _slot_s(self) -> float:
        return 1 / self.settings.calls_per_second

    @property
    def _ask_again_s(self) -> float:
        return self.settings.call_settling_seconds / ASKS_PER_SETTLING


def _why_not(claim: NothingDue) -> str:
    if claim.status is None:
        return "no such job"
    why = f" ({claim.reason_code})" if claim.reason_code else ""
    if claim.status == "queued":
        return f"not due before {claim.due_at:%Y-%m-%d %H:%M:%S}{why}"
    return f"already {claim.status}{why}"


def build_dispatcher(settings: Settings) -> Dispatcher:
    """The one place that wires the parts. Call it after the fork: it opens what must not be shared between processes."""
    return Dispatcher(settings, Jobs(connect(settings)), Telephony(settings))
