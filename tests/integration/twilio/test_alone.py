"""`python -m tests.sandbox.twilio`: the stand-in by itself, with both of Twilio's SDKs, and its page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from twilio.rest import Client

from tests.integration.twilio.conftest import World

ROOT = Path(__file__).parents[3]
NODE_PACKAGES = Path(sys.prefix) / "page-check" / "node_modules"
TWIML = "<Response><Gather numDigits='1'><Say>Press a key</Say></Gather></Response>"
LONG = f"<Response><Gather numDigits='2' timeout='1'><Say>{'word ' * 700}</Say></Gather></Response>"
NODE = """
const client = require("twilio")(process.argv[2], process.argv[3]);
client.api.baseUrl = process.argv[1];
client.calls.create({ to: "+14155550123", from: "+15005550006", twiml: "<Response><Say>Hello</Say></Response>" })
  .then((call) => client.calls(call.sid).fetch())
  .then((call) => console.log(JSON.stringify({ sid: call.sid, to: call.to })));
"""


@pytest.fixture
def alone() -> Iterator[dict[str, str]]:
    """What it prints, by the words at the beginning of each line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.sandbox.twilio", "--port", "0", "--person"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said: dict[str, str] = {}
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
            name, value = re.split("  +", line.strip(), maxsplit=1)
            said[name] = value
        yield {"url": said["Twilio (stand-in)"].split()[0], **said}
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_python_sdk_places_a_call_that_a_person_answers(alone: dict[str, str]) -> None:
    client = Client(alone["account SID"], alone["auth token"])
    client.api.base_url = alone["url"]
    call = client.calls.create(to="+14155550123", from_="+15005550006", twiml=TWIML)
    phone = f"{alone['url']}/_sandbox/phones/+14155550123"
    deadline = time.monotonic() + 10
    while call.fetch().status != "ringing":
        assert time.monotonic() < deadline
    assert [each["status"] for each in requests.get(f"{alone['url']}/_sandbox/phones", timeout=5).json()] == ["ringing"]
    assert requests.post(phone, json={"do": "answer"}, timeout=5).status_code == 200
    assert requests.post(phone, json={"do": "answer"}, timeout=5).json()["code"] == 21220
    assert requests.post(phone, json={"do": "hang-up"}, timeout=5).status_code == 200
    assert call.fetch().status == "completed"
    assert requests.post(phone, json={"do": "hang-up"}, timeout=5).status_code == 404


def test_node_sdk_places_and_reads_a_call(alone: dict[str, str]) -> None:
    if not (NODE_PACKAGES / "twilio").is_dir() or (node := shutil.which("node")) is None:
        pytest.skip("twilio-node is not installed: `make page-check` installs it")
    done = subprocess.run(
        [node, "-e", NODE, alone["url"], alone["account SID"], alone["auth token"]],
        cwd=NODE_PACKAGES.parent, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert json.loads(done.stdout)["to"] == "+14155550123"


def test_control_and_page_answer_this_machine_only(world: World) -> None:
    port = world.url.rpartition(":")[2]
    cases = {
        "its own page": ({}, 200),
        "the same origin": ({"Origin": world.url}, 200),
        "another site": ({"Origin": "https://evil.example.com"}, 403),
        "another port": ({"Origin": "http://127.0.0.1:1"}, 403),
        "no origin's origin": ({"Origin": "null"}, 403),
        "a rebound name": ({"Host": f"rebound.example.com:{port}"}, 403),
    }
    for path in ("/", "/state.js", "/_sandbox/calls", "/_sandbox/phones"):
        got = {
            name: requests.get(world.url + path, headers=sent, timeout=5).status_code
            for name, (sent, _) in cases.items()
        }
        assert {path: got} == {path: {name: status for name, (_, status) in cases.items()}}


@pytest.mark.parametrize(
    ("do", "status", "sip_code"), [("decline", "busy", 603), ("busy", "busy", 486), ("voice-mail", "completed", 200)]
)
def test_person_decides_what_becomes_of_the_ringing(world: World, do: str, status: str, sip_code: int) -> None:
    world.twilio.behave(outcome="person", words_per_second=1000)
    call = world.call()
    world.until(world.twilio.phones)
    assert world.control("POST", f"phones/{call.to}", {"do": "press", "keys": "1"}).json()["code"] == 21220
    assert world.control("POST", f"phones/{call.to}", {"do": "nonsense"}).status_code == 400
    world.until(lambda: call.fetch().status == "ringing")
    assert world.control("POST", f"phones/{call.to}", {"do": do}).status_code == 200
    world.twilio.wait_quiet()
    assert (call.fetch().status, world.twilio.calls[0].sip_code) == (status, sip_code)


def test_unanswered_phone_stops_ringing_when_its_time_is_over(world: World) -> None:
    world.twilio.behave(outcome="person")
    call = world.call(timeout=1)
    world.until(lambda: call.fetch().status == "ringing")
    world.control("POST", f"phones/{call.to}", {"do": "let-ring"})
    world.twilio.wait_quiet()
    assert call.fetch().status == "no-answer"


def test_key_of_a_person_cuts_the_prompt_short(world: World) -> None:
    answered = []

    def menu(received: object) -> str:
        answered.append(received)
        return LONG if len(answered) == 1 else "<Response><Hangup/></Response>"

    world.ours.says["hello"] = menu
    world.twilio.behave(outcome="person")  # 700 words would take 280 s
    call = world.call()
    world.until(lambda: call.fetch().status == "ringing")
    world.control("POST", f"phones/{call.to}", {"do": "answer"})
    world.until(lambda: any(event["kind"] == "say" for event in world.events()))
    world.control("POST", f"phones/{call.to}", {"do": "press", "keys": "7"})
    world.twilio.wait_quiet()
    assert [asked.fields.get("Digits") for asked in world.ours.asked] == [None, "7"]
    assert world.twilio.calls[0].transcript == [
        {"who": "person", "digits": "7", "at": world.twilio.calls[0].transcript[0]["at"]}
    ]
