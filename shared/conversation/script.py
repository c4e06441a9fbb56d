"""A script: everything that the calls of one signup_mode say, as the values of its TOML file. The keys are explained in
shared/docs/scripts.md, the order of a conversation is decided in turns.py."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field

from shared.conversation.later import is_wish
from shared.conversation.texts import (
    LONGEST_VALUE,
    PLACEHOLDER,
    Fallback,
    Part,
    Saying,
    Spoken,
    Text,
    allowed_by,
    checked_by,
    inline_problem,
    matches,
    spell,
    words_only,
)
from shared.conversation.values import READERS, Kind, read_given_name
from shared.conversation.voices import is_language, voice_problem
from shared.models import Person
from shared.opening_hours import parse_schedule

GOODBYE: Final = "goodbye"
"""The place after the last question."""
NAMES: Final = frozenset({"first_name", "last_name", "full_name", "name"})
"""Placeholders of kind `name` when their file gives a fallback only."""


def _hours_problem(text: str) -> str | None:
    try:
        parse_schedule(text)
    except ValueError as error:
        return f"must be opening hours, such as Mo-Fr 09:00-17:00: {error}"
    return None


def _zone_problem(text: str) -> str | None:
    try:
        ZoneInfo(text if "/" in text or text == "UTC" else "")  # EST has no summer time, localtime is this machine's
    except (ValueError, OSError, LookupError):  # a path, a folder, an unknown name
        return "must be a time zone such as Europe/Berlin or America/New_York"
    return None


def _placeholders(value: object) -> object:
    """`company = "your team"` is short for `company = { kind = "words", fallback = "your team" }`."""
    if not isinstance(value, dict):
        return value
    return {
        name: {"kind": "name" if name in NAMES else "words", "fallback": given} if isinstance(given, str) else given
        for name, given in value.items()
    }


_RELAY: Final = (
    *("voice", "ttsProvider", "transcriptionProvider", "speechModel", "hints", "interruptible", "interruptSensitivity"),
    *("welcomeGreetingInterruptible", "preemptible", "profanityFilter", "reportInputDuringAgentSpeech", "debug"),
)
SocketUrl = Annotated[
    str,
    matches(
        r"(?=.{1,600}$)(wss://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|wss?://(localhost|127\.0\.0\.1|\[::1\]))(:\d+)?"
        r"(/[!-\"$->A-Z\[-~]*)?",
        "must be a URL that begins with wss:// and has at most 600 characters, without a login, a query or blanks;"
        " ws:// only on this machine",
    ),
]
# Not #: it is Twilio's key for "done". After "1#" it would answer the next question.
Key = Annotated[str, matches(r"[0-9*]", "is not a key that can be asked for; allowed: one of 0 1 2 3 4 5 6 7 8 9 *")]
Name = Annotated[
    str, matches(r"[A-Za-z_][A-Za-z0-9_]{0,63}", "is not a name; allowed: letters, digits and _, no digit first")
]
QuestionId = Annotated[
    str,
    matches(
        r"(?!goodbye$|opt_out$)[A-Za-z][A-Za-z0-9_-]{0,63}",
        "is not an id; allowed: up to 64 letters, digits, _ and -, a letter first; not goodbye, not opt_out",
    ),
]
Line = Annotated[str, Field(max_length=100), AfterValidator(words_only)]
HearList = Annotated[list[Line], Field(max_length=40)]
Wish = Annotated[str, allowed_by(is_wish, 'must be "2h" (1 to 48 hours), "tomorrow 10:00" or "next weekday 09:00"')]
Language = Annotated[
    str,
    allowed_by(is_language, "must be a language and a country as Twilio writes them, such as en-US, es-MX or de-DE"),
]
DialNumber = Annotated[
    str, matches(r"\+[1-9][0-9]{6,14}", 'must be a phone number with + and country code: "+14155550123"')
]
Alias = Annotated[str, Field(max_length=64), AfterValidator(words_only)]


class Placeholder(Part):
    """`kind`: the form that a value must have to be spoken. `fallback`: spoken for an unknown or unfit value."""

    kind: Kind
    fallback: Fallback


class Answer(Saying):
    """One key of a question. `hear`: the words that count as this key. `next`: a question's id or "goodbye"; by default
    the question's `next`, or the question below. `later`: the call ends, and another one comes then.

    `dial`: a colleague's phone rings for `ring_s` seconds, if it is inside `hours` by the clock of `zone`. The colleague hears
    `whisper` and presses a key, and the two talk. Otherwise the person hears `no_answer`, and the script goes on."""

    means: Line
    hear: HearList = Field([])
    say: Text | None = None
    next: str | None = None
    later: Wish | None = None
    dial: DialNumber | None = None
    hours: Annotated[str, checked_by(_hours_problem)] | None = None
    zone: Annotated[str, checked_by(_zone_problem)] | None = None
    ring_s: Annotated[int, Field(strict=True, ge=5, le=60)] = 20
    whisper: Text | None = None
    no_answer: Text | None = None


class Question(Saying):
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

    def key_of(self, meaning: str | None) -> str | None:
        return next((key for key, answer in self.answers.items() if answer.means == meaning), None)


class OptOut(Saying):
    """The key that works everywhere. `say` tells of it; `confirm` is said after it was pressed, before the call ends.
    `hear`: words that mean the same. `ask` is asked after them, and only `yes` or the key confirms them."""

    key: Key
    say: Text
    confirm: Text
    hear: HearList = Field([])
    ask: Text | None = None
    yes: HearList = Field([])


class Connect(Part):
    """The handover to your own agent at `url`. When it has ended, the script goes on at `then`; when it cannot be had or breaks,
    it says `sorry` and goes on at `failed`, by default the first question. `welcome`: said as the agent's first words.
    `metadata`: the keys of the sign-up's metadata that the agent is told. `relay`: more attributes for Twilio.
    """

    url: SocketUrl
    kind: Literal["conversation_relay", "stream"]
    then: str = GOODBYE
    failed: str | None = None
    sorry: Text | None = None
    welcome: Spoken | None = None
    metadata: list[Name] = Field([], max_length=20)
    relay: dict[
        Annotated[str, matches("|".join(_RELAY), f"is not passed on; allowed: {', '.join(_RELAY)}")],
        Annotated[str, Field(max_length=200), AfterValidator(words_only)],
    ] = Field({})


class Script(Part):
    """`name`: the file's name without .toml, <mode> or <mode>.<language>. `aliases`: other signup_modes that it serves.

    `listen`: "speech" and "both" accept spoken words beside keys. `again`: said before a repeated question.
    `please_wait`: said while the database does not answer. `machine`: left on an answering machine; without it the call
    hangs up. `say_as`: words that the voice gets wrong, each with a spelling that it gets right.
    """

    name: str
    aliases: list[Alias] = Field([])
    listen: Literal["keys", "speech", "both"] = "keys"
    language: Language
    voice: Annotated[str, checked_by(voice_problem)]
    greeting: Text
    goodbye: Text
    apology: Text
    again: Text | None = None
    please_wait: Text | None = None
    machine: Annotated[Text, checked_by(inline_problem)] | None = None
    placeholders: Annotated[dict[Name, Placeholder], BeforeValidator(_placeholders)] = Field({})
    say_as: dict[Fallback, Fallback] = Field({})
    opt_out: OptOut
    connect: Connect | None = None
    questions: list[Question] = Field([])

    @property
    def mode(self) -> str:
        return self.name.partition(".")[0]

    def question(self, question_id: str) -> Question | None:
        return next((question for question in self.questions if question.id == question_id), None)

    def answers(self) -> Iterator[tuple[str, Answer]]:
        """Each answer with its key in the file."""
        for question in self.questions:
            yield from ((f"questions.{question.id}.answers.{key}", each) for key, each in question.answers.items())

    def following_question(self, question: Question, key: str | None = None) -> Question | None:
        """The question after this key, or after one that is not asked; None for the goodbye."""
        ids = [*(each.id for each in self.questions), GOODBYE]
        below = ids[ids.index(question.id) + 1]
        after_key = question.answers[key].next if key else None
        return self.question(after_key or question.next or below)

    def fill(self, text: str, person: Person | None) -> str:
        """The text with its placeholders filled in, spelled for the voice. A person's value is never read as a template."""
        parts = PLACEHOLDER.split(text)  # words, a name, words, a name, ..., words
        for index, part in enumerate(parts):
            value = _value(part, self.placeholders[part], person) if index % 2 else part
            spelled = spell(value, self._spellings)
            parts[index] = value if index % 2 and len(spelled) > LONGEST_VALUE else spelled
        return "".join(parts)

    @cached_property
    def _spellings(self) -> Mapping[str, str]:
        return {word.casefold(): spelling for word, spelling in self.say_as.items()}


def _value(name: str, placeholder: Placeholder, person: Person | None) -> str:
    if person is None:
        return placeholder.fallback
    read = READERS[placeholder.kind]
    if name == "first_name" and placeholder.kind == "name":
        return first_name(person) or placeholder.fallback
    theirs: list[Any] = [person.first_name] if name == "first_name" else []
    return next(filter(None, map(read, [*theirs, person.metadata.get(name)])), placeholder.fallback)


def first_name(person: Person) -> str | None:
    """From the job's first_name, else from the metadata's first_name, name or full_name. The sign-up trigger fills the job's
    first_name from the same metadata, with a full name or its first word: then the full name is read instead."""
    full = [text for key in ("name", "full_name") if isinstance(text := person.metadata.get(key), str)]
    cut = {part for text in full for part in (text.strip()[:100], text.strip().partition(" ")[0])}
    given = person.metadata.get("first_name")
    first = [given] if person.first_name in cut and person.first_name != given else [person.first_name, given]
    return next(filter(None, [*map(READERS["name"], first), *map(read_given_name, full)]), None)
