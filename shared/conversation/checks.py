"""The checks of a script. Each problem names its key and the allowed values.

The checks of structure read the file's plain tables, not the models, so that they report although another key is wrong.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from shared.conversation.hearing import Phrase, phrase
from shared.conversation.later import LANGUAGES, LATER
from shared.conversation.numerals import keys_told, spoken_digits
from shared.conversation.problems import describe_problem, key_path
from shared.conversation.script import GOODBYE, Script
from shared.conversation.texts import PLACEHOLDER, inline_problem, length_problem, spell
from shared.conversation.voices import fits_language, is_language, voice_problem

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}(\.[a-z]{2,3}(-[a-z0-9]{2,8})*)?")

PARAMETERS: Final = ("attempt", "job", "mode", "opt_out_key", "first_name")
"""What each agent is told, as twiml.py names it."""
WITH_OPT_OUT: Final = ("greeting", "opt_out.say", "opt_out.ask", "connect.welcome")
"""The texts during which the opt-out key works, and no other before an agent has the call."""
DIAL_KEYS: Final = ("hours", "zone", "ring_s", "whisper", "no_answer")

Problem = tuple[str, str]
Table = Mapping[str, Any]


def check(raw: dict[str, Any], name: str) -> Script | list[str]:
    """The script of a file's tables, or its problems: one line each, with the key."""
    problems: list[Problem] = []
    if not NAME.fullmatch(name):
        allowed = "allowed: small letters, digits, _ and -, and a language such as es or pt-br"
        problems.append(("", f"a file is named <signup_mode>.toml or <signup_mode>.<language>.toml; {allowed}"))
    problems += [(key, "is not a key here: the file's name is the mode") for key in ("mode", "name") if key in raw]
    script = None
    try:
        script = Script.model_validate({**raw, "name": name})
    except ValidationError as error:
        problems += [(key_path(raw, found["loc"]), describe_problem(found)) for found in error.errors()]
    problems += _check_file(_File(raw), name)
    if problems or script is None:
        return list(dict.fromkeys(f"{key}: {message}" if key else message for key, message in problems))
    return script


class _File:
    """The tables of a file that have the right form, and each spoken text. Each has its key: a question is named by its
    id, or by its number."""

    def __init__(self, raw: Table) -> None:
        self.raw = raw
        self.language = str(raw.get("language"))
        self.opt_out, self.connect = _table(raw, "opt_out"), _table(raw, "connect")
        self.opt_out_key = _text(self.opt_out, "key")
        questions = [each for each in _list(raw, "questions") if isinstance(each, dict)]
        self.questions: list[tuple[str, Table]] = [
            (f"questions.{_text(each, 'id') or f'(number {number})'}", each) for number, each in enumerate(questions, 1)
        ]
        self.with_id = [each for each in questions if isinstance(each.get("id"), str)]
        self.answers = [
            (f"{name}.answers.{key}", answer)
            for name, question in self.questions
            for key, answer in _answers(question).items()
        ]
        self.texts = list(self._texts())

    def _texts(self) -> Iterator[tuple[str, str]]:
        tables: list[tuple[str, Table, tuple[str, ...]]] = [
            ("", self.raw, ("greeting", "goodbye", "apology", "again", "please_wait", "machine")),
            ("opt_out.", self.opt_out, ("say", "confirm", "ask")),
            ("connect.", self.connect, ("sorry", "welcome")),
            *((f"{place}.", question, ("say", "no_answer")) for place, question in self.questions),
            *((f"{place}.", answer, ("say", "whisper", "no_answer")) for place, answer in self.answers),
        ]
        for place, table, keys in tables:
            for key in keys:
                recording = _table(table, key)  # the words of a recording are read out by rehearse.py
                text = _text(recording, "words") if recording else _text(table, key)
                if text is not None:
                    yield f"{place}{key}", text


def _table(table: Table, key: str) -> Table:
    return value if isinstance(value := table.get(key), dict) else {}


def _list(table: Table, key: str) -> list[Any]:
    return value if isinstance(value := table.get(key), list) else []


def _text(table: Table, key: str) -> str | None:
    return value if isinstance(value := table.get(key), str) else None


def _answers(question: Table) -> dict[str, Table]:
    return {key: answer for key, answer in _table(question, "answers").items() if isinstance(answer, dict)}


def _phrases(table: Table, key: str) -> list[Phrase]:
    return [phrase(each) for each in _list(table, key) if isinstance(each, str)]


