"""The texts of a script: words for the voice, or a recording. Each has a length that Twilio takes."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Tag, model_validator
from pydantic_core import PydanticCustomError

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")

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


def script_problem(message: str) -> PydanticCustomError:
    """pydantic would read braces in the message as a template."""
    return PydanticCustomError("script", "{message}", {"message": message})


def one_line(text: str) -> str:
    """The text on one line, without the characters that XML does not allow."""
    return " ".join(_NOT_IN_XML.sub(" ", text).split())


def checked_by(problem: Callable[[Any], str | None]) -> AfterValidator:
    """A value of which `problem` finds none."""

    def check(value: Any) -> Any:
        if found := problem(value):
            raise script_problem(found)
        return value

    return AfterValidator(check)


def allowed_by(test: Callable[[str], object], allowed: str) -> AfterValidator:
    return checked_by(lambda text: None if test(text) else allowed)


def matches(pattern: str, allowed: str) -> AfterValidator:
    return allowed_by(lambda text: re.fullmatch(pattern, text), allowed)


def words_only(text: str) -> str:
    if _NOT_IN_XML.search(text):
        raise script_problem("holds a control character: write words only")
    text = " ".join(text.split())
    if not any(map(str.isalnum, text)):
        raise script_problem("holds no words")
    return text


def _spoken_problem(text: str) -> str | None:
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        return "holds a brace without a placeholder; allowed: {name}, of letters, digits and _"
    return length_problem(text)


def length_problem(text: str) -> str | None:
    if _filled_length(text, LONGEST_VALUE) > LONGEST_TEXT:
        return f"is too long: at most {LONGEST_TEXT} characters, where each placeholder counts as {LONGEST_VALUE}"
    return None


def inline_problem(text: "str | Recording") -> str | None:
    if not isinstance(text, str):
        return None
    # & becomes &amp; in XML, and a value may consist of them. 300 characters are left for the tags.
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if _filled_length(escaped, LONGEST_VALUE * 5) > LONGEST_INLINE_TWIML - 300:
        return "is too long for a machine: fewer words, or fewer placeholders"
    return None


def _filled_length(text: str, longest_value: int) -> int:
    return len(PLACEHOLDER.sub("", text)) + longest_value * len(PLACEHOLDER.findall(text))


Words = Annotated[str, AfterValidator(words_only)]
Spoken = Annotated[Words, checked_by(_spoken_problem)]
Url = Annotated[
    str,
    matches(
        rf"(?=.{{1,{LONGEST_URL}}}$)https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d+)?(/[!-;=?-Z_a-z~%\[\]]*)?",
        f"must be a URL that begins with https:// and has at most {LONGEST_URL} characters, without blanks or a login",
    ),
]
Fallback = Annotated[
    Words,
    matches(
        rf"[^{{}}]{{1,{LONGEST_VALUE}}}",
        f"must be 1 to {LONGEST_VALUE} characters, without braces: the words for an unknown value",
    ),
]


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


class Saying(Part):
    """A table with `say`. `play = "https://..."` replaces it, or stands beside it: then `say` holds the recorded words."""

    @model_validator(mode="before")
    @classmethod
    def _recording(cls, raw: object) -> object:
        if not isinstance(raw, dict) or "play" not in raw:
            return raw
        rest = {key: value for key, value in raw.items() if key != "play"}
        return {**rest, "say": {"play": raw["play"]} | ({"words": raw["say"]} if "say" in raw else {})}


Texts = tuple[Text, ...]


def given(*texts: Text | None) -> Texts:
    """The texts that the script has."""
    return tuple(filter(None, texts))


def spell(text: str, spellings: Mapping[str, str]) -> str:
    """The text with each whole word or phrase of `spellings` (casefolded) replaced; the longest one wins."""
    if not spellings:
        return text
    words = "|".join(re.escape(word) for word in sorted(spellings, key=len, reverse=True))
    pattern = rf"(?<!\w)(?:{words})(?!\w)"
    return re.sub(pattern, lambda found: spellings.get(found[0].casefold(), found[0]), text, flags=re.IGNORECASE)
