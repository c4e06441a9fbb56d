"""Any key and any metadata lead to the next words and to a valid document.

The stand-in's own TwiML parser, which knows Twilio's limits, reads every document that a script can lead to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from function.twilio_form import read_place
from shared.conversation import turns
from shared.conversation.checks import PARAMETERS, check
from shared.conversation.colleagues import Transfer
from shared.conversation.library import Scripts
from shared.conversation.script import Connect, Script
from shared.conversation.texts import LONGEST_INLINE_TWIML, Recording
from shared.conversation.turns import AGENT_ENDED, AGENT_FAILED, CONNECT, Learned, Place, Turn, first_turn, next_turn
from shared.conversation.twiml import render_handover, render_transfer, render_twiml, render_whisper
from shared.models import LiveJob, Person
from tests.sandbox.twilio import twiml

SHIPPED = Scripts()
KEYS = [*"0123456789*#ABCD", "", "12", "99"]
URL = "https://calls.example.com/base/voice?attempt=6f1f5a0e-7a38-4d36-8d3f-000000000001"
ATTEMPT = UUID("6f1f5a0e-7a38-4d36-8d3f-000000000001")
LEG = Transfer("+14155550111", "+15005550006", ring_s=20, limit_s=500)
STREAM = {"url": "wss://agent.example.com", "kind": "stream"}
NOBODY = Person(first_name=None, signup_mode="x", metadata={})


def walk(script: Script) -> Iterator[Turn]:
    """Every turn of this script."""
    seen: set[Place] = set()
    pending = [first_turn(script)]
    if script.connect:
        pending += [next_turn(script, Place(script.name, at), "") for at in (AGENT_ENDED, AGENT_FAILED)]
    yield from (*pending, turns.apology_turn(script), turns.voicemail_turn(script))
    while pending:
        place = pending.pop().place
        if place is None or place in seen:
            continue
        seen.add(place)
        following = [turns.agreed_turn(next_turn(script, place, key), "tomorrow at 10:00 AM") for key in KEYS]
        yield from following
        pending += following
    for stale in (Place("gone", "gone"), Place(script.name, "gone"), Place(script.name, "", 7), Place("", "")):
        yield from (next_turn(script, stale, key) for key in KEYS)


def heard(script: Script, text: str | Recording, person: Person | None) -> twiml.Say | twiml.Play:
    if isinstance(text, Recording):
        return twiml.Play(text.play)
    return twiml.Say(script.fill(text, person), language=script.language)


def read(turn: Turn, script: Script, person: Person | None) -> None:
    """Read the document of a turn as Twilio does: without warnings, and with the words of the turn."""
    if turn.connects:
        read_handover(script, person)
        return
    text = render_transfer(turn, LEG, script, person, URL) if turn.dials else render_twiml(turn, script, person, URL)
    verbs = parse(text)
    said = [heard(script, each, person) for each in turn.says]
    assert verbs[: len(said)] == said
    (last,) = verbs[len(said) :]
    if turn.place is None:
        assert (last, turn.asks) == (twiml.Hangup(), ())
    elif turn.dials:
        assert isinstance(last, twiml.Dial)
        assert (last.number, last.caller_id, last.timeout, last.time_limit) == (LEG.number, LEG.caller_id, 20, 500)
        assert place_of(last.action) == turn.place
        dialed = turns.dialed_answer(script, place_of(last.whisper))
        assert dialed
        assert dialed == turns.dialed_answer(script, turn.place)
        assert place_of(last.whisper).at.startswith(turns.WHISPER)
        whisper = dialed.answer.whisper or ""
        gather, hang_up_ = parse(render_whisper(script, whisper, person))
        assert isinstance(gather, twiml.Gather)
        assert (gather.prompt, hang_up_) == ((heard(script, whisper, person),), twiml.Hangup())
        assert (gather.num_digits, gather.finish_on_key, gather.on_empty_result, gather.action) == (1, "", False, None)
    else:
        assert isinstance(last, twiml.Gather)
        assert last.prompt == tuple(heard(script, each, person) for each in turn.asks)
        assert (last.num_digits, last.on_empty_result, last.method) == (1, True, "POST")
        assert place_of(last.action) == turn.place


def parse(text: str) -> list[twiml.Verb]:
    parsed = twiml.parse(text.encode(), "text/xml")
    assert parsed.warnings == []
    return parsed.verbs


def read_handover(script: Script, person: Person | None) -> None:
    """Twilio asks the same URL when the agent's session ends, and when it executes no Connect."""
    fields = vars(person or NOBODY) | {"id": 7, "status": "calling"}
    connect, redirect = parse(render_handover(script, LiveJob.model_construct(None, **fields), ATTEMPT, URL))
    assert script.connect is not None
    assert isinstance(connect, twiml.Connect)
    assert isinstance(redirect, twiml.Redirect)
    assert (connect.url, connect.method, connect.action) == (script.connect.url, "POST", redirect.url)
    told = dict(connect.parameters)
    assert {"attempt": str(ATTEMPT), "job": "7", "opt_out_key": script.opt_out.key}.items() <= told.items()
    assert {*told} <= {*PARAMETERS, *script.connect.metadata}
    ends = {"ended": AGENT_ENDED, "completed": AGENT_ENDED, "failed": AGENT_FAILED, "": AGENT_FAILED}
    for status, at in ends.items():
        assert place_of(redirect.url, SessionStatus=status) == Place(script.name, at)
        assert place_of(redirect.url, SessionStatus=status, ErrorCode="64105") == Place(script.name, AGENT_FAILED)


