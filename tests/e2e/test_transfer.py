"""A call that is put through to a colleague: every end that Twilio knows, and a function that dies in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest

from shared.dispatcher import wire
from shared.settings import load_settings
from tests.e2e.conftest import Row, World, fresh_world, scripts_and
from tests.e2e.test_conversation import answers, lines, ring, transcript
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.twilio.behaviour import Act
from tests.sandbox.twilio.call_simulator import APOLOGY, Call

COLLEAGUE = "+15005550111"
DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
ANOTHER_DAY = DAYS[(datetime.now(UTC).weekday() + 3) % 7]
SCRIPT = f"""
language = "en-US"
voice = "Polly.Joanna"
greeting = "Hello."
goodbye = "Goodbye."
apology = "An apology."
please_wait = "Please wait."
placeholders = {{ first_name = "somebody" }}

[opt_out]
key = "9"
say = "Press 9 to opt out."
confirm = "Never again."

[[questions]]
id = "talk"
say = "Talk now? Press 1 or 3."

[questions.answers.1]
means = "now"
say = "One moment."
dial = "{COLLEAGUE}"
whisper = "A lead, {{first_name}}: press any key."
no_answer = "Nobody is free."

[questions.answers.3]
means = "in_hours"
say = "One moment."
dial = "{COLLEAGUE}"
hours = "{ANOTHER_DAY} 09:00-17:00"
zone = "UTC"
whisper = "A lead."
no_answer = "Nobody works now."

[[questions]]
id = "mail"
say = "Shall we write? Press 1."
answers = {{ 1 = {{ means = "yes" }} }}
"""
OPENING = ["Hello.", "Press 9 to opt out.", "Talk now? Press 1 or 3."]
WHISPER = "A lead, Ada: press any key."
GOES_ON = ["Shall we write? Press 1.", "[1]", "Goodbye."]
MISSED = ["[1]", "One moment.", "Nobody is free.", *GOES_ON]
TALKED = ["[1]", "One moment.", "Goodbye."]


@pytest.fixture(scope="module")
def transfer_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    scripts = scripts_and(tmp_path_factory.mktemp("transfer"), transfer=SCRIPT)
    environ = {"CALL_TIME_LIMIT_SECONDS": "600"}
    with Sandbox(webhooks=False, scheduler=False, environ=environ, scripts=scripts) as sandbox:
        yield sandbox


@pytest.fixture
def office(transfer_sandbox: Sandbox) -> Iterator[World]:
    with fresh_world(transfer_sandbox) as world:
        yield world


def legs(world: World) -> list[Call]:
    return [call for call in world.sandbox.twilio.calls if call.parent]


def the_leg(world: World, status: str) -> Call:
    """The second leg, once it has this status."""
    return world.until(lambda: next((leg for leg in legs(world) if leg.status == status), None)) or legs(world)[0]


def heard_there(leg: Call) -> list[str]:
    return [line.get("text") or f"[{line['digits']}]" for line in leg.transcript]


def do(world: World, number: str, act: str, keys: str = "") -> None:
    """The person who holds this phone."""
    url = f"{world.sandbox.ready.twilio_url}/_sandbox/phones/{number}"
    answer = world.http.post(url, json=Act.model_validate({"do": act, "keys": keys}).model_dump())
    assert answer.status_code == 200, answer.text


def by_hand(world: World) -> tuple[int, str, Call]:
    """A person and a colleague who hold their phones; the person has pressed 1. -> job, the person's number, the ringing leg"""
    world.behave(to=COLLEAGUE, outcome="person", words_per_second=50)  # a leg's time limit shrinks with them
    job, number = ring(world, "transfer", outcome="person", words_per_second=500)
    world.until(lambda: [call for call in world.calls(number) if call["status"] == "ringing"])
    do(world, number, "answer")
    world.until(lambda: transcript(world, number)[: len(OPENING)] == OPENING)
    do(world, number, "press", "1")
    return job, number, the_leg(world, "ringing")


def ended_well(world: World, job: int) -> Row:
    """One attempt, one call, one leg at most; the job is over."""
    done = world.until_status(job, "completed", "failed", "canceled", "queued")
    world.sandbox.twilio.wait_quiet()
    (attempt,) = world.attempts(job)
    assert attempt["state"] == "ended"
    assert len([call for call in world.all_calls() if not call.get("parent")]) == 1
    assert len(legs(world)) <= 1
    return done


