"""A turn of the conversation as a TwiML document, made by twilio's own builder.

Limits that scripts.py keeps, so that none of these documents can break them: 4,096 characters a Say, 64 KiB a document,
4,000 characters where a document is sent with the request.
https://www.twilio.com/docs/voice/twiml/gather https://www.twilio.com/docs/voice/twiml/say
"""

from urllib.parse import urlencode

from twilio.twiml.voice_response import Gather, VoiceResponse

from shared.conversation.script import Script
from shared.conversation.turns import Turn
from shared.models import Person

SILENCE_SECONDS = 6
"""How long we listen after the question before it counts as not answered."""


def render_twiml(turn: Turn, script: Script, person: Person | None, voice_url: str = "") -> str:
    """Says, then a Gather that asks and comes back to `voice_url` with the key, silence included; or a hang-up."""
    twiml = VoiceResponse()
    for text in turn.says:
        _say(twiml, script, text, person)
    if turn.place is None:
        twiml.hangup()
        return str(twiml)
    place = urlencode({"script": turn.place.script, "at": turn.place.at, "try": turn.place.tries})
    gather = twiml.gather(
        input="dtmf",
        num_digits=1,
        finish_on_key="#",
        timeout=SILENCE_SECONDS,
        action=f"{voice_url}&{place}",
        method="POST",
        action_on_empty_result=True,  # by default silence falls through to the next verb, and nobody would hear of it
    )
    for text in turn.asks:
        _say(gather, script, text, person)
    return str(twiml)


def hang_up() -> str:
    twiml = VoiceResponse()
    twiml.hangup()
    return str(twiml)


def _say(verb: VoiceResponse | Gather, script: Script, text: str, person: Person | None) -> None:
    verb.say(script.say(text, person), voice=script.voice, language=script.language)
