"""The problems that pydantic finds in a script, in words for readers without Python."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import ErrorDetails

from shared.conversation.script import Answer, Connect, OptOut, Placeholder, Question, Script
from shared.conversation.texts import Part, Recording

_MUST_BE: Final = {
    "opt_out": "a table [opt_out] with key, say and confirm",
    "answers": "a table [questions.answers.1] with means, and one more for each other key",
    "kind": "one of name, words, number",
    "connect": "a table [connect] with url and kind",
    "connect.kind": "conversation_relay or stream",
    "listen": "one of keys, speech, both",
}


def describe_problem(found: ErrorDetails) -> str:
    place, name = found["loc"], str(found["loc"][-1]) if found["loc"] else ""
    match found["type"]:
        case "missing":
            return f"is missing; it must be {_MUST_BE.get(name, 'text, in quotes')}"
        case "extra_forbidden":
            allowed = [key for key in _part(place).model_fields if key != "name"]
            return f"is not a key here; allowed: {', '.join([*allowed, *(['play'] if 'say' in allowed else [])])}"
        case "string_type":
            return "must be text, in quotes"
        case "int_type" | "greater_than_equal" | "less_than_equal":
            return f"must be a whole number from {'5 to 60' if name == 'ring_s' else '0 to 5'}, without quotes"
        case "literal_error":
            return f"must be {_MUST_BE[f'connect.{name}' if place[0] == 'connect' else name]}"
        case "list_type":
            is_texts = name in ("aliases", "hear", "yes", "metadata")
            return 'must be a list: ["one", "two"]' if is_texts else "must be written as [[questions]], each time"
        case "dict_type" | "model_type":
            if _part(place) is Placeholder:
                return 'must be text, in quotes, or { kind = "name", fallback = "there" }'
            return "must be a table of its own, with keys and values"
        case "too_short":
            return "must hold one answer at least: [questions.answers.1] with means = ..."
        case "too_long":
            return f"holds too many: at most {found['ctx']['max_length']}"
        case "string_too_long":
            return f"is too long: at most {found['ctx']['max_length']} characters"
    return found["msg"]


def _part(place: tuple[int | str, ...]) -> type[Part]:
    """The table of the file that holds this place."""
    match place:
        case (*_, "<recording>", _):
            return Recording
        case ("opt_out", _, *_):
            return OptOut
        case ("connect", _, *_):
            return Connect
        case ("placeholders", _, *_):
            return Placeholder
        case ("questions", _, "answers", _, _, *_):
            return Answer
        case ("questions", _, _, *_):
            return Question
    return Script


def key_path(raw: Mapping[str, Any], place: tuple[int | str, ...]) -> str:
    """`questions.team_size.answers.1.means`. A question without an id is named by its number."""
    parts: list[str] = []
    for index, part in enumerate(place):
        if index == 1 and place[0] == "questions" and isinstance(part, int):
            question = raw["questions"][part]
            name = question.get("id") if isinstance(question, dict) else None
            parts.append(name if isinstance(name, str) and name else f"(number {part + 1})")
        elif part not in ("[key]", "<words>", "<recording>"):
            parts.append(str(part))
    if "<recording>" in place and place[0] in ("opt_out", "questions") and parts[-2] == "say":
        parts[-2:] = ["play"] if parts[-1] == "play" else ["say"]  # `play` stands beside `say`, or in its place
    if place[0] == "placeholders" and len(place) > 2 and isinstance(raw["placeholders"].get(place[1]), str):
        parts = parts[:2]  # the short form: a fallback without a table
    return ".".join(parts)
