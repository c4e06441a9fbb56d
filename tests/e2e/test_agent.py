"""A call that is handed over to an agent: the guide's own agent, killed at each moment, and the script that catches the call."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.conversation.library import FOLDER, Scripts
from tests.e2e.conftest import World, fresh_world
from tests.e2e.test_conversation import answers, log_lines, ring, transcript
from tests.sandbox.sandbox import Sandbox, free_port

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
        SCRIPT.format(url=agent.url).replace("conversation_relay", "stream") + 'no_answer = "A pity."\n'
    )
    Scripts(scripts)
    environ = {"CALL_MACHINES": "reached"}
    with Sandbox(webhooks=False, scheduler=False, environ=environ, scripts=scripts) as sandbox:
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
    assert world.job(job)["qualification"] == {"answers": summary, "opted_out": False, "answered_by": "human"}
    rows = world.rows("select digits, heard from public.outbound_call_answers where job_id = %s order by question", job)
    assert rows == [{"digits": None, "heard": words} for words in ("Two of us", "Next week")]
    assert len(world.calls(number)) == 1


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
