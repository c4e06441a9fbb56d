"""The voices and languages that a <Say> may name, as far as they can be told without asking Twilio.

Twilio has some hundreds of voices and adds to them, so a name that is not here passes; one that is here and speaks another
language does not: Twilio would say nothing at all. https://www.twilio.com/docs/voice/twiml/say/text-speech
"""

import re
from typing import Final

_LANGUAGE: Final = r"[a-z]{2,3}(?:-[A-Z][a-z]{3})?(?:-(?:[A-Z]{2}|[0-9]{3}))?(?:-[A-Z]{3})?"
_VOICE: Final = re.compile(
    r"man|woman|alice"
    r"|Polly\.(?P<polly>[A-Z][A-Za-z]+)(?:-(?:Neural|Generative|Long-Form))?"
    rf"|Google\.(?P<google>{_LANGUAGE})-[A-Z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+"
)

# Amazon Polly's voices by language. https://docs.aws.amazon.com/polly/latest/dg/available-voices.html
_POLLY: Final = {
    "ar": "Zeina Hala Zayd",
    "ca": "Arlet",
    "cs": "Jitka",
    "cy": "Gwyneth",
    "da": "Naja Mads Sofie",
    "de": "Marlene Vicki Hans Daniel Hannah Sabrina",
    "en": "Nicole Russell Olivia Amy Emma Brian Arthur Aditi Raveena Kajal Niamh Aria Jasmine Ayanda Danielle Gregory Ivy Joanna"
    " Kendra Kimberly Salli Joey Justin Kevin Matthew Ruth Stephen Patrick Geraint",
    "es": "Conchita Lucia Enrique Sergio Alba Raul Mia Andres Lupe Penelope Miguel Pedro",
    "fi": "Suvi",
    "fr": "Celine Lea Mathieu Remi Isabelle Chantal Gabrielle Liam",
    "hi": "Aditi Kajal",
    "is": "Dora Karl",
    "it": "Carla Bianca Giorgio Adriano",
    "ja": "Mizuki Takumi Kazuha Tomoko",
    "ko": "Seoyeon Jihye",
    "nb": "Liv Ida",
    "nl": "Lisa Lotte Ruben Laura",
    "pl": "Ewa Maja Jacek Jan Ola",
    "pt": "Camila Vitoria Ricardo Thiago Ines Cristiano",
    "ro": "Carmen",
    "ru": "Tatyana Maxim",
    "sv": "Astrid Elin",
    "tr": "Filiz Burcu",
    "yue": "Hiujin",
    "zh": "Zhiyu",
}
_SPEAKS: Final = {
    name: frozenset(language for language, names in _POLLY.items() if name in names.split())
    for name in " ".join(_POLLY.values()).split()
}
_SAME: Final = {"arb": "ar", "cmn": "zh", "no": "nb"}


def is_language(text: str) -> bool:
    return re.fullmatch(_LANGUAGE, text) is not None


def is_voice(text: str) -> bool:
    return _VOICE.fullmatch(text) is not None


def fits_language(voice: str, language: str) -> bool:
    """False for a voice that is known not to speak this language; of which country does not matter here."""
    spoken = language.partition("-")[0]
    spoken = _SAME.get(spoken, spoken)
    if voice in ("man", "woman"):
        return spoken in ("en", "es", "fr", "de", "it")
    found = _VOICE.fullmatch(voice)
    if found is None or voice == "alice":
        return True
    if found["google"]:
        return found["google"] == language
    return spoken in _SPEAKS.get(found["polly"], {spoken})
