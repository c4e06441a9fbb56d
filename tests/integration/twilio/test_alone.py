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
    command = [sys.executable, "-m", "tests.sandbox.twilio", "--port", "0", "--person"]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "Ctrl-C ends it.\n")
            said = dict(re.split("  +", line.strip(), maxsplit=1) for line in lines)
            yield {"url": said["Twilio (stand-in)"].split()[0], **said}
            process.terminate()
            assert process.wait(15) == 0
        finally:
            process.kill()


def test_python_sdk_places_a_call_that_a_person_answers(alone: dict[str, str]) -> None:
    client = Client(alone["account SID"], alone["auth token"])
    client.api.base_url = alone["url"]
    call = client.calls.create(to="+14155550123", from_="+15005550006", twiml=TWIML)
    phone = f"{alone['url']}/_sandbox/phones/+14155550123"
    deadline = time.monotonic() + 10
    while call.fetch().status != "ringing":
        assert time.monotonic() < deadline
    assert [each["status"] for each in requests.get(f"{alone['url']}/_sandbox/phones", timeout=5).json()] == ["ringing"]
    acts = [requests.post(phone, json={"do": do}, timeout=5) for do in ("answer", "answer", "hang-up")]
    assert [(answer.status_code, answer.json().get("code")) for answer in acts] == [
        (200, None),
        (400, 21220),
        (200, None),
    ]
    assert call.fetch().status == "completed"
    assert requests.post(phone, json={"do": "hang-up"}, timeout=5).status_code == 404


def test_node_sdk_places_and_reads_a_call(alone: dict[str, str]) -> None:
    if not (NODE_PACKAGES / "twilio").is_dir() or (node := shutil.which("node")) is None:
        pytest.skip("twilio-node is not installed: `make page-check` installs it")
    command = [node, "-e", NODE, alone["url"], alone["account SID"], alone["auth token"]]
    done = subprocess.run(command, cwd=NODE_PACKAGES.parent, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert json.loads(done.stdout)["to"] == "+14155550123"


def test_control_and_page_answer_this_machine_only(world: World) -> None:
    port = world.url.rpartition(":")[2]
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 200),  # a page of its own
        ({"Origin": world.url}, 200),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": f"rebound.example.com:{port}"}, 403),  # by DNS rebinding
    ]
    for path in ("/", "/state.js", "/_sandbox/calls", "/_sandbox/phones"):
        got = [(sent, requests.get(world.url + path, headers=sent, timeout=5).status_code) for sent, _ in cases]
        assert (path, got) == (path, cases)


def test_person_decides_what_becomes_of_the_ringing(world: World) -> None:
    """What the person does -> the call's status and SIP code. Letting it ring lasts until the ring time is over."""
    cases = {
        "decline": ("busy", 603), "busy": ("busy", 486), "voice-mail": ("completed", 200), "let-ring": ("no-answer", 487)
    }  # fmt: skip
    world.twilio.behave(outcome="person", words_per_second=1000)
    found = {}
    for do in cases:
        call = world.call(timeout=1)
        world.until(lambda: world.twilio.phones() and world.twilio.calls[-1].status == "ringing")
        assert world.act("press", keys="1").json()["code"] == 21220
        assert world.act("nonsense").status_code == 400
        assert world.act(do).status_code == 200
        world.twilio.wait_quiet()
        found[do] = (call.fetch().status, world.twilio.calls[-1].sip_code)
    assert found == cases


def test_key_of_a_person_cuts_the_prompt_short(world: World) -> None:
    world.ours.says["hello"] = lambda asked: "<Response/>" if "Digits" in asked.fields else LONG
    world.twilio.behave(outcome="person")  # 700 words would take 280 s
    world.call()
    world.answer()
    world.until(lambda: world.told("say"))
    world.act("press", keys="7")
    world.twilio.wait_quiet()
    assert [asked.fields.get("Digits") for asked in world.ours.asked] == [None, "7"]
    assert world.heard() == ["[7]"]
