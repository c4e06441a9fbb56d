"""Match spoken words to the answers of a question. Whole words count, without case, accents and punctuation."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Final

from shared.conversation.numerals import NO, NUMBER_WORDS, is_negated, is_quantity, spoken_digits
from shared.conversation.script import Question, Script

LEAST_CONFIDENCE: Final = 0.4
"""Twilio's Confidence below which speech counts as silence: the question is asked again."""

Phrase = tuple[str, ...]


def phrase(text: str) -> Phrase:
    """The words of a text as they are compared: "Don't, PLEASE!" is ("do", "not", "please"), "Sí" is ("si",)."""
    text = re.sub(r"['’ʼ]", "", unicodedata.normalize("NFKD", text.casefold()))
    text = re.sub(r"\bdont\b", "do not", text)
    return tuple(re.findall(r"\w+", "".join(c for c in text if not unicodedata.combining(c))))


_NUMBERS: Final = frozenset(map(phrase, NUMBER_WORDS | set("123456789")))


def match(
    heard: str, choices: Mapping[Phrase, str], wishes: Collection[Phrase] = (), language: str = "en", reach: int = 2
) -> str | None:
    """The choice whose phrase is heard. The longest phrase wins; None if two different choices are equally long.

    A phrase of `wishes` wins wherever it is heard, outside a longer phrase. Negated phrases and numbers that are no key do not
    count: "not so sure", "of course not", "one moment". `reach`: how many words before a phrase a "not" negates it."""
    clauses = [phrase(clause) for clause in re.split(r"[.,;:!?…]+(?!\d)", heard)]
    words = tuple(word for clause in clauses for word in clause)
    bounds = [
        (end - len(each), end) for each, end in zip(clauses, accumulate(map(len, clauses)), strict=True) for _ in each
    ]
    lengths = sorted({len(each) for each in choices}, reverse=True)
    spans = [(at, at + n) for n in lengths for at in range(len(words) - n + 1) if words[at : at + n] in choices]
    counted: list[Phrase] = []
    for start, end in spans:
        said, before, after = words[start:end], words[bounds[start][0] : start], words[end : bounds[end - 1][1]]
        inside = any(first <= start and end <= last and (first, last) != (start, end) for first, last in spans)
        negated = said not in wishes and is_negated(said, before[-reach:], after, language)
        if not (inside or negated or (said in _NUMBERS and is_quantity(said[0], before, after))):
            counted.append(said)
    if wish := next((each for each in counted if each in wishes), None):
        return choices[wish]
    found = {choices[each] for each in counted if len(each) == len(counted[0])}
    return found.pop() if len(found) == 1 else None


def spoken_choices(script: Script, question: Question | None) -> dict[Phrase, str]:
    """phrase -> key: the digits of the question's keys, the `hear` of its answers, and the `hear` of the opt-out."""
    keys = [*question.answers] if question else []
    if script.opt_out.ask is not None:
        keys.append(script.opt_out.key)
    choices = {phrase(word): digit for word, digit in spoken_digits(script.language).items() if digit in keys}
    for key, answer in question.answers.items() if question else ():
        choices |= {phrase(each): key for each in answer.hear}
    return choices | {phrase(each): script.opt_out.key for each in script.opt_out.hear}


def wishes(script: Script) -> list[Phrase]:
    return [phrase(each) for each in script.opt_out.hear]


def confirms_opt_out(script: Script, heard: str) -> bool:
    """ "Yes" after the opt-out question, or the wish once more. "No, yes" and "do not stop calling" confirm nothing."""
    known = {phrase(each): "yes" for each in (*script.opt_out.hear, *script.opt_out.yes)}
    first = next(((word,) for word in phrase(heard) if word in NO or (word,) in known), ())
    return match(heard, {first: "no", **known} if first else known, language=script.language, reach=1) == "yes"


def hints(script: Script, question: Question | None) -> str:
    """For Twilio's speech recognition: at most 500 phrases of 100 characters. https://www.twilio.com/docs/api/errors/13330"""
    answers = question.answers.values() if question else ()
    phrases = [each for answer in answers for each in answer.hear] + script.opt_out.hear + script.opt_out.yes
    return ", ".join(dict.fromkeys(re.sub(r"[\s,]+", " ", each) for each in phrases))
