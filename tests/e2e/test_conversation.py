"""Calls from end to end: people who answer, stay silent, press any key, hang up or opt out; and machines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from psycopg.types.json import Jsonb

from shared.conversation.library import Scripts
from shared.conversation.texts import Recording
from shared.conversation.twiml import PLEASE_WAIT
from tests.e2e.conftest import Row, World, fresh_world
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import free_port
from tests.sandbox.supabase.gateway import Fault

SCRIPTS = Scripts()
SPANISH_DEMO = SCRIPTS.named("demo.es")
DEMO, DEFAULT, PRUEBA, WAITLIST = (SCRIPTS.for_mode(mode) for mode in ("demo", "default", "prueba", "waitlist"))


def ring(
    world: World, mode: str, *, number: str | None = None, name: str = "Ada", language: str = "", **behaviour: object
) -> tuple[int, str]:
    """Call a person with this behaviour. -> the job and their number"""
    number = number or world.number()
    world.behave(to=number, **behaviour)
    job = world.insert_job(number, mode, first_name=name, metadata=Jsonb({"company": "Acme", "language": language}))
    assert world.dial(job)["did"] == "called"
    return job, number


def talk(world: World, mode: str, *digits: str, **behaviour: Any) -> tuple[int, list[str]]:
    """A whole call. -> the job, and the words and [keys] of the call, in order"""
    job, number = ring(world, mode, digits=list(digits), **behaviour)
    world.until_status(job, "completed", "failed", "canceled", "queued")
    return job, transcript(world, number)


def transcript(world: World, number: str) -> list[str]:
    assert [error for call in world.calls(number) for error in call["errors"]] == []
    return lines(world, number)


def lines(world: World, number: str) -> list[str]:
    """Of a call that may have errors in Twilio's debugger."""
    said = [line for call in world.calls(number) for line in call["transcript"]]
    return [line.get("text") or f"[{line.get('digits') or line['said']}]" for line in said]


def words(*texts: str | Recording | None, **known: str) -> list[str]:
    known = {"first_name": "Ada", "company": "Acme", "product": "our little product", **known}
    return [str(text).format_map(known) for text in texts if text]


def answers(world: World, job: int) -> dict[str, str]:
    rows = world.rows("select question, meaning from public.outbound_call_answers where job_id = %s", job)
    return {row["question"]: row["meaning"] for row in rows}


def heard(world: World, job: int) -> list[Row]:
    return world.rows("select meaning, digits, heard from public.outbound_call_answers where job_id = %s", job)


def opt_outs(world: World, number: str) -> list[str]:
    rows = world.rows("select how from public.call_opt_outs where phone_e164 = %s", number)
    return [row["how"] for row in rows]


# --- people -------------------------------------------------------------------------------------------------------------
SIZE, SSO, TIMELINE = DEMO.questions
IN_SPANISH = SPANISH_DEMO.questions[2]
USE, HELP = PRUEBA.questions
(PATIENCE,) = WAITLIST.questions
AGAIN = (DEMO.again, SIZE.say)
TALKS: dict[str, tuple[str, dict[str, Any], list[str], dict[str, str]]] = {
    # the mode, the person's conduct, all after the first question, and what is stored
    "leads on": (
        "demo", {"digits": ["2", "1", "3"]},
        words("[2]", SSO.say, "[1]", TIMELINE.say, "[3]", TIMELINE.answers["3"].say, DEMO.goodbye),
        {"team_size": "2_to_10", "single_sign_on": "yes", "timeline": "only_looking"}),
    "in the language of the mode": (
        "prueba", {"digits": ["1", "2"], "name": "José"},
        words("[1]", USE.answers["1"].say, HELP.say, "[2]", HELP.answers["2"].say, PRUEBA.goodbye),
        {"uso": "negocio", "ayuda": "no"}),
    "in the language of the person": (
        "Demo", {"digits": ["1", "3"], "language": "es_AR"},
        words("[1]", IN_SPANISH.say, "[3]", IN_SPANISH.answers["3"].say, SPANISH_DEMO.goodbye),
        {"team_size": "just_me", "timeline": "only_looking"}),
    "silence": ("demo", {}, words(*AGAIN * SIZE.repeat, SIZE.no_answer, DEMO.goodbye), {}),
    "silence, an unknown key, an answer": (
        "demo", {"digits": ["", "#", "1", "1"]},
        words(*AGAIN, "[#]", *AGAIN, "[1]", TIMELINE.say, "[1]", TIMELINE.answers["1"].say, DEMO.goodbye),
        {"team_size": "just_me", "timeline": "this_month"}),
    "wants to hear it again": (
        "waitlist", {"digits": ["3", "1"]},
        words("[3]", PATIENCE.say, "[1]", PATIENCE.answers["1"].say, WAITLIST.goodbye), {"patience": "now"}),
    "hangs up": ("demo", {"digits": ["3"], "hangup_after": 1}, ["[3]"], {"team_size": "more_than_10"}),
}  # fmt: skip


