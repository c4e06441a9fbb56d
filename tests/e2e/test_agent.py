"""A call that is handed over to an agent: the guide's own agent, killed at each moment, and the script that catches the call."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.server import ServerConnection, serve

from shared.conversation.library import FOLDER
from tests.e2e.conftest import World, fresh_world, scripts_and
from tests.e2e.test_conversation import answers, lines, opt_outs, ring, transcript
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.serve import free_port
from tests.sandbox.twilio import twiml

GUIDE = FOLDER.parent / "docs" / "agent.md"
SIZE, START = "How many people would use it?", "When would you like to start?"
BY_KEY = {"team_size": "How many? Press 1 for one, 2 for more.", "timeline": "When? Press 1 for now, 2 for later."}
SCRIPT = """
language = "en-US"
voice = "Polly.Joanna"
greeting = "Hello."
goodbye = "Goodbye."
apology = "An apology."
machine = "A message."

[opt_out]
key = "9"
say = "Press 9 to opt out."
confirm = "Never again."

[connect]
url = "{url}"
kind = "conversation_relay"
sorry = "Sorry, by key."
metadata = ["company"]

[[questions]]
id = "team_size"
say = "How many? Press 1 for one, 2 for more."
answers = {{ 1 = {{ means = "just_me" }}, 2 = {{ means = "more" }} }}

