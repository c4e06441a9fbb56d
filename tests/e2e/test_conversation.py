"""Calls from end to end: people who answer, stay silent, press any key, hang up or opt out; and machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from psycopg.types.json import Jsonb

from shared.conversation.library import Scripts
from shared.conversation.script import Script
from shared.conversation.texts import Recording
from shared.conversation.twiml import PLEASE_WAIT
from tests.e2e.conftest import World, fresh_world
from tests.e2e.test_failures import hook
from tests.e2e.test_requests import signed
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import free_port

SCRIPTS = Scripts()
SPANISH_DEMO = SCRIPTS.named("demo.es")
DEMO, DEFAULT, PRUEBA, WAITLIST = (SCRIPTS.for_mode(mode) for mode in ("demo", "default", "prueba", "waitlist"))


def ring(
    world: World,
    mode: str,
    *,
    number: str | None = None,
    name: str | None = "Ada",
    language: str = "",
    **behaviour: object,
) -> tuple[int, str]:
    """Call a person with this behaviour. -> the job and their number"""
    number = number or world.number()
    world.behave(to=number, **behaviour)
    job = world.insert_job(number, mode, first_name=name, metadata=Jsonb({"company": "Acme", "language": language}))
    assert world.webhook(hook(job)).json()["did"] == "called"
    return job, number


def talk(world: World, mode: str, *digits: str, **behaviour: Any) -> tuple[int, list[str]]:
    """A whole call. -> the job, and the words and [keys] of the call, in order"""
    job, number = ring(world, mode, digits=list(digits), **behaviour)
    world.until_status(job, "completed", "failed", "canceled", "queued")
    return job, transcript(world, number)


def transcript(world: World, number: str) -> list[str]:
    lines = [line for call in world.calls(number) for line in call["transcript"]]
    assert [call["errors"] for call in world.calls(number)] == [[] for _ in world.calls(number)]
    return [line.get("text") or f"[{line.get('digits') or line['said']}]" for line in lines]


def plain(text: str | Recording | None) -> str:
    assert isinstance(text, str)
    return text


def words(script: Script, *texts: str | Recording | None, first_name: str = "Ada", company: str = "Acme") -> list[str]:
    said = [plain(text) for text in texts if text]
    return [text.replace("{first_name}", first_name).replace("{company}", company) for text in said]


def opening(script: Script, **known: str) -> list[str]:
    return words(script, script.greeting, script.opt_out.say, script.questions[0].say, **known)


def answers(world: World, job: int) -> dict[str, str]:
    rows = world.rows("select question, meaning from public.outbound_call_answers where job_id = %s", job)
    return {row["question"]: row["meaning"] for row in rows}


def log_lines(world: World, text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in world.sandbox.function_log.read_text().splitlines() if text in line]
    return [line for line in lines if text in line["message"]]


# --- people -------------------------------------------------------------------------------------------------------------
def test_answers_lead_on_and_are_stored(quiet: World) -> None:
    job, said = talk(quiet, "demo", "2", "1", "3")
    _, sso, timeline = DEMO.questions
    looking = timeline.answers["3"].say
    assert said == [
        *opening(DEMO), "[2]", sso.say, "[1]", timeline.say, "[3]", *words(DEMO, looking, DEMO.goodbye),
    ]  # fmt: skip
    expected = {"team_size": "2_to_10", "single_sign_on": "yes", "timeline": "only_looking"}
    assert answers(quiet, job) == expected
    done = quiet.job(job)
    assert (done["status"], done["qualification"]) == (
        "completed",
        {"answers": expected, "opted_out": False, "answered_by": None},
    )
    (row,) = quiet.rows("select * from public.outbound_call_overview where id = %s", job)
    assert (row["answers"], row["outcome"]) == (expected, "completed")


def test_answer_may_skip_a_question(quiet: World) -> None:
    job, said = talk(quiet, "demo", "1", "1")
    assert said[len(opening(DEMO)) : -2] == ["[1]", DEMO.questions[2].say, "[1]"]
    assert answers(quiet, job) == {"team_size": "just_me", "timeline": "this_month"}


def test_call_speaks_the_language_of_its_mode(quiet: World) -> None:
    job, said = talk(quiet, "prueba", "1", "2", name="José")
    assert said[:3] == opening(PRUEBA, first_name="José")
    assert answers(quiet, job) == {"uso": "negocio", "ayuda": "no"}


def test_call_speaks_the_language_of_the_person(quiet: World) -> None:
    job, said = talk(quiet, "Demo", "1", "3", language="es_AR", name="José")
    timeline = SPANISH_DEMO.questions[2]
    expected = words(SPANISH_DEMO, timeline.answers["3"].say, SPANISH_DEMO.goodbye)
    assert said == [*opening(SPANISH_DEMO, first_name="José"), "[1]", plain(timeline.say), "[3]", *expected]
    assert answers(quiet, job) == {"team_size": "just_me", "timeline": "only_looking"}


def test_silence_is_asked_again_as_the_script_says(quiet: World) -> None:
    job, said = talk(quiet, "demo")
    question = DEMO.questions[0]
    assert said == [*opening(DEMO), *[DEMO.again, question.say] * question.repeat, question.no_answer, DEMO.goodbye]
    assert quiet.job(job)["qualification"]["answers"] == {}


def test_answer_after_silence_is_stored(quiet: World) -> None:
    job, said = talk(quiet, "demo", "", "", "1", "1")
    assert said.count(plain(DEMO.questions[0].say)) == 3
    assert answers(quiet, job)["team_size"] == "just_me"


@pytest.mark.parametrize("nonsense", ["7", "0", "*", "#", "A"])
def test_unknown_key_repeats_the_question(quiet: World, nonsense: str) -> None:
    job, said = talk(quiet, "demo", nonsense, "1", "1")
    assert said.count(plain(DEMO.questions[0].say)) == 2
    assert answers(quiet, job) == {"team_size": "just_me", "timeline": "this_month"}


def test_repeated_question_keeps_the_last_answer(quiet: World) -> None:
    job, said = talk(quiet, "waitlist", "3", "3", "1")
    assert said.count(plain(WAITLIST.questions[0].say)) == 3
    assert answers(quiet, job) == {"patience": "now"}


def test_answers_before_a_hang_up_are_kept(quiet: World) -> None:
    job, said = talk(quiet, "demo", "3", hangup_after=1)
    assert said[-1] == "[3]"
    assert answers(quiet, job) == {"team_size": "more_than_10"}
    assert quiet.job(job)["qualification"]["answers"] == {"team_size": "more_than_10"}


def test_unfit_values_are_replaced_by_their_fallbacks(quiet: World) -> None:
    number = quiet.number()
    quiet.behave(to=number, hangup_after=1)
    metadata = {"company": "</Say><Dial>+14155550100</Dial>", "name": "Your account is locked, call one nine hundred"}
    job = quiet.insert_job(number, " DEMO", first_name="{0.__class__}", metadata=Jsonb(metadata))
    quiet.webhook(hook(job))
    quiet.until_status(job, "completed")
    greeting = transcript(quiet, number)[0]
    assert greeting == words(DEMO, DEMO.greeting, first_name="there", company="your team")[0]


def test_each_turn_costs_one_rpc(quiet: World) -> None:
    job, _ = ring(quiet, "demo", digits=["2", "1", "3"], callbacks="none", talk_s=30)
    quiet.until(lambda: len(answers(quiet, job)) == 3)
    rpcs = quiet.sandbox.gateway.requests
    rpcs.clear()
    (attempt,) = quiet.attempts(job)
    press(quiet, attempt, "demo", "team_size", "1")
    assert dict(rpcs) == {"record_call_answer": 1}
    quiet.rows("select public.cancel_call_job(%s)", job)


# --- speech -------------------------------------------------------------------------------------------------------------
def test_spoken_answer_is_stored_with_its_words(quiet: World) -> None:
    patience = WAITLIST.questions[0]
    job, said = talk(quiet, "waitlist", speech=["Next month, zanzibar!"])
    assert said[-3:] == ["[Next month, zanzibar!]", *words(WAITLIST, patience.answers["2"].say, WAITLIST.goodbye)]
    rows = quiet.rows("select meaning, digits, heard from public.outbound_call_answers where job_id = %s", job)
    assert rows == [{"meaning": "next_month", "digits": "2", "heard": "Next month, zanzibar!"}]
    assert "zanzibar" not in quiet.sandbox.function_log.read_text()


def test_unsure_speech_is_asked_again_and_keys_still_work(quiet: World) -> None:
    unsure = {"text": "next month", "confidence": 0.3}
    job, said = talk(quiet, "waitlist", "", "1", speech=[unsure])
    assert said[len(opening(WAITLIST)) :][:3] == [
        "[next month]",
        *words(WAITLIST, WAITLIST.again, WAITLIST.questions[0].say),
    ]
    rows = quiet.rows("select meaning, digits, heard from public.outbound_call_answers where job_id = %s", job)
    assert rows == [{"meaning": "now", "digits": "1", "heard": None}]


def test_spoken_opt_out_holds_after_its_confirmation(quiet: World) -> None:
    number = quiet.number()
    _, said = talk(quiet, "waitlist", number=number, speech=["please stop calling me", "yes"])
    out = words(WAITLIST, WAITLIST.opt_out.ask, WAITLIST.opt_out.confirm)
    assert said[-4:] == ["[please stop calling me]", out[0], "[yes]", out[1]]
    assert quiet.rows("select how from public.call_opt_outs where phone_e164 = %s", number) == [{"how": "spoken"}]
    another = quiet.number()
    job, said = talk(quiet, "waitlist", number=another, speech=["stop calling", "no", "now"])
    assert answers(quiet, job) == {"patience": "now"}
    assert quiet.rows("select how from public.call_opt_outs where phone_e164 = %s", another) == []


# --- the way out --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("before", [[], ["", "7"], ["2"], ["2", "1"]])
def test_opt_out_key_is_confirmed_and_stops_all_calls(quiet: World, before: list[str]) -> None:
    number = quiet.number()
    waiting = quiet.insert_job(number)
    job, said = talk(quiet, "demo", *before, DEMO.opt_out.key, number=number)
    assert said[-2:] == [f"[{DEMO.opt_out.key}]", DEMO.opt_out.confirm]
    (row,) = quiet.rows("select how from public.call_opt_outs where phone_e164 = %s", number)
    assert row["how"] == "key press"
    assert (quiet.job(waiting)["status"], quiet.job(waiting)["reason_code"]) == ("canceled", "opted_out")
    assert (quiet.job(job)["status"], quiet.job(job)["qualification"]["opted_out"]) == ("completed", True)
    another = quiet.insert_job(number)
    assert quiet.webhook(hook(another)).json().get("did") != "called"
    assert quiet.job(another)["status"] == "canceled"
    assert len(quiet.calls(number)) == 1


# --- unwanted calls -----------------------------------------------------------------------------------------------------
def press(world: World, attempt: Any, script: str, at: str, digits: str, tries: object = 1) -> str:
    """The document for this key at this place."""
    query = urlencode({"attempt": attempt["id"], "script": script, "at": at, "try": tries})
    form = {"CallSid": attempt["call_sid"], "CallStatus": "in-progress", "Digits": digits}
    answer = world.post(f"/voice?{query}", data=form, headers=signed(world, f"/voice?{query}", form))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/xml; charset=utf-8")
    return answer.text


@pytest.fixture
def talking(quiet: World) -> Iterator[tuple[int, Any]]:
    """A call that stays open after its conversation, without callbacks. -> the job, the attempt"""
    job, number = ring(quiet, "demo", callbacks="none", talk_s=30)
    quiet.until(lambda: DEMO.goodbye in transcript(quiet, number))
    (attempt,) = quiet.attempts(job)
    yield job, attempt
    if quiet.job(job)["finished_at"] is None and not quiet.job(job)["cancel_requested"]:
        quiet.rows("select public.cancel_call_job(%s)", job)


def test_job_canceled_between_questions_is_hung_up(quiet: World, talking: tuple[int, Any]) -> None:
    job, attempt = talking
    assert "<Gather" in press(quiet, attempt, "demo", "team_size", "2")
    quiet.rows("select public.cancel_call_job(%s)", job)
    for key in ("1", "", "7"):
        said = press(quiet, attempt, "demo", "single_sign_on", key)
        assert ("<Say" in said, said.count("<Hangup")) == (False, 1)
    assert answers(quiet, job) == {"team_size": "2_to_10"}


def test_number_that_opted_out_elsewhere_is_hung_up(quiet: World, talking: tuple[int, Any]) -> None:
    _, attempt = talking
    quiet.rows("select public.opt_out(%s)", attempt["phone_e164"])
    assert "<Say" not in press(quiet, attempt, "demo", "team_size", "2")


def test_repeated_request_is_answered_alike_and_stored_once(quiet: World, talking: tuple[int, Any]) -> None:
    job, attempt = talking
    assert press(quiet, attempt, "demo", "team_size", "2") == press(quiet, attempt, "demo", "team_size", "2")
    assert answers(quiet, job) == {"team_size": "2_to_10"}


@pytest.mark.parametrize(
    ("script", "at", "tries"),
    [
        ("demo", "gone", 1),
        ("gone", "team_size", 1),
        ("demo", "", 1),
        ("demo", "team_size", "x"),
        ("../demo", "x", "1" * 40),
    ],
)
def test_place_missing_from_scripts_is_a_goodbye(
    quiet: World, talking: tuple[int, Any], script: str, at: str, tries: object
) -> None:
    job, attempt = talking
    said = press(quiet, attempt, script, at, "1", tries)
    assert (plain(SCRIPTS.for_mode(script).goodbye) in said, said.count("<Say"), said.count("<Hangup")) == (True, 1, 1)
    assert answers(quiet, job) == {}


def test_machine_hears_its_message_in_place_of_questions(quiet: World, talking: tuple[int, Any]) -> None:
    job, attempt = talking
    path = f"/status?attempt={attempt['id']}"
    form = {"CallSid": attempt["call_sid"], "AccountSid": "AC0", "AnsweredBy": "machine_end_beep"}
    assert quiet.post(path, data=form, headers=signed(quiet, path, form)).status_code == 204
    said = press(quiet, attempt, "demo", "team_size", "2")
    assert (words(DEMO, DEMO.machine)[0] in said, said.count("<Say"), said.count("<Hangup")) == (True, 1, 1)
    assert answers(quiet, job) == {}


# --- when the database is down ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", ["503", "html"])
def test_unstored_answer_is_logged_and_gets_an_apology(quiet: World, fault: str) -> None:
    gateway = quiet.sandbox.gateway
    gateway.fault, gateway.fault_on = fault, {"record_call_answer"}  # type: ignore[assignment]
    try:
        job, said = talk(quiet, "prueba", "2")
    finally:
        gateway.fault = gateway.fault_on = None
    assert said[-5:] == ["[2]", *[PLEASE_WAIT["es"]] * 2, PRUEBA.apology, PRUEBA.goodbye]
    (attempt,) = quiet.attempts(job)
    line, *_ = [line for line in log_lines(quiet, "an answer was not stored") if line["attempt"] == str(attempt["id"])]
    told = {key: line[key] for key in ("severity", "call_sid", "question", "meaning", "digits")}
    assert told == {
        "severity": "ERROR",
        "call_sid": attempt["call_sid"],
        "question": "uso",
        "meaning": "escuela",
        "digits": "2",
    }
    assert attempt["phone_e164"] not in json.dumps(line)
    # By hand, from that line:
    quiet.rows(
        "select public.record_call_answer(%s, %s, 60, %s, %s, %s)",
        line["attempt"], line["call_sid"], line["question"], line["meaning"], line["digits"],
    )  # fmt: skip
    assert quiet.job(job)["qualification"]["answers"] == {"uso": "escuela"}


def test_short_fault_of_the_database_costs_a_moment(quiet: World) -> None:
    gateway = quiet.sandbox.gateway
    gateway.fault, gateway.fault_on, gateway.fault_times = "503", {"record_call_answer"}, 1
    try:
        job, said = talk(quiet, "prueba", "2")
    finally:
        gateway.fault = gateway.fault_on = gateway.fault_times = None
    moment = said.index(PLEASE_WAIT["es"])
    assert said[moment - 1] == "[2]"
    assert PRUEBA.goodbye in said[moment:]
    assert answers(quiet, job) == {"uso": "escuela"}


def test_spoken_answer_survives_a_short_fault_as_its_key(quiet: World) -> None:
    gateway = quiet.sandbox.gateway
    gateway.fault, gateway.fault_on, gateway.fault_times = "503", {"record_call_answer"}, 1
    try:
        job, _ = talk(quiet, "waitlist", speech=["no hurry, quagga"])
    finally:
        gateway.fault = gateway.fault_on = gateway.fault_times = None
    rows = quiet.rows("select meaning, digits, heard from public.outbound_call_answers where job_id = %s", job)
    assert rows == [{"meaning": "next_month", "digits": "2", "heard": None}]
    assert "quagga" not in quiet.sandbox.function_log.read_text()


def test_unstored_opt_out_is_critical_and_not_confirmed(quiet: World) -> None:
    gateway = quiet.sandbox.gateway
    gateway.fault, gateway.fault_on = "503", {"record_call_answer"}
    try:
        job, said = talk(quiet, "demo", DEMO.opt_out.key)
    finally:
        gateway.fault = gateway.fault_on = None
    assert said[-2:] == [DEMO.apology, DEMO.goodbye]
    (attempt,) = quiet.attempts(job)
    line, *_ = [line for line in log_lines(quiet, "an opt-out was not stored") if line["attempt"] == str(attempt["id"])]
    assert line["severity"] == "CRITICAL"


# --- machines -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def detecting_sandbox() -> Iterator[Sandbox]:
    port = free_port()  # under a path of its own, too: the place in the conversation must come back signed all the same
    paths = {
        "API_BASE_URL": f"http://127.0.0.1:{port}/calls",
        "VOICE_PATH": "/voice/of_twilio/",
        "STATUS_PATH": "/voice",
    }
    environ = {"CALL_MACHINES": "missed", **paths}
    with Sandbox(webhooks=False, scheduler=False, environ=environ, words_per_second=40, port=port) as sandbox:
        yield sandbox


@pytest.fixture
def detecting(detecting_sandbox: Sandbox) -> Iterator[World]:
    """Detection runs while the greeting is spoken, at sixteen times the usual speed."""
    with fresh_world(detecting_sandbox) as world:
        yield world


def test_machine_hears_its_message_and_is_called_again(detecting: World) -> None:
    job, number = ring(detecting, "default", outcome="machine")
    detecting.until_status(job, "queued", "completed")
    said = transcript(detecting, number)
    assert said[-1] == words(DEFAULT, DEFAULT.machine)[0]
    assert DEFAULT.goodbye not in said
    assert answers(detecting, job) == {}
    (attempt,) = detecting.attempts(job)
    assert (attempt["answered_by"], attempt["state"]) == ("machine_end_beep", "ended")
    waiting = detecting.job(job)
    assert (waiting["status"], waiting["reason_code"], waiting["attempts"]) == ("queued", "machine", 1)


def test_machine_without_a_message_is_hung_up(detecting: World) -> None:
    job, number = ring(detecting, "waitlist", outcome="machine")
    detecting.until_status(job, "queued", "completed")
    assert WAITLIST.goodbye not in transcript(detecting, number)
    assert detecting.job(job)["reason_code"] == "machine"


def test_detection_does_not_disturb_a_person(detecting: World) -> None:
    job, number = ring(detecting, "waitlist", digits=["2"])
    detecting.until_status(job, "queued", "completed")
    assert transcript(detecting, number)[-1] == WAITLIST.goodbye
    done = detecting.job(job)
    assert (done["status"], done["qualification"]) == (
        "completed",
        {"answers": {"patience": "next_month"}, "opted_out": False, "answered_by": "human"},
    )


def test_detected_machine_costs_one_rpc_and_one_request(detecting: World) -> None:
    rpcs, requests = detecting.sandbox.gateway.requests, detecting.sandbox.twilio.requests
    rpcs.clear()
    requests.clear()
    job, _ = ring(detecting, "waitlist", outcome="machine")
    detecting.until_status(job, "queued", "completed")
    assert dict(requests) == {"create": 1, "update": 1}
    assert rpcs["record_call_status"] == 6  # /voice, four callbacks, and what detection found
