"""What a script may say is checked as a whole before anybody hears it, and an error says where to look and what is allowed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared.conversation.rehearse import main
from shared.conversation.script import FOLDER, LONGEST_VALUE, Script, ScriptError, Scripts, check, sayable
from shared.models import Person

GOOD = """
language = "en-US"
voice = "Polly.Joanna"
greeting = "Hello {first_name}."
goodbye = "Goodbye."
apology = "Sorry."

[placeholders]
first_name = "there"

[opt_out]
key = "9"
say = "Press 9 to opt out."
confirm = "Never again."

[[questions]]
id = "size"
say = "How many?"
next = "start"

[questions.answers.1]
means = "one"

[questions.answers.2]
means = "many"
next = "goodbye"

[[questions]]
id = "start"
say = "When?"

[questions.answers.1]
means = "now"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.toml").write_text(GOOD)
    return tmp_path


def problems(folder: Path, text: str, name: str = "odd.toml") -> list[str]:
    """What is said to be wrong with this file, a line each, without the headline."""
    (folder / name).write_text(text)
    with pytest.raises(ScriptError) as error:
        Scripts(folder)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def a_script(folder: Path, **changes: str) -> Script:
    text = GOOD
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "default.toml").write_text(text)
    return Scripts(folder).default


def person(first_name: str | None = None, /, **metadata: object) -> Person:
    return Person(first_name=first_name, signup_mode="x", metadata=metadata)


# --- what ships -------------------------------------------------------------------------------------------------------


def test_the_scripts_that_ship_are_right_and_differ() -> None:
    scripts = list(Scripts())
    assert len(scripts) >= 3
    assert len({tuple(question.id for question in script.questions) for script in scripts}) == len(scripts)
    assert len({script.greeting for script in scripts}) == len(scripts)
    assert {script.language[:2] for script in scripts} > {"en"}


@pytest.mark.parametrize(
    "mode", ["no such mode", "Demo", " demo", "demo ", "../scripts/demo", "demo.toml", "", "dem\u006f\u0301"]
)
def test_a_mode_that_is_not_exactly_one_of_ours_gets_the_default(mode: str) -> None:
    scripts = Scripts()
    assert scripts.for_mode(mode) is scripts.default
    assert scripts.for_mode("demo") is not scripts.default


# --- what a person wrote of themselves ------------------------------------------------------------------------------------


def test_the_name_is_said_and_its_fallback_when_there_is_none(folder: Path) -> None:
    script = a_script(folder)
    assert script.say(script.greeting, person("Ada")) == "Hello Ada."
    assert script.say(script.greeting, person(first_name="Grace")) == "Hello Grace."
    assert script.say(script.greeting, person("Ada", first_name="Grace")) == "Hello Ada."
    assert script.say(script.greeting, person()) == "Hello there."
    assert script.say(script.greeting, None) == "Hello there."


def test_anything_else_that_the_script_declares_comes_from_the_metadata(folder: Path) -> None:
    script = a_script(folder, **{"{first_name}": "{companyName}", "first_name =": "companyName ="})
    assert (
        script.say(script.greeting, person("Ada", companyName="Analytical  Engines\n")) == "Hello Analytical Engines."
    )
    assert script.say(script.greeting, person("Ada", first_name="Eve")) == "Hello there."


@pytest.mark.parametrize(
    "name", ["{goodbye}", "{first_name}", "{0.__class__}", "%s", "<Hangup/>", "a & b", "שלום", "Ada 🎉"]
)
def test_what_looks_like_a_template_or_markup_is_only_a_name(folder: Path, name: str) -> None:
    script = a_script(folder)
    assert script.say(script.greeting, person(name)) == f"Hello {name}."