# name: the colleague's conduct, the person's keys, what the person hears, what the colleague hears, how the leg ended
ENDS: dict[str, tuple[dict[str, Any], list[str], list[str], list[str], tuple[str, bool] | None]] = {
    "talked": ({"digits": ["5"], "talk_s": 0.05}, ["1"], TALKED, [WHISPER, "[5]"], ("completed", True)),
    "hash is a key": ({"digits": ["#"]}, ["1"], TALKED, [WHISPER, "[#]"], ("completed", True)),
    "time limit": ({"digits": ["1"], "talk_s": 60}, ["1"], TALKED, [WHISPER, "[1]"], ("completed", True)),
    "no key": ({}, ["1", "1"], MISSED, [WHISPER], ("completed", False)),
    "voicemail": ({"outcome": "machine", "digits": ["1"]}, ["1", "1"], MISSED, [WHISPER], ("completed", False)),
    "hangs up at once": ({"hangup_after": 0}, ["1", "1"], MISSED, [], ("completed", False)),
    "hangs up after the key": ({"digits": ["1"], "hangup_after": 1}, ["1", "1"], MISSED, [WHISPER, "[1]"], ("completed", False)),
    "busy": ({"outcome": "busy"}, ["1", "1"], MISSED, [], ("busy", False)),
    "no answer": ({"outcome": "no-answer"}, ["1", "1"], MISSED, [], ("no-answer", False)),
    "failed": ({"outcome": "failed"}, ["1", "1"], MISSED, [], ("failed", False)),
    "outside hours": ({}, ["3", "1"], ["[3]", "Nobody works now.", *GOES_ON], [], None),
    "then silence": (
        {"outcome": "busy"}, ["1"],
        [*MISSED[:4], "Shall we write? Press 1.", "Goodbye."], [], ("busy", False),
    ),
    "then opts out": ({"outcome": "busy"}, ["1", "9"], [*MISSED[:4], "[9]", "Never again."], [], ("busy", False)),
}  # fmt: skip


def test_every_end_of_a_transfer_leaves_the_job_right(office: World) -> None:
    found, rpcs = {}, office.sandbox.gateway.requests
    for name, (conduct, keys, _, _, _) in ENDS.items():
        office.sandbox.reset()
        office.behave(to=COLLEAGUE, **conduct)
        rpcs.clear()
        job, number = ring(office, "transfer", digits=keys)
        done, said, leg = ended_well(office, job), transcript(office, number), next(iter(legs(office)), None)
        ended = (leg.status, leg.bridged) if leg else None
        assert said[: len(OPENING)] == OPENING
        found[name] = (conduct, keys, said[len(OPENING) :], heard_there(leg) if leg else [], ended)
        stored = {"talk": "in_hours" if keys[0] == "3" else "now"} | ({"mail": "yes"} if keys[1:] == ["1"] else {})
        summary = {"answers": stored, "opted_out": keys[1:] == ["9"], "answered_by": None}
        assert (done["status"], done["reason_code"], done["qualification"]) == ("completed", None, summary), name
        assert answers(office, job) == stored
        told = [(line["status"], line["talked"]) for line in office.log_lines("a colleague's leg ended")]
        assert told == ([ended] if leg else [])
        ours = office.sandbox.ready.twilio_phone_number
        assert leg is None or (leg.from_, leg.to, leg.errors) == (ours, COLLEAGUE, [])
        # A claim, an acceptance, and at most one for each request of Twilio's.
        asked = [event for event in office.sandbox.events.kept() if event["kind"] == "callback"]
        assert sum(rpcs.values()) <= 2 + len(asked)
    assert found == ENDS


def after_hang_up(office: World, who: str, when: str) -> tuple[str, bool, list[str]]:
    """-> the leg's status, whether they talked, and what the person heard from then on."""
    office.sandbox.reset()
    job, number, leg = by_hand(office)
    if when != "ringing":
        do(office, COLLEAGUE, "answer")
        office.until(lambda: WHISPER in heard_there(leg))
    if when == "talk":
        do(office, COLLEAGUE, "press", "7")
        office.until(lambda: leg.bridged)
    do(office, COLLEAGUE if who == "colleague" else number, "hang-up")
    if (who, when) == ("colleague", "whisper"):
        office.until(lambda: GOES_ON[0] in transcript(office, number))
        do(office, number, "hang-up")
    done = ended_well(office, job)
    assert (done["status"], done["qualification"]["answers"]) == ("completed", {"talk": "now"})
    return leg.status, leg.bridged, transcript(office, number)[len(OPENING) + 1 :]


def test_transfer_outlives_hang_ups_on_either_side(office: World) -> None:
    table = {
        ("person", "ringing"): ("canceled", False, ["One moment."]),
        ("person", "whisper"): ("completed", False, ["One moment."]),
        ("person", "talk"): ("completed", True, ["One moment."]),
        ("colleague", "whisper"): ("completed", False, MISSED[1:4]),
        ("colleague", "talk"): ("completed", True, TALKED[1:]),
    }
    assert {case: after_hang_up(office, *case) for case in table} == table


def has_passed(leg: Call, stage: str) -> bool:
    now = {"ringing": WHISPER in heard_there(leg), "whisper": leg.bridged, "talk": False}
    return leg.ended_at is not None or now[stage]


