"""Twilio tells how a call goes on: initiated, ringing, answered, completed; in any order, any number of times. And, where
it listens for machines, who has answered."""

from uuid import UUID

import structlog

from function.twilio_form import CallEvent
from shared.conversation.script import Scripts
from shared.conversation.turns import voicemail_turn
from shared.conversation.twiml import render_twiml
from shared.dispatcher import Dispatcher

log = structlog.get_logger()


def handle(attempt: UUID | None, event: CallEvent, dispatcher: Dispatcher, scripts: Scripts) -> None:
    """Record it, end the call if it is one too many, and give a machine its message.

    Raises JobsUnavailable; Twilio then tells us again.
    """
    # What asynchronous detection found comes alone, without a CallStatus: somebody has answered by then.
    status = event.call_status or ("in-progress" if event.answered_by and not event.said else None)
    if status is None:
        log.warning("a callback without a status that we know", call_sid=event.call_sid, said=event.said)
        return
    if attempt is None or not event.call_sid:
        log.warning("a callback for no attempt of ours", call_sid=event.call_sid)
        return
    call = dispatcher.record_status(
        attempt,
        event.call_sid,
        status,
        answered_by=event.answered_by,
        duration_s=event.duration_s,
        sip_code=event.sip_code,
        error_code=event.error_code,
    )
    if not event.is_live:
        return
    if call.machine_now and call.is_wanted and call.job is not None:
        script = scripts.for_mode(call.job.signup_mode)
        dispatcher.play_twiml(event.call_sid, render_twiml(voicemail_turn(script), script, call.job))
    dispatcher.end_if_unwanted(call, event.call_sid)
