"""A call that is handed over to an agent: the guide's own agent, killed at each moment, and the script that catches the call."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
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

from shared.conversation.library import FOLDER, Scripts
from tests.e2e.conftest import World, fresh_world
from tests.e2e.test_conversation import answers, log_lines, ring, transcript
from tests.e2e.test_requests import signed
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
    scripts = agent.folder / "scripts"
    shutil.copytree(FOLDER, scripts)
    (scripts / "agent.toml").write_text(SCRIPT.format(url=agent.url))
    (scripts / "stream.toml").write_text(
        SCRIPT.format(url=agent.url).replace('"conversation_relay"', '"stream"\nthen = "timeline"')
    )
    Scripts(scripts)
    with Sandbox(webhooks=False, scheduler=False, environ={}, scripts=scripts) as sandbox:
        agent.environ = {
            name: sandbox.settings[name] for name in ("SUPABASE_URL", "SUPABASE_SERVICE_KEY", "TWILIO_AUTH_TOKEN")
        }
        yield sandbox, agent


@pytest.fixture
def agent_world(agent_sandbox: tuple[Sandbox, Agent]) -> Iterator[World]:
    with fresh_world(agent_sandbox[0]) as world:
        yield world


@pytest.fixture
def agent(agent_sandbox: tuple[Sandbox, Agent], agent_world: World) -> Iterator[Agent]:
    agent = agent_sandbox[1]
    try:
        agent.start()
        agent_world.until(agent.listens)
        yield agent
    finally:
        agent.kill()


def restart(world: World, **settings: str) -> None:
    """Kill the function, and await the next instance."""
    assert world.sandbox.function is not None
    pid = world.sandbox.ready.function_pid
    world.sandbox.function.restart(settings)
    world.until(lambda: world.sandbox.ready.function_pid != pid)


def opted_out(world: World, number: str) -> list[str]:
    rows = world.rows("select how from public.call_opt_outs where phone_e164 = %s", number)
    return [row["how"] for row in rows]


def heard(world: World, number: str, who: str, text: str) -> bool:
    """Whether this is being said, or was said, on the call."""
    events = world.sandbox.events.kept()
    return any(e["kind"] == "say" and e["to"] == number and (e["who"], e["text"]) == (who, text) for e in events)


def lines(world: World, number: str) -> list[str]:
    """The whole call, errors of Twilio's debugger allowed."""
    said = [line for call in world.calls(number) for line in call["transcript"]]
    return [line.get("text") or f"[{line.get('digits') or line['said']}]" for line in said]


def test_agent_asks_reports_and_gives_the_call_back(agent_world: World, agent: Agent) -> None:
    world = agent_world
    job, number = ring(world, "agent", to_agent=["Two of us", "Next week"])
    world.until_status(job, "completed")
    assert transcript(world, number) == [*OPENING, SIZE, "[Two of us]", START, "[Next week]", "Goodbye."]
    summary = {"team_size": "Two of us", "timeline": "Next week"}
    assert world.job(job)["qualification"] == {"answers": summary, "opted_out": False, "answered_by": None}
    rows = world.rows("select digits, heard from public.outbound_call_answers where job_id = %s order by question", job)
    assert rows == [{"digits": None, "heard": words} for words in ("Two of us", "Next week")]
    assert len(world.calls(number)) == 1