def _check_file(file: _File, name: str) -> list[Problem]:
    """The problems that no single value shows: placeholders, keys, words, and the way from question to question."""
    problems = [
        *_check_placeholders(file),
        *_check_next(file),
        *_check_connect(file),
        *_check_answers(file),
        *_check_told_keys(file),
    ]
    if file.with_id and not any(key.startswith("questions") for key, _ in problems):
        problems += _check_reachable(file)
    return [*problems, *_check_language(file, name), *_check_spelled(file), *_check_heard(file)]


def _check_placeholders(file: _File) -> Iterator[Problem]:
    declared = _table(file.raw, "placeholders")
    agreements = {f"{place}.say" for place, answer in file.answers if "later" in answer}
    used = [(key, name) for key, text in file.texts for name in dict.fromkeys(PLACEHOLDER.findall(text))]
    for key, name in used:
        if name not in declared and not (name == LATER and key in agreements):
            allowed = ", ".join(f"{{{known}}}" for known in declared) or "none so far"
            yield key, f"{{{name}}} is not declared under [placeholders]; declared: {allowed}"
    for name in declared:
        if name == LATER:
            yield f"placeholders.{LATER}", "is the time of a later call: choose another name"
        if name not in [used_name for _, used_name in used]:
            yield f"placeholders.{name}", f"no text says {{{name}}}: use it, or take it out"


def _check_next(file: _File) -> Iterator[Problem]:
    """Each question has its own id, and the script goes on at a question that exists, or at the goodbye."""
    ids = Counter(question["id"] for question in file.with_id)
    yield from (
        (f"questions.{each}.id", "is the id of two questions: each has its own") for each in ids if ids[each] > 1
    )
    places = [(f"{place}.next", _text(table, "next")) for place, table in (*file.questions, *file.answers)]
    for place, at in [*places, *((f"connect.{key}", _text(file.connect, key)) for key in ("then", "failed"))]:
        if at is not None and at not in (*ids, GOODBYE):
            yield place, f"{at!r} is not a question; allowed: {', '.join((*ids, GOODBYE))}"


def _check_connect(file: _File) -> Iterator[Problem]:
    """No value of the metadata replaces another parameter, and a stream has no keys of a relay."""
    names = _list(file.connect, "metadata")
    for name in names:
        if name in PARAMETERS or names.count(name) > 1:
            yield "connect.metadata", f"{name!r} is told already: take it out"
    for key in ("welcome", "relay") if file.connect.get("kind") == "stream" else ():
        if key in file.connect:
            yield f"connect.{key}", 'works with kind = "conversation_relay" only: take it out'


def _check_answers(file: _File) -> Iterator[Problem]:
    """The time of a later call is said, and the call ends. A colleague is told who calls, and a person what happens when no
    colleague takes the call."""
    told = f"must be words with {{{LATER}}}, the time of the later call; a recording cannot say it"
    missing = "is missing beside dial: the words for the colleague, or for a person whom no colleague answers"
    for place, answer in file.answers:
        if place.endswith(f".answers.{file.opt_out_key}"):
            yield place, f"{file.opt_out_key} is the opt-out key in every question: choose another"
        if "later" in answer:
            if f"{{{LATER}}}" not in (_text(answer, "say") or "") or "play" in answer:
                yield f"{place}.say", told
            for key in ("next", "dial"):
                if key in answer:
                    yield f"{place}.{key}", "has no place beside later: the call ends"
            if file.language.partition("-")[0] not in LANGUAGES:
                yield f"{place}.later", f"needs a language in which times can be said: {', '.join(LANGUAGES)}"
        if "dial" in answer:
            yield from ((f"{place}.{each}", missing) for each in ("whisper", "no_answer") if each not in answer)
            if ("hours" in answer) != ("zone" in answer):
                yield f"{place}.hours", "and zone belong together: the colleague's hours, and whose clock shows them"
        else:
            yield from ((f"{place}.{each}", "has no place here without dial") for each in DIAL_KEYS if each in answer)


def _check_told_keys(file: _File) -> Iterator[Problem]:
    """A text that says "press 4" is followed by a place where key 4 does something."""
    opt_out = {file.opt_out_key or ""}
    by_question = {f"{name}.say": {*_answers(question)} for name, question in file.questions}
    opening = () if "connect" in file.raw else ("greeting", "opt_out.say", "opt_out.ask")
    for place, text in file.texts:
        if place == "machine" or place.endswith(".whisper"):
            continue  # these words may speak of the menu of another phone number, or are not for the person
        if place in by_question:
            allowed = by_question[place] | opt_out
        elif place.startswith("questions.") or place in (*opening, "again", "connect.sorry"):
            allowed = opt_out.union(*by_question.values())
        else:
            allowed = opt_out if place in WITH_OPT_OUT else set()
        for key, words in keys_told(text, file.language).items():
            if key not in allowed:
                known = ", ".join(sorted(allowed - {""})) or "none"
                nothing = f"says {words!r}, but key {key} does nothing there (keys: {known})"
                yield place, f"{nothing}: change the words, or add the key"