[[questions]]
id = "timeline"
say = "When? Press 1 for now, 2 for later."
answers = {{ 1 = {{ means = "now" }}, 2 = {{ means = "later" }} }}
"""
OPENING = ["Hello.", "Press 9 to opt out."]


@dataclass
class Agent:
    """The agent of the guide, as a process of its own."""

    folder: Path
    port: int = field(default_factory=free_port)
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/calls"

    def start(self) -> None:
        (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
        (self.folder / "agent.py").write_text(code)
        env = {"PATH": os.environ["PATH"], "PORT": str(self.port), "AGENT_URL": self.url, **self.environ}
        self.process = subprocess.Popen([sys.executable, str(self.folder / "agent.py")], env=env)

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.process = None


@pytest.fixture(scope="module")
def agent_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, Agent]]:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    script = SCRIPT.format(url=agent.url)
    stream = script.replace('"conversation_relay"', '"stream"\nthen = "timeline"')
    scripts = scripts_and(agent.folder, agent=script, stream=stream)
    with Sandbox(webhooks=False, scheduler=False, environ={}, scripts=scripts) as sandbox:
        needed = ("SUPABASE_URL", "SUPABASE_SERVICE_KEY", "TWILIO_AUTH_TOKEN")
        agent.environ = {name: sandbox.settings[name] for name in needed}
        yield sandbox, agent


@pytest.fixture
def world(agent_sandbox: tuple[Sandbox, Agent]) -> Iterator[World]:
    with fresh_world(agent_sandbox[0]) as world:
        yield world


@pytest.fixture
def agent(agent_sandbox: tuple[Sandbox, Agent], world: World) -> Iterator[Agent]:
    agent = agent_sandbox[1]
    try:
        agent.start()
        world.until(agent.listens)
        yield agent
    finally:
        agent.kill()


def restart(world: World, **settings: str) -> None:
    """Kill the function, and await the next instance."""
    assert world.sandbox.function is not None
    pid = world.sandbox.ready.function_pid
    world.sandbox.function.restart(settings)
    world.until(lambda: world.sandbox.ready.function_pid != pid)


def talk(world: World, script: str = "agent", **behaviour: Any) -> tuple[int, list[str]]:
    """A whole call. -> the job, and all that was said on it after the opening"""
    job, number = ring(world, script, **behaviour)
    world.until_status(job, "completed")
    said = lines(world, number)
    assert (said[:2], len(world.calls(number))) == (OPENING, 1)
    return job, said[2:]


def events(world: World, number: str, **about: str) -> list[dict[str, Any]]:
    """What happened on the call to this number, so far."""
    kept = [event for event in world.sandbox.events.kept() if event.get("to") == number]
    return [event for event in kept if about.items() <= event.items()]


def test_agent_asks_reports_and_gives_the_call_back(world: World, agent: Agent) -> None:
    job, number = ring(world, "agent", to_agent=["Two of us", "Next week"])
    world.until_status(job, "completed")
    assert transcript(world, number) == [*OPENING, SIZE, "[Two of us]", START, "[Next week]", "Goodbye."]
    summary = {"team_size": "Two of us", "timeline": "Next week"}
    assert world.job(job)["qualification"] == {"answers": summary, "opted_out": False, "answered_by": None}
    rows = world.rows("select digits, heard from public.outbound_call_answers where job_id = %s order by question", job)
    assert rows == [{"digits": None, "heard": words} for words in ("Two of us", "Next week")]
    assert len(world.calls(number)) == 1


@contextmanager
def serving(agent: Agent, serves: Callable[[ServerConnection], None]) -> Iterator[None]:
    """Another agent, of this test, in the place of the guide's."""
    agent.kill()
    with serve(serves, "127.0.0.1", agent.port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def post_action(world: World, url: str, form: dict[str, str]) -> list[twiml.Verb]:
    """The answer to Twilio's request after the agent's session, at the URL of the call's own <Connect>."""
    answer = world.twilio_posts(url, form)
    assert answer.status_code == 200
    return twiml.parse(answer.content, "text/xml").verbs


def action_url(world: World, number: str) -> str:
    """From the document that handed this call over."""
    (call,) = [call for call in world.sandbox.twilio.calls if call.to == number]
    responses = [event["response"] for event in call.events if isinstance(event["response"], dict)]
    bodies = [str(response["response_body"]) for response in responses]
    (url,) = [html.unescape(url) for body in bodies for url in re.findall(r'<Connect action="([^"]+)"', body)]
    return url


# What the person hears after the opening when the agent is killed at this moment, and what is stored.
FIRST, SECOND = {"team_size": "more"}, {"timeline": "now"}
REST = [BY_KEY["timeline"], "[1]", "Goodbye."]
BOTH = ["Sorry, by key.", BY_KEY["team_size"], "[2]", *REST]
SLOW = {"words_per_second": 20.0}


def test_killed_agent_leaves_no_silent_call_and_no_lost_answer(world: World, agent: Agent) -> None:
    def handed_over(_: int, number: str) -> bool:
        return bool(events(world, number, kind="agent"))

    def greeting(_: int, number: str) -> bool:
        return bool(events(world, number, kind="say", who="agent", text=SIZE))

    def greeted(_: int, number: str) -> bool:
        return SIZE in lines(world, number)

    def answered(job: int, _: str) -> bool:
        return bool(answers(world, job))

    keys = {"digits": ["", "2", "1"]}
    after_one = {"to_agent": ["Two"], "digits": ["", "", "1"], **SLOW}
    moments: dict[str, tuple[dict[str, Any], Callable[[int, str], bool], list[str], dict[str, str]]] = {
        "before": (keys, lambda *_: True, BOTH, FIRST | SECOND),
        "in its handshake": (keys, handed_over, BOTH, FIRST | SECOND),
        "in its greeting": (keys | SLOW, greeting, BOTH, FIRST | SECOND),
        "after its greeting": (keys, greeted, [SIZE, *BOTH], FIRST | SECOND),
        "after its first answer":
            (after_one, answered, [SIZE, "[Two]", "Sorry, by key.", *REST], {"team_size": "Two"} | SECOND),
    }  # fmt: skip
    found = {}
    for moment, (behaviour, reached, _, _) in moments.items():
        if agent.process is None:
            agent.start()
            world.until(agent.listens)
        if moment == "before":
            agent.kill()
        elif moment == "in its handshake":
            agent.send(signal.SIGSTOP)
        job, number = ring(world, "agent", **behaviour)
        world.until(partial(reached, job, number))
        agent.kill()
        world.until_status(job, "completed")
        said = lines(world, number)
        found[moment] = (*moments[moment][:2], [line for line in said[2:] if line != START], answers(world, job))
        assert (said[:2], len(world.calls(number)), opt_outs(world, number)) == (OPENING, 1, [])
    assert found == moments
    assert len(world.log_lines("the agent's session failed")) == len(moments)


def test_opt_out_told_to_the_agent_is_kept_and_confirmed(world: World, agent: Agent) -> None:
    """By key and by word; by an agent that dies with it; and by key before the handover, and in the questions after it."""
    refused = {"digits": ["", "9"], "agent_fault": "refused"}
    cases: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
        "word": ({"to_agent": ["Stop calling me!"]}, [SIZE, "[Stop calling me!]"], ["agent"]),
        "key": ({"to_agent": ["9"]}, [SIZE, "[9]"], ["agent"]),
        "agent dies with it": ({"to_agent": ["9"], "agent_fault": "break:2"}, [SIZE, "[9]"], ["agent"]),
        "before the agent": ({"digits": ["9"]}, ["[9]"], ["key press"]),
        "after the agent": (refused, ["Sorry, by key.", BY_KEY["team_size"], "[9]"], ["key press"]),
    }
    found = {}
    for name, (behaviour, _, _) in cases.items():
        number = world.number()
        job, said = talk(world, number=number, **behaviour)
        assert (said[-1], world.job(job)["qualification"]["opted_out"]) == ("Never again.", True), name
        found[name] = (behaviour, said[:-1], opt_outs(world, number))
    assert found == cases


