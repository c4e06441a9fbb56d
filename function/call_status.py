"""Twilio tells how a call goes on: initiated, ringing, answered, completed; in any order, any number of times."""

from uuid import UUID

import structlog

from function.twilio_form import CallEvent
from shared.dispatcher import Dispatcher

log = structlog.get_logger()


def handle(attempt: UUID | None, event: CallEvent, dispatcher: Dispatcher) -> None:
    """Record it, and end the call if it is one too many. Raises JobsUnavailable; Twilio then tells us again."""
    if event.call_status is None:
        log.warning("a callback without a status that we know", call_sid=event.call_sid, said=event.said)
        return
    if attempt is None or not event.call_sid:
        log.warning("a callback for no attempt of ours", call_sid=event.call_sid)
        return
    call = dispatcher.record_status(
        attempt,
        event.call_sid,
        event.call_status,
        answered_by=event.answered_by,
        duration_s=event.duration_s,
        sip_code=event.sip_code,
        error_code=event.error_code,
    )
    if event.is_live:
        dispatcher.end_if_unwanted(call, event.call_sid)
