"""How the parts of a script hang together: placeholders, keys, and the way from question to question.

These checks read the file's plain tables, not the models, so that they speak also when something else in the file is wrong.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
GOODBYE: Final = "goodbye"

Problem = tuple[str, str]
Table = Mapping[str, Any]


def cost(text: str, each_placeholder: int) -> int:
    """The characters that this text may have when its placeholders are filled in."""
    return len(PLACEHOLDER.sub("", text)) + each_placeholder * len(PLACEHOLDER.findall(text))


def check_structure(raw: Table) -> list[Problem]:
    """(key, what is wrong with it), for all that no single value can tell."""
    questions = [question for question in _list(raw.get("questions")) if isinstance(question.get("id"), str)]
    problems = [*_placeholders(raw), *_ids(questions), *_opt_out_key(raw, questions), *_nexts(questions)]
    if questions and not [problem for problem in problems if problem[0].startswith("questions")]:
        problems += check_reachable(questions)
    return problems


def _placeholders(raw: Table) -> Iterator[Problem]:
    declared = _table(raw.get("placeholders"))
    used: set[str] = set()
    for where, text in _texts(raw):
        for name in dict.fromkeys(PLACEHOLDER.findall(text)):
            used.add(name)
            if name not in declared:
                allowed = ", ".join(f"{{{known}}}" for known in declared) or "none so far"
                yield where, f"{{{name}}} is not declared under [placeholders]; declared: {allowed}"
    for name in declared:
        if name not in used:
            yield f"placeholders.{name}", f"no text says {{{name}}}: use it, or take it out"


def _ids(questions: list[Table]) -> Iterator[Problem]:
    ids = [question["id"] for question in questions]
    for question_id in dict.fromkeys(ids):
        if ids.count(question_id) > 1:
            yield f"questions.{question_id}.id", "is the id of two questions: each has its own"


def _opt_out_key(raw: Table, questions: list[Table]) -> Iterator[Problem]:
    key = _text(_table(raw.get("opt_out")), "key")
    for question in questions:
        if key in _answers(question):
            yield (
                f"questions.{question['id']}.answers.{key}",
                f"{key} is the opt-out key in every question: choose another",
            )


def _nexts(questions: list[Table]) -> Iterator[Problem]:
    allowed = [*dict.fromkeys(question["id"] for question in questions), GOODBYE]
    for question in questions:
        places = {"": question, **{f".answers.{key}": answer for key, answer in _answers(question).items()}}
        for place, table in places.items():
            following = _text(table, "next")
            if following is not None and following not in allowed:
                yield (
                    f"questions.{question['id']}{place}.next",
                    f"{following!r} is no question; allowed: {', '.join(allowed)}",
                )


def check_reachable(questions: list[Table]) -> Iterator[Problem]:
    """Every question can be reached, and from every question some answers lead to the goodbye. Ids and nexts are right."""
    ids = [question["id"] for question in questions]
    ways: dict[str, set[str]] = {}
    for question, below in zip(questions, [*ids[1:], GOODBYE], strict=True):
        default = _text(question, "next") or below
        ways[question["id"]] = {_text(answer, "next") or default for answer in _answers(question).values()} or {default}
    reached = _closure(set(ids[:1]), ways)
    back: dict[str, set[str]] = {}
    for question_id, followings in ways.items():
        for following in followings:
            back.setdefault(following, set()).add(question_id)
    ending = _closure({GOODBYE}, back)
    for question_id in ids:
        if question_id not in reached:
            yield f"questions.{question_id}", "is never asked: no answer leads to it"
        elif question_id not in ending:
            yield (
                f"questions.{question_id}",
                "never ends: none of its answers leads to goodbye, however often it is answered",
            )


def _closure(start: set[str], ways: Mapping[str, set[str]]) -> set[str]:
    found, pending = set(start), list(start)
    while pending:
        for following in ways.get(pending.pop(), set()) - found:
            found.add(following)
            pending.append(following)
    return found


def _texts(raw: Table) -> Iterator[tuple[str, str]]:
    """Everything that is said, with its key."""
    said: list[tuple[str, Any]] = [
        (key, raw.get(key)) for key in ("greeting", "goodbye", "apology", "again", "machine")
    ]
    said += [(f"opt_out.{key}", _table(raw.get("opt_out")).get(key)) for key in ("say", "confirm")]
    for number, question in enumerate(_list(raw.get("questions")), 1):
        name = _text(question, "id") or f"(number {number})"
        said += [(f"questions.{name}.{key}", question.get(key)) for key in ("say", "no_answer")]
        said += [
            (f"questions.{name}.answers.{key}.say", answer.get("say")) for key, answer in _answers(question).items()
        ]
    return ((where, text) for where, text in said if isinstance(text, str))


def _answers(question: Table) -> dict[str, Table]:
    return {key: answer for key, answer in _table(question.get("answers")).items() if isinstance(answer, dict)}


def _table(value: object) -> Table:
    return value if isinstance(value, dict) else {}


def _text(table: Table, key: str) -> str | None:
    return value if isinstance(value := table.get(key), str) else None


def _list(value: object) -> list[Table]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
