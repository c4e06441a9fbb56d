"""The scripts of a folder, one TOML file for each signup_mode and language, read and checked as a whole when the process starts.

`python -m shared.conversation.rehearse check [folder]` prints each problem of each file, or reads the scripts out.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shared.conversation.checks import check
from shared.conversation.colleagues import dial_problem
from shared.conversation.script import Script
from shared.models import Person
from shared.settings import Settings

FOLDER: Final = Path(__file__).parents[1] / "scripts"
DEFAULT: Final = "default"

_CURLY_QUOTES: Final = re.compile("[“”„‟«»‘’‚]")
_IGNORED: Final = (".toml", ".bak", ".orig", ".swp", ".tmp", "~")


class ScriptError(Exception):
    """A script cannot be used. The message names file, key and allowed values, for each problem of each file."""


class Scripts:
    """All scripts of a folder. With `settings` the numbers of colleagues are screened by them. Raises ScriptError."""

    def __init__(self, folder: Path = FOLDER, settings: Settings | None = None) -> None:
        self._by_name: dict[str, Script] = {}
        problems: list[str] = []
        if not folder.is_dir():
            raise ScriptError(f"there is no folder of scripts at {folder}")
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() == ".toml":
                script = read_script(file)
                if isinstance(script, Script):
                    self._by_name[script.name] = script
                else:
                    problems += [f"{file.name}: {problem}" for problem in script]
            elif problem := _misnamed(file.name):
                problems.append(problem)
        if not (folder / f"{DEFAULT}.toml").exists():
            problems.append(f"{DEFAULT}.toml is missing: it speaks for every signup_mode without a file of its own")
        self._by_mode = {name: script for name, script in self._by_name.items() if name == script.mode}
        problems += [*self._add_aliases(), *self._check_together(folder, settings)]
        if problems:
            raise ScriptError("scripts are wrong:\n  " + "\n  ".join(problems))
        self.default = self._by_name[DEFAULT]

    def __iter__(self) -> Iterator[Script]:
        return iter(self._by_name.values())

    def named(self, name: str) -> Script:
        """The script of this file; the default if the file is gone."""
        return self._by_name.get(name, self.default)

    def for_mode(self, signup_mode: str) -> Script:
        """The script of this mode or alias, compared without case and blanks; the default for any other text."""
        return self._by_mode.get(folded(signup_mode), self.default)

    def for_person(self, person: Person) -> Script:
        """The script of the person's mode, in the language that the metadata's `language` or `locale` names."""
        script = self.for_mode(person.signup_mode)
        for key in ("language", "locale"):
            for tag in language_tags(person.metadata.get(key)):
                if found := self._by_name.get(f"{script.name}.{tag}"):
                    return found
                if f"{script.language.casefold()}-".startswith(f"{tag}-"):
                    return script
        return script

    def _add_aliases(self) -> Iterator[str]:
        for script in self:
            names = [script.mode, *map(folded, script.aliases)]
            for alias in script.aliases:
                other = self._by_mode.setdefault(folded(alias), script)
                if names.count(folded(alias)) > 1:
                    yield f"{script.mode}.toml: aliases: {alias!r} stands here already: once is enough"
                elif other is not script:
                    yield f"{script.mode}.toml: aliases: {alias!r} belongs to {other.mode}.toml: each mode has one script"

    def _check_together(self, folder: Path, settings: Settings | None) -> Iterator[str]:
        """A script of a language needs the mode's own, and a number of a colleague the settings."""
        for script in self:
            if script.name != script.mode and not (folder / f"{script.mode}.toml").exists():
                yield f"{script.name}.toml: {script.mode}.toml is missing: it speaks for every other language"
            for place, answer in script.answers():
                if answer.dial and (problem := dial_problem(answer, settings)):
                    yield f"{script.name}.toml: {place}.dial: {problem}"


def language_tags(value: object) -> list[str]:
    """["es-mx", "es"] of "es-MX", "es_MX.UTF-8" and "es-MX,es;q=0.9"; [] of anything else."""
    if not isinstance(value, str):
        return []
    tag = re.split(r"[,;.@]", value[:100])[0].strip().casefold().replace("_", "-")
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{1,8}){0,4}", tag):
        return []
    parts = tag.split("-")
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]


def folded(signup_mode: str) -> str:
    """As modes are compared: " Job  Seeker" is job_seeker."""
    return "_".join(signup_mode.casefold().split())


def read_script(file: Path) -> Script | list[str]:
    """The script, or its problems: one line each, with the key."""
    try:
        data = file.read_bytes()
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:64]:
        return ["is saved as UTF-16, which some editors call Unicode: save it as UTF-8"]
    try:
        text = data.decode("utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        before, after = (part.decode("cp1252", "replace") for part in (data[: error.start], data[error.start :]))
        near = re.split(r"\s", before)[-1] + re.split(r"\s", after)[0]
        return [f"line {line}: is not saved as UTF-8 (near {near!r}, perhaps Latin-1): save it as UTF-8"]
    try:
        return check(tomllib.loads(text.replace("\r\n", "\n")), file.name.removesuffix(".toml"))
    except tomllib.TOMLDecodeError as error:
        return [_toml_problem(text, str(error))]


def _toml_problem(text: str, message: str) -> str:
    at = re.search(r"\(at line (\d+)", message)
    lines = text.splitlines()
    number = int(at[1]) if at else len(lines)
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    if quote := _CURLY_QUOTES.search(line):
        return f'line {number}: cannot be read: {quote[0]} is a quote of a word processor; write straight ones: "..."'
    return f"cannot be read: {message}"


def _misnamed(name: str) -> str | None:
    """A script that would be left out in silence: Notepad saves demo.toml.txt."""
    lower = name.lower()
    if lower.startswith(".") or lower.endswith(_IGNORED):
        return None
    if ".toml" in lower or lower.endswith((".txt", ".tml", ".tom", ".rtf", ".doc", ".docx")):
        stem = re.split(r"\.", lower, maxsplit=1)[0]
        return f"{name}: is not read, because a script's name ends in .toml: rename it to {stem}.toml"
    return None
