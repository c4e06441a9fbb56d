"""A turn of the conversation as a TwiML document, made with twilio's builder.

script.py keeps these limits: 4,096 characters in a Say, 64 KiB in a document, 4,000 characters in a document that is sent
with a request. https://www.twilio.com/docs/voice/twiml/gather https://www.twilio.com/docs/voice/twiml/say
"""

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from shared.conversation.hearing import hints
from shared.conversation.script import Script
from shared.conversation.texts import Recording
from shared.conversation.turns import Turn
from shared.models import Person

if TYPE_CHECKING:
    from twilio.twiml.voice_response import Gather, VoiceResponse

SILENCE_SECONDS = 6
"""How long the call waits for a key or a word after the question."""
SPEECH_END_SECONDS = 2
"""Silence that ends a spoken answer. "auto" is refused with Twilio's default model (warning 13335)."""


def render_twiml(turn: Turn, script: Script, person: Person | None, voice_url: str = "") -> str:
    """The words, then a Gather that posts the key or the silence to `voice_url`; or a hang-up."""
    twiml = _response()
    for text in turn.says:
        add_text(twiml, script, text, person)
    if turn.place is None:
        twiml.hangup()
        return str(twiml)
    place = urlencode({"script": turn.place.script, "at": turn.place.at, "try": turn.place.tries})
    speech = {}
    if script.listen != "keys":
        known = hints(script, script.question(turn.place.at))
        speech = {"language": script.language, "speech_timeout": SPEECH_END_SECONDS, "hints": known or None}
    gather = twiml.gather(
        input="dtmf speech" if speech else "dtmf",
        num_digits=1,
        finish_on_key="#",
        timeout=SILENCE_SECONDS,
        action=f"{voice_url}&{place}",
        method="POST",
        action_on_empty_result=True,  # by default Twilio does not report silence
        **speech,
    )
    for text in turn.asks:
        add_text(gather, script, text, person)
    return str(twiml)


PLEASE_WAIT = {
    "en": "One moment, please.",
    "es": "Un momento, por favor.",
    "de": "Einen Moment, bitte.",
    "fr": "Un instant, s'il vous plaît.",
    "it": "Un momento, per favore.",
    "pt": "Um momento, por favor.",
    "nl": "Een ogenblik, alstublieft.",
}
"""Said by a script without a `please_wait`, by language; a script of another language says nothing."""


def render_wait(script: Script, seconds: int, voice_url: str) -> str:
    """Ask for patience, and have Twilio request `voice_url` after `seconds`."""
    twiml = _response()
    words = script.please_wait or PLEASE_WAIT.get(script.language.partition("-")[0])
    if words:
        add_text(twiml, script, words, None)
    twiml.pause(length=seconds)
    twiml.redirect(voice_url, method="POST")
    return str(twiml)


def hang_up() -> str:
    twiml = _response()
    twiml.hangup()
    return str(twiml)


def _response() -> "VoiceResponse":
    """The builder is imported with the first call that is answered: an instance starts 5 ms sooner."""
    from twilio.twiml.voice_response import VoiceResponse

    return VoiceResponse()


def add_text(verb: "VoiceResponse | Gather", script: Script, text: str | Recording, person: Person | None) -> None:
    if isinstance(text, Recording):
        verb.play(text.play)
    else:
        add_say(verb, script, text, person)


def add_say(verb: "VoiceResponse | Gather", script: Script, text: str, person: Person | None) -> None:
    verb.say(script.fill(text, person), voice=script.voice, language=script.language)