def place_of(url: str | None, **form: str) -> Place:
    assert url is not None
    assert url.startswith(f"{URL}&")
    place = read_place({name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}, form)
    assert place is not None
    return place


def test_first_turn_has_greeting_opt_out_and_question() -> None:
    for script in SHIPPED:
        turn = first_turn(script)
        assert turn.asks == (script.greeting, script.opt_out.say, script.questions[0].say)
        assert turn.place == Place(script.name, script.questions[0].id, 1)
    script = SHIPPED.default.model_copy(update={"questions": []})  # the opt-out is offered without any question
    goodbye = Place(script.name, "goodbye")
    assert first_turn(script) == Turn(asks=(script.greeting, script.opt_out.say), place=goodbye)
    assert next_turn(script, goodbye, script.opt_out.key).opts_out
    assert {next_turn(script, goodbye, key) for key in ("", "1", "#")} == {Turn(says=(script.goodbye,))}


def test_key_is_an_answer_and_leads_on() -> None:
    demo = SHIPPED.for_mode("demo")
    turn = next_turn(demo, Place("demo", "team_size"), "3")
    assert (turn.learned, turn.says) == (Learned("team_size", "more_than_10", "3"), ("That is a good size for us.",))
    assert turn.place == Place("demo", "single_sign_on")
    assert next_turn(demo, Place("demo", "team_size"), "1").place == Place("demo", "timeline")
    assert next_turn(demo, Place("demo", "timeline"), "2").place is None


def test_silence_repeats_the_question_and_then_ends() -> None:
    demo = SHIPPED.for_mode("demo")
    question = demo.questions[0]
    for key in ("", "0", "#", "12"):
        for tries in range(1, question.repeat + 1):
            turn = next_turn(demo, Place("demo", question.id, tries), key)
            assert turn == Turn((demo.again or "",), (question.say,), Place("demo", question.id, tries + 1))
        last = next_turn(demo, Place("demo", question.id, question.repeat + 1), key)
        assert last == Turn(says=(question.no_answer or "", demo.goodbye))


def test_opt_out_key_works_at_every_place() -> None:
    for script in SHIPPED:
        places = [Place(script.name, at, 99) for at in (*(each.id for each in script.questions), "goodbye", "gone", "")]
        after = {next_turn(script, place, script.opt_out.key) for place in places}
        assert after == {Turn(says=(script.opt_out.confirm,), opts_out=True)}


def test_missing_place_is_a_goodbye_without_an_answer() -> None:
    for script in SHIPPED:
        for place in (Place(script.name, "gone"), Place("another", script.questions[0].id)):
            assert next_turn(script, place, "1") == Turn(says=(script.goodbye,))


