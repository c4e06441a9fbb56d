"""A script is checked as a whole before anyone hears it. Each problem names the place and the allowed values."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared.conversation.checks import check
from shared.conversation.library import FOLDER, ScriptError, Scripts
from shared.conversation.numerals import keys_told
from shared.conversation.rehearse import main, rehearse
from shared.conversation.script import Script
from shared.conversation.texts import Recording
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

AGENT = """
[connect]
url = "wss://agent.example.com/calls"
kind = "conversation_relay"
then = "start"
sorry = "Sorry, by key."
welcome = "Hi {first_name}."
metadata = ["company"]
relay = { voice = "Joanna-Neural" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.toml").write_text(GOOD)
    return tmp_path


def problems(folder: Path, odd: str = GOOD, **files: str | bytes) -> list[str]:
    """The problems that are reported for the folder with odd.toml and these files, one line each."""
    for name, text in {"odd": odd, **files}.items():
        (folder / f"{name}.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ScriptError) as error:
        Scripts(folder)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def a_script(folder: Path, **changes: str) -> Script:
    text = GOOD
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "default.toml").write_text(text)
    return Scripts(folder).default


def unreported(folder: Path, text: str, table: list[tuple[str, str, str]]) -> list[tuple[str, str, list[str]]]:
    """The rows (old, new, says) of a change of this text whose problem is not told with these words."""
    assert [old for old, _, _ in table if old not in text] == []
    told = [(new, says, problems(folder, text.replace(old, new, 1))) for old, new, says in table]
    return [row for row in told if not any(line.startswith(f"odd.toml: {row[1]}") for line in row[2])]


def say(script: Script, who: Person | None) -> str:
    assert isinstance(script.greeting, str)
    return script.fill(script.greeting, who)


def person(first_name: str | None = None, /, **metadata: object) -> Person:
    return Person(first_name=first_name, signup_mode="x", metadata=metadata)


def test_shipped_scripts_are_valid_and_differ() -> None:
    scripts = list(Scripts())
    questions = {script.name: {question.id: [*question.answers] for question in script.questions} for script in scripts}
    assert len({tuple(asked) for asked in questions.values()}) == len({script.mode for script in scripts}) >= 3
    assert [script.name for script in scripts if questions[script.name] != questions[script.mode]] == []
    assert len({script.greeting for script in scripts}) == len(scripts)
    assert {script.language[:2] for script in scripts} > {"en"}


def test_modes_are_compared_without_case_and_blanks(folder: Path) -> None:
    (folder / "demo.toml").write_text(GOOD.replace("language", 'aliases = ["Job Seeker", "candidate"]\nlanguage', 1))
    scripts = Scripts(folder)
    demo = ["demo", "Demo", " demo", "DEMO\n", "job_seeker", "Job  seeker ", "JOB SEEKER", "Candidate"]
    default = ["no such mode", "../scripts/demo", "demo.toml", "", " ", "dem\u006f\u0301", "default", "dem", "de mo"]
    found = {mode: scripts.for_mode(mode).mode for mode in [*demo, *default]}
    assert found == dict.fromkeys(demo, "demo") | dict.fromkeys(default, "default")


def test_an_alias_belongs_to_one_script_only(folder: Path) -> None:
    aliases = {"a": '["x", "B"]', "b": '["X ", "b"]', "c": '["y", "Y"]', "d": "[1]", "e": '"y"', "f": '[" "]'}
    assert problems(folder, **{name: f"aliases = {each}\n{GOOD}" for name, each in aliases.items()}) == [
        "d.toml: aliases.0: must be text, in quotes",
        'e.toml: aliases: must be a list: ["one", "two"]',
        "f.toml: aliases.0: holds no words",
        "a.toml: aliases: 'B' belongs to b.toml: each mode has one script",
        "b.toml: aliases: 'X' belongs to a.toml: each mode has one script",
        "b.toml: aliases: 'b' stands here already: once is enough",
        "c.toml: aliases: 'y' stands here already: once is enough",
        "c.toml: aliases: 'Y' stands here already: once is enough",
    ]


def test_a_language_has_a_script_of_its_own(folder: Path) -> None:
    spanish = GOOD.replace("en-US", "es-MX").replace("Joanna", "Mia")
    texts = {
        "demo": f'aliases = ["trial"]\n{GOOD}', "demo.es": spanish, "demo.es-mx": spanish, "default.es": spanish, "plain": GOOD,
        "demo.pt-br": GOOD.replace("en-US", "pt-BR").replace("Joanna", "Camila"),
        "deutsch": GOOD.replace("en-US", "de-DE").replace("Joanna", "Vicki"), "deutsch.en": GOOD,
    }  # fmt: skip
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    scripts = Scripts(folder)
    table: dict[str, list[tuple[str, dict[str, object]]]] = {
        "demo": [
            ("demo", {}), ("demo", {"language": "fr"}), ("demo", {"language": "en"}),
            ("demo", {"language": "EN-us", "locale": "es"}),
            ("demo", {"language": None}), ("demo", {"language": ["es"]}), ("demo", {"language": "../es"}), ("demo", {"locale": ""}),
            ("demo", {"language": "x" * 9999}), ("demo", {"language": "pt"}), ("demo", {"language": "spanish"}),
        ],
        "demo.es": [
            ("demo", {"language": "es"}), ("Demo ", {"locale": "es-AR"}), ("trial", {"language": "es_ES.UTF-8"}),
            ("demo", {"language": "Spanish", "locale": "ES"}), ("demo", {"language": "fr", "locale": "es"}),
        ],
        "demo.es-mx": [
            ("demo", {"language": "es-MX"}), ("demo", {"locale": "es_mx"}), ("demo", {"language": "es-MX,es;q=0.9,en;q=0.8"}),
        ],
        "demo.pt-br": [("demo", {"language": "pt-BR"})],
        "default.es": [("no such mode", {"language": "es"}), ("default", {"locale": "es-419"})],
        "default": [("no such mode", {"language": "it"})],
        "plain": [("plain", {"language": "es"})],
        "deutsch": [("deutsch", {"language": "de"}), ("deutsch", {"language": "de-AT"}), ("deutsch", {"language": "fr"})],
        "deutsch.en": [("deutsch", {"language": "en-GB"})],
    }  # fmt: skip
    asked = [(name, mode, about) for name, cases in table.items() for mode, about in cases]
    people = [Person(first_name=None, signup_mode=mode, metadata=about) for _, mode, about in asked]
    found = [(scripts.for_person(each).name, each.signup_mode, each.metadata) for each in people]
    assert found == asked
    named = {"demo.es": "demo.es", "gone.es": "default", "": "default", "Demo": "default"}
    assert {name: scripts.named(name).name for name in named} == named


def test_a_language_file_fits_its_name_and_mode(folder: Path) -> None:
    files = {"default.es": f'aliases = ["x"]\n{GOOD}', "gone.en": GOOD, "default.en-gb": GOOD}
    assert problems(folder, **files) == [
        "default.en-gb.toml: language: must be en-gb, with or without a country, as the file's name says",
        "default.es.toml: language: must be es, with or without a country, as the file's name says",
        "default.es.toml: aliases: belongs into default.toml: they are the same in each language",
        "gone.en.toml: gone.toml is missing: it speaks for every other language",
    ]


def test_words_are_spelled_as_say_as_says(folder: Path) -> None:
    words = '[say_as]\n"ada" = "Ay da"\nSQL = "sequel"\n"SQL Server" = "sequel server"\n"first_name" = "x"\n[opt_out]'
    spelled = a_script(folder, **{"[opt_out]": words})
    assert spelled.fill("Hello {first_name}, SQL, sql server, MySQL and SQLs.", person("Ada")) == (
        "Hello Ay da, sequel, sequel server, MySQL and SQLs."
    )
    assert spelled.fill("Hello {first_name}.", person("ADA")) == "Hello Ay da."
    words = f'[say_as]\na = "{"x" * 60}"\n[opt_out]'
    long = a_script(folder, **{"[opt_out]": words, 'first_name = "there"': 'first_name = "a a a"'})
    assert long.fill("{first_name}", None) == "a a a"
    text = GOOD.replace("[opt_out]", f'[say_as]\na = "{"x" * 100}"\n[opt_out]').replace("Goodbye.", "a " * 20)
    assert problems(folder, text) == [
        "odd.toml: goodbye: is too long: at most 1500 characters, where each placeholder counts as 100; say_as makes it longer"
    ]


URL = "https://audio.example.com/hello.mp3?a=1&b=2"


def test_recordings_replace_words_everywhere(folder: Path) -> None:
    played = f'play = "{URL}"'
    changes = {
        'say = "How many?"': played, 'means = "one"': f'means = "one"\n{played}', 'say = "When?"': f'say = "When?"\n{played}',
        '"Sorry."': f"{{ {played} }}", '"Never again."': f'{{ {played}, words = "No." }}',
    }  # fmt: skip
    script = a_script(folder, **changes)
    size, start = script.questions
    said = [size.say, size.answers["1"].say, start.say, script.apology, script.opt_out.confirm]
    assert said == [Recording(play=URL, words=words) for words in (None, None, "When?", None, "No.")]
    rehearsed = list(rehearse(script))
    assert rehearsed.count(f"      plays {URL}") == 5
    assert rehearsed.count('      "When?"') == 1


def test_a_recording_needs_an_https_url(folder: Path) -> None:
    bad = [
        "http://x.example/a.mp3", "ftp://x.example", "a.mp3", "https://", "https://x", "https://u:p@x.example/a", "", "é",
        "//x.example", "https://x.example/a b", "https://x.example/{x}", "https://x.example/<a>", f"https://x.example/{'a' * 600}",
    ]  # fmt: skip
    rule = "must be a URL that begins with https:// and has at most 600 characters, without blanks or a login"
    table = {
        **{f'play = "{url}"': f"play: {rule}" for url in bad},
        "play = 3": "play: must be text, in quotes",
        "say = { play = 3 }": "play: must be text, in quotes",
        "say = { words = 'x' }": "play: is missing; it must be text, in quotes",
        "say = { play = 'https://x.example', loop = 2 }": "say: is not a key here; allowed: play, words",
        "say = ' '\nplay = 'https://x.example'": "say: holds no words",
    }
    found = {new: problems(folder, GOOD.replace('say = "How many?"', new)) for new in table}
    assert found == {new: [f"odd.toml: questions.size.{says}"] for new, says in table.items()}
    assert problems(folder, GOOD.replace('"Sorry."', "{ play = 'x' }")) == [f"odd.toml: apology.play: {rule}"]


SPAM = "your account is locked, call one nine hundred five five five"


def test_first_name_is_read_from_job_or_metadata(folder: Path) -> None:
    script = a_script(folder)
    table: list[tuple[Person | None, str]] = [
        (person("Free", name="Free money for every new customer of our shop"), "there"),
        (person("Ada Lovelace", name="Ada Lovelace"), "Ada"),
        (None, "there"), (person(), "there"), (person("Ada"), "Ada"), (person(first_name="Grace"), "Grace"),
        (person("Ada", first_name="Grace"), "Ada"), (person("null", first_name="Grace"), "Grace"),
        (person("María José"), "María José"), (person("Dr.", name="Dr. Ada Lovelace"), "Ada"),
        (person("Dr. Ada Lovelace", name="Dr. Ada Lovelace"), "Ada"), (person("Lovelace,", name="Lovelace, Ada"), "Ada"),
        (person("ada", full_name="ada lovelace"), "Ada"), (person("Mr", full_name=" Mr Ada "), "Ada"),
        (person(name="Ada Lovelace"), "Ada"), (person(name="ADA"), "Ada"),
        (person("Ada", name="Ada Lovelace", first_name="Ada"), "Ada"),
        (person("Ada Mary", first_name="Ada Mary", name="Ada Mary L"), "Ada Mary"),
        (person("undefined", name="undefined undefined"), "there"), (person("null", name=None), "there"),
        (person(name=["Ada"]), "there"), (person("Your", name=SPAM), "there"), (person(SPAM[:100], name=SPAM), "there"),
        (person(SPAM), "there"), (person(first_name=SPAM), "there"), (person("{first_name}"), "there"),
        (person("<Hangup/>"), "there"), (person("Ada 🎉"), "there"), (person("%s"), "there"),
    ]  # fmt: skip
    wrong = [(who, said) for who, name in table if (said := say(script, who)) != f"Hello {name}."]
    assert wrong == []


def test_other_placeholders_are_read_by_their_kind(folder: Path) -> None:
    values = {"name": "Ada", "words": "3M", "number": 12}
    for kind, fitting in values.items():
        declared = f'{{ kind = "{kind}", fallback = "something" }}'
        script = a_script(folder, **{"{first_name}": "{thing}", 'first_name = "there"': f"thing = {declared}"})
        for value in [*values.values(), SPAM, None, [], "x.com"]:
            fits = value == fitting or (kind == "words" and value in values.values())
            expected = str(value) if fits else "something"
            assert say(script, person("Eve", thing=value, first_name="Eve")) == f"Hello {expected}."


def test_a_fallback_alone_is_short_for_words(folder: Path) -> None:
    script = a_script(folder, **{"{first_name}": "{companyName}", "first_name =": "companyName ="})
    assert say(script, person("Ada", companyName="Acme & Sons")) == "Hello Acme & Sons."
    assert (script.placeholders["companyName"].kind, a_script(folder).placeholders["first_name"].kind) == (
        "words",
        "name",
    )


ERRORS = [
    ('greeting = "Hello {first_name}."', "", "greeting: is missing"),
    ('greeting = "Hello {first_name}."', "greeting = 3", "greeting: must be text"),
    ('goodbye = "Goodbye."', 'goodbye = " "', "goodbye: holds no words"),
    ('goodbye = "Goodbye."', 'goodbye = "Bye\\u0007."', "goodbye: holds a control character"),
    ('goodbye = "Goodbye."', f'goodbye = "{"x" * 1501}"', "goodbye: is too long: at most 1500"),
    ('goodbye = "Goodbye."', 'goodby = "Goodbye."', "goodby: is not a key here; allowed: aliases, listen, language, voice"),
    ('goodbye = "Goodbye."', 'goodbye = "Bye {', "cannot be read"),
    ("{first_name}", "{surname}", "greeting: {surname} is not declared under [placeholders]; declared: {first_name}"),
    ("{first_name}", "you", "placeholders.first_name: no text says {first_name}"),
    ("{first_name}", "{first_name", "greeting: holds a brace without a placeholder"),
    ("{first_name}", "{first_name.__class__}", "greeting: holds a brace"),
    ('first_name = "there"', 'first_name = ""', "placeholders.first_name: holds no words"),
    ('first_name = "there"', 'first_name = "{x}"', "placeholders.first_name: must be 1 to 100 characters, without braces"),
    ("greeting =", f'machine = "{"{first_name} " * 8}"\ngreeting =', "machine: is too long for a machine: fewer words, or fewer"),
    ('"en-US"', '"English"', "language: must be a language and a country"),
    ('"Polly.Joanna"', '"Joanna"', "voice: must be a voice of Twilio's"),
    ('"Polly.Joanna"', '"Polly.Mia"', "voice: Polly.Mia does not speak en-US"),
    ('"Polly.Joanna"', '"Google.de-DE-Wavenet-A"', "voice: Google.de-DE-Wavenet-A does not speak en-US"),
    ('key = "9"', 'key = "1"', "questions.size.answers.1: 1 is the opt-out key"),
    ('key = "9"', 'key = "#"', "opt_out.key: is not a key that can be asked for; allowed: one of 0 1 2"),
    ('key = "9"', "key = 9", "opt_out.key: must be text, in quotes"),
    ('first_name = "there"', "first_name = 3", 'placeholders.first_name: must be text, in quotes, or { kind = "name"'),
    ('first_name = "there"', 'first_name = { kind = "name" }', "placeholders.first_name.fallback: is missing; it must be text"),
    ('first_name = "there"', 'first_name = { kind = "text", fallback = "you" }', "placeholders.first_name.kind: must be one of"),
    ('first_name = "there"', 'first_name = { fallback = "you" }', "placeholders.first_name.kind: is missing; it must be one"),
    ('first_name = "there"', 'first_name = { kin = 1 }', "placeholders.first_name.kin: is not a key here; allowed: kind, fallback"),
    ('"Polly.Joanna"', '"Polly.Mathew"', "voice: Polly has no voice Mathew; near it: Matthew, Mathieu"),
    ('"Polly.Joanna"', '"Polly.joanna"', "voice: Polly has no voice joanna; near it: Joanna"),
    ('"Polly.Joanna"', '"Polly.Nobodyatall"', "voice: Polly has no voice Nobodyatall; newer ones are added in"),
    ('"Polly.Joanna"', '"Polly.Olivia"', "voice: Polly.Olivia needs an engine: Polly.Olivia-Neural"),
    ('"Polly.Joanna"', '"Polly.Nicole-Neural"', "voice: Nicole has the standard engine only: Polly.Nicole"),
    ('"Polly.Joanna"', '"polly.joana"', "voice: must be a voice of Twilio's, such as Polly.Joanna or"),
    ('"Polly.Joanna"', '"Google.en-US-Wavnet-A"', "voice: Google has no Wavnet voices; near it: Wavenet"),
    ('say = "How many?"', 'say = "Press 4 for many."', "questions.size.say: says 'press 4', but key 4 does nothing there"),
    ('say = "How many?"', 'say = "Press one, two or three."', "questions.size.say: says 'press one, two or three', but key 3"),
    ('say = "When?"', 'say = "Press 2."', "questions.start.say: says 'press 2', but key 2 does nothing there (keys: 1, 9)"),
    ('greeting = "Hello ', 'greeting = "Press 5. Hello ', "greeting: says 'press 5'"),
    ('say = "Press 9 to opt out."', 'say = "Press star to opt out."', "opt_out.say: says 'press star', but key * does nothing"),
    ('goodbye = "Goodbye."', 'goodbye = "Press 9. Goodbye."', "goodbye: says 'press 9', but key 9 does nothing there (keys: none)"),
    ('means = "one"', 'means = "one"\nhear = ["yes"]', 'questions.size.answers.1.hear: needs listen = "speech" at the top'),
    ('means = "one"', 'means = "one"\nhear = "yes"', "questions.size.answers.1.hear: must be a list"),
    ('means = "one"', 'means = "one"\nhear = ["two"]', "questions.size.answers.1.hear: 'two' already means 2: each phrase"),
    ('means = "one"', 'means = "one"\nhear = ["?"]', "questions.size.answers.1.hear.0: holds no words"),
    ('means = "one"', f'means = "one"\nhear = {["x"] * 41}', "questions.size.answers.1.hear: holds too many: at most 40"),
    ('means = "many"', 'means = "many"\nhear = ["Two", "2", "to"]', 'questions.size.answers.2.hear: needs listen = "speech"'),
    ('means = "now"', 'means = "now"\nhear = ["now", "NOW!"]', 'questions.start.answers.1.hear: needs listen = "speech"'),
    ('key = "9"', 'key = "9"\nhear = ["Two!"]\nask = "Out?"\nyes = ["yes"]', "opt_out.hear: 'two' already means 2: each phrase"),
    ('goodbye = "Goodbye."', f'goodbye = {{ play = "{URL}", words = "Bye {{zip}}" }}', "goodbye: {zip} is not declared under"),
    ('"Goodbye."', f'{{ play = "{URL}", words = "Press 7." }}', "goodbye: says 'press 7', but key 7 does nothing there"),
    ('key = "9"', 'key = "9"\nhear = ["stop"]', "opt_out.hear: needs ask, the question that confirms it, and yes"),
    ('key = "9"', 'key = "9"\nhear = ["stop"]\nask = "Out?"', "opt_out.hear: needs ask, the question that confirms it, and yes"),
    ('language = "en-US"', 'language = "en-US"\nlisten = "ears"', "listen: must be one of keys, speech, both"),
    ("[opt_out]", "[opt_in]", "opt_out: is missing"),
    ('say = "How many?"', "", "questions.size.say: is missing"),
    ('say = "How many?"', 'say = "How many?"\nrepeat = 9', "questions.size.repeat: must be a whole number from 0 to 5"),
    ('say = "How many?"', 'say = "How many?"\nrepeat = true', "questions.size.repeat: must be a whole number"),
    ('say = "How many?"', 'say = "How many?"\nasks = 1', "questions.size.asks: is not a key here; allowed: id, say, repeat"),
    ("[questions.answers.1]", '[questions.answers."10"]', "questions.size.answers.10: is not a key"),
    ('means = "one"', "", "questions.size.answers.1.means: is missing"),
    ('means = "one"', 'mean = "one"', "questions.size.answers.1.mean: is not a key here; allowed: means, hear, say, next"),
    ('next = "start"', 'next = "budget"', "questions.size.next: 'budget' is not a question; allowed: size, start, goodbye"),
    ('next = "goodbye"', 'next = "end"', "questions.size.answers.2.next: 'end' is not a question; allowed: size, start, goodbye"),
    ('next = "start"', 'next = "goodbye"', "questions.start: is never asked"),
    ('id = "start"', 'id = "size"', "questions.size.id: is the id of two questions"),
    ('id = "start"', 'id = "goodbye"', "questions.goodbye.id: is not an id"),
    ('id = "start"', 'id = "next one"', "questions.next one.id: is not an id; allowed"),
    ('id = "start"', "", "questions.(number 2).id: is missing"),
    ("[[questions]]", "[questions]", "cannot be read"),
    ('means = "now"', 'means = "now"\nnext = "start"', "questions.start: never ends"),
]  # fmt: skip


BAD_URL = "connect.url: must be a URL that begins with wss://"
AGENT_ERRORS = [
    ('url = "wss://agent.example.com/calls"', "", "connect.url: is missing; it must be text"),
    *(
        ("wss://agent.example.com/calls", url, BAD_URL)
        for url in (
            *("https://agent.example.com", "ws://agent.example.com", "wss://me:secret@agent.example.com", "wss://agent", ""),
            *("wss://agent.example.com/?token=x", "wss://agent.example.com/#x", "wss://agent.example.com/a b", "ws://127.0.0.1.nip.io"),
            *(f"wss://agent.example.com/{'x' * 600}", "wss://agent_1.example.com", "wss://agent.example.com@x", "ws://localhost@x.com"),
        )
    ),
    ('"conversation_relay"', '"relay"', "connect.kind: must be conversation_relay or stream"),
    ('"conversation_relay"', '"stream"', "connect.welcome: works with kind = \"conversation_relay\" only"),
    ('then = "start"', 'then = "end"', "connect.then: 'end' is not a question; allowed: size, start, goodbye"),
    ('then = "start"', 'failed = "end"', "connect.failed: 'end' is not a question; allowed: size, start, goodbye"),
    ('then = "start"', 'failed = "start"', "questions.size: is never asked"),
    ('then = "start"', "then = 1", "connect.then: must be text"),
    ('["company"]', '["company", "company"]', "connect.metadata: 'company' is told already"),
    ('["company"]', '["attempt"]', "connect.metadata: 'attempt' is told already"),
    ('["company"]', '["a b"]', "connect.metadata.0: is not a name"),
    ('["company"]', f"{[f'n{n}' for n in range(21)]}", "connect.metadata: holds too many: at most 20"),
    ('["company"]', '"company"', "connect.metadata: must be a list"),
    ("{ voice =", "{ vioce =", "connect.relay.vioce: is not passed on; allowed: voice, ttsProvider"),
    ("{ voice =", "{ url =", "connect.relay.url: is not passed on"),
    ('"Joanna-Neural"', f'"{"x" * 201}"', "connect.relay.voice: is too long: at most 200"),
    ('"Hi {first_name}."', '"Hi {surname}."', "connect.welcome: {surname} is not declared"),
    ('"Hi {first_name}."', '"Press 4."', "connect.welcome: says 'press 4', but key 4 does nothing there (keys: 9)"),
    ('"Sorry, by key."', '"Press 4."', "connect.sorry: says 'press 4', but key 4 does nothing there (keys: 1, 2, 9)"),
    ("sorry =", "sory =", "connect.sory: is not a key here; allowed: url, kind, then, failed"),
    ("[connect]", "[connection]", "connection: is not a key here"),
]  # fmt: skip


def test_wrong_handovers_are_refused_and_right_ones_read(folder: Path) -> None:
    assert unreported(folder, GOOD + AGENT, AGENT_ERRORS) == []
    told = "greeting: says 'press 1', but key 1 does nothing there (keys: 9)"
    agents = GOOD.replace("Hello ", "Press 1. Hello ") + AGENT
    assert f"odd.toml: {told}: change the words, or add the key" in problems(folder, agents)
    (folder / "odd.toml").unlink()
    for url in ("ws://127.0.0.1:8080/a", "ws://[::1]:8080", "wss://localhost:1", "wss://a.example.com:8443/x-y_z~/%20"):
        agents = AGENT.replace("wss://agent.example.com/calls", url)
        script = a_script(folder, **{'means = "now"\n': f'means = "now"\n{agents}'})
    said = "\n".join(rehearse(script))
    expected = [
        f"  hands over to the agent at {url}, as a conversation_relay", "it is told attempt, job, mode, opt_out_key,",
        '"Hi there."', "    when the agent has ended: start", "    when the agent cannot be had, or breaks: size",
        '"Sorry, by key."', '"How many?"',
    ]  # fmt: skip
    assert [each for each in expected if each not in said] == []


def test_an_error_names_file_key_and_allowed_values(folder: Path) -> None:
    assert unreported(folder, GOOD, ERRORS) == []


def test_a_circle_without_an_end_is_refused(folder: Path) -> None:
    around = GOOD.replace('next = "goodbye"', 'next = "start"').replace('means = "now"', 'means = "now"\nnext = "size"')
    found = problems(folder, around)
    assert [line.split(":")[1].strip() for line in found] == ["questions.size", "questions.start"]
    assert "never ends" in found[0]
    (folder / "odd.toml").unlink()
    a_script(folder, **{'means = "now"': 'means = "now"\nnext = "size"'})  # this one can be left


def test_all_problems_of_all_files_are_reported(folder: Path) -> None:
    several = GOOD.replace("{first_name}", "{x}").replace('means = "one"', "").replace('next = "start"', 'next = "y"')
    found = problems(folder, several, other=GOOD.replace('"en-US"', '"English"'))
    assert {": ".join(line.split(": ")[:2]) for line in found} == {
        "odd.toml: greeting", "odd.toml: placeholders.first_name", "odd.toml: questions.size.answers.1.means",
        "odd.toml: questions.size.next", "other.toml: language",
    }  # fmt: skip


def test_a_file_is_named_after_its_mode(folder: Path) -> None:
    rule = "a file is named <signup_mode>.toml or <signup_mode>.<language>.toml; allowed: small letters, digits, _"
    names = ["Demo", "my mode", "_x", "x" * 65, "é", "demo.", "demo.ES", "demo.es.mx", "demo.spanish"]
    (folder / "demo.TOML").write_text(GOOD)
    found = problems(folder, **dict.fromkeys(names, GOOD))
    named = [*(f"{name}.toml" for name in names), "demo.TOML"]
    assert [name for name in named if not any(line.startswith(f"{name}: {rule}") for line in found)] == []


def test_a_misnamed_script_is_not_left_out_silently(folder: Path) -> None:
    for name in ("demo.toml~", ".demo.toml.swp", "demo.toml.bak", "demo.toml.orig", "README.md", ".gitkeep"):
        (folder / name).write_text("")
    assert len(list(Scripts(folder))) == 1
    misnamed = [
        "demo.toml.txt", "Demo.toml.TXT", "demo.txt", "demo.tml", "demo.toml.rtf", "demo.toml.docx", "demo.toml (1)",
    ]  # fmt: skip
    for name in misnamed:
        (folder / name).write_text("")
    cure = "is not read, because a script's name ends in .toml: rename it to demo.toml"
    assert sorted(problems(folder)) == sorted(f"{name}: {cure}" for name in misnamed)


def test_an_unreadable_file_is_reported_with_its_cure(folder: Path) -> None:
    german = GOOD.replace("Sorry.", "Es tut uns leid, für Sie.")
    curly = GOOD.replace('"Sorry."', "“Sorry.”")
    table: dict[str, tuple[str | bytes, str]] = {
        "latin": (german.encode("latin-1"), "line 6: is not saved as UTF-8 (near 'für', perhaps Latin-1): save it as UTF-8"),
        "windows": (curly.encode("cp1252"), "line 6: is not saved as UTF-8 (near "),
        "utf16": (GOOD.encode("utf-16"), "is saved as UTF-16, which some editors call Unicode: save it as UTF-8"),
        "utf16be": (GOOD.encode("utf-16-be"), "is saved as UTF-16"),
        "curly": (curly, "line 6: cannot be read: “ is a quote of a word processor; write straight ones"),
        "low": (GOOD.replace('"Sorry."', "„Sorry“"), "line 6: cannot be read: „ is a quote"),
        "single": (GOOD.replace('"Sorry."', "‘Sorry’"), "line 6: cannot be read: ‘ is a quote"),
        "key": (GOOD.replace("apology", "“apology”"), "line 6: cannot be read: “ is a quote"),
        "open": (GOOD.replace('"Sorry."', '"Sorry.'), "cannot be read: "),
        "twice": (f'{GOOD}\n[opt_out]\nkey = "1"', "cannot be read: "),
    }  # fmt: skip
    told = problems(folder, GOOD, **{name: data for name, (data, _) in table.items()})
    found = {name: says for name, _, says in (line.partition(".toml: ") for line in told)}
    assert {name: (found[name], says) for name, (_, says) in table.items() if not found[name].startswith(says)} == {}
    assert found.keys() == table.keys()


def test_editor_marks_and_curly_apostrophes_in_words_are_fine(folder: Path) -> None:
    text = GOOD.replace("Sorry.", "It’s “us”. Sorry.").replace("\n", "\r\n")
    (folder / "default.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert Scripts(folder).default.apology == "It’s “us”. Sorry."
    (folder / "default.toml").write_text(GOOD[: GOOD.index("[[questions]]")])
    assert Scripts(folder).default.questions == []  # a script may ask nothing
    (folder / "default.toml").rename(folder / "other.toml")
    with pytest.raises(ScriptError, match=r"default\.toml is missing"):
        Scripts(folder)


def test_voices_of_twilio_are_accepted(folder: Path) -> None:
    voices = ["man", "alice", "Polly.Joanna", "Polly.Ruth-Neural", "Polly.Ruth-Generative", "Polly.Danielle-Long-Form"]
    voices += [
        "Google.en-US-Chirp3-HD-Aoede", "Google.en-US-Wavenet-A", "Google.en-US-Neural2-C", "Google.en-US-Standard-B",
    ]  # fmt: skip
    assert [a_script(folder, **{"Polly.Joanna": voice}).voice for voice in voices] == voices


def test_told_keys_are_found_in_several_languages() -> None:
    table = {
        ("en-US", "Press 1 for just you, 2 for up to ten, 3 for more than ten."): "123",
        ("en-US", "Press one for yes, or two if you would rather look around."): "12",
        ("en-GB", "Press star, and I will never ring again."): "*",
        ("en-US", "Press the 4 key. Press “5”. Dial seven now."): "457",
        ("en-US", "Press 1, 2 or 3. We have 4 of them; 5 people, one or two, like it."): "123",
        ("en-US", "Press 1 for one or two, 3 to hear it again."): "13",
        ("en-US", "You have 4 messages, or 5 if you count mine. Pressing matters of the day."): "",
        ("en-US", "Press one of the keys. Hit one million. Press on one more time."): "",
        ("es-MX", "Marca uno si es para tu negocio, dos si es para la escuela, o tres si solo tienes curiosidad."): "123",
        ("es-US", "Oprima el cuatro. Para salir, marque asterisco."): "4*",
        ("de-DE", "Drücken Sie bitte die 1 für ja, oder zwei, wenn nicht. Für alles andere die 5 drücken."): "125",
        ("fr-FR", "Appuyez sur la touche 1 pour oui, ou deux si non. Tapez étoile."): "12*",
        ("pt-BR", "Pressione 1 para sim ou 2 para não. Digite três."): "123",
        ("it-IT", "Premi il tasto 1 per sì, 2 per no. Prema tre."): "123",
        ("nl-NL", "Druk op 1 voor ja of toets twee."): "12",
        ("sv-SE", "Tryck på ett för ja."): "1",
        ("pl-PL", "Naciśnij jedynkę."): "1",
        ("ja-JP", "1 を押してください"): "",
    }  # fmt: skip
    found = {(language, text): set(keys_told(text, language)) for language, text in table}
    assert found == {case: {*keys} for case, keys in table.items()}


def leaves(table: dict[Any, Any] | list[Any], path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a file where something stands."""
    found = [path] if path else []
    for key, value in table.items() if isinstance(table, dict) else enumerate(table):
        found += leaves(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
    return found


def test_any_value_anywhere_is_reported_without_a_crash() -> None:
    wrongs: list[Any] = [
        None, 3, 1.5, True, "", "x", "\x00", [], [1], [[]], [{}], {}, {"x": 1}, {"1": {"next": []}}, {"kind": []},
    ]  # fmt: skip
    for place in leaves(tomllib.loads(GOOD + AGENT)):
        for wrong in wrongs:
            raw: Any = tomllib.loads(GOOD + AGENT)
            table = raw
            for part in place[:-1]:
                table = table[part]
            if wrong is None:
                del table[place[-1]]
            else:
                table[place[-1]] = wrong
            script = check(raw, "odd")
            assert isinstance(script, Script) or all(script)


def test_check_reads_each_script_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    said = capsys.readouterr().out
    for script in Scripts():
        expected = [f"{script.mode}.toml", f'"{say(script, None)}"', f'"{script.opt_out.confirm}"']
        for question in script.questions:
            expected += [
                f'"{question.say}"',
                *(f"{key} = {each.means}, then " for key, each in question.answers.items()),
            ]
        assert [each for each in expected if each not in said] == []


def test_check_reports_problems_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
