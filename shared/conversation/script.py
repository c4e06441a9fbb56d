"""A script: everything that the calls of one signup_mode say, as the values of its TOML file. The keys are explained in
shared/docs/scripts.md, the order of a conversation is decided in turns.py."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from shared.conversation.later import is_wish
from shared.conversation.values import READERS, Kind, read_given_name
from shared.conversation.voices import is_language, voice_problem
from shared.models import Person

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
GOODBYE: Final = "goodbye"
"""The place after the last question."""
NAMES: Final = frozenset({"first_name", "last_name", "full_name", "name"})
"""Placeholders of kind `name` when their file gives a fallback only."""

LONGEST_VALUE: Final = 100
"""Longest fallback of a placeholder, in characters. Values are shorter: see values.py."""
LONGEST_TEXT: Final = 1500
"""Longest text, in characters, with each placeholder counted as LONGEST_VALUE: about 100 s of speech. Twilio's limit is 4,096."""
LONGEST_INLINE_TWIML: Final = 4000
"""Longest document that can be sent with a request (error 32018), as the message to a machine is."""

LONGEST_URL: Final = 600
"""Longest URL of a recording, in characters: it fits into LONGEST_INLINE_TWIML."""

# The characters that XML does not allow, escaped or not. https://www.w3.org/TR/xml/#charsets
# Listed, not excluded: the set of all other characters takes 4 ms to compile, at each start.
_NOT_IN_XML: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _problem(message: str) -> PydanticCustomError:
    """pydantic would read braces in the message as a template."""
    return PydanticCustomError("script", "{message}", {"message": message})


def _words(text: str) -> str:
    if _NOT_IN_XML.search(text):
        raise _problem("holds a control character: write words only")
    text = " ".join(text.split())
    if not any(map(str.isalnum, text)):
        raise _problem("holds no words")
    return text


def _spoken(text: str) -> str:
    text = _words(text)
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        raise _problem("holds a brace without a placeholder; allowed: {name}, of letters, digits and _")
    if problem := length_problem(text):
        raise _problem(problem)
    return text


def length_problem(text: str) -> str | None:
    if _filled_length(text, LONGEST_VALUE) > LONGEST_TEXT:
        return f"is too long: at most {LONGEST_TEXT} characters, where each placeholder counts as {LONGEST_VALUE}"
    return None


def inline_problem(text: str) -> str | None:
    # & becomes &amp; in XML, and a value may consist of them. 300 characters are left for the tags.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if _filled_length(escaped, LONGEST_VALUE * 5) > LONGEST_INLINE_TWIML - 300:
        return "is too long for a machine: fewer words, or fewer placeholders"
    return None


def _inline(text: "str | Recording") -> "str | Recording":
    if isinstance(text, str) and (problem := inline_problem(text)):
        raise _problem(problem)
    return text


def _filled_length(text: str, longest_value: int) -> int:
    return len(PLACEHOLDER.sub("", text)) + longest_value * len(PLACEHOLDER.findall(text))


def _fallback(text: str) -> str:
    text = _words(text)
    if len(text) > LONGEST_VALUE or re.search(r"[{}]", text):
        raise _problem(f"must be 1 to {LONGEST_VALUE} characters, without braces: the words for an unknown value")
    return text


