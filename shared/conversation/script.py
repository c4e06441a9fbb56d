"""What a call says: one TOML file a signup_mode in `scripts/`, read and checked as a whole when the process starts.

    python -m shared.conversation.rehearse check [folder]     # every problem of every file, or each script as it would be heard

What follows what in a conversation is decided in conversation.py. The keys of a file are explained in the README.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from shared.conversation.checks import PLACEHOLDER, check_structure, cost
from shared.conversation.voices import fits_language, is_language, is_voice
from shared.models import Person

FOLDER: Final = Path(__file__).parents[1] / "scripts"
DEFAULT: Final = "default"
MODE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

LONGEST_VALUE: Final = 100
"""Characters of a name, a company or the like that are said; what is longer is no such thing, and its fallback is said."""
LONGEST_TEXT: Final = 1500
"""Characters of one text, each placeholder counted as LONGEST_VALUE: about 100 s of speech. Twilio takes 4,096 in a Say."""
LONGEST_INLINE_TWIML: Final = 4000
"""Characters of a document that is sent with the request (error 32018), as the message to a machine is."""

# What XML cannot hold, however it is escaped. https://www.w3.org/TR/xml/#charsets
_NOT_IN_XML: Final = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ScriptError(Exception):
    """A script cannot be used. The message names the file, the key and what is allowed, for all problems of all files."""


def _wrong(message: str) -> PydanticCustomError:
    """In our words; braces would be taken for a template."""
    return PydanticCustomError("script", "{message}", {"message": message})


def _words(text: str) -> str:
    """One line of words that XML can hold and a voice can say."""
    if _NOT_IN_XML.search(text):
        raise _wrong("holds a control character: write words only")
    text = " ".join(text.split())
    if not any(map(str.isalnum, text)):
        raise _wrong("holds no words")
    return text


def _spoken(text: str) -> str:
    text = _words(text)
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        raise _wrong("holds a brace that is no placeholder; allowed: {name}, of letters, digits and _")
    if cost(text, LONGEST_VALUE) > LONGEST_TEXT:
        raise _wrong(
            f"is too long: at most {LONGEST_TEXT} characters, where each placeholder counts as {LONGEST_VALUE}"
        )
    return text


def _inline(text: str) -> str:
    # As XML & becomes &amp;, and a value may hold nothing else; 300 are for the tags around it.
    if cost(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"), LONGEST_VALUE * 5) > (
        LONGEST_INLINE_TWIML - 300
    ):
        raise _wrong("is too long for a machine: fewer words, or fewer placeholders")
    return text


def _fallback(text: str) -> str:
    text = _words(text)
    if len(text) > LONGEST_VALUE or re.search(r"[{}]", text):
        raise _wrong(
            f"must be 1 to {LONGEST_VALUE} characters, without braces: what is said when nothing better is known"
        )
    return text


def _matches(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise _wrong(allowed)
        return text

    return AfterValidator(check)


def _language(text: str) -> str:
    if not is_language(text):
        raise _wrong("must be a language and a country as Twilio writes them, such as en-US, es-MX or de-DE")
    return text


def _voice(text: str) -> str:
    if not is_voice(text):
        raise _wrong("must be a voice of Twilio's, such as Polly.Joanna, Polly.Lupe-Neural or Google.de-DE-Wavenet-A")
    return text


Spoken = Annotated[str, AfterValidator(_spoken)]
Fallback = Annotated[str, AfterValidator(_fallback)]
# Not #: it is Twilio's key for "I am done", and people who type "1#" would answer the next question with it.
Key = Annotated[str, _matches(r"[0-9*]", "is no key that can be asked for; allowed: one of 0 1 2 3 4 5 6 7 8 9 *")]
Name = Annotated[
    str, _matches(r"[A-Za-z_][A-Za-z0-9_]{0,63}", "is no name; allowed: letters, digits and _, no digit first")
]
QuestionId = Annotated[
    str,
    _matches(
        r"(?!goodbye$|opt_out$)[A-Za-z][A-Za-z0-9_-]{0,63}",
        "is no id; allowed: up to 64 letters, digits, _ and -, a letter first; not goodbye, not opt_out",
    ),
]
Meaning = Annotated[str, Field(max_length=100), AfterValidator(_words)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(_Part):
    """One key of a question. `next`: a question's id or "goodbye"; without it the question's own next, or the one below it."""

    means: Meaning
    say: Spoken | None = None
    next: str | None = None


class Question(_Part):
    """`repeat`: how often it is asked again after silence or another key. `no_answer`: said before the goodbye then."""

    id: QuestionId
    say: Spoken
    repeat: Annotated[int, Field(strict=True, ge=0, le=5)] = 1
    no_answer: Spoken | None = None
    next: str | None = None
    answers: dict[Key, Answer] = Field(min_length=1)


class OptOut(_Part):
    """The key that is always there. `say`: the line that tells of it; `confirm`: the last words after it was pressed."""

    key: Key
    say: Spoken
    confirm: Spoken


class Script(_Part):
    """All that one signup_mode says. `mode` is the file's name; `again` comes before a question that is asked again; without
    `machine` an answering machine is hung up on; each of `placeholders` has the words for when nothing is known."""

    mode: str
    language: Annotated[str, AfterValidator(_language)]
    voice: Annotated[str, AfterValidator(_voice)]
    greeting: Spoken
    goodbye: Spoken
    apology: Spoken
    again: Spoken | None = None
    machine: Annotated[Spoken, AfterValidator(_inline)] | None = None
    placeholders: dict[Name, Fallback] = {}
    opt_out: OptOut
    questions: list[Question] = []

    def question(self, question_id: str) -> Question | None:
        return next((question for question in self.questions if question.id == question_id), None)

    def say(self, text: str, person: Person | None) -> str:
        """A text of this script with its placeholders filled in. What a person wrote is never read as a template."""

        def value(found: re.Match[str]) -> str:
            name = found[1]
            theirs = [person.metadata.get(name)] if person else []
            if person and name == "first_name":
                theirs = [person.first_name, *theirs]
            return next(filter(None, map(sayable, theirs)), self.placeholders[name])

        return PLACEHOLDER.sub(value, text)


def sayable(value: object) -> str | None:
    """What a person wrote of themselves, as words on one line; None for what nobody would read out to them."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and len(value) > 10 * LONGEST_VALUE:
        return None
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST_VALUE:
        return None  # Python refuses to write out more than 4,300 digits
    words = " ".join("".join(c if c.isprintable() and not _NOT_IN_XML.match(c) else " " for c in str(value)).split())
    return words if any(map(str.isalnum, words)) and len(words) <= LONGEST_VALUE else None


