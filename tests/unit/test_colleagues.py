"""A colleague is rung for an answer's `dial`: which numbers, when, how long, and what a form of Twilio means for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from function.twilio_form import read_event, read_place, read_voice_request
from function.voice import handle
from shared.conversation.colleagues import Transfer, plan_transfer
from shared.conversation.library import ScriptError, Scripts
from shared.conversation.rehearse import main
from shared.conversation.script import GOODBYE, Answer, Script
from shared.conversation.turns import DIAL, Place, Turn, next_turn
from shared.dispatcher import Dispatcher
from shared.models import LiveCall, LiveJob
from tests.sandbox.twilio.twiml import Dial, Redirect, parse
from tests.unit.examples import ENVIRON, settings
from tests.unit.test_scripts import GOOD, folder

__all__ = ["folder"]

NUMBER, DIAL_IT, WHISPER, NO_ANSWER = (
    "+14155550111", 'dial = "+14155550111"', 'whisper = "A lead. Press 1."', 'no_answer = "Nobody is free."'
)  # fmt: skip
DIALS = f'means = "one"\nsay = "One moment."\n{DIAL_IT}\n{WHISPER}\n{NO_ANSWER}'
VOICE_URL = "https://x.example/voice"
CHILD, PARENT = "CA" + "c" * 32, "CA" + "a" * 32


def script(folder: Path, old: str = "", new: str = "", **environ: str) -> Script | str:
    """The script of GOOD whose first answer dials, with a change; or what is wrong with it."""
    text = GOOD.replace('means = "one"', DIALS)
    assert old in text
    (folder / "default.toml").write_text(text.replace(old, new) if old else text)
    try:
        return Scripts(folder, settings(**environ)).default
    except ScriptError as error:
        return str(error).splitlines()[1].strip().removeprefix("default.toml: questions.size.answers.1.")


def test_bad_dial_is_refused_in_clear_words(folder: Path) -> None:
    berlin = 'zone = "Europe/Berlin"'
    form = 'dial: must be a phone number with + and country code: "+14155550123"'
    premium = "dial: a premium rate number: its owner earns money from each call"
    abroad = "dial: calls do not go to the country of this number (DE): CALL_COUNTRIES does not name it"
    ring_s, zone = "ring_s: must be a whole number from 5 to 60", "zone: must be a time zone such as"
    table = {
        **dict.fromkeys([(NUMBER, odd) for odd in ("14155550111", "+1 415 555 0111", "911", "+0155550111", "")], form),
        (f'"{NUMBER}"', "14155550111"): "dial: must be text, in quotes",
        (NUMBER, "+14155550"): "dial: no phone in its country has such a number",
        (NUMBER, "+19005550111"): premium,
        (NUMBER, "+14159765000"): premium,
        (NUMBER, "+18005550111"): "dial: a toll-free number: it belongs to a company, not to a person",
        (NUMBER, "+14155551212"): "dial: a number of the telephone network itself, not a person's phone",
        (NUMBER, "+881612345678"): "dial: a satellite phone, or another network",
        (NUMBER, "+4930123456"): abroad,
        (NUMBER, ENVIRON["TWILIO_PHONE_NUMBER"]): "dial: this is our own number",
        (NO_ANSWER, ""): "no_answer: is missing beside dial",
        (WHISPER, ""): "whisper: is missing beside dial",
        (DIAL_IT, ""): "whisper: has no place here without dial",
        (DIAL_IT, f'{DIAL_IT}\nlater = "2h"'): "say: must be words with {later}",
        (WHISPER, 'whisper = "For {x}."'): "whisper: {x} is not declared",
        (WHISPER, f'whisper = "{"x" * 1501}"'): "whisper: is too long",
        **{(WHISPER, f"{WHISPER}\nring_s = {odd}"): ring_s for odd in ("4", "61", "true", '"20"', "20.5")},
        (WHISPER, f'{WHISPER}\nhours = "9 to 5"\n{berlin}'): "hours: must be opening hours, such as",
        (WHISPER, f'{WHISPER}\nhours = "Mo-Fr 09:00-17:00"'): "hours: and zone belong together",
        (WHISPER, f"{WHISPER}\n{berlin}"): "hours: and zone belong together",
        **{
            (WHISPER, f'{WHISPER}\nhours = "09:00-17:00"\nzone = "{odd}"'): zone
            for odd in ("Berlin", "../etc", "Europe", "", "/etc/passwd", "EST", "localtime")
        },
    }
    told = {case: str(script(folder, *case)) for case in table}
    assert {case: said for case, said in told.items() if not said.startswith(table[case])} == {}
    assert "leaves no time to ring and to talk" in str(script(folder, CALL_TIME_LIMIT_SECONDS="64"))
    for right in ({}, {"CALL_TIME_LIMIT_SECONDS": "65"}, {"CALL_ONLY_TO": "+14155550199"}):
        assert isinstance(script(folder, **right), Script)


def test_rehearsal_reads_the_transfer_without_its_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script(folder, WHISPER, 'whisper = "A lead."\nhours = "Mo-Fr 09:00-17:00"\nzone = "Europe/Berlin"')
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    expected = [
        "1 = one, then a colleague", '"A lead."', 'when no colleague presses a key: start\n      "Nobody is free."',
        "puts through to +1*******11, Mo-Fr 09:00-17:00 by the clock of Europe/Berlin; rings 20 seconds",
        "were not compared with dial",
    ]  # fmt: skip
    assert [each for each in expected if each not in said] == []
    script(folder, NUMBER, "+19005550111")
    assert main(["check", str(folder)]) == 1  # also where no settings are known


def test_colleague_is_rung_inside_hours_and_while_time_is_left(folder: Path) -> None:
    """hours, zone, the moment (UTC), seconds left -> the limit of the leg; None: not rung."""
    monday, holiday = datetime(2026, 6, 15, 7, 0, tzinfo=UTC), datetime(2026, 12, 25, 12, 0, tzinfo=UTC)
    work = "Mo-Fr 09:00-17:00; PH off"
    table = {
        (None, None, holiday, 600.0): 585,
        (work, "Europe/Berlin", monday, 600.0): 585,
        (work, "Europe/Berlin", monday.replace(hour=6, minute=59), 600.0): None,
        (work, "Europe/Berlin", monday.replace(hour=15), 600.0): None,
        (work, "Europe/London", monday, 600.0): None,
        (work, "Europe/Berlin", monday.replace(day=14), 600.0): None,
        (work, "Europe/Berlin", holiday, 600.0): None,
        ("Mo-Fr 09:00-17:00", "Europe/Berlin", holiday, 600.0): 585,
        (work, "UTC", holiday, 600.0): 585,  # of no country
        (None, None, monday, 65.9): 50,
        (None, None, monday, 64.9): None,
        (None, None, monday, -1.0): None,
    }
    answer = Answer.model_validate({"means": "x", "dial": "+14155550111"})
    found = {}
    for case in table:
        hours, zone, now, left_s = case
        plan = plan_transfer(answer.model_copy(update={"hours": hours, "zone": zone}), settings(), now, left_s)
        found[case] = plan.limit_s if plan else None
        assert plan in (None, Transfer("+14155550111", ENVIRON["TWILIO_PHONE_NUMBER"], 20, found[case] or 0))
    assert found == table
    staging = settings(CALL_ONLY_TO="+14155550199")
    assert plan_transfer(answer, staging, monday, 600) is None


def test_only_two_connected_legs_count_as_a_talk(folder: Path) -> None:
    """Every other end of the second leg, and every forged one, leads to the words for nobody's answer."""
    made = script(folder)
    assert isinstance(made, Script)
    turn = next_turn(made, Place("default", "size"), "1")
    assert (turn.says, turn.dials, turn.asks) == (("One moment.",), True, ())
    assert turn.place == Place("default", f"{DIAL}1.size")
    query = {"script": "default", "at": f"{DIAL}1.size", "try": "1"}
    statuses = (
        "completed",
        "answered",
        "busy",
        "no-answer",
        "failed",
        "canceled",
        "in-progress",
        "",
        "COMPLETED",
        "x" * 99,
    )
    goodbye, nobody = Turn(("Goodbye.",)), Turn(("Nobody is free.",), ("When?",), Place("default", "start"))
    for status, bridged in product(statuses, ("true", "false", "", "1", "TRUE")):
        place = read_place(query, {"DialCallStatus": status, "DialBridged": bridged})
        assert place
        talked = status in ("completed", "answered") and bridged in ("true", "TRUE")
        assert place.at == (GOODBYE if talked else query["at"]), (status, bridged)
        assert next_turn(made, place, "") == (goodbye if talked else nobody), (status, bridged)
    for gone in ("3.size", "2.size", "1.gone", "", "1", ".size"):
        assert next_turn(made, Place("default", f"{DIAL}{gone}"), "") == goodbye, gone
    assert next_turn(made, Place("gone", f"{DIAL}1.size"), "") == goodbye


