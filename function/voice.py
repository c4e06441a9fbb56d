"""Answer Twilio's request for TwiML: when a person picks up, and after each key or silence."""

from dataclasses import replace
from uuid import UUID

import structlog

from shared.conversation.library import Scripts
from shared.conversation.script import Script
from shared.conversation.turns import Place, Turn, apology_turn, first_turn, next_turn, voicemail_turn
from shared.conversation.twiml import hang_up, render_twiml
from shared.dispatcher import Dispatcher
from shared.jobs import JobsUnavailable
from shared.models import Answer, CallEvent, LiveCall

log = structlog.get_logger()


def handle(
    attempt: UUID | None,
    place: Place | None,
    event: CallEvent,
    digits: str,
    action: str,
    dispatcher: Dispatcher,
    scripts: Scripts,
) -> str:
    """Return the TwiML for this attempt's person; a hang-up for an unwanted call. Costs one RPC.

    `place` is None when the person picks up. `action` is the URL, without a place, that Twilio requests next.
    """
    if attempt is None or not event.call_sid:
        log.critical("a call without a known attempt: hanging up", kind="call_unknown", call_sid=event.call_sid)
        return hang_up()
    if place is None:
        return _begin(attempt, event, action, dispatcher, scripts)
    return _go_on(attempt, place, event, digits, action, dispatcher, scripts.named(place.script))


def _begin(attempt: UUID, event: CallEvent, action: str, dispatcher: Dispatcher, scripts: Scripts) -> str:
    try:
        call = dispatcher.record_status(attempt, replace(event, call_status=event.call_status or "in-progress"))
    except JobsUnavailable as error:
        _log_unstored(attempt, None, event, Answer(""), error)
        return render_twiml(apology_turn(scripts.default), scripts.default, None)
    script = scripts.for_person(call.job) if call.job else scripts.default
    return _render(first_turn(script), script, call, event, action)


def _go_on(
    attempt: UUID, place: Place, event: CallEvent, digits: str, action: str, dispatcher: Dispatcher, script: Script
) -> str:
    turn = next_turn(script, place, digits)
    answer = Answer(digits, opt_out=turn.opts_out)
    if turn.learned is not None:
        answer = replace(answer, question=turn.learned.question, meaning=turn.learned.meaning)
    try:
        call = dispatcher.record_answer(attempt, event.call_sid, answer)
    except JobsUnavailable as error:
        _log_unstored(attempt, place, event, answer, error)
        return render_twiml(apology_turn(script), script, None)
    return _render(turn, script, call, event, action)


def _render(turn: Turn, script: Script, call: LiveCall, event: CallEvent, action: str) -> str:
    if not call.is_wanted or call.job is None:
        _log_unwanted(event.call_sid, call)
        return hang_up()
    if call.by_machine and not turn.opts_out:
        turn = voicemail_turn(script)
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
            "an answer was not stored; the person hears the apology",
            kind="answer_not_stored",
            question=answer.question,
            meaning=answer.meaning,
            **about,
        )
    else:
        log.error(
            "the database did not answer; the person hears the apology",
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
