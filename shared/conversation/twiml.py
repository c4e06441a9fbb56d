"""A turn of the conversation as a TwiML document, made with twilio's builder.

texts.py keeps these limits: 4,096 characters in a Say, 64 KiB in a document, 4,000 characters in a document that is sent
with a request. https://www.twilio.com/docs/voice/twiml/gather https://www.twilio.com/docs/voice/twiml/say
"""

from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

from shared.conversation.colleagues import Transfer
from shared.conversation.hearing import hints
from shared.conversation.script import Connect, Script, first_name
from shared.conversation.texts import Recording, Text, Texts, given, one_line
from shared.conversation.turns import AGENT_FAILED, CONNECT, DIAL, WHISPER, Place, Turn
from shared.models import LiveJob, Person

if TYPE_CHECKING:
    from twilio.twiml.voice_response import Gather, VoiceResponse

SILENCE_SECONDS = 6
"""How long the call waits for a key or a word after the question."""
CONNECT_SECONDS = 3
"""How long the call waits for the opt-out key before the agent has it."""
LONGEST_PARAMETER = 200
"""Longest value that the agent is told, in characters; longer ones are left out."""
WHISPER_SECONDS = 6
"""How long the colleague's leg waits for a key after the whisper. A voicemail presses none."""
SPEECH_END_SECONDS = 2
"""Silence that ends a spoken answer. "auto" is refused with Twilio's default model (warning 13335)."""


def render_twiml(turn: Turn, script: Script, person: Person | None, voice_url: str = "") -> str:
    """The words, then a Gather that posts the key or the silence to `voice_url`; or a hang-up."""
    twiml = _response(script, turn.says, person)
    if turn.place is None:
        twiml.hangup()
        return str(twiml)
    speech = {}
    if script.listen != "keys":
        known = hints(script, script.question(turn.place.at))
        speech = {"language": script.language, "speech_timeout": SPEECH_END_SECONDS, "hints": known or None}
    gather = twiml.gather(
        input="dtmf speech" if speech else "dtmf",
        num_digits=1,
        finish_on_key="#",
        timeout=CONNECT_SECONDS if turn.place.at == CONNECT else SILENCE_SECONDS,
        action=place_url(voice_url, turn.place),
        method="POST",
        action_on_empty_result=True,  # by default Twilio does not report silence
        **speech,
    )
    _add_texts(gather, script, turn.asks, person)
    return str(twiml)


def render_handover(script: Script, job: LiveJob, attempt: UUID, voice_url: str) -> str:
    """Hand the call over to the script's agent. Twilio asks `voice_url` when the session ends, and if there is none."""
    assert script.connect is not None
    connect, twiml = script.connect, _response()
    action = place_url(voice_url, Place(script.name, AGENT_FAILED))
    verb = twiml.connect(action=action, method="POST")
    if connect.kind == "stream":
        agent = verb.stream(url=connect.url)
    else:
        welcome = script.fill(connect.welcome, job) if connect.welcome else None
        told = {"language": script.language, "dtmf_detection": True, "welcome_greeting": welcome}
        agent = verb.conversation_relay(url=connect.url, **told, **connect.relay)
    for name, value in _parameters(script, connect, job, attempt).items():
        agent.parameter(name=name, value=value)
    twiml.redirect(action, method="POST")
    return str(twiml)


def _parameters(script: Script, connect: Connect, job: LiveJob, attempt: UUID) -> dict[str, str]:
    """What the agent is told. A value of the metadata is passed as it was typed, on one line."""
    typed = {name: job.metadata.get(name) for name in connect.metadata}
    ours = {"attempt": str(attempt), "job": job.id, "mode": job.signup_mode, "opt_out_key": script.opt_out.key}
    told = typed | ours | {"first_name": first_name(job)}
    lines = {name: one_line(str(value)) for name, value in told.items() if isinstance(value, str | int | float)}
    return {name: line for name, line in lines.items() if 0 < len(line) <= LONGEST_PARAMETER}


def place_url(voice_url: str, place: Place | None, **more: str | int) -> str:
    """`voice_url` (it has a query) at this place. Twilio signs the URL with its next request, so `more` can be trusted."""
    at = {"script": place.script, "at": place.at, "try": place.tries} if place else {}
    return f"{voice_url}&{urlencode(at | more)}"


def render_transfer(turn: Turn, transfer: Transfer, script: Script, person: Person | None, voice_url: str) -> str:
    """Ring the colleague. Twilio asks `voice_url` what to whisper on the second leg, and what follows when it has ended."""
    assert turn.place is not None
    twiml = _response(script, turn.says, person)
    dial = twiml.dial(
        action=place_url(voice_url, turn.place),
        method="POST",
        timeout=transfer.ring_s,
        time_limit=transfer.limit_s,
        caller_id=transfer.caller_id,
        answer_on_bridge=True,  # the person hears the ringing tone while the colleague hears the whisper
    )
    there = Place(turn.place.script, WHISPER + turn.place.at.removeprefix(DIAL))
    dial.number(transfer.number, url=place_url(voice_url, there), method="POST")
    return str(twiml)


def render_whisper(script: Script, whisper: Text, person: Person | None) -> str:
    """For the colleague. A key posts to the URL of this document; without one the leg ends. Allowed are Say, Play, Gather and
    Hangup: https://www.twilio.com/docs/voice/twiml/number#attributes-url"""
    twiml = _response()
    gather = twiml.gather(input="dtmf", num_digits=1, finish_on_key="", timeout=WHISPER_SECONDS, method="POST")
    _add_texts(gather, script, (whisper,), person)
    twiml.hangup()
    return str(twiml)


def join_the_two() -> str:
    """An empty document ends the whisper, and Twilio connects the two legs."""
    return str(_response())


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


def render_wait(script: Script, seconds: int, voice_url: str, asks: bool = True) -> str:
    """Ask for patience, and have Twilio request `voice_url` after `seconds`."""
    words = script.please_wait or PLEASE_WAIT.get(script.language.partition("-")[0])
    twiml = _response(script, given(words if asks else None))
    twiml.pause(length=seconds)
    twiml.redirect(voice_url, method="POST")
    return str(twiml)


def hang_up() -> str:
    twiml = _response()
    twiml.hangup()
    return str(twiml)


def _response(script: Script | None = None, says: Texts = (), person: Person | None = None) -> "VoiceResponse":
    """A document that says `says`. The builder is imported with the first answered call: an instance starts 5 ms sooner."""
    from twilio.twiml.voice_response import VoiceResponse

    twiml = VoiceResponse()
    if script:
        _add_texts(twiml, script, says, person)
    return twiml


def _add_texts(verb: "VoiceResponse | Gather", script: Script, texts: Texts, person: Person | None) -> None:
    for text in texts:
        if isinstance(text, Recording):
            verb.play(text.play)
        else:
            verb.say(script.fill(text, person), voice=script.voice, language=script.language)