@contextmanager
def serving(agent: Agent, talk: Callable[[ServerConnection], None]) -> Iterator[None]:
    """Another agent, of this test, in the place of the guide's."""
    agent.kill()
    with serve(talk, "127.0.0.1", agent.port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def post_action(world: World, agent_url: str, form: dict[str, str]) -> tuple[int, list[twiml.Verb]]:
    """What is answered to Twilio's request after the agent's session, in the URL of the call's own <Connect>."""
    path = agent_url.removeprefix(world.sandbox.ready.function_url)
    answer = world.post(path, data=form, headers=signed(world, path, form))
    return answer.status_code, twiml.parse(answer.content, "text/xml").verbs


def action_url(world: World, number: str) -> str:
    """From the document that handed this call over."""
    (call,) = [call for call in world.sandbox.twilio.calls if call.to == number]
    bodies = [
        str(response["response_body"]) for event in call.events if isinstance(response := event["response"], dict)
    ]
    (url,) = [html.unescape(url) for body in bodies for url in re.findall(r'<Connect action="([^"]+)"', body)]
    return url


@contextmanager
def running(agent: Agent, world: World) -> Iterator[None]:
    if agent.process is None:
        agent.start()
        world.until(agent.listens)
    yield


# What the person hears after the opening when the agent is killed at this moment, and what is stored.
FIRST, SECOND = {"team_size": "more"}, {"timeline": "now"}
BOTH = ["Sorry, by key.", BY_KEY["team_size"], "[2]", BY_KEY["timeline"], "[1]", "Goodbye."]
REST = ["Sorry, by key.", BY_KEY["timeline"], "[1]", "Goodbye."]


def test_killed_agent_leaves_no_silent_call_and_no_lost_answer(agent_world: World, agent: Agent) -> None:
    world = agent_world
    slow = {"words_per_second": 20.0}

    def answered(job: int) -> bool:
        return bool(answers(world, job))

    moments: dict[str, tuple[dict[str, Any], Callable[[int, str], bool], list[str], dict[str, str]]] = {
        "before": ({"digits": ["", "2", "1"]}, lambda *_: True, BOTH, FIRST | SECOND),
        "in its handshake": (
            {"digits": ["", "2", "1"]},
            lambda _, to: any(e["kind"] == "agent" and e["to"] == to for e in world.sandbox.events.kept()),
            BOTH,
            FIRST | SECOND,
        ),
        "in its greeting": (
            {"digits": ["", "2", "1"], **slow},
            lambda _, to: heard(world, to, "agent", SIZE),
            BOTH,
            FIRST | SECOND,
        ),
        "after its greeting": (
            {"digits": ["", "2", "1"]},
            lambda _, to: SIZE in lines(world, to),
            [SIZE, *BOTH],
            FIRST | SECOND,
        ),
        "after its first answer": (
            {"to_agent": ["Two"], "digits": ["", "", "1"], **slow},
            lambda job, _: answered(job),
            [SIZE, "[Two]", *REST],
            {"team_size": "Two"} | SECOND,
        ),
    }
    found = {}
    for moment, (behaviour, reached, _, _) in moments.items():
        with running(agent, world):
            if moment == "before":
                agent.kill()
            elif moment == "in its handshake":
                agent.send(signal.SIGSTOP)
            job, number = ring(world, "agent", **behaviour)
            world.until(partial(reached, job, number))
            agent.kill()
            world.until_status(job, "completed")
            said = lines(world, number)
            found[moment] = ([line for line in said[2:] if line != START], answers(world, job))
            assert (said[:2], len(world.calls(number)), opted_out(world, number)) == (OPENING, 1, [])
    assert found == {moment: (said, stored) for moment, (_, _, said, stored) in moments.items()}
    assert len(log_lines(world, "the agent's session failed")) == len(moments)


def test_opt_out_told_to_the_agent_is_kept_and_confirmed(agent_world: World, agent: Agent) -> None:
    """By key and by word; by an agent that dies with it; and by key before the handover, and in the questions after it."""
    world = agent_world
    cases: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
        "word": ({"to_agent": ["Stop calling me!"]}, [SIZE, "[Stop calling me!]"], ["agent"]),
        "key": ({"to_agent": ["9"]}, [SIZE, "[9]"], ["agent"]),
        "agent dies with it": ({"to_agent": ["9"], "agent_fault": "break:2"}, [SIZE, "[9]"], ["agent"]),
        "before the agent": ({"digits": ["9"]}, ["[9]"], ["key press"]),
        "after the agent": (
            {"digits": ["", "9"], "agent_fault": "refused"},
            ["Sorry, by key.", BY_KEY["team_size"], "[9]"],
            ["key press"],
        ),
    }
    found = {}
    for name, (behaviour, _, _) in cases.items():
        job, number = ring(world, "agent", **behaviour)
        world.until_status(job, "completed")
        found[name] = (lines(world, number), opted_out(world, number))
        assert world.job(job)["qualification"]["opted_out"], name
    assert found == {name: ([*OPENING, *said, "Never again."], how) for name, (_, said, how) in cases.items()}


@pytest.fixture
def detecting(agent_world: World, agent: Agent) -> Iterator[World]:
    """Twilio listens whether a machine answered."""
    restart(agent_world, CALL_MACHINES="reached")
    yield agent_world
    restart(agent_world, CALL_MACHINES="ignore")


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
        behaviour: dict[str, Any] = {
            "outcome": outcome,
            "detection_s": detection_s,
            "words_per_second": 30.0,
            "to_agent": ["9"],
        }
        job, number = ring(detecting, "agent", **behaviour)
        detecting.until_status(job, "completed")
        found[outcome, detection_s] = lines(detecting, number)[2:]
        handovers = [e for e in detecting.sandbox.events.kept() if e["kind"] == "agent" and e["to"] == number]
        assert bool(handovers) == (outcome == "answered"), (outcome, detection_s)
        if outcome == "machine":  # Twilio may not take the message that /status sends into the call
            (call,) = detecting.calls(number)
            asked = post_action(
                detecting, call["url"] + "&script=agent&at=connect.wait&try=1", {"CallSid": call["sid"]}
            )
            assert asked == (200, [twiml.Say("A message."), twiml.Hangup()])
    assert found == cases


def test_function_killed_during_the_handover_goes_on_after_it(agent_world: World, agent: Agent) -> None:
    """It holds no state: the next instance catches the call."""
    world = agent_world
    job, number = ring(world, "agent", to_agent=[""], digits=["", "", "2", "1"])
    world.until(lambda: SIZE in lines(world, number))
    restart(world)
    agent.kill()
    world.until_status(job, "completed")
    assert lines(world, number) == [*OPENING, SIZE, *BOTH]
    assert answers(world, job) == FIRST | SECOND