@pytest.fixture
def detecting(world: World, agent: Agent) -> Iterator[World]:
    """Twilio listens whether a machine answered."""
    restart(world, CALL_MACHINES="reached")
    yield world
    restart(world, CALL_MACHINES="ignore")


def test_machine_hears_its_message_and_never_the_agent(detecting: World) -> None:
    """However long the detection takes; and a person waits for it no longer than Twilio listens."""
    wait, handed = ["One moment, please."], [SIZE, "[9]", "Never again."]
    cases = {
        ("machine", 4.0): ["A message."],
        ("machine", 12.0): [*wait, "A message."],
        ("answered", 2.0): handed,
        ("answered", 12.0): [*wait, *handed],
        ("answered", 1000.0): [*wait, *handed],
    }
    found = {}
    for outcome, detection_s in cases:
        number, machine = detecting.number(), outcome == "machine"
        behaviour: dict[str, Any] = {
            "outcome": outcome,
            "detection_s": detection_s,
            "words_per_second": 30.0,
            "to_agent": ["9"],
        }
        _, found[outcome, detection_s] = talk(detecting, number=number, **behaviour)
        assert bool(events(detecting, number, kind="agent")) is not machine, (outcome, detection_s)
        if machine:  # Twilio may not take the message that /status sends into the call
            (call,) = detecting.calls(number)
            url, form = call["url"] + "&script=agent&at=connect.wait&try=1", {"CallSid": call["sid"]}
            assert post_action(detecting, url, form) == [twiml.Say("A message."), twiml.Hangup()]
    assert found == cases


def test_function_killed_during_the_handover_goes_on_after_it(world: World, agent: Agent) -> None:
    """It holds no state: the next instance catches the call."""
    job, number = ring(world, "agent", to_agent=[""], digits=["", "", "2", "1"])
    world.until(lambda: SIZE in lines(world, number))
    restart(world)
    agent.kill()
    world.until_status(job, "completed")
    assert lines(world, number) == [*OPENING, SIZE, *BOTH]
    assert answers(world, job) == FIRST | SECOND


def test_report_of_the_end_may_be_repeated_late_or_odd(world: World, agent: Agent) -> None:
    """The same answer each time, whatever else the form holds; a call that is not wanted is hung up."""
    job, number = ring(world, "agent", to_agent=["Two"], talk_s=20.0)
    world.until(lambda: answers(world, job))
    url, (call,) = action_url(world, number), world.calls(number)
    form = {"CallSid": call["sid"], "CallStatus": "in-progress"}
    well: list[dict[str, str]] = [
        {"SessionStatus": "ended", "HandoffData": "x" * 10_000},
        {"SessionStatus": "completed", "CallStatus": "completed", "SessionDuration": "-1"},
    ]
    badly: list[dict[str, str]] = [
        {"SessionStatus": "failed", "ErrorCode": "64105", "ErrorMessage": "\x00<Say>"},
        {"SessionStatus": "no such status", "Unknown": "field", "Digits": "#"}, {},
    ]  # fmt: skip
    goodbye = [twiml.Say("Goodbye."), twiml.Hangup()]
    assert [post_action(world, url, form | told) for told in well] == [goodbye] * len(well)
    for told in badly:
        sorry, ask, *_ = post_action(world, url, form | told)
        assert (sorry, isinstance(ask, twiml.Gather)) == (twiml.Say("Sorry, by key."), True), told
        assert ask.prompt == (twiml.Say(BY_KEY["timeline"]),), told  # type: ignore[union-attr]
    assert answers(world, job) == {"team_size": "Two"}
    world.rows("select public.cancel_call_job(%s)", job)
    assert post_action(world, url, form) == [twiml.Hangup()]
    (attempt,) = world.attempts(job)
    world.twilio_posts(f"/status?attempt={attempt['id']}", form | {"CallStatus": "completed"})
    assert world.job(job)["finished_at"]
    post_action(world, url, form | {"CallStatus": "completed"})
    assert answers(world, job) == {"team_size": "Two"}


