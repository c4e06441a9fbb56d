"""Match spoken words to the answers of a question. Whole words count, without case, accents and punctuation."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from shared.conversation.numerals import spoken_digits
from shared.conversation.script import Question, Script

LEAST_CONFIDENCE: Final = 0.4
"""Twilio's Confidence below which speech counts as silence: the question is asked again."""

Phrase = tuple[str, ...]


def phrase(text: str) -> Phrase:
    """The words of a text as they are compared: "Don't, PLEASE!" is ("dont", "please"), "Sí" is ("si",)."""
    text = re.sub(r"['’ʼ]", "", unicodedata.normalize("NFKD", text.casefold()))
    return tuple(re.findall(r"\w+", "".join(c for c in text if not unicodedata.combining(c))))


def match(heard: str, choices: Mapping[Phrase, str]) -> str | None:
    """The choice whose phrase is heard. The longest phrase wins; None if two different choices are equally long."""
    words = phrase(heard)
    for length in sorted({len(each) for each in choices}, reverse=True):
        starts = range(len(words) - length + 1)
        found = {choices[words[at : at + length]] for at in starts if words[at : at + length] in choices}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def spoken_choices(script: Script, question: Question | None) -> dict[Phrase, str]:
    """phrase -> key: the digits of the question's keys, the `hear` of its answers, and the `hear` of the opt-out."""
    keys = [*question.answers] if question else []
    if script.opt_out.ask is not None:
        keys.append(script.opt_out.key)
    choices = {phrase(word): digit for word, digit in spoken_digits(script.language).items() if digit in keys}
    for key, answer in question.answers.items() if question else ():
        choices |= {phrase(each): key for each in answer.hear}
    return choices | {phrase(each): script.opt_out.key for each in script.opt_out.hear}


def confirms_opt_out(script: Script, heard: str) -> bool:
    """ "Yes" after the opt-out question, or the wish once more."""
    wishes = [*script.opt_out.yes, *script.opt_out.hear]
    return match(heard, {phrase(each): "yes" for each in wishes}) is not None


def hints(script: Script, question: Question | None) -> str:
    """For Twilio's speech recognition: at most 500 phrases of 100 characters. https://www.twilio.com/docs/api/errors/13330"""
    answers = question.answers.values() if question else ()
    phrases = [each for answer in answers for each in answer.hear] + script.opt_out.hear + script.opt_out.yes
    return ", ".join(dict.fromkeys(re.sub(r"[\s,]+", " ", each) for each in phrases))