def after_kill(office: World, stage: str, is_back: bool) -> tuple[bool, str]:
    """Kill the function at this stage of the second leg. -> whether the two talked, and the person's last words."""
    office.sandbox.reset()
    job, number, leg = by_hand(office)
    for at, act, keys in (("ringing", "answer", ""), ("whisper", "press", "1"), ("talk", "hang-up", "")):
        if at == stage:
            back = office.kill_function()
            if is_back:
                office.until(back)
        if leg.ended_at is None:
            do(office, COLLEAGUE, act, keys)
        office.until(partial(has_passed, leg, at))
    office.until(lambda: lines(office, number)[-1] in ("Goodbye.", APOLOGY))
    office.until(back)

    def is_over_after_a_sweep() -> bool:
        """The end of a call that nobody could report is known when a sweep has asked Twilio."""
        office.sweep()
        return bool(office.job(job)["status"] == "completed")

    office.until(is_over_after_a_sweep)
    ended_well(office, job)
    assert answers(office, job) == {"talk": "now"}
    return leg.bridged, lines(office, number)[-1]


def test_transfer_outlives_a_killed_function(office: World) -> None:
    """Back for the next request, or not: then Twilio says its own apology. There is never another leg."""
    table = {
        ("ringing", False): [(False, APOLOGY)],
        # Within the six seconds for the key; or later, with the function back or not yet.
        ("whisper", True): [(True, "Goodbye."), (False, "Goodbye."), (False, APOLOGY)],
        ("talk", True): [(True, "Goodbye.")],
    }
    found = {case: after_kill(office, *case) for case in table}
    assert {case: end for case, end in found.items() if end not in table[case]} == {}


def test_transfer_outlives_a_database_that_is_away(office: World) -> None:
    """At the whisper the colleague hears no name. After the leg the person is asked to wait, and the talk is not forgotten."""
    job, number, leg = by_hand(office)
    with office.fault("503", "record_call_status"):
        do(office, COLLEAGUE, "answer")
        office.until(lambda: heard_there(leg) == ["A lead, somebody: press any key."])
        do(office, COLLEAGUE, "press", "1")
        office.until(lambda: leg.bridged)
    with office.fault("503", "record_call_answer", times=1):
        do(office, COLLEAGUE, "hang-up")
        done = ended_well(office, job)
    assert transcript(office, number)[len(OPENING) :] == ["[1]", "One moment.", "Please wait.", "Goodbye."]
    assert (done["status"], answers(office, job)) == ("completed", {"talk": "now"})


def test_no_leg_is_connected_once_the_call_is_unwanted(office: World) -> None:
    job, number, leg = by_hand(office)
    office.rows("select public.opt_out(%s)", number)
    do(office, COLLEAGUE, "answer")
    office.until(lambda: leg.status == "completed")
    assert (heard_there(leg), leg.bridged) == ([], False)
    done = ended_well(office, job)
    assert (done["status"], done["reason_code"]) == ("canceled", "opted_out")
    assert transcript(office, number)[len(OPENING) :] == ["[1]", "One moment."]


def test_repeated_and_forged_callbacks_of_a_leg_change_nothing(office: World) -> None:
    """Twilio's own requests, signed and sent again; statuses that it does not know; the leg's SID at every door."""
    office.behave(to=COLLEAGUE, digits=["1"])
    job, _ = ring(office, "transfer", digits=["1"])
    done = ended_well(office, job)
    first, leg = office.sandbox.twilio.calls
    before = office.attempts(job)
    action, whisper = [
        next(url for event in call.events if f"at={place}." in (url := str(event["request"]["url"])))  # type: ignore[index]
        for call, place in ((first, "dial"), (leg, "whisper"))
    ]
    of_leg = {"CallSid": leg.sid, "ParentCallSid": first.sid, "CallStatus": "completed", "CallDuration": "1"}
    of_call = {"CallSid": first.sid, "CallStatus": "completed", "DialCallSid": leg.sid}
    attempt = f"?attempt={before[0]['id']}"
    ends = [{"DialCallStatus": s, "DialBridged": b} for s in ("completed", "busy", "x") for b in ("true", "false", "")]
    posts = [*((action, of_call | end) for end in ends), (action, of_leg | ends[0]), (f"/voice{attempt}", of_leg)]
    posts += [(whisper, of_leg), (whisper, of_leg | {"Digits": "1"})]
    posts += [(f"/status{attempt}", of_leg | {"CallStatus": s}) for s in ("ringing", "in-progress", "completed")]
    for url, form in posts:
        answer = office.twilio_posts(url, form)
        expected = (204 if urlsplit(url).path == "/status" else 200, False)
        assert (answer.status_code, "<Dial" in answer.text) == expected, (url, form)
    assert (office.attempts(job), office.job(job), len(office.all_calls())) == (before, done, 2)
    assert office.log_lines("duplicate") == []
    _, dispatcher = wire(load_settings(environ=office.sandbox.settings))
    found = dispatcher._telephony.find(COLLEAGUE, before[0]["started_at"])
    assert found == []  # the leg settles no doubt of a job with the colleague's number