def test_stream_ends_well_only_if_the_agent_says_so(world: World, agent: Agent) -> None:
    """Twilio does not tell how a Stream ended. Raw sound: the agent hears a voice, and answers with half a second of sound."""
    says_so = True

    def stream(ws: ServerConnection) -> None:
        assert json.loads(ws.recv())["event"] == "connected"
        start = json.loads(ws.recv())["start"]
        told, sid = start["customParameters"], start["streamSid"]
        sound = base64.b64encode(b"\xff" * 4000).decode()
        for message in ({"event": "media", "media": {"payload": sound}}, {"event": "mark", "mark": {"name": "said"}}):
            ws.send(json.dumps(message | {"streamSid": sid}))
        events = (json.loads(message) for message in ws)
        assert next(event for event in events if event["event"] == "mark")["mark"] == {"name": "said"}
        voice = next(e for e in events if e["event"] == "media" and "/" not in e["media"]["payload"])
        assert voice["media"]["track"] == "inbound"
        answer = {"p_attempt": told["attempt"], "p_call_sid": start["callSid"], "p_ask_s": 60}
        report = [("team_size", f"{told['company']}, {told['first_name']}"), *([("agent", "done")] if says_so else [])]
        for question, meaning in report:
            key = agent.environ["SUPABASE_SERVICE_KEY"]
            url = f"{agent.environ['SUPABASE_URL']}/rest/v1/rpc/record_call_answer"
            headers = {"apikey": key, "Authorization": f"Bearer {key}"}
            httpx.post(url, headers=headers, json={**answer, "p_question": question, "p_meaning": meaning})

    found = {}
    for says_so in (True, False):
        with serving(agent, stream):
            job, said = talk(world, "stream", to_agent=["Four words of mine"], digits=["", "", "1"])
        found[says_so] = (said, answers(world, job))
    talked = ["(0.5 s of sound)", "[Four words of mine]"]
    stored = {"team_size": "Acme, Ada", "timeline": "now"}
    assert found == {
        True: ([*talked, *REST], stored | {"agent": "done"}),
        False: ([*talked, "Sorry, by key.", *REST], stored),
    }


def test_database_that_is_down_neither_hands_over_nor_forgets_the_end(world: World, agent: Agent) -> None:
    """A moment's fault costs a moment. The agent whose report fails has failed, and the script asks."""
    wait, digits = "One moment, please.", ["", "2", "1"]
    cases: dict[int | None, list[str]] = {
        1: [wait, SIZE, "[Two]", START, "[Soon]", "Goodbye."],  # the question whether this call is wanted
        None: [wait, wait, "An apology.", "Goodbye."],
    }
    found = {}
    for times in cases:
        with world.fault("503", "record_call_answer", times=times):
            _, found[times] = talk(world, to_agent=["Two", "Soon"], digits=digits)
    assert found == cases
    _, number = ring(world, "agent", to_agent=["", "Two"], digits=digits, talk_s=20.0)
    world.until(lambda: SIZE in lines(world, number))
    form = {"CallSid": world.calls(number)[0]["sid"]}
    with world.fault("503", "record_call_answer", times=1):
        said, _, again = post_action(world, action_url(world, number), form | {"SessionStatus": "ended"})
        assert (said, isinstance(again, twiml.Redirect)) == (twiml.Say(wait), True)
        assert post_action(world, again.url, form) == [twiml.Say("Goodbye."), twiml.Hangup()]  # type: ignore[union-attr]
