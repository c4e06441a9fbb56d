"""Twilio asks what to say, because somebody picked up."""

from uuid import UUID

import structlog
from twilio.twiml.voice_response import VoiceResponse

from function.twilio_form import CallEvent
from shared.dispatcher import Dispatcher
from shared.jobs import JobsUnavailable
from shared.models import Person
from shared.scripts import Script, Scripts

log = structlog.get_logger()


def handle(attempt: UUID | None, event: CallEvent, dispatcher: Dispatcher, scripts: Scripts) -> str:
    """-> TwiML: the words for this attempt's person; a hang-up for a call that is not wanted. Never an error page."""
    if attempt is None or not event.call_sid:
        log.critical("a call of no attempt of ours: it is hung up", kind="call_unknown", call_sid=event.call_sid)
        return hang_up()
    try:
        call = dispatcher.record_status(attempt, event.call_sid, event.call_status or "in-progress")
    except JobsUnavailable as down:
        log.error("the database did not answer a call: it hears the apology", reason=str(down))
        return _speak(scripts.default, None, scripts.default.apology)
    if not call.is_wanted or call.job is None:
        log.critical(
            "a call too many was answered: it is hung up",
            kind={"duplicate": "call_duplicate", None: "call_unknown"}.get(call.state, "call_unwanted"),
            call_sid=event.call_sid,
            state=call.state,
        )
        return hang_up()
    script = scripts.for_mode(call.job.signup_mode)
    return _speak(script, call.job, script.greeting, script.body, script.goodbye)


def hang_up() -> str:
    twiml = VoiceResponse()
    twiml.hangup()
    return str(twiml)


def _speak(script: Script, person: Person | None, *texts: str) -> str:
    twiml = VoiceResponse()
    for text in texts:
        twiml.say(script.say(text, person), voice=script.voice, language=script.language)
    twiml.hangup()
    return str(twiml)