def test_a_number_longer_than_python_would_write_out_is_not_said() -> None:
    assert sayable(10**5000) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "7"), (1.5, "1.5"), ("  two\twords\n", "two words"), ("a\x00b\x1b[1m", "a b [1m"), ("\ud800x", "x"), ("\ufffe1", "1"),
        ("\u202eabc", "abc"), ("x" * LONGEST_VALUE, "x" * LONGEST_VALUE), ("x" * (LONGEST_VALUE + 1), None), ("x" * 8192, None),
        ("", None), (" \n", None), ("---", None), ("🎉", None), (True, None), (None, None), ([], None), (["a"], None),
        ({"a": 1}, None), (-(10**99), None), (10**999, None), (float("nan"), None), (float("inf"), None), ("٣", "٣"),
    ],
    ids=lambda value: repr(value)[:20].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_only_short_words_and_numbers_are_said(value: object, said: str | None) -> None:
    assert sayable(value) == said


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('greeting = "Hello {first_name}."', "", "greeting: is missing"),
        ('greeting = "Hello {first_name}."', "greeting = 3", "greeting: must be text"),
        ('goodbye = "Goodbye."', 'goodbye = " "', "goodbye: holds no words"),
        ('goodbye = "Goodbye."', 'goodbye = "Bye\\u0007."', "goodbye: holds a control character"),
        ('goodbye = "Goodbye."', f'goodbye = "{"x" * 1501}"', "goodbye: is too long: at most 1500"),
        ('goodbye = "Goodbye."', 'goodby = "Goodbye."', "goodby: is not a key here; allowed: language, voice, greeting"),
        ('goodbye = "Goodbye."', 'goodbye = "Bye {', "cannot be read"),
        ("{first_name}", "{surname}", "greeting: {surname} is not declared under [placeholders]; declared: {first_name}"),
        ("{first_name}", "you", "placeholders.first_name: no text says {first_name}"),
        ("{first_name}", "{first_name", "greeting: holds a brace that is no placeholder"),
        ("{first_name}", "{}", "greeting: holds a brace"),
        ("{first_name}", "{first_name!r}", "greeting: holds a brace"),
        ("{first_name}", "{first_name.__class__}", "greeting: holds a brace"),
        ('first_name = "there"', 'first_name = ""', "placeholders.first_name: holds no words"),
        ('first_name = "there"', 'first_name = "{x}"', "placeholders.first_name: must be 1 to 100 characters, without braces"),
        ('"en-US"', '"English"', "language: must be a language and a country"),
        ('"Polly.Joanna"', '"Joanna"', "voice: must be a voice of Twilio's"),
        ('"Polly.Joanna"', '"Polly.Mia"', "voice: Polly.Mia does not speak en-US"),
        ('"Polly.Joanna"', '"Google.de-DE-Wavenet-A"', "voice: Google.de-DE-Wavenet-A does not speak en-US"),
        ('key = "9"', 'key = "1"', "questions.size.answers.1: 1 is the opt-out key"),
        ('key = "9"', 'key = "#"', "opt_out.key: is no key that can be asked for; allowed: one of 0 1 2"),
        ('key = "9"', 'key = "12"', "opt_out.key: is no key"),
        ('key = "9"', "key = 9", "opt_out.key: must be text, in quotes"),
        ("[opt_out]", "[opt_in]", "opt_out: is missing"),
        ('say = "How many?"', "", "questions.size.say: is missing"),
        ('say = "How many?"', 'say = "How many?"\nrepeat = 9', "questions.size.repeat: must be a whole number from 0 to 5"),
        ('say = "How many?"', 'say = "How many?"\nrepeat = true', "questions.size.repeat: must be a whole number"),
        ('say = "How many?"', 'say = "How many?"\nasks = 1', "questions.size.asks: is not a key here; allowed: id, say, repeat"),
        ("[questions.answers.1]", '[questions.answers."10"]', "questions.size.answers.10: is no key"),
        ('means = "one"', "", "questions.size.answers.1.means: is missing"),
        ('means = "one"', 'mean = "one"', "questions.size.answers.1.mean: is not a key here; allowed: means, say, next"),
        ('next = "start"', 'next = "budget"', "questions.size.next: 'budget' is no question; allowed: size, start, goodbye"),
        ('next = "goodbye"', 'next = "end"', "questions.size.answers.2.next: 'end' is no question; allowed: size, start, goodbye"),
        ('next = "start"', 'next = "goodbye"', "questions.start: is never asked"),
        ('id = "start"', 'id = "size"', "questions.size.id: is the id of two questions"),
        ('id = "start"', 'id = "goodbye"', "questions.goodbye.id: is no id"),
        ('id = "start"', 'id = "next one"', "questions.next one.id: is no id; allowed"),
        ('id = "start"', "", "questions.(number 2).id: is missing"),
        ("[[questions]]", "[questions]", "cannot be read"),
        ('means = "now"', 'means = "now"\nnext = "start"', "questions.start: never ends"),
    ],
)  # fmt: skip
def test_an_error_names_the_file_the_key_and_what_is_allowed(folder: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    found = problems(folder, GOOD.replace(old, new, 2 if old == "[[questions]]" else 1))
    assert [line for line in found if line.startswith(f"odd.toml: {says}")], found


def test_a_circle_of_questions_without_an_end_is_refused(folder: Path) -> None:
    around = GOOD.replace('next = "goodbye"', 'next = "start"').replace('means = "now"', 'means = "now"\nnext = "size"')
    found = problems(folder, around)
    assert [line.split(":")[1].strip() for line in found] == ["questions.size", "questions.start"]
    assert "never ends" in found[0]


def test_a_circle_that_can_be_left_is_fine(folder: Path) -> None:
    a_script(folder, **{'means = "now"': 'means = "now"\nnext = "size"'})


def test_all_problems_of_all_files_are_told_at_once(folder: Path) -> None:
    (folder / "other.toml").write_text(GOOD.replace('"en-US"', '"English"'))
    several = GOOD.replace("{first_name}", "{x}").replace('means = "one"', "").replace('next = "start"', 'next = "y"')
    found = problems(folder, several)
    assert {tuple(line.split(": ")[:2]) for line in found} == {
        ("odd.toml", "greeting"),
        ("odd.toml", "placeholders.first_name"),
        ("odd.toml", "questions.size.answers.1.means"),
        ("odd.toml", "questions.size.next"),
        ("other.toml", "language"),
    }


def test_a_message_that_would_not_fit_into_a_request_is_refused(folder: Path) -> None:
    machine = "greeting =", 'machine = "' + "{first_name} " * 8 + '"\ngreeting ='
    assert problems(folder, GOOD.replace(*machine)) == [
        "odd.toml: machine: is too long for a machine: fewer words, or fewer placeholders"
    ]


@pytest.mark.parametrize("name", ["Demo.toml", "my mode.toml", "demo.TOML", "_x.toml", f"{'x' * 65}.toml", "é.toml"])
def test_a_file_is_named_after_a_mode(folder: Path, name: str) -> None:
    assert problems(folder, GOOD, name)[0].startswith(f"{name}: a file is named <signup_mode>.toml; allowed")


def test_a_file_that_a_windows_editor_saved_is_fine(folder: Path) -> None:
    (folder / "default.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert Scripts(folder).default.greeting == "Hello {first_name}."


def test_a_script_without_questions_is_fine(folder: Path) -> None:
    (folder / "default.toml").write_text(GOOD[: GOOD.index("[[questions]]")])
    assert Scripts(folder).default.questions == []


def test_default_must_be_there(folder: Path) -> None:
    (folder / "default.toml").rename(folder / "other.toml")
    with pytest.raises(ScriptError, match=r"default\.toml is missing"):
        Scripts(folder)


@pytest.mark.parametrize(
    "voice", ["man", "alice", "Polly.Ruth-Neural", "Polly.Somebodynew", "Google.en-US-Chirp3-HD-Aoede"]
)
def test_the_voices_that_twilio_may_have_are_taken(folder: Path, voice: str) -> None:
    assert a_script(folder, **{"Polly.Joanna": voice}).voice == voice


def leaves(table: dict[str, Any], path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a file where something stands."""
    found = []
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += leaves(value, (*path, key))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("place", leaves(tomllib.loads(GOOD)), ids=lambda place: ".".join(map(str, place)))
def test_whatever_stands_in_the_wrong_place_is_a_problem_and_no_crash(place: tuple[Any, ...]) -> None:
    wrongs: tuple[Any, ...] = (
        None,
        3,
        1.5,
        True,
        "",
        "x",
        "\x00",
        [],
        [1],
        [[]],
        [{}],
        {},
        {"x": 1},
        {"1": {"next": []}},
    )
    for wrong in wrongs:
        raw: Any = tomllib.loads(GOOD)
        table = raw
        for part in place[:-1]:
            table = table[part]
        if wrong is None:
            del table[place[-1]]
        else:
            table[place[-1]] = wrong
        script = check(raw, "odd")
        assert isinstance(script, Script) or all(script)


# --- the command ----------------------------------------------------------------------------------------------------------


def test_check_reads_each_script_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    said = capsys.readouterr().out
    for script in Scripts():
        assert f"{script.mode}.toml" in said
        assert f'"{script.say(script.greeting, None)}"' in said
        for question in script.questions:
            assert f'"{script.say(question.say, None)}"' in said
            assert all(f"{key} = {answer.means}, then " in said for key, answer in question.answers.items())
        assert f'"{script.opt_out.confirm}"' in said


def test_check_says_what_is_wrong_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "odd.toml").write_text("language = 1")
    assert main(["check", str(folder)]) == 1
    assert "odd.toml: language: must be text, in quotes" in capsys.readouterr().err
    assert main(["check", str(folder / "nowhere")]) == 1
    assert main([]) == main(["chekc"]) == 2


def test_the_rehearse_command_runs_as_a_module(folder: Path) -> None:
    run = [sys.executable, "-m", "shared.conversation.rehearse", "check", str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=FOLDER.parents[1], check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "How many?" in done.stdout
