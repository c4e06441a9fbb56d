"""Answer Twilio's request for TwiML: when a person picks up, and after each key or silence."""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

import structlog

from function.twilio_form import Waits
from shared.conversation.library import Scripts
from shared.conversation.script import Script
from shared.conversation.turns import (
    Place,
    Turn,
    agreed_turn,
    apology_turn,
    first_turn,
    next_turn,
    turn_without_later,
    voicemail_turn,
)
from shared.conversation.twiml import hang_up, render_twiml, render_wait
from shared.jobs import JobsUnavailable
from shared.models import Answer, CallEvent, LiveCall

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

log = structlog.get_logger()

# The database did not answer while a person is on the line: they are asked to wait this often, for this long in all.
MAX_WAITS = 2
PATIENCE_SECONDS = 20
PAUSE_SECONDS = 2


def handle(
    attempt: UUID | None,
    place: Place | None,
    event: CallEvent,
    digits: str,
    heard: str,
    waits: Waits,
    action: str,
    dispatcher: "Dispatcher",
    scripts: Scripts,
) -> str:
    """Return the TwiML for this attempt's person; a hang-up for an unwanted call. Costs one RPC.

    When the database does not answer, the person is asked to wait, and Twilio to ask again; at last comes the apology.
    `place` is None when the person picks up. `action` is the URL, without a place, that Twilio requests next.
    """
    if attempt is None or not event.call_sid:
        log.critical("a call without a known attempt: hanging up", kind="call_unknown", call_sid=event.call_sid)
        return hang_up()
    script = scripts.named(place.script) if place else scripts.default
    patience = Patience(script, place, digits, action, waits if waits.since else Waits(since=int(time.time())))
    if place is None:
        return _begin(attempt, event, action, dispatcher, scripts, patience)
    return _go_on(attempt, place, event, digits, heard, action, dispatcher, script, patience)


@dataclass(frozen=True)
class Patience:
    """The answer while the database does not answer."""

    script: Script
    place: Place | None
    digits: str
    action: str
    waits: Waits

    def twiml(self) -> str:
        """Ask the person to wait and Twilio to ask again, MAX_WAITS times within PATIENCE_SECONDS; then apologize."""
        waits = replace(self.waits, count=self.waits.count + 1)
        if waits.count > MAX_WAITS or time.time() + PAUSE_SECONDS > waits.since + PATIENCE_SECONDS:
            return render_twiml(apology_turn(self.script), self.script, None)
        query: dict[str, object] = {"waits": waits.count, "since": waits.since, "keys": self.digits}
        if self.place:
            query |= {"script": self.place.script, "at": self.place.at, "try": self.place.tries}
        return render_wait(self.script, PAUSE_SECONDS, f"{self.action}&{urlencode(query)}")


def _begin(
    attempt: UUID, event: CallEvent, action: str, dispatcher: "Dispatcher", scripts: Scripts, patience: Patience
) -> str:
    try:
        call = dispatcher.record_status(attempt, replace(event, call_status=event.call_status or "in-progress"))
    except JobsUnavailable as error:
        _log_unstored(attempt, None, event, Answer(""), error)
        return patience.twiml()
    script = scripts.for_person(call.job) if call.job else scripts.default
    return _render(first_turn(script), script, call, event, action, dispatcher)


def _go_on(
    attempt: UUID,
    place: Place,
    event: CallEvent,
    digits: str,
    heard: str,
    action: str,
    dispatcher: "Dispatcher",
    script: Script,
    patience: Patience,
) -> str:
    turn = next_turn(script, place, digits, heard)
    spoken = heard if heard and not digits and (turn.learned or turn.opts_out) else None
    answer = Answer(script.opt_out.key if turn.opts_out else digits, opt_out=turn.opts_out, heard=spoken)
    if turn.learned is not None:
        learned = turn.learned
        answer = replace(answer, digits=learned.key, question=learned.question, meaning=learned.meaning)
    try:
        if turn.later:
            # One RPC more: who this is, and when they may be called. Then answer and wish are stored in one step.
            call = dispatcher.record_status(attempt, replace(event, call_status=event.call_status or "in-progress"))
            later_at = dispatcher.find_later(call, turn.later)
            if later_at is None:  # the key counts as not understood
                turn, answer = next_turn(script, place, ""), Answer(digits)
            else:
                answer = replace(answer, later_at=later_at)
        call = dispatcher.record_answer(attempt, event.call_sid, answer)
    except JobsUnavailable as error:
        _log_unstored(attempt, place, event, answer, error)
        return replace(patience, digits=answer.digits).twiml()  # spoken words travel in no URL, only their key
    if turn.later:
        agreed = dispatcher.later_in_words(call, script.language)
        turn = agreed_turn(turn, agreed) if agreed else Turn(says=(script.goodbye,))
    return _render(turn, script, call, event, action, dispatcher)


def _render(turn: Turn, script: Script, call: LiveCall, event: CallEvent, action: str, dispatcher: "Dispatcher") -> str:
    if not call.is_wanted or call.job is None:
        _log_unwanted(event.call_sid, call)
        return hang_up()
    if call.by_machine and not turn.opts_out:
        turn = voicemail_turn(script)
    if not dispatcher.may_ask_for_later(call):
        turn = turn_without_later(script, turn)
    return render_twiml(turn, script, call.job, action)


def _log_unstored(attempt: UUID, place: Place | None, event: CallEvent, answer: Answer, error: Exception) -> None:
    """Log enough for a person to store the answer by hand: the attempt's id leads to the job and the number."""
    about = {"attempt": str(attempt), "call_sid": event.call_sid, "digits": answer.digits, "reason": str(error)}
    if answer.opt_out:
        log.critical(
            "an opt-out was not stored: call opt_out() for this attempt's number", kind="opt_out_not_stored", **about
        )
    elif answer.question is not None:
        log.error(
            "an answer was not stored; the person waits, or hears the apology",
            kind="answer_not_stored",
            question=answer.question,
            meaning=answer.meaning,
            **about,
        )
    else:
        log.error(
            "the database did not answer; the person waits, or hears the apology",
            kind="database_down",
            at=place.at if place else None,
            **about,
        )


def _log_unwanted(call_sid: str, call: LiveCall) -> None:
    if call.state in ("duplicate", None):
        kind = "call_duplicate" if call.state else "call_unknown"
        log.critical(
            "a duplicate or unknown call was answered: hanging up", kind=kind, call_sid=call_sid, state=call.state
        )
    else:
        log.warning("an unwanted call was answered: hanging up", kind="call_unwanted", call_sid=call_sid)
