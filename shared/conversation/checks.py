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
        for found in error.errors():
            message = describe_problem(found["loc"], found["type"], found["msg"], found.get("ctx", {}))
            problems.append((key_path(raw, found["loc"]), message))
    problems += [*check_structure(raw), *_check_language(raw, name), *_check_spelled(raw), *_check_heard(raw)]
    voice, language = str(raw.get("voice")), str(raw.get("language"))
    if voice_problem(voice) is None and is_language(language) and not fits_language(voice, language):
        problems.append(("voice", f"{voice} does not speak {language}: choose a voice of that language"))
    if problems or script is None:
        return list(dict.fromkeys(f"{key}: {message}" if key else message for key, message in problems))
    return script


# --- the structure ----------------------------------------------------------------------------------------------------


def check_structure(raw: Table) -> list[Problem]:
    """The problems that no single value shows: placeholders, keys, and the way from question to question."""
    questions = [question for question in _list(raw.get("questions")) if isinstance(question.get("id"), str)]
    problems = [
        *_check_placeholders(raw),
        *_check_ids(questions),
        *_check_opt_out_key(raw),
        *_check_next(raw, questions),
        *_check_connect(raw),
        *_check_later(raw),
        *_check_dial(raw),
        *_check_told_keys(raw),
    ]
    if questions and not any(key.startswith("questions") for key, _ in problems):
        problems += check_reachable(questions, _starts(raw, questions))
    return problems


def _check_language(raw: Table, name: str) -> Iterator[Problem]:
    """The file of a language speaks it, and leaves the aliases to the mode's own file."""
    mode, _, language = name.partition(".")
    if language and not f"{raw.get('language')}-".casefold().startswith(f"{language}-"):
        yield "language", f"must be {language}, with or without a country, as the file's name says"
    if language and "aliases" in raw:
        yield "aliases", f"belongs into {mode}.toml: they are the same in each language"


def _check_spelled(raw: Table) -> Iterator[Problem]:
    """No text becomes too long when say_as spells its words."""
    spellings = {key.casefold(): value for key, value in _table(raw.get("say_as")).items() if isinstance(value, str)}
    for place, text in _texts(raw):
        parts = re.split(r"(\{\w+\})", text)
        spelled = "".join(part if index % 2 else spell(part, spellings) for index, part in enumerate(parts))
        problem = length_problem(spelled) or (inline_problem(spelled) if place == "machine" else None)
        if spelled != text and problem:
            yield place, f"{problem}; say_as makes it longer"


def _check_heard(raw: Table) -> Iterator[Problem]:
    """Each phrase means one key. Spoken words need a script that listens, and a spoken opt-out its question."""
    opt_out = _table(raw.get("opt_out"))
    lists = {"opt_out.hear": _phrases(opt_out.get("hear")), "opt_out.yes": _phrases(opt_out.get("yes"))}
    if lists["opt_out.hear"] and not (opt_out.get("ask") and lists["opt_out.yes"]):
        yield "opt_out.hear", 'needs ask, the question that confirms it, and yes, such as ["yes"]'
    digits = {phrase(word): digit for word, digit in spoken_digits(str(raw.get("language"))).items()}
    for each in lists["opt_out.hear"]:
        if digits.get(each, opt_out.get("key")) != opt_out.get("key"):
            yield "opt_out.hear", f"{' '.join(each)!r} already means {digits[each]}: each phrase means one key"
    for name, question in _named_questions(raw):
        meant: dict[Phrase, str] = {**digits, **dict.fromkeys(lists["opt_out.hear"], "the opt-out")}
        for key, answer in _answers(question).items():
            place = f"{name}.answers.{key}.hear"
            lists[place] = _phrases(answer.get("hear"))
            for each in lists[place]:
                if meant.setdefault(each, key) != key:
                    yield place, f"{' '.join(each)!r} already means {meant[each]}: each phrase means one key"
    if raw.get("listen", "keys") == "keys":
        missing = 'needs listen = "speech" at the top of the file'
        yield from ((place, missing) for place, heard in lists.items() if heard)


