"""Twilio asks what to say: because somebody picked up, and after each key or silence."""

from uuid import UUID

import structlog

from function.twilio_form import CallEvent
from shared.conversation.script import Scripts
from shared.conversation.turns import Place, Turn, apology_turn, first_turn, next_turn, voicemail_turn
from shared.conversation.twiml import hang_up, render_twiml
from shared.dispatcher import Dispatcher
from shared.jobs import JobsUnavailable
from shared.models import LiveCall

log = structlog.get_logger()


def handle(
    attempt: UUID | None, place: Place | None, event: CallEvent, dispatcher: Dispatcher, scripts: Scripts
) -> str:
    """-> TwiML: the next words for this attempt's person; a hang-up for a call that is not wanted. Never an error page.

    `place` is None when somebody picks up. One RPC, whatever was pressed.
    """
    if attempt is None or not event.call_sid:
        log.critical("a call of no attempt of ours: it is hung up", kind="call_unknown", call_sid=event.call_sid)
        return hang_up()
    script = scripts.for_mode(place.script) if place else scripts.default
    turn = next_turn(script, place, event.digits) if place else None
    try:
        if turn is None:
            call = dispatcher.record_status(attempt, event.call_sid, event.call_status or "in-progress")
        else:
            call = dispatcher.record_answer(attempt, event.call_sid, turn, event.digits)
    except JobsUnavailable as down:
        _log_unstored(attempt, place, event, turn, down)
        return render_twiml(apology_turn(script), script, None)
    if not call.is_wanted or call.job is None:
        _log_unwanted(event.call_sid, call)
        return hang_up()
    if turn is None:
        script = scripts.for_mode(call.job.signup_mode)
        turn = first_turn(script)
    if call.by_machine and not turn.opts_out:
        turn = voicemail_turn(script)
    return render_twiml(turn, script, call.job, f"{dispatcher.settings.api_base_url}/voice?attempt={attempt}")


def _log_unstored(
    attempt: UUID, place: Place | None, event: CallEvent, turn: Turn | None, down: JobsUnavailable
) -> None:
    """So that a person can write it down by hand: the attempt's id leads to the job and the number."""
    about = {"attempt": str(attempt), "call_sid": event.call_sid, "digits": event.digits, "reason": str(down)}
    if turn is not None and turn.opts_out:
        log.critical(
            "an opt-out was not stored: tell opt_out the number of this attempt", kind="opt_out_not_stored", **about
        )
    elif turn is not None and turn.learned is not None:
        log.error(
            "an answer was not stored; the person heard the apology",
            kind="answer_not_stored",
            question=turn.learned.question,
            meaning=turn.learned.meaning,
            **about,
        )
    else:
        log.error(
            "the database did not answer a call: it hears the apology",
            kind="database_down",
            at=place.at if place else None,
            **about,
        )


def _log_unwanted(call_sid: str, call: LiveCall) -> None:
    if call.state in ("duplicate", None):
        kind = "call_duplicate" if call.state else "call_unknown"
        log.critical("a call too many was answered: it is hung up", kind=kind, call_sid=call_sid, state=call.state)
    else:
        log.warning(
            "a call that is not wanted any more was answered: it is hung up", kind="call_unwanted", call_sid=call_sid
        )