def test_agent_has_the_call_after_the_greeting() -> None:
    """What comes after each place of a script with an agent."""
    default = SHIPPED.default
    connect = Connect.model_validate(STREAM | {"then": "wants_help", "sorry": "Sorry, by key."})
    script = default.model_copy(update={"connect": connect})
    bare = script.model_copy(update={"questions": [], "connect": connect.model_copy(update={"sorry": None})})
    question, place = script.questions[0], Place(script.name, "wants_help")
    handover = Turn(place=Place(script.name, AGENT_FAILED), connects=True)
    assert first_turn(script) == Turn(asks=(script.greeting, script.opt_out.say), place=Place(script.name, CONNECT))
    found = {
        (made.name if made is script else "bare", at, key): next_turn(made, Place(script.name, at), key)
        for made in (script, bare)
        for at in (CONNECT, AGENT_ENDED, AGENT_FAILED)
        for key in ("", "1", "9")
    }
    opted_out = Turn(says=(script.opt_out.confirm,), opts_out=True)
    after = {
        ("default", CONNECT): handover,
        ("default", AGENT_ENDED): Turn(asks=(question.say,), place=place),
        ("default", AGENT_FAILED): Turn(says=("Sorry, by key.",), asks=(question.say,), place=place),
        ("bare", CONNECT): handover,
        ("bare", AGENT_ENDED): Turn(says=(script.goodbye,)),
        ("bare", AGENT_FAILED): Turn(says=(script.apology, script.goodbye)),
    }
    assert found == {
        (*at, key): opted_out if key == "9" else turn for at, turn in after.items() for key in ("", "1", "9")
    }
    for at in (CONNECT, AGENT_ENDED, AGENT_FAILED):  # the agent was taken out of the script during the call
        assert next_turn(default, Place("default", at), "1") == Turn(says=(default.goodbye,))
        assert next_turn(default, Place("gone", at), "1") == Turn(says=(default.goodbye,))


def test_agent_is_told_short_lines_of_declared_metadata_only() -> None:
    typed = {
        "long": "x" * 201, "fits": "x" * 200, "lines": " a\n\tb\x00c ", "number": 7, "yes": True, "list": ["x"], "none": None,
        "empty": " \x1f ", "undeclared": "secret", "markup": "<Say>&\"'",
    }  # fmt: skip
    connect = Connect.model_validate(STREAM | {"metadata": [key for key in typed if key != "undeclared"]})
    script = SHIPPED.default.model_copy(update={"connect": connect})
    fields = {"id": 7, "first_name": "ada", "signup_mode": "x" * 201, "metadata": typed, "status": "calling"}
    verb, _ = parse(render_handover(script, LiveJob.model_construct(None, **fields), ATTEMPT, URL))
    assert isinstance(verb, twiml.Connect)
    assert dict(verb.parameters) == {
        "attempt": str(ATTEMPT), "job": "7", "opt_out_key": "9", "first_name": "Ada",
        "fits": "x" * 200, "lines": "a b c", "number": "7", "yes": "True", "markup": "<Say>&\"'",
    }  # fmt: skip


def test_question_that_the_agent_answered_is_left_out() -> None:
    """The conversation goes on where the answer leads. Turns to other questions stay."""
    demo = SHIPPED.for_mode("demo")
    ids = [question.id for question in demo.questions]
    turn = Turn(says=("Sorry.",), asks=(demo.questions[0].say,), place=Place("demo", ids[0], 2))
    cases: dict[str, dict[str, str]] = {
        "team_size": {},
        "single_sign_on": {"team_size": "more_than_10"},
        "timeline": {"team_size": "just_me"},
        "goodbye": dict.fromkeys(ids, "of another script"),
    }
    for at, answered in cases.items():
        found = turns.turn_without(demo, turn, answered, may_ask_for_later=True)
        assert (found.place.at if found.place else "goodbye") == at, answered
        assert found.says[:1] == ("Sorry.",)
        assert (demo.goodbye in found.says) == (found.place is None)


def test_place_in_the_url_is_read_back() -> None:
    assert read_place({"attempt": "x"}, {}) is None
    of_others = {"SessionStatus": "ended", "DialCallStatus": "completed", "DialBridged": "true"}
    assert read_place({"script": "demo", "at": "timeline", "try": "2"}, of_others) == Place("demo", "timeline", 2)
    for odd in ("", "0", "-1", "x", "9" * 30):
        assert read_place({"script": "demo", "at": "timeline", "try": odd}, {}) == Place("demo", "", 1)
    assert read_place({"at": "timeline"}, {}) == Place("", "", 1)


def test_every_document_of_shipped_scripts_is_valid_twiml() -> None:
    metadata = {"company": "A" + "&" * 59, "product": "A" + "&" * 59}
    known = Person(first_name="Ab" * 20, signup_mode="x", metadata=metadata)
    for script in SHIPPED:
        found = list(walk(script))
        assert len(found) > len(KEYS)
        for turn, person in product(found, (None, NOBODY, known)):
            read(turn, script, person)
        assert len(render_twiml(turns.voicemail_turn(script), script, known)) <= LONGEST_INLINE_TWIML