def _phrases(value: object) -> list[Phrase]:
    return [phrase(each) for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _check_placeholders(raw: Table) -> Iterator[Problem]:
    declared = _table(raw.get("placeholders"))
    agreements = {f"{place}.say" for place, answer in _named_answers(raw) if "later" in answer}
    used: set[str] = set()
    for key, text in _texts(raw):
        for name in dict.fromkeys(PLACEHOLDER.findall(text)):
            used.add(name)
            if name not in declared and not (name == LATER and key in agreements):
                allowed = ", ".join(f"{{{known}}}" for known in declared) or "none so far"
                yield key, f"{{{name}}} is not declared under [placeholders]; declared: {allowed}"
    for name in declared:
        if name not in used:
            yield f"placeholders.{name}", f"no text says {{{name}}}: use it, or take it out"


def _check_ids(questions: list[Table]) -> Iterator[Problem]:
    for question_id, times in Counter(question["id"] for question in questions).items():
        if times > 1:
            yield f"questions.{question_id}.id", "is the id of two questions: each has its own"


def _check_opt_out_key(raw: Table) -> Iterator[Problem]:
    key = _text(_table(raw.get("opt_out")), "key")
    for place, _ in _named_answers(raw):
        if place.endswith(f".answers.{key}"):
            yield place, f"{key} is the opt-out key in every question: choose another"


def _check_next(raw: Table, questions: list[Table]) -> Iterator[Problem]:
    """The script goes on at a question that exists, or at the goodbye."""
    allowed = [*dict.fromkeys(question["id"] for question in questions), GOODBYE]
    connect = _table(raw.get("connect"))
    places = [(f"{name}.next", _text(table, "next")) for name, table in (*_named_questions(raw), *_named_answers(raw))]
    for place, at in [*places, *((f"connect.{key}", _text(connect, key)) for key in ("then", "failed"))]:
        if at is not None and at not in allowed:
            yield place, f"{at!r} is not a question; allowed: {', '.join(allowed)}"


def _check_connect(raw: Table) -> Iterator[Problem]:
    """No value of the metadata replaces another parameter, and a stream has no keys of a relay."""
    connect = _table(raw.get("connect"))
    names: list[object] = given if isinstance(given := connect.get("metadata"), list) else []
    for name in names:
        if name in PARAMETERS or names.count(name) > 1:
            yield "connect.metadata", f"{name!r} is told already: take it out"
    if connect.get("kind") == "stream":
        for key in ("welcome", "relay"):
            if key in connect:
                yield f"connect.{key}", 'works with kind = "conversation_relay" only: take it out'


def _starts(raw: Table, questions: list[Table]) -> set[str]:
    """The questions at which a conversation begins: the first one, or those after an agent."""
    connect = _table(raw.get("connect"))
    return {_text(connect, "then") or "", _text(connect, "failed") or questions[0]["id"]}


def _check_later(raw: Table) -> Iterator[Problem]:
    """The agreed time is said, and the call ends."""
    if LATER in _table(raw.get("placeholders")):
        yield f"placeholders.{LATER}", "is the time of a later call: choose another name"
    told = f"must be words with {{{LATER}}}, the time of the later call; a recording cannot say it"
    for place, answer in _named_answers(raw):
        if "later" not in answer:
            continue
        if f"{{{LATER}}}" not in (_text(answer, "say") or "") or "play" in answer:
            yield f"{place}.say", told
        if "next" in answer:
            yield f"{place}.next", "has no place beside later: the call ends"
        if str(raw.get("language")).partition("-")[0] not in LANGUAGES:
            yield f"{place}.later", f"needs a language in which times can be said: {', '.join(LANGUAGES)}"


def _check_dial(raw: Table) -> Iterator[Problem]:
    """A colleague is told who calls, and a person what happens when no colleague takes the call."""
    missing = "is missing beside dial: the words for the colleague, or for a person whom no colleague answers"
    for place, answer in _named_answers(raw):
        if "dial" not in answer:
            yield from ((f"{place}.{each}", "has no place here without dial") for each in DIAL_KEYS if each in answer)
            continue
        if "later" in answer:
            yield f"{place}.dial", "has no place beside later: the call ends"
        yield from ((f"{place}.{each}", missing) for each in ("whisper", "no_answer") if each not in answer)
        if ("hours" in answer) != ("zone" in answer):
            yield f"{place}.hours", "and zone belong together: the colleague's hours, and whose clock shows them"


def _check_told_keys(raw: Table) -> Iterator[Problem]:
    """A text that says "press 4" is followed by a place where key 4 does something."""
    opt_out = {_text(_table(raw.get("opt_out")), "key") or ""}
    by_question = {f"{name}.say": {*_answers(question)} for name, question in _named_questions(raw)}
    anywhere = opt_out.union(*by_question.values())
    for place, text in _texts(raw):
        if place == "machine" or place.endswith(".whisper"):
            continue  # these words may speak of the menu of another phone number, or are not for the person
        if place in by_question:
            allowed = by_question[place] | opt_out
        else:
            opening = () if "connect" in raw else ("greeting", "opt_out.say", "opt_out.ask")
            keys_work = place.startswith("questions.") or place in (*opening, "again", "connect.sorry")
            allowed = anywhere if keys_work else opt_out if place in WITH_OPT_OUT else set()
        for key, words in keys_told(text, str(raw.get("language"))).items():
            if key not in allowed:
                known = ", ".join(sorted(allowed - {""})) or "none"
                nothing = f"says {words!r}, but key {key} does nothing there (keys: {known})"
                yield place, f"{nothing}: change the words, or add the key"


def check_reachable(questions: list[Table], starts: set[str]) -> Iterator[Problem]:
    """Each question can be reached, and from each one some answers lead to the goodbye. Needs valid ids and nexts."""
    ids = [question["id"] for question in questions]
    following: dict[str, set[str]] = {}
    for question, below in zip(questions, [*ids[1:], GOODBYE], strict=True):
        default = _text(question, "next") or below
        # A question with `later` is skipped once the person has asked for a later call too often.
        ends = [GOODBYE, default]
        answers = _answers(question).values()
        following[question["id"]] = {
            each for answer in answers for each in (ends if "later" in answer else [_text(answer, "next") or default])
        } or {default}
    reached = _closure(starts & set(ids), following)
    ending = _closure({GOODBYE}, {each: {id_ for id_ in ids if each in following[id_]} for each in [*ids, GOODBYE]})
    for question_id in ids:
        if question_id not in reached:
            yield f"questions.{question_id}", "is never asked: no answer leads to it"
        elif question_id not in ending:
            endless = "never ends: none of its answers leads to goodbye, however often it is asked"
            yield f"questions.{question_id}", endless


def _closure(start: set[str], edges: Mapping[str, set[str]]) -> set[str]:
    found, pending = set(start), list(start)
    while pending:
        for following in edges.get(pending.pop(), set()) - found:
            found.add(following)
            pending.append(following)
    return found


def _texts(raw: Table) -> Iterator[tuple[str, str]]:
    """Each spoken text of the file, with its key."""
    tables: list[tuple[str, Table, tuple[str, ...]]] = [
        ("", raw, ("greeting", "goodbye", "apology", "again", "please_wait", "machine")),
        ("opt_out.", _table(raw.get("opt_out")), ("say", "confirm", "ask")),
        ("connect.", _table(raw.get("connect")), ("sorry", "welcome")),
    ]
    for name, question in _named_questions(raw):
        tables.append((f"{name}.", question, ("say", "no_answer")))
    tables += [(f"{place}.", answer, ("say", "whisper", "no_answer")) for place, answer in _named_answers(raw)]
    for place, table, keys in tables:
        for key in keys:
            recording = _table(table.get(key))  # the words of a recording are read out by rehearse.py
            text = _text(recording, "words") if recording else _text(table, key)
            if text is not None:
                yield f"{place}{key}", text


def _named_questions(raw: Table) -> list[tuple[str, Table]]:
    """Each question with its key: `questions.<id>`, or its number."""
    questions = enumerate(_list(raw.get("questions")), 1)
    return [(f"questions.{_text(each, 'id') or f'(number {number})'}", each) for number, each in questions]


def _named_answers(raw: Table) -> Iterator[tuple[str, Table]]:
    for name, question in _named_questions(raw):
        yield from ((f"{name}.answers.{key}", answer) for key, answer in _answers(question).items())


def _answers(question: Table) -> dict[str, Table]:
    return {key: answer for key, answer in _table(question.get("answers")).items() if isinstance(answer, dict)}


def _table(value: object) -> Table:
    return value if isinstance(value, dict) else {}


def _text(table: Table, key: str) -> str | None:
    return value if isinstance(value := table.get(key), str) else None


def _list(value: object) -> list[Table]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