def test_second_leg_is_no_call_of_our_attempt() -> None:
    leg = {"CallSid": CHILD, "ParentCallSid": PARENT, "CallStatus": "in-progress"}
    assert read_event(leg).call_sid == ""
    assert [read_event(leg | {"ParentCallSid": odd}).call_sid for odd in ("", "x", PARENT[:-1])] == [CHILD] * 3
    query = {"attempt": str(uuid4()), "picked_up": "1700000000"}
    asked = read_voice_request(leg, query, VOICE_URL)
    expected = (PARENT, 1_700_000_000, f"{VOICE_URL}?{urlencode(query)}")
    assert (asked.first_leg, asked.picked_up_at, asked.action) == expected
    ended = {"CallSid": PARENT, "DialCallStatus": "completed", "Digits": "9"}  # the colleague's key, not an opt-out
    after = read_voice_request(ended, query | {"at": f"{DIAL}1.size", "try": "1"}, VOICE_URL)
    assert (after.digits, after.pressed) == ("", False)


def test_machine_or_unwanted_call_is_never_put_through(folder: Path) -> None:
    """What the database knows of a call that asks for a colleague, and how -> the verbs of the answer."""
    script(folder, 'language = "en-US"', 'language = "en-US"\nlisten = "both"')
    scripts = Scripts(folder)
    job = LiveJob(id=7, status="calling", first_name=None, signup_mode="x", metadata={}, phone_e164="+14155550123")
    call = LiveCall(then="keep", state="accepted", call_status="in-progress", job=job, now=datetime.now(UTC))
    now = int(time.time())
    query = {"attempt": str(uuid4()), "script": "default", "at": "size", "try": "1", "picked_up": str(now - 100)}
    key, said, waited = {"Digits": "1"}, {"SpeechResult": "one"}, {"keys": "1", "waits": "1"}
    found_machine = {"answered_by": "machine_end_beep"}
    table: dict[str, tuple[dict[str, str], dict[str, str], dict[str, Any], list[str]]] = {
        "a person": (key, {}, {}, ["Say", "Dial"]),
        "late": (key, {"picked_up": str(now - 540)}, {}, ["Say", "Gather"]),
        "a machine": (key, {}, {"by_machine": True}, ["Hangup"]),
        "opted out": (key, {}, {"opted_out": True}, ["Say", "Hangup"]),
        "canceled": (key, {}, {"then": "end"}, ["Hangup"]),
        "a duplicate": (key, {}, {"then": "end", "state": "duplicate"}, ["Hangup"]),
        "of no attempt": (key, {}, {"then": "unknown", "state": None, "job": None}, ["Hangup"]),
        "a key, and Twilio errs": (key, {}, found_machine, ["Say", "Dial"]),
        "words, and nothing found yet": (said, {}, {}, ["Say", "Pause", "Redirect"]),
        "words, still nothing": ({}, waited, {}, ["Pause", "Redirect"]),
        "words, nothing after all": ({}, waited | {"waits": "5"}, {}, ["Say", "Dial"]),
        "words of a person": ({}, waited, {"answered_by": "human"}, ["Say", "Dial"]),
        "words of a machine": ({}, waited, found_machine, ["Say", "Gather"]),
    }
    found = {}
    for name, (form, more, known, _) in table.items():
        dispatcher = Dispatcher(settings(CALL_MACHINES="reached"), Mock(), Mock())
        dispatcher.record_answer = Mock(return_value=call.model_copy(update=known))  # type: ignore[method-assign]
        asked = read_voice_request({"CallSid": PARENT, **form}, query | more, VOICE_URL)
        verbs = parse(handle(asked, dispatcher, scripts).encode(), "text/xml").verbs
        found[name] = (form, more, known, [type(verb).__name__ for verb in verbs])
        if name == "a person":  # what is left of CALL_TIME_LIMIT_SECONDS, 600
            assert [480 <= verb.time_limit <= 485 for verb in verbs if isinstance(verb, Dial)] == [True]
        if name == "words, and nothing found yet":
            (again,) = [dict(parse_qsl(urlsplit(verb.url).query)) for verb in verbs if isinstance(verb, Redirect)]
            assert {"at": "size", "keys": "1", "waits": "1"}.items() <= again.items()
        assert dispatcher.record_answer.call_args.args[2].meaning == "one"
    assert found == table


def test_failed_agent_is_logged_unless_the_person_hung_up(folder: Path) -> None:
    connect = '[connect]\nurl = "wss://agent.example/x"\nkind = "stream"\n[opt_out]'
    (folder / "default.toml").write_text(GOOD.replace("[opt_out]", connect))
    dispatcher, query = Mock(), {"attempt": str(uuid4()), "script": "default", "at": "connect.failed", "try": "1"}
    dispatcher.record_answer.return_value = LiveCall(then="end", state="ended", call_status=None, job=None)
    logged = {}
    for status in ("in-progress", "completed"):
        form = {"CallSid": PARENT, "CallStatus": status, "ErrorCode": "31921"}
        with capture_logs() as lines:
            handle(read_voice_request(form, query, VOICE_URL), dispatcher, Scripts(folder))
        logged[status] = "agent_failed" in [line.get("kind") for line in lines]
    assert logged == {"in-progress": True, "completed": False}
