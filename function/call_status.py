"""Handle Twilio's status callbacks (initiated, ringing, answered, completed) and the result of machine detection.

Twilio sends them in any order, any number of times.
"""

from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from function.worker import TWILIO_WAITERS
from shared.conversation.library import Scripts
from shared.conversation.turns import voicemail_turn
from shared.conversation.twiml import render_twiml
from shared.models import FINAL_CALL_STATUSES, CallEvent

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

log = structlog.get_logger()


def handle(attempt: UUID | None, event: CallEvent, dispatcher: "Dispatcher", scripts: Scripts) -> None:
    """Record the event, end the call if it is unwanted, and play a machine its message.

    Raises JobsUnavailable; Twilio then sends the callback again.
    """
    if attempt is None or not event.call_sid or event.call_status is None:
        log.warning("a callback without an attempt, a SID or a known status", call_sid=event.call_sid)
        return
    call = dispatcher.record_status(attempt, event)
    if event.call_status in FINAL_CALL_STATUSES:
        return
    if not TWILIO_WAITERS.acquire(blocking=False):
        log.warning("enough threads wait for Twilio; the sweep ends unwanted calls", call_sid=event.call_sid)
        return
    try:
        if call.machine_now and call.is_wanted and call.job is not None:
            script = scripts.for_person(call.job)
            dispatcher.play_twiml(event.call_sid, render_twiml(voicemail_turn(script), script, call.job))
        dispatcher.end_if_unwanted(call, event.call_sid)
    finally:
        TWILIO_WAITERS.release()
