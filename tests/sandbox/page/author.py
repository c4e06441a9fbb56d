"""The script author's view: the checker's problems of a text, and the way through it key by key. Nothing is written to disk
unless the sandbox was started with --write."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.conversation.library import FOLDER, ScriptError, Scripts
from shared.conversation.script import Script
from shared.conversation.texts import Recording
from shared.conversation.turns import Place, Turn, first_turn, next_turn, voicemail_turn
from shared.models import Person

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}")


def files() -> list[dict[str, Any]]:
    """Each script of the folder: its file's name without .toml, and its text. The function's modes are among them."""
    return [{"name": file.stem, "text": file.read_text(encoding="utf-8")} for file in sorted(FOLDER.glob("*.toml"))]


def check(name: str, text: str) -> tuple[Script | None, list[dict[str, str]]]:
    """The script, or its problems by key. The other files stand beside it, because aliases must not collide."""
    if not NAME.fullmatch(name):
        return None, [{"key": "", "message": f"{name!r} is not the name of a script"}]
    with tempfile.TemporaryDirectory() as made:
        shutil.copytree(FOLDER, made, dirs_exist_ok=True)
        (Path(made) / f"{name}.toml").write_text(text, encoding="utf-8")
        try:
            return Scripts(Path(made)).named(name), []
        except ScriptError as error:
            return None, [_problem(line.strip().removeprefix(f"{name}.toml: ")) for line in str(error).split("\n")[1:]]


def _problem(line: str) -> dict[str, str]:
    found = re.match(r"([A-Za-z_][\w-]*(?:\.(?:[\w*-]+|\([^)]*\)))*): (.*)", line)
    return {"key": found[1], "message": found[2]} if found else {"key": "", "message": line}


def walk(script: Script, keys: Sequence[str], first_name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The turns from the greeting on, one for each key ("" is silence), as this person hears them."""
    person = Person(first_name=first_name or None, signup_mode=script.mode, metadata=metadata)
    turn = first_turn(script)
    turns = [_shown(script, turn, person)]
    for key in keys:
        if turn.place is None:
            break
        turn = next_turn(script, turn.place, key)
        turns.append(_shown(script, turn, person))
    return {
        "language": script.language, "voice": script.voice, "turns": turns,
        "machine": [_words(script, text, person) for text in voicemail_turn(script).says],
        "branches": [
            {"question": q.id, "key": key, "means": a.means} for q in script.questions for key, a in q.answers.items()
        ],
    }  # fmt: skip


def _shown(script: Script, turn: Turn, person: Person) -> dict[str, Any]:
    place: Place | None = turn.place
    question = script.question(place.at) if place else None
    options = [{"key": key, "means": answer.means} for key, answer in question.answers.items()] if question else []
    if place:
        options += [{"key": script.opt_out.key, "means": "never call again"}, {"key": "", "means": "silence"}]
    says = [_words(script, text, person) for text in (*turn.says, *turn.asks)]
    if turn.connects:
        says.append("(your agent has the call; silence: it fails)")
    if turn.dials:
        says.append("(a colleague is rung; silence: nobody takes the call)")
    learned = f"{turn.learned.question} = {turn.learned.meaning}" if turn.learned else None
    at = place.at if place else None
    return {"says": says, "at": at, "options": options, "learned": learned, "opts_out": turn.opts_out}


def _words(script: Script, text: str | Recording, person: Person) -> str:
    if isinstance(text, Recording):
        return script.fill(text.words, person) if text.words else f"(plays {text.play})"
    return script.fill(text, person)


def write(name: str, text: str) -> None:
    (FOLDER / f"{name}.toml").write_text(text, encoding="utf-8")