def _matches(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise _problem(allowed)
        return text

    return AfterValidator(check)


def _language(text: str) -> str:
    if not is_language(text):
        raise _problem("must be a language and a country as Twilio writes them, such as en-US, es-MX or de-DE")
    return text


def _voice(text: str) -> str:
    if problem := voice_problem(text):
        raise _problem(problem)
    return text


def _wish(text: str) -> str:
    if not is_wish(text):
        raise _problem('must be "2h" (1 to 48 hours), "tomorrow 10:00" or "next weekday 09:00"')
    return text


def _placeholders(value: object) -> object:
    """`company = "your team"` is short for `company = { kind = "words", fallback = "your team" }`."""
    if not isinstance(value, dict):
        return value
    return {
        name: {"kind": "name" if name in NAMES else "words", "fallback": given} if isinstance(given, str) else given
        for name, given in value.items()
    }


Spoken = Annotated[str, AfterValidator(_spoken)]
Url = Annotated[
    str,
    _matches(
        rf"(?=.{{1,{LONGEST_URL}}}$)https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d+)?(/[!-;=?-Z_a-z~%\[\]]*)?",
        f"must be a URL that begins with https:// and has at most {LONGEST_URL} characters, without blanks or a login",
    ),
]
Fallback = Annotated[str, AfterValidator(_fallback)]
# Not #: it is Twilio's key for "done". After "1#" it would answer the next question.
Key = Annotated[str, _matches(r"[0-9*]", "is not a key that can be asked for; allowed: one of 0 1 2 3 4 5 6 7 8 9 *")]
Name = Annotated[
    str, _matches(r"[A-Za-z_][A-Za-z0-9_]{0,63}", "is not a name; allowed: letters, digits and _, no digit first")
]
QuestionId = Annotated[
    str,
    _matches(
        r"(?!goodbye$|opt_out$)[A-Za-z][A-Za-z0-9_-]{0,63}",
        "is not an id; allowed: up to 64 letters, digits, _ and -, a letter first; not goodbye, not opt_out",
    ),
]
Meaning = Annotated[str, Field(max_length=100), AfterValidator(_words)]
Heard = Annotated[str, Field(max_length=100), AfterValidator(_words)]
HearList = Annotated[list[Heard], Field(max_length=40)]
Wish = Annotated[str, AfterValidator(_wish)]
Alias = Annotated[str, Field(max_length=64), AfterValidator(_words)]


class Part(BaseModel):
    """A table of the file. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Recording(Part):
    """A recorded text: Twilio plays the file at `play`. `words`: the words of the recording, for readers of the script."""

    play: Url
    words: Spoken | None = None


Text = Annotated[
    Annotated[Spoken, Tag("<words>")] | Annotated[Recording, Tag("<recording>")],
    Discriminator(lambda value: "<recording>" if isinstance(value, dict | Recording) else "<words>"),
]


class Placeholder(Part):
    """`kind`: the form that a value must have to be spoken. `fallback`: spoken for an unknown or unfit value."""

    kind: Kind
    fallback: Fallback


class _Saying(Part):
    """A table with `say`. `play = "https://..."` replaces it, or stands beside it: then `say` holds the recorded words."""

    @model_validator(mode="before")
    @classmethod
    def _recording(cls, raw: object) -> object:
        if not isinstance(raw, dict) or "play" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "play"}
        return {**rest, "say": {"play": raw["play"]} | ({"words": raw["say"]} if "say" in raw else {})}


class Answer(_Saying):
    """One key of a question. `hear`: the words that count as this key. `next`: a question's id or "goodbye"; by default
    the question's `next`, or the question below. `later`: the call ends, and another one comes then."""

    means: Meaning
    hear: HearList = []
    say: Text | None = None
    next: str | None = None
    later: Wish | None = None


class Question(_Saying):
    """`repeat`: how often it is asked again after silence or another key. `no_answer`: said after that, before the goodbye."""

    id: QuestionId
    say: Text
    repeat: Annotated[int, Field(strict=True, ge=0, le=5)] = 1
    no_answer: Text | None = None
    next: str | None = None
    answers: dict[Key, Answer] = Field(min_length=1)

    @property
    def offers_later(self) -> bool:
        return any(answer.later for answer in self.answers.values())


class OptOut(_Saying):
    """The key that works everywhere. `say` tells of it; `confirm` is said after it was pressed, before the call ends.
    `hear`: words that mean the same. `ask` is asked after them, and only `yes` or the key confirms them."""

    key: Key
    say: Text
    confirm: Text
    hear: HearList = []
    ask: Text | None = None
    yes: HearList = []


class Script(Part):
    """`name`: the file's name without .toml, <mode> or <mode>.<language>. `aliases`: other signup_modes that it serves.

    `listen`: "speech" and "both" accept spoken words beside keys. `again`: said before a repeated question.
    `please_wait`: said while the database does not answer. `machine`: left on an answering machine; without it the call
    hangs up. `say_as`: words that the voice gets wrong, each with a spelling that it gets right.
    """

    name: str
    aliases: list[Alias] = []
    listen: Literal["keys", "speech", "both"] = "keys"
    language: Annotated[str, AfterValidator(_language)]
    voice: Annotated[str, AfterValidator(_voice)]
    greeting: Text
    goodbye: Text
    apology: Text
    again: Text | None = None
    please_wait: Text | None = None
    machine: Annotated[Text, AfterValidator(_inline)] | None = None
    placeholders: Annotated[dict[Name, Placeholder], BeforeValidator(_placeholders)] = {}
    say_as: dict[Fallback, Fallback] = {}
    opt_out: OptOut
    questions: list[Question] = []

    @property
    def mode(self) -> str:
        return self.name.partition(".")[0]

    def question(self, question_id: str) -> Question | None:
        return next((question for question in self.questions if question.id == question_id), None)

    def following_question(self, question: Question, key: str | None = None) -> Question | None:
        """The question after this key, or after one that is not asked; None for the goodbye."""
        ids = [*(each.id for each in self.questions), GOODBYE]
        below = ids[ids.index(question.id) + 1]
        after_key = question.answers[key].next if key else None
        return self.question(after_key or question.next or below)

    def fill(self, text: str, person: Person | None) -> str:
        """The text with its placeholders filled in, spelled for the voice. A person's value is never read as a template."""
        parts = [spell(part, self._spellings) for part in PLACEHOLDER.split(text)]
        for index, name in enumerate(PLACEHOLDER.findall(text)):
            value = _value(name, self.placeholders[name], person)
            spelled = spell(value, self._spellings)
            parts[2 * index + 1] = spelled if len(spelled) <= LONGEST_VALUE else value
        return "".join(parts)

    @cached_property
    def _spellings(self) -> Mapping[str, str]:
        return {word.casefold(): spelling for word, spelling in self.say_as.items()}


def spell(text: str, spellings: Mapping[str, str]) -> str:
    """The text with each whole word or phrase of `spellings` (casefolded) replaced; the longest one wins."""
    if not spellings:
        return text
    words = "|".join(re.escape(word) for word in sorted(spellings, key=len, reverse=True))
    pattern = rf"(?<!\w)(?:{words})(?!\w)"
    return re.sub(pattern, lambda found: spellings.get(found[0].casefold(), found[0]), text, flags=re.IGNORECASE)


def _value(name: str, placeholder: Placeholder, person: Person | None) -> str:
    if person is None:
        return placeholder.fallback
    read = READERS[placeholder.kind]
    if name == "first_name" and placeholder.kind == "name":
        return _first_name(person) or placeholder.fallback
    theirs: list[Any] = [person.first_name] if name == "first_name" else []
    return next(filter(None, map(read, [*theirs, person.metadata.get(name)])), placeholder.fallback)


def _first_name(person: Person) -> str | None:
    """From the job's first_name, else from the metadata's first_name, name or full_name. The sign-up trigger fills the job's
    first_name from the same metadata, with a full name or its first word: then the full name is read instead."""
    full = [text for key in ("name", "full_name") if isinstance(text := person.metadata.get(key), str)]
    cut = {part for text in full for part in (text.strip()[:100], text.strip().partition(" ")[0])}
    given = person.metadata.get("first_name")
    first = [given] if person.first_name in cut and person.first_name != given else [person.first_name, given]
    names = [*map(READERS["name"], first), *map(read_given_name, full)]
    return next(filter(None, names), None)