characters = st.characters(exclude_categories=())  # lone surrogates and controls, too
nasty = st.sampled_from([
    "{first_name}", "{0.__class__}", "</Say><Hangup/>", "<Dial>+14155550100</Dial>", "]]>", "&#0;", "\r\nX: y", "\u202e",
    "x" * 8192,
])  # fmt: skip
texts = st.text(characters, max_size=200) | nasty
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
people = st.builds(
    Person.model_construct,
    first_name=st.none() | texts,
    signup_mode=texts,
    metadata=st.dictionaries(st.sampled_from(["company", "product", "first_name", "x"]) | texts, values, max_size=5),
)
words = st.text(st.sampled_from("ab <>&'\"é🎉!"), min_size=1, max_size=40).map(lambda text: f"a{text}")


def agent(sorry: Any, ids: list[str]) -> dict[str, Any]:
    """The handover of a generated script. Its first question is asked when the agent fails."""
    relay = {"kind": "conversation_relay", "welcome": "Hi {company} & co", "relay": {"voice": "x"}, "then": "goodbye"}
    kind: dict[str, Any] = {"kind": "stream", "failed": ids[0]} if ids else relay
    return {"connect": {"url": "wss://agent.example.com/a", "sorry": sorry, "metadata": ["company", "x"]} | kind}


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Any valid script: one answer of each question leads on, the others lead anywhere."""
    ids = [f"q{n}" for n in range(draw(st.integers(0, 4)))]
    played = [{"play": "https://audio.example.com/a.mp3?x=1&y='2'"}, {"play": "https://a.example", "words": "a"}]
    said = words | words.map(lambda text: f"{text} {{company}}") | st.sampled_from(played)
    opt_out = draw(st.sampled_from("0123456789*"))
    questions: list[dict[str, Any]] = []
    for n, question_id in enumerate(ids):
        others = st.sampled_from([key for key in "0123456789*" if key != opt_out])
        keys = draw(st.lists(others, min_size=1, unique=True))
        answers: dict[str, dict[str, Any]] = {
            key: {"means": draw(words), "next": draw(st.sampled_from([*ids, "goodbye"]))} for key in keys
        }
        if draw(st.booleans()):
            answers[keys[-1]] |= {"dial": "+14155550111", "whisper": draw(said), "no_answer": draw(said)}
        answers[keys[0]] = {"means": draw(words), "say": draw(said), "next": ([*ids, "goodbye"])[n + 1]}
        question = {"id": question_id, "say": draw(said), "repeat": draw(st.integers(0, 5)), "answers": answers}
        questions.append(question | draw(st.sampled_from([{}, {"no_answer": draw(said)}])))
    opting_out: dict[str, Any] = {"key": opt_out, "say": draw(said), "confirm": draw(said)}
    raw: dict[str, Any] = {
        "language": "en-US", "voice": "Polly.Joanna", "greeting": "Hi {company}", "goodbye": draw(said), "apology": draw(said),
        "placeholders": {"company": draw(words)}, "opt_out": opting_out,
        "questions": questions, "machine": draw(said), "say_as": draw(st.dictionaries(words, words, max_size=2)),
    }  # fmt: skip
    raw |= draw(st.sampled_from([{}, agent(draw(said), ids)]))
    script = check(raw, "generated")
    assert isinstance(script, Script), script
    return script


@given(people)
def test_any_metadata_adds_no_verb_to_the_document(person: Person) -> None:
    for script in SHIPPED:
        machine = turns.voicemail_turn(script)
        for turn in (first_turn(script), next_turn(script, Place(script.name, script.questions[0].id), "1"), machine):
            read(turn, script, person)
            tags = [re.findall(r"</?[A-Z]\w+", render_twiml(turn, script, who)) for who in (person, None)]
            assert tags[0] == tags[1]
        assert len(render_twiml(machine, script, person)) <= LONGEST_INLINE_TWIML


@settings(max_examples=50)
@given(scripts(), people)
def test_any_valid_script_can_be_walked_to_its_end(script: Script, person: Person) -> None:
    for turn in set(walk(script)):
        read(turn, script, person)
    assert len(render_twiml(turns.voicemail_turn(script), script, person)) <= LONGEST_INLINE_TWIML


@settings(max_examples=50)
@given(scripts(), st.lists(st.sampled_from(KEYS), max_size=60))
def test_any_conversation_ends_after_enough_silence(script: Script, keys: list[str]) -> None:
    turn = first_turn(script)
    for key in keys:
        if turn.place is None:
            break
        turn = next_turn(script, turn.place, key)
    for _ in range(9):  # repeat is at most 5; an agent or a colleague may be tried before
        if turn.place is not None:
            turn = next_turn(script, turn.place, "")
    assert turn.place is None
