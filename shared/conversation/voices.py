"""The voices and languages of <Say>, as far as they are known without asking Twilio.

Twilio says nothing at all in a voice that it does not have. https://www.twilio.com/docs/voice/twiml/say/text-speech
"""

import difflib
import re
from collections.abc import Iterable
from typing import Final

_LANGUAGE: Final = r"[a-z]{2,3}(?:-[A-Z][a-z]{3})?(?:-(?:[A-Z]{2}|[0-9]{3}))?(?:-[A-Z]{3})?"
_BASIC: Final = ("man", "woman", "alice")
_POLLY_VOICE: Final = re.compile(r"Polly\.(?P<name>[A-Za-z]+)(?P<engine>-Neural|-Generative|-Long-Form)?")
_GOOGLE_VOICE: Final = re.compile(
    rf"Google\.(?P<language>{_LANGUAGE})-(?P<family>[A-Za-z0-9]+(?:-HD)?)-(?P<name>[A-Z][A-Za-z]*)"
)
_GOOGLE_FAMILIES: Final = "Standard Wavenet Neural2 Polyglot Studio News Casual Journey Chirp-HD Chirp3-HD".split()

# Amazon Polly's voices by language, of November 2026; * has the standard engine only, + has every engine but that.
# https://docs.aws.amazon.com/polly/latest/dg/available-voices.html
_POLLY: Final = {
    "ar": "Zeina* Hala+ Zayd+",
    "ca": "Arlet+",
    "cs": "Jitka+",
    "cy": "Gwyneth*",
    "da": "Naja* Mads* Sofie+",
    "de": "Marlene* Vicki Hans* Daniel+ Hannah+ Sabrina+ Lennart+",
    "en": "Nicole* Russell* Olivia+ Amy Emma Brian Arthur+ Aditi* Raveena* Kajal+ Niamh+ Aria+ Jasmine+ Ayanda+ Danielle+"
    " Gregory+ Ivy Joanna Kendra Kimberly Salli Joey Justin Kevin Matthew Ruth+ Stephen+ Patrick+ Tiffany+ Geraint*",
    "es": "Conchita* Lucia Enrique* Sergio+ Alba+ Raul+ Mia Andres+ Lupe Penelope* Miguel* Pedro+",
    "fi": "Suvi+",
    "fr": "Celine* Lea Mathieu* Remi+ Isabelle+ Chantal* Gabrielle+ Liam+ Ambre+ Florian+",
    "hi": "Aditi* Kajal+",
    "is": "Dora* Karl*",
    "it": "Carla* Bianca Giorgio* Adriano+ Beatrice+ Lorenzo+",
    "ja": "Mizuki* Takumi Kazuha+ Tomoko+",
    "ko": "Seoyeon Jihye+",
    "nb": "Liv* Ida+",
    "nl": "Lisa+ Lotte* Ruben* Laura+",
    "pl": "Ewa* Maja* Jacek* Jan* Ola+",
    "pt": "Camila Vitoria Ricardo* Thiago+ Ines Cristiano*",
    "ro": "Carmen*",
    "ru": "Tatyana* Maxim*",
    "sv": "Astrid* Elin+",
    "tr": "Filiz* Burcu+",
    "yue": "Hiujin+",
    "zh": "Zhiyu",
}
_ALL: Final = " ".join(_POLLY.values()).split()
_SPEAKS: Final = {
    name.rstrip("*+"): {language for language, names in _POLLY.items() if name in names.split()} for name in _ALL
}
_SAME: Final = {"arb": "ar", "cmn": "zh", "no": "nb"}


def is_language(text: str) -> bool:
    return re.fullmatch(_LANGUAGE, text) is not None


def voice_problem(voice: str) -> str | None:
    """Why Twilio does not have this voice, with the nearest names; None for a voice that it has."""
    if voice in _BASIC:
        return None
    if found := _GOOGLE_VOICE.fullmatch(voice):
        family = found["family"]
        if family in _GOOGLE_FAMILIES:
            return None
        return f"Google has no {family} voices{_nearest(family, _GOOGLE_FAMILIES)}"
    found = _POLLY_VOICE.fullmatch(voice)
    if found is None:
        names = [f"Polly.{name}" for name in _SPEAKS]
        wanted = voice if "." in voice else f"Polly.{voice}"
        return f"must be a voice of Twilio's, such as Polly.Joanna or Google.de-DE-Wavenet-A{_nearest(wanted, names)}"
    name, engine = found["name"], found["engine"]
    if name not in _SPEAKS:
        near = _nearest(name, _SPEAKS)
        return f"Polly has no voice {name}{near}; newer ones are added in shared/conversation/voices.py"
    if engine is None and f"{name}+" in _ALL:
        return f"Polly.{name} needs an engine: Polly.{name}-Neural or Polly.{name}-Generative"
    if engine is not None and f"{name}*" in _ALL:
        return f"{name} has the standard engine only: Polly.{name}"
    return None


def _nearest(name: str, names: Iterable[str]) -> str:
    known = {each.casefold(): each for each in names}
    near = [known[match] for match in difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.6)]
    return f"; near it: {', '.join(near)}" if near else ""


def fits_language(voice: str, language: str) -> bool:
    """False for a voice that is known not to speak this language. The country does not matter."""
    spoken = language.partition("-")[0]
    spoken = _SAME.get(spoken, spoken)
    if voice in ("man", "woman"):
        return spoken in ("en", "es", "fr", "de", "it")
    if found := _GOOGLE_VOICE.fullmatch(voice):
        return found["language"] == language
    found = _POLLY_VOICE.fullmatch(voice)
    return found is None or spoken in _SPEAKS.get(found["name"], {spoken})
