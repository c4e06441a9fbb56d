"""A broken script stops the process at start, and the error says where to look."""

from pathlib import Path

import pytest

from shared.models import Person
from shared.scripts import ScriptError, Scripts

GOOD = """
language = "en-US"
voice = "Polly.Joanna"
first_name_fallback = "there"
greeting = "Hello {first_name}."
body = "Welcome."
goodbye = "Goodbye."
apology = "Sorry."
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.toml").write_text(GOOD)
    return tmp_path


def test_the_scripts_that_ship_are_right() -> None:
    scripts = Scripts()
    assert scripts.for_mode("demo") is not scripts.default
    assert scripts.for_mode("prueba").language.startswith("es")


def test_an_unknown_mode_falls_back_to_default(folder: Path) -> None:
    scripts = Scripts(folder)
    assert scripts.for_mode("no such mode") is scripts.default
    assert scripts.for_mode("../../etc/passwd") is scripts.default


def test_the_name_is_said_and_its_fallback_when_there_is_none(folder: Path) -> None:
    script = Scripts(folder).default
    assert script.say(script.greeting, Person(first_name="Ada", signup_mode="x", metadata={})) == "Hello Ada."
    assert script.say(script.greeting, Person(first_name=None, signup_mode="x", metadata={})) == "Hello there."


def test_a_name_with_braces_is_only_a_name(folder: Path) -> None:
    script = Scripts(folder).default
    assert (
        script.say(script.greeting, Person(first_name="{goodbye}", signup_mode="x", metadata={})) == "Hello {goodbye}."
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('greeting = "Hello {first_name}."', ""), "greeting"),
        (("{first_name}", "{surname}"), "surname"),
        (("{first_name}", "{first_name"), "greeting"),
        (("{first_name}", "{}"), "greeting"),
        (('"en-US"', '"English"'), "language"),
        (("body", "boddy"), "boddy"),
        (('body = "Welcome."', "body = 3"), "body"),
        (("greeting =", "greeting"), "odd.toml"),
    ],
)
def test_an_error_names_the_file_and_the_field(folder: Path, change: tuple[str, str], says: str) -> None:
    (folder / "odd.toml").write_text(GOOD.replace(*change))
    with pytest.raises(ScriptError) as error:
        Scripts(folder)
    assert "odd.toml" in str(error.value)
    assert says in str(error.value)


def test_default_must_be_there(folder: Path) -> None:
    (folder / "default.toml").rename(folder / "other.toml")
    with pytest.raises(ScriptError, match=r"default\.toml is missing"):
        Scripts(folder)