def test_report_of_the_end_may_be_repeated_late_or_odd(agent_world: World, agent: Agent) -> None:
    """The same answer each time, whatever else the form holds; a call that is not wanted is hung up."""
    world = agent_world
    job, number = ring(world, "agent", to_agent=["Two"], talk_s=20.0)
    world.until(lambda: answers(world, job))
    url, (call,) = action_url(world, number), world.calls(number)
    form = {"CallSid": call["sid"], "CallStatus": "in-progress"}
    failed: list[twiml.Verb] = [twiml.Say("Sorry, by key.")]
    timeline = BY_KEY["timeline"]
    goodbye: list[twiml.Verb] = [twiml.Say("Goodbye."), twiml.Hangup()]
    cases: list[tuple[dict[str, str], list[twiml.Verb]]] = [
        (form | {"SessionStatus": "ended", "HandoffData": "x" * 10_000}, goodbye),
        (form | {"SessionStatus": "ended", "HandoffData": "{}"}, goodbye),
        (form | {"SessionStatus": "completed", "CallStatus": "completed", "SessionDuration": "-1"}, goodbye),
        (form | {"SessionStatus": "failed", "ErrorCode": "64105", "ErrorMessage": "\x00<Say>"}, failed),
        (form | {"SessionStatus": "failed", "ErrorCode": "64105"}, failed),
        (form | {"SessionStatus": "ended", "ErrorCode": "64102"}, failed),
        (form | {"SessionStatus": "no such status", "Unknown": "field", "Digits": "#"}, failed),
        (form | {"SessionStatus": ""}, failed),
        (form, failed),
    ]
    wrong = []
    for asked, expected in cases:
        status, verbs = post_action(world, url, asked)
        asks = verbs[1].prompt if expected is failed and isinstance(verbs[1], twiml.Gather) else ()
        if status != 200 or (verbs[:1] if asks else verbs) != expected or asks not in ((), (twiml.Say(timeline),)):
            wrong.append((asked, verbs))
    assert wrong == []
    assert answers(world, job) == {"team_size": "Two"}
    post = world.sandbox.twilio.calls[-1]
    world.rows("select public.cancel_call_job(%s)", job)
    assert post_action(world, url, form) == (200, [twiml.Hangup()])
    assert post.to == number
    agent.kill()
    world.until_status(job, "canceled", "completed")
    assert post_action(world, url, form | {"CallStatus": "completed"})[0] == 200
    assert answers(world, job) == {"team_size": "Two"}


def test_stream_ends_well_only_if_the_agent_says_so(agent_world: World, agent: Agent) -> None:
    """Twilio does not tell how a Stream ended. Raw sound: the agent hears a voice, and answers with half a second of sound."""
    world = agent_world
    says_so = True

    def talk(ws: ServerConnection) -> None:
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
        with serving(agent, talk):
            job, number = ring(world, "stream", to_agent=["Four words of mine"], digits=["", "", "1"])
            world.until_status(job, "completed")
        found[says_so] = (lines(world, number), answers(world, job))
    opening = [*OPENING, "(0.5 s of sound)", "[Four words of mine]"]
    stored = {"team_size": "Acme, Ada", "timeline": "now"}
    rest = [BY_KEY["timeline"], "[1]", "Goodbye."]
    assert found == {
        True: ([*opening, *rest], stored | {"agent": "done"}),
        False: ([*opening, "Sorry, by key.", *rest], stored),
    }


def test_database_that_is_down_neither_hands_over_nor_forgets_the_end(agent_world: World, agent: Agent) -> None:
    """A moment's fault costs a moment. The agent whose report fails has failed, and the script asks."""
    world, gateway = agent_world, agent_world.sandbox.gateway
    wait, digits = "One moment, please.", ["", "2", "1"]
    cases: dict[int | None, list[str]] = {
        1: [wait, SIZE, "[Two]", START, "[Soon]", "Goodbye."],  # the question whether this call is wanted
        None: [wait, wait, "An apology.", "Goodbye."],
    }
    found = {}
    try:
        for times in cases:
            gateway.fault, gateway.fault_on, gateway.fault_times = "503", {"record_call_answer"}, times
            job, number = ring(world, "agent", to_agent=["Two", "Soon"], digits=digits)
            world.until_status(job, "completed")
            found[times] = lines(world, number)[2:]
        gateway.fault = gateway.fault_on = gateway.fault_times = None
        job, number = ring(world, "agent", to_agent=["", "Two"], digits=digits, talk_s=20.0)
        world.until(lambda: SIZE in lines(world, number))
        url, form = action_url(world, number), {"CallSid": world.calls(number)[0]["sid"]}
        gateway.fault, gateway.fault_on, gateway.fault_times = "503", {"record_call_answer"}, 1
        _, (said, _, again) = post_action(world, url, form | {"SessionStatus": "ended"})
        assert said == twiml.Say(wait)
        assert isinstance(again, twiml.Redirect)
        assert post_action(world, again.url, form)[1] == [twiml.Say("Goodbye."), twiml.Hangup()]
    finally:
        gateway.fault = gateway.fault_on = gateway.fault_times = None
    assert found == cases
