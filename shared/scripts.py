"""What the call says: one TOML file a signup_mode in `scripts/`, read and checked when the process starts."""

import string
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.models import Person

FOLDER = Path(__file__).parent / "scripts"
DEFAULT = "default"


class ScriptError(Exception):
    """A script cannot be used. The message names the file, the field and what is allowed."""


def _placeholders_are_known(text: str) -> str:
    try:
        fields = [name for _, name, spec, conversion in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"is no template: {error}") from error
    unknown = [name for name in fields if name != "first_name"]
    if unknown:
        raise ValueError(f"holds the unknown placeholder {{{unknown[0]}}}; allowed: {{first_name}}")
    return text


Spoken = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_placeholders_are_known)]


class Script(BaseModel):
    """The words of one call. `{first_name}` becomes `first_name_fallback` when we do not know the name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Z]{2})?$", description="as Twilio's <Say language>")
    voice: str = Field(min_length=1, max_length=64, description="as Twilio's <Say voice>")
    first_name_fallback: str = Field(max_length=100)
    greeting: Spoken
    body: Spoken
    goodbye: Spoken
    apology: Spoken = Field(description="said instead of all that when our database does not answer")

    def say(self, text: str, person: Person | None) -> str:
        name = (person.first_name if person else None) or self.first_name_fallback
        return text.format(first_name=" ".join(name.split()))


class Scripts:
    """All scripts of a folder. Raises ScriptError, naming everything that is wrong in all files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._by_mode: dict[str, Script] = {}
        problems: list[str] = []
        for file in sorted(folder.glob("*.toml")):
            try:
                self._by_mode[file.stem] = Script.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
            except ValidationError as error:
                problems += [f"{file.name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                problems.append(f"{file.name}: {error}")
        if not problems and DEFAULT not in self._by_mode:
            problems.append(f"{DEFAULT}.toml is missing: it speaks for every signup_mode without a file of its own")
        if problems:
            raise ScriptError("scripts are wrong:\n  " + "\n  ".join(problems))

    @cached_property
    def default(self) -> Script:
        return self._by_mode[DEFAULT]

    def for_mode(self, signup_mode: str) -> Script:
        return self._by_mode.get(signup_mode, self.default)
