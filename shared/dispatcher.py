"""Claim, screen, dial, record; and follow up open calls. `_screen_and_place` makes a phone ring.

    claim (writes the attempt) -> screen -> one request to Twilio -> record the outcome

A step may run twice, at the same time, and may be killed at any line. Everything it wrote is true; the sweep asks Twilio
about everything it did not write.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, assert_never
from uuid import UUID, uuid4

import structlog

from shared import backoff, models
from shared.conversation.colleagues import Transfer, plan_transfer
from shared.conversation.later import time_in_words, wished_moment
from shared.conversation.script import Answer as ScriptAnswer
from shared.deadline import ClaimClock
from shared.jobs import ClaimPolicy, Jobs, SettlePolicy
from shared.models import LiveCall, Step, StepResult
from shared.screening import PhoneNumber, PutOff, Refusal, check_hours, next_moment, parse_number, persons_clock, screen
from shared.settings import DIAL_WITHIN_SECONDS, Settings
from shared.telephony import CallNotPlaced, Telephony, TwilioUnavailable

log = structlog.get_logger()

# Twilio cancels a call after 24 hours in its queue. https://www.twilio.com/docs/api/errors/22005
TWILIO_QUEUE_SECONDS = 24 * 3600.0
HALT_SECONDS = 60.0  # the first pause after a halt; SQL doubles it, up to an hour
ASKS_PER_SETTLING = 4  # Twilio is asked this often before an absent call counts as absent


class Dispatcher:
    """One per process, shared by its threads. Every method raises JobsUnavailable when the database does not answer."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        telephony: Telephony,
        fault_point: Callable[[str], None] = lambda _point: None,  # tests stop the process, or time, at one
    ) -> None:
        self._settings, self._jobs, self._telephony = settings, jobs, telephony
        self._fault_point = fault_point
        self._slot_s = 1 / settings.calls_per_second
        self._ask_again_s = settings.call_settling_seconds / ASKS_PER_SETTLING
        self._claim_policy = ClaimPolicy(
            lease_s=settings.call_lease_seconds,
            calls_per_second=settings.calls_per_second,
            calls_per_number_per_day=settings.calls_per_number_per_day,
            calls_per_prefix_per_hour=settings.calls_per_prefix_per_hour,
            calls_per_day=settings.calls_per_day,
            from_=settings.twilio_phone_number,
        )
        self._settle_policy = SettlePolicy(
            settling_s=settings.call_settling_seconds,
            ask_s=self._ask_again_s,
            poll_s=settings.call_ask_seconds,
            gives_up=settings.call_in_doubt == "give-up",
        )

    # --- dial ---------------------------------------------------------------------------------------------------------

    def dial_one(self, job_id: int | None = None) -> StepResult:
        """Claim one job, the given one or the next due, and dial it."""
        return models.finished(self.claim_to_dial(job_id))

    def claim_to_dial(self, job_id: int | None = None) -> Step:
        """Claim one job. Returns the step that dials it, or the result if no job was claimed."""
        attempt = uuid4()
        clock = ClaimClock.now()  # before the claim, so never later than the start of the lease
        busy_s = backoff.jittered(self._settings.call_retry_seconds[0])
        claim = self._jobs.claim(attempt, job_id, self._claim_policy, busy_s=busy_s)
        match claim:
            case models.Claimed():
                return partial(self._dial, claim, clock)
            case models.Unparsed():
                return self._parse_number(claim.job_id, claim.phone_number)
            case models.Wait():
                if claim.reason:
                    log.warning("nothing claimed", kind="claim_waits", reason=claim.reason, wait_s=claim.wait_s)
                return StepResult("waiting", job_id, wait_s=claim.wait_s)
            case models.Paused():
                if claim.just_now:
                    until = str(claim.until)
                    log.critical("calls are paused: CALLS_PER_DAY is reached", kind="ceiling_reached", until=until)
                return StepResult("paused", job_id, f"{claim.reason} (until {claim.until})")
            case models.NothingDue():
                return StepResult("nothing", job_id, _why_not(claim))
            case _:
                assert_never(claim)

    def _dial(self, claim: models.Claimed, clock: ClaimClock) -> StepResult:
        with structlog.contextvars.bound_contextvars(job=claim.job.id, attempt=str(claim.attempt.id)):
            self._fault_point("claimed")
            return self._screen_and_place(claim, clock)

    def _screen_and_place(self, claim: models.Claimed, clock: ClaimClock) -> StepResult:
        """Dial a claimed job and record the outcome. No other line of the program places a call."""
        job, attempt = claim.job, claim.attempt.id
        number = parse_number(job.phone_number, self._settings)
        if isinstance(number, PhoneNumber) and number.e164 != job.phone_e164:
            reason = "the stored E.164 form was not the number's"
            self._jobs.release(attempt, code="number_corrected", reason=reason, slot_s=self._slot_s)
            return models.finished(self._parse_number(job.id, job.phone_number))
        match screen(number, job.metadata, self._settings, claim.now, redial=claim.redial):
            case None:
                pass  # nothing forbids the call
            case Refusal(code=code, reason=reason):
                self._jobs.refuse(attempt, code=code, reason=reason, slot_s=self._slot_s)
                log.warning("call refused", kind="call_refused", code=code, reason=reason)
                return StepResult("refused", job.id, code)
            case PutOff(code=code, reason=reason, until=until):
                self._jobs.release(attempt, code=code, reason=reason, not_before=until, slot_s=self._slot_s)
                log.info("call put off", code=code, until=str(until))
                return StepResult("put_off", job.id, code)
        self._fault_point("screened")
        may_still_send = partial(clock.is_fresh, DIAL_WITHIN_SECONDS)
        try:
            placed = self._telephony.place(attempt, job.id, job.phone_e164, may_still_send)
        except CallNotPlaced as failure:
            self._fault_point("failed")
            return self._record_failure(job.id, attempt, failure.verdict)
        self._fault_point("placed")
        call = self._jobs.accept(attempt, placed.call_sid, ask_s=self._settings.call_ask_seconds)
        self._fault_point("accepted")
        log.info("called", call_sid=placed.call_sid, number=claim.attempt.number)
        self.end_if_unwanted(call, placed.call_sid)
        if call.is_wanted:
            rings_at = claim.now + timedelta(seconds=clock.age_s() + placed.queue_s)
            self._put_off_if_late(attempt, placed.call_sid, number, job.metadata, rings_at)
        return StepResult("called", job.id, placed.call_sid)

    def _put_off_if_late(
        self, attempt: UUID, call_sid: str, number: PhoneNumber | Refusal, metadata: dict[str, Any], rings_at: datetime
    ) -> None:
        """Cancel a call that would leave Twilio's queue outside the calling hours."""
        late = number if isinstance(number, Refusal) else check_hours(number, metadata, self._settings, rings_at)
        # Without any permitted moment the job comes back at once, and screening refuses it.
        not_before = late.until if isinstance(late, PutOff) else rings_at
        if late and self._jobs.put_off(attempt, not_before=not_before, code=late.code, reason=late.reason):
            log.warning("call put off: it would leave Twilio's queue too late", call_sid=call_sid)
            try:
                self._telephony.cancel(call_sid)
            except TwilioUnavailable as error:
                log.error("the call could not be canceled; the sweep tries again", reason=str(error))

    def _record_failure(self, job_id: int, attempt: UUID, verdict: models.Verdict) -> StepResult:
        code, reason = verdict.code, verdict.reason
        told = log.bind(code=code, reason=reason)
        match verdict.kind:
            case "refused":
                self._jobs.refuse(attempt, code=code, reason=reason)
                told.error("call refused permanently", kind="call_refused")
                return StepResult("refused", job_id, code)
            case "later":
                delay_s = backoff.jittered(self._settings.call_retry_seconds[0])
                # A request that never reached Twilio gives its rate-limit slot back.
                slot_s = 0.0 if code.startswith("twilio_") else self._slot_s
                self._jobs.release(attempt, delay_s=delay_s, code=code, reason=reason, slot_s=slot_s)
                told.warning("call put off", delay_s=round(delay_s))
                return StepResult("put_off", job_id, code)
            case "halt":
                halt_s = min(HALT_SECONDS, self._settings.call_retry_seconds[0])
                self._jobs.release(attempt, code=code, reason=reason, halt_s=halt_s)
                told.critical("all calls are paused: our account or configuration is broken", kind="halt")
                return StepResult("halted", job_id, code)
            case "in_doubt":
                self._jobs.doubt(attempt, code=code, reason=reason, ask_s=self._ask_again_s)
                told.error("call in doubt: nobody dials until it is settled", kind="call_in_doubt")
                return StepResult("in_doubt", job_id, code)
            case _:
                assert_never(verdict.kind)

    def _parse_number(self, job_id: int, typed: str) -> Step:
        """Store the typed number as E.164 and claim the job, or end the job if the number is invalid."""
        number = parse_number(typed, self._settings)
        if isinstance(number, Refusal):
            code, reason = number.code, number.reason
            if not self._jobs.set_number(job_id, typed, None, code=code, reason=reason):
                return StepResult("nothing", job_id, "another process has stored the number")
            log.warning("call refused", kind="call_refused", job=job_id, code=code, reason=reason)
            return StepResult("refused", job_id, code)
        self._jobs.set_number(job_id, typed, number.e164)
        return self.claim_to_dial(job_id)

    # --- follow up ----------------------------------------------------------------------------------------------------

    def claim_to_follow_up(self) -> Step:
        """Take the next call that is in doubt, without news or unwanted, and ask Twilio about it, or end it."""
        settings = self._settings
        call = self._jobs.claim_open(
            hold_s=settings.call_lease_seconds,
            ask_s=settings.call_ask_seconds,
            give_up_s=TWILIO_QUEUE_SECONDS + settings.call_ring_seconds + settings.call_time_limit_seconds,
        )
        return StepResult("nothing") if isinstance(call, models.Nothing) else partial(self._follow_up, call)

    def _follow_up(self, call: models.OpenCall) -> StepResult:
        with structlog.contextvars.bound_contextvars(job=call.job_id, attempt=str(call.attempt)):
            self._fault_point("asking")
            if call.lease_ran_out:
                log.error("lease expired: the call is in doubt", kind="call_in_doubt", code="lease_ran_out")
            try:
                return self._settle(call) if call.call_sid is None else self._ask_after(call, call.call_sid)
            except TwilioUnavailable as error:
                log.error("Twilio could not be asked: the call stays as it is", state=call.state, reason=str(error))
                return StepResult("unasked", call.job_id, call.state)

    def _settle(self, call: models.OpenCall) -> StepResult:
        settings = self._settings
        listed = self._telephony.find(call.phone_e164, call.started_at, call.from_e164)
        self._fault_point("listed")
        delays_s = backoff.delays(settings.call_retry_seconds, settings.call_max_attempts)
        settlement = self._jobs.settle(call.attempt, call.asked_at, listed, self._settle_policy, delays_s=delays_s)
        match settlement:
            case models.Found():
                log.warning("doubt settled: Twilio has the call", call_sid=settlement.call_sid)
                found = next(c for c in listed if c.sid == settlement.call_sid)
                self.end_if_unwanted(self.record_status(call.attempt, found.event), found.sid)
                return StepResult("settled", call.job_id, "found")
            case models.Absent():
                log.warning("doubt settled: Twilio has no such call", job_status=settlement.job_status)
                return StepResult("settled", call.job_id, "absent")
            case models.NotYet():
                return StepResult("still_in_doubt", call.job_id, "not_yet")
            case models.Ambiguous():
                several = "several listed calls match a call in doubt: a person must decide"
                log.critical(several, kind="call_ambiguous", calls=settlement.calls)
                return StepResult("still_in_doubt", call.job_id, "ambiguous")
            case models.Settled():
                return StepResult("settled", call.job_id, "meanwhile")
            case _:
                assert_never(settlement)

    def _ask_after(self, call: models.OpenCall, call_sid: str) -> StepResult:
        if call.end:
            self._telephony.end(call_sid)
            log.warning("unwanted call ended", state=call.state, call_sid=call_sid)
        known = self._telephony.fetch(call_sid)
        self._fault_point("fetched")
        if known is not None and known.status == "queued" and not call.end:
            if call.put_off:
                self._telephony.cancel(call_sid)
                log.warning("call canceled in Twilio's queue: it must not ring now", call_sid=call_sid)
                known = self._telephony.fetch(call_sid)
            else:
                # The call may leave the queue at any moment until the next ask, which may come late.
                next_ask = call.asked_at + timedelta(seconds=2 * self._settings.call_ask_seconds)
                number = parse_number(call.phone_e164, self._settings)
                self._put_off_if_late(call.attempt, call_sid, number, call.metadata, next_ask)
        if known is None:
            # A fresh SID may not be readable yet. SQL gives an old one up in time.
            return StepResult("asked", call.job_id, "unknown")
        recorded = self.record_status(call.attempt, known.event)
        if not call.end:
            self.end_if_unwanted(recorded, call_sid)
        return StepResult("ended" if call.end else "asked", call.job_id, known.status)

    # --- events from Twilio -------------------------------------------------------------------------------------------

    def record_status(self, attempt: UUID, event: models.CallEvent) -> LiveCall:
        """Record a call status. Idempotent; statuses may arrive in any order."""
        settings = self._settings
        call = self._jobs.record_status(
            attempt,
            event,
            ask_s=settings.call_ask_seconds,
            redial_delays_s=backoff.delays(settings.call_redial_seconds, settings.call_max_attempts),
            machine_counts_as="missed" if settings.call_machines == "missed" else "reached",
        )
        if call.moved:
            job_status = call.job and call.job.status
            log.info("call status", call_sid=event.call_sid, status=event.call_status, job_status=job_status)
        return call

    def record_answer(self, attempt: UUID, call_sid: str, answer: models.Answer) -> LiveCall:
        """Record an answer. Idempotent: the same answer is stored once."""
        call = self._jobs.record_answer(attempt, call_sid, answer, ask_s=self._settings.call_ask_seconds)
        if answer.opt_out:
            log.warning("opted out: this number is not called again", call_sid=call_sid)
        return call

    def awaits_detection(self, call: LiveCall) -> bool:
        """Whether Twilio may still find that a machine answered."""
        return self._settings.call_machines != "ignore" and call.answered_by is None

    def may_ask_for_later(self, call: LiveCall) -> bool:
        return call.job is not None and call.job.laters < self._settings.call_later_max

    def find_later(self, call: LiveCall, wish: str) -> datetime | None:
        """The first right moment of a later call; None: this person may not ask for one any more, or there is none."""
        number = self._number_of(call)
        if call.job is None or call.now is None or number is None or not self.may_ask_for_later(call):
            return None
        zone, _ = persons_clock(number, call.job.metadata, call.now)
        wished = wished_moment(wish, call.now.astimezone(zone))
        return next_moment(number, call.job.metadata, self._settings, wished)

    def later_in_words(self, call: LiveCall, language: str) -> str | None:
        """The stored time of the later call, as the person's clock shows it; None: no later call is agreed."""
        number = self._number_of(call)
        if call.job is None or call.now is None or number is None or call.later_at is None:
            return None
        zone, place = persons_clock(number, call.job.metadata, call.now)
        return time_in_words(language, call.later_at.astimezone(zone), call.now, place)

    def _number_of(self, call: LiveCall) -> PhoneNumber | None:
        number = parse_number(call.job.phone_e164 or "", self._settings) if call.job else None
        return number if isinstance(number, PhoneNumber) else None

    def plan_transfer(self, answer: ScriptAnswer, call: LiveCall, picked_up_at: float) -> Transfer | None:
        """Whether the answer's colleague is rung now. `picked_up_at`: when this call was answered, in Unix seconds."""
        left_s = self._settings.call_time_limit_seconds - max(0.0, time.time() - picked_up_at)
        return plan_transfer(answer, self._settings, call.now or datetime.now(UTC), left_s)

    def play_twiml(self, call_sid: str, twiml: str) -> None:
        """Replace the running TwiML of a live call with this document."""
        try:
            self._telephony.play_twiml(call_sid, twiml)
            log.info("a machine answered: it hears its message, or the call ends", call_sid=call_sid)
        except TwilioUnavailable as error:
            # The machine hears its message when it leaves the question unanswered.
            log.error("a machine answered, and Twilio did not take its message", call_sid=call_sid, reason=str(error))

    def end_if_unwanted(self, call: LiveCall, call_sid: str) -> None:
        """End a call that the database does not want: a duplicate, a canceled one, or one of no known attempt."""
        if call.is_wanted or call.call_status in models.FINAL_CALL_STATUSES:
            return
        if call.state in ("duplicate", None):
            kind = "call_duplicate" if call.state else "call_unknown"
            log.critical("a duplicate or unknown call: ending it", kind=kind, call_sid=call_sid, state=call.state)
        try:
            self._telephony.end(call_sid)
        except TwilioUnavailable as error:
            log.error("the call could not be ended; the sweep tries again", call_sid=call_sid, reason=str(error))


def _why_not(claim: models.NothingDue) -> str:
    why = f" ({claim.reason_code})" if claim.reason_code else ""
    if claim.status != "queued":
        return f"already {claim.status}{why}" if claim.status else "no such job"
    if claim.due_at is None or claim.due_at <= datetime.now(UTC):
        return f"another process is looking at it{why}"
    return f"not due before {claim.due_at:%Y-%m-%d %H:%M:%S}{why}"


def wire(settings: Settings) -> tuple[Jobs, Dispatcher]:
    """Make the parts. Call it after the fork: processes must not share its connections."""
    from shared.database import connect  # with the first request, not while an instance starts

    jobs = Jobs(connect(settings))
    return jobs, Dispatcher(settings, jobs, Telephony(settings))