def test_conversations_are_heard_and_stored_as_scripted(quiet: World) -> None:
    found = {}
    for name, (mode, conduct, _, _) in TALKS.items():
        job, number = ring(quiet, mode, **conduct)
        done, said = quiet.until_status(job, "completed", "failed"), transcript(quiet, number)
        script = SPANISH_DEMO if "language" in conduct else SCRIPTS.for_mode(mode)
        opening = (script.greeting, script.opt_out.say, script.questions[0].say)
        assert said[:3] == words(*opening, first_name=conduct.get("name", "Ada")), name
        found[name] = (mode, conduct, said[3:], answers(quiet, job))
        summary = {"answers": found[name][3], "opted_out": False, "answered_by": None}
        assert (done["status"], done["qualification"]) == ("completed", summary), name
        (row,) = quiet.rows("select answers, outcome from public.outbound_call_overview where id = %s", job)
        assert row == {"answers": found[name][3] or None, "outcome": "completed"}, name
    assert found == TALKS


def test_each_turn_costs_one_rpc(quiet: World, talking: Row) -> None:
    rpcs = quiet.sandbox.gateway.requests
    rpcs.clear()
    press(quiet, talking, "team_size", "1")
    assert dict(rpcs) == {"record_call_answer": 1}


def test_speech_is_stored_with_its_words_only_when_sure(quiet: World) -> None:
    job, said = talk(quiet, "waitlist", speech=["Next month, zanzibar!"])
    assert said[-3:] == words("[Next month, zanzibar!]", PATIENCE.answers["2"].say, WAITLIST.goodbye)
    assert heard(quiet, job) == [{"meaning": "next_month", "digits": "2", "heard": "Next month, zanzibar!"}]
    assert "zanzibar" not in quiet.sandbox.function_log.read_text()
    job, said = talk(quiet, "waitlist", "", "1", speech=[{"text": "next month", "confidence": 0.3}])
    assert said[3:6] == words("[next month]", WAITLIST.again, PATIENCE.say)
    assert heard(quiet, job) == [{"meaning": "now", "digits": "1", "heard": None}]


# --- opting out ---------------------------------------------------------------------------------------------------------
def test_opt_out_key_is_confirmed_and_stops_all_calls(quiet: World) -> None:
    for before in ([], ["", "7"], ["2", "1"]):
        number = quiet.number()
        waiting = quiet.insert_job(number)
        job, said = talk(quiet, "demo", *before, DEMO.opt_out.key, number=number)
        assert said[-2:] == [f"[{DEMO.opt_out.key}]", DEMO.opt_out.confirm]
        assert opt_outs(quiet, number) == ["key press"]
        assert (quiet.job(waiting)["status"], quiet.job(waiting)["reason_code"]) == ("canceled", "opted_out")
        assert (quiet.job(job)["status"], quiet.job(job)["qualification"]["opted_out"]) == ("completed", True)
        another = quiet.insert_job(number)
        assert quiet.dial(another).get("did") != "called"
        assert (quiet.job(another)["status"], len(quiet.calls(number))) == ("canceled", 1)