def _check_reachable(file: _File) -> Iterator[Problem]:
    """Each question can be reached, and from each one some answers lead to the goodbye. Needs valid ids and nexts."""
    ids = [question["id"] for question in file.with_id]
    following: dict[str, set[str]] = {GOODBYE: set()}
    for question, below in zip(file.with_id, [*ids[1:], GOODBYE], strict=True):
        default = _text(question, "next") or below
        ways = following[question["id"]] = set()
        for answer in _answers(question).values() or [{}]:
            # A question with `later` is skipped once the person has asked for a later call too often.
            ways |= {GOODBYE, default} if "later" in answer else {_text(answer, "next") or default}
    # A conversation begins at the first question, or at those after an agent.
    starts = {_text(file.connect, "then") or GOODBYE, _text(file.connect, "failed") or ids[0]}
    reached = _closure(starts & following.keys(), following)
    for question_id in ids:
        if question_id not in reached:
            yield f"questions.{question_id}", "is never asked: no answer leads to it"
        elif GOODBYE not in _closure({question_id}, following):
            endless = "never ends: none of its answers leads to goodbye, however often it is asked"
            yield f"questions.{question_id}", endless


def _closure(found: set[str], following: Mapping[str, set[str]]) -> set[str]:
    pending = list(found)
    while pending:
        new = following[pending.pop()] - found
        found = found | new
        pending += new
    return found


def _check_language(file: _File, name: str) -> Iterator[Problem]:
    """The voice speaks the language. The file of a language speaks it, and leaves the aliases to the mode's own file."""
    mode, _, language = name.partition(".")
    if language and not f"{file.language}-".casefold().startswith(f"{language}-"):
        yield "language", f"must be {language}, with or without a country, as the file's name says"
    if language and "aliases" in file.raw:
        yield "aliases", f"belongs into {mode}.toml: they are the same in each language"
    voice = str(file.raw.get("voice"))
    if voice_problem(voice) is None and is_language(file.language) and not fits_language(voice, file.language):
        yield "voice", f"{voice} does not speak {file.language}: choose a voice of that language"


def _check_spelled(file: _File) -> Iterator[Problem]:
    """No text becomes too long when say_as spells its words."""
    spellings = {key.casefold(): value for key, value in _table(file.raw, "say_as").items() if isinstance(value, str)}
    for place, text in file.texts:
        parts = re.split(r"(\{\w+\})", text)
        spelled = "".join(part if index % 2 else spell(part, spellings) for index, part in enumerate(parts))
        problem = length_problem(spelled) or (inline_problem(spelled) if place == "machine" else None)
        if spelled != text and problem:
            yield place, f"{problem}; say_as makes it longer"


def _check_heard(file: _File) -> Iterator[Problem]:
    """Each phrase means one key. Spoken words need a script that listens, and a spoken opt-out its question."""
    lists = {f"opt_out.{key}": _phrases(file.opt_out, key) for key in ("hear", "yes")}
    if lists["opt_out.hear"] and not (file.opt_out.get("ask") and lists["opt_out.yes"]):
        yield "opt_out.hear", 'needs ask, the question that confirms it, and yes, such as ["yes"]'
    digits = {phrase(word): digit for word, digit in spoken_digits(file.language).items()}
    taken = "{!r} already means {}: each phrase means one key"
    for each in lists["opt_out.hear"]:
        if digits.get(each, file.opt_out_key) != file.opt_out_key:
            yield "opt_out.hear", taken.format(" ".join(each), digits[each])
    for name, question in file.questions:
        meant: dict[Phrase, str] = {**digits, **dict.fromkeys(lists["opt_out.hear"], "the opt-out")}
        for key, answer in _answers(question).items():
            place = f"{name}.answers.{key}.hear"
            lists[place] = _phrases(answer, "hear")
            for each in lists[place]:
                if meant.setdefault(each, key) != key:
                    yield place, taken.format(" ".join(each), meant[each])
    if file.raw.get("listen", "keys") == "keys":
        yield from (
            (place, 'needs listen = "speech" at the top of the file') for place, heard in lists.items() if heard
        )