class Scripts:
    """All scripts of a folder. Raises ScriptError, naming everything that is wrong in all files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._by_mode: dict[str, Script] = {}
        problems: list[str] = []
        if not folder.is_dir():
            raise ScriptError(f"there is no folder of scripts at {folder}")
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() == ".toml":
                script = read_script(file)
                if isinstance(script, Script):
                    self._by_mode[script.mode] = script
                else:
                    problems += [f"{file.name}: {problem}" for problem in script]
        if not (folder / f"{DEFAULT}.toml").exists():
            problems.append(f"{DEFAULT}.toml is missing: it speaks for every signup_mode without a file of its own")
        if problems:
            raise ScriptError("scripts are wrong:\n  " + "\n  ".join(problems))

    def __iter__(self) -> Iterator[Script]:
        return iter(self._by_mode.values())

    @cached_property
    def default(self) -> Script:
        return self._by_mode[DEFAULT]

    def for_mode(self, signup_mode: str) -> Script:
        """signup_mode is what a person may have written themselves: whatever is not exactly a mode of ours gets the default."""
        return self._by_mode.get(signup_mode, self.default)


def read_script(file: Path) -> Script | list[str]:
    """The script, or what is wrong with it: one line a problem, each with its key."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # Windows' editors begin a file with a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        return [f"cannot be read: {error}"]
    return check(raw, file.name.removesuffix(".toml"))


def check(raw: dict[str, Any], mode: str) -> Script | list[str]:
    """As read_script, of a file's tables."""
    problems: list[tuple[str, str]] = []
    if not MODE.fullmatch(mode):
        problems.append(("", "a file is named <signup_mode>.toml; allowed: small letters, digits, _ and -"))
    if "mode" in raw:
        problems.append(("mode", "is not a key here: the file's name is the mode"))
    script = None
    try:
        script = Script.model_validate({**raw, "mode": mode})
    except ValidationError as error:
        for wrong in error.errors():
            loc = wrong["loc"]
            problems.append((_where(raw, loc), _said(loc, wrong["type"], wrong["msg"], wrong.get("ctx", {}))))
    problems += check_structure(raw)
    voice, language = str(raw.get("voice")), str(raw.get("language"))
    if is_voice(voice) and is_language(language) and not fits_language(voice, language):
        problems.append(("voice", f"{voice} does not speak {language}: choose a voice of that language"))
    if problems or script is None:
        return list(dict.fromkeys(f"{where}: {what}" if where else what for where, what in problems))
    return script


_PARTS: Final[dict[str, type[_Part]]] = {"script": Script, "opt_out": OptOut, "question": Question, "answer": Answer}


_MUST_BE: Final = {
    "opt_out": "a table [opt_out] with key, say and confirm",
    "answers": "a table [questions.answers.1] with means, and one more for each other key",
}


def _part(loc: tuple[int | str, ...]) -> Literal["script", "opt_out", "question", "answer"]:
    """Which table of the file this place is in."""
    if len(loc) > 1 and loc[0] == "opt_out":
        return "opt_out"
    if len(loc) > 2 and loc[0] == "questions":
        return "answer" if loc[2] == "answers" and len(loc) > 4 else "question"
    return "script"


def _where(raw: Mapping[str, Any], loc: tuple[int | str, ...]) -> str:
    """`questions.team_size.answers.1.means`: a question by its id, or by its place while it has none."""
    named: list[str] = []
    for at, part in enumerate(loc):
        if at == 1 and loc[0] == "questions" and isinstance(part, int):
            question = raw["questions"][part]
            known = question.get("id") if isinstance(question, dict) else None
            named.append(known if isinstance(known, str) and known else f"(number {part + 1})")
        elif part != "[key]":
            named.append(str(part))
    return ".".join(named)


def _said(loc: tuple[int | str, ...], kind: str, message: str, context: Mapping[str, Any]) -> str:
    """A problem in words for who has never seen Python."""
    match kind:
        case "missing":
            return f"is missing; it must be {_MUST_BE.get(str(loc[-1]), 'text, in quotes')}"
        case "extra_forbidden":
            allowed = ", ".join(name for name in _PARTS[_part(loc)].model_fields if name != "mode")
            return f"is not a key here; allowed: {allowed}"
        case "string_type":
            return "must be text, in quotes"
        case "int_type" | "greater_than_equal" | "less_than_equal":
            return "must be a whole number from 0 to 5, without quotes"
        case "list_type":
            return "must be written as [[questions]], once for each question"
        case "dict_type" | "model_type":
            return "must be a table of its own, with keys and values"
        case "too_short":
            return "must hold one answer at least: [questions.answers.1] with means = ..."
        case "string_too_long":
            return f"is too long: at most {context['max_length']} characters"
    return message