def test_spoken_opt_out_holds_after_its_confirmation(quiet: World) -> None:
    number, another = quiet.number(), quiet.number()
    _, said = talk(quiet, "waitlist", number=number, speech=["please stop calling me", "yes"])
    asked, confirmed = words(WAITLIST.opt_out.ask, WAITLIST.opt_out.confirm)
    assert said[-4:] == ["[please stop calling me]", asked, "[yes]", confirmed]
    job, _ = talk(quiet, "waitlist", number=another, speech=["stop calling", "no", "now"])
    assert answers(quiet, job) == {"patience": "now"}
    assert (opt_outs(quiet, number), opt_outs(quiet, another)) == (["spoken"], [])


# --- unwanted calls -----------------------------------------------------------------------------------------------------
def press(world: World, attempt: Row, at: str, digits: str, script: str = "demo", tries: object = 1) -> str:
    """The document for this key at this place."""
    query = urlencode({"attempt": attempt["id"], "script": script, "at": at, "try": tries})
    form = {"CallSid": attempt["call_sid"], "CallStatus": "in-progress", "Digits": digits}
    answer = world.twilio_posts(f"/voice?{query}", form)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/xml; charset=utf-8")
    return answer.text


@pytest.fixture
def talking(quiet: World) -> Row:
    """The attempt of a call that stays open after its conversation, without callbacks."""
    job, number = ring(quiet, "demo", callbacks="none", talk_s=30)
    quiet.until(lambda: DEMO.goodbye in transcript(quiet, number))
    (attempt,) = quiet.attempts(job)
    return attempt


@pytest.mark.parametrize("how", ["cancel_call_job(job_id)", "opt_out(phone_e164)"])
def test_call_unwanted_between_questions_is_hung_up(quiet: World, talking: Row, how: str) -> None:
    repeated = [press(quiet, talking, "team_size", "2") for _ in range(2)]
    assert len({re.sub(r"since=\d+", "", text) for text in repeated}) == 1  # `since`: the second of the request
    assert "<Gather" in repeated[0]
    quiet.rows(f"select public.{how} from public.outbound_call_attempts")
    said = [press(quiet, talking, "single_sign_on", key) for key in ("1", "", "7")]
    assert [("<Say" in text, text.count("<Hangup")) for text in said] == [(False, 1)] * 3
    assert answers(quiet, talking["job_id"]) == {"team_size": "2_to_10"}


def test_missing_place_is_a_goodbye_and_machines_hear_theirs(quiet: World, talking: Row) -> None:
    missing: list[tuple[str, str, object]] = [
        ("demo", "gone", 1), ("gone", "team_size", 1), ("demo", "", 1), ("demo", "team_size", "x"),
        ("../demo", "x", "1" * 40),
    ]  # fmt: skip
    said = {place: press(quiet, talking, place[1], "1", place[0], place[2]) for place in missing}
    wrong = {
        place: text for place, text in said.items()
        if str(SCRIPTS.for_mode(place[0]).goodbye) not in text or (text.count("<Say"), text.count("<Hangup")) != (1, 1)
    }  # fmt: skip
    assert wrong == {}
    form = {"CallSid": talking["call_sid"], "AccountSid": "AC0", "AnsweredBy": "machine_end_beep"}
    assert quiet.twilio_posts(f"/status?attempt={talking['id']}", form).status_code == 204
    text = press(quiet, talking, "team_size", "2")
    assert (words(DEMO.machine)[0] in text, text.count("<Say"), text.count("<Hangup")) == (True, 1, 1)
    assert answers(quiet, talking["job_id"]) == {}


# --- when the database is down ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["503", "html"])
def test_unstored_answer_is_logged_and_gets_an_apology(quiet: World, fault: Fault) -> None:
    with quiet.fault(fault, "record_call_answer"):
        job, said = talk(quiet, "prueba", "2")
    assert said[-5:] == ["[2]", *[PLEASE_WAIT["es"]] * 2, PRUEBA.apology, PRUEBA.goodbye]
    (attempt,) = quiet.attempts(job)
    line = quiet.log_lines("an answer was not stored")[0]
    told = {key: line[key] for key in ("severity", "attempt", "call_sid", "question", "meaning", "digits")}
    assert told == {
        "severity": "ERROR", "attempt": str(attempt["id"]), "call_sid": attempt["call_sid"],
        "question": "uso", "meaning": "escuela", "digits": "2",
    }  # fmt: skip
    assert attempt["phone_e164"] not in json.dumps(line)
    # By hand, from that line:
    by_hand = [told[key] for key in ("attempt", "call_sid", "question", "meaning", "digits")]
    quiet.rows("select public.record_call_answer(%s, %s, 60, %s, %s, %s)", *by_hand)
    assert quiet.job(job)["qualification"]["answers"] == {"uso": "escuela"}


def test_short_fault_of_the_database_costs_a_moment(quiet: World) -> None:
    with quiet.fault("503", "record_call_answer", times=1):
        job, said = talk(quiet, "prueba", "2")
    assert said[3:] == words("[2]", PLEASE_WAIT["es"], USE.answers["2"].say, PRUEBA.goodbye)
    assert answers(quiet, job) == {"uso": "escuela"}
    with quiet.fault("503", "record_call_answer", times=1):  # words travel in no URL: the key that they stand for does
        job, _ = talk(quiet, "waitlist", speech=["no hurry, quagga"])
    assert heard(quiet, job) == [{"meaning": "next_month", "digits": "2", "heard": None}]
    assert "quagga" not in quiet.sandbox.function_log.read_text()


def test_unstored_opt_out_is_critical_and_not_confirmed(quiet: World) -> None:
    with quiet.fault("503", "record_call_answer"):
        _, said = talk(quiet, "demo", DEMO.opt_out.key)
    assert said[-2:] == [DEMO.apology, DEMO.goodbye]
    assert quiet.log_lines("an opt-out was not stored")[0]["severity"] == "CRITICAL"


# --- machines -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detecting_sandbox() -> Iterator[Sandbox]:
    """Under a path of its own, too: the place in the conversation must come back signed all the same."""
    port = free_port()
    environ = {"API_BASE_URL": f"http://127.0.0.1:{port}/calls", "VOICE_PATH": "/voice/of_twilio/"}
    environ |= {"STATUS_PATH": "/voice", "CALL_MACHINES": "missed"}
    with Sandbox(webhooks=False, scheduler=False, environ=environ, words_per_second=40, port=port) as sandbox:
        yield sandbox


def test_machine_hears_its_message_and_is_called_again(detecting_sandbox: Sandbox) -> None:
    """Detection runs while the greeting is spoken, at sixteen times the usual speed. It does not disturb a person."""
    ends = words(DEFAULT.machine, DEFAULT.goodbye, WAITLIST.goodbye)
    machine: tuple[object, ...] = ("queued", "machine", 1, "machine_end_beep", {}, {"create": 1, "update": 1})
    table: dict[tuple[str, str], tuple[object, ...]] = {
        ("default", "machine"): (*machine, words(DEFAULT.machine)),
        ("waitlist", "machine"): (*machine, []),  # without a message it is hung up
        ("waitlist", "answered"):
            ("completed", None, 1, "human", {"patience": "next_month"}, {"create": 1}, words(WAITLIST.goodbye)),
    }  # fmt: skip
    found = {}
    with fresh_world(detecting_sandbox) as world:
        for mode, outcome in table:
            rpcs, requests = world.sandbox.gateway.requests, world.sandbox.twilio.requests
            rpcs.clear()
            requests.clear()
            job, said = talk(world, mode, "2", outcome=outcome)
            (done, (attempt,)) = world.job(job), world.attempts(job)
            found[mode, outcome] = (
                *(done["status"], done["reason_code"], done["attempts"], attempt["answered_by"], answers(world, job)),
                *(dict(requests), [line for line in said if line in ends]),
            )
            if outcome == "machine":
                assert rpcs["record_call_status"] == 6  # /voice, four callbacks, and what detection found
    assert found == table
