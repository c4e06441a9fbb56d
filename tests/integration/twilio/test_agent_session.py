"""Both protocols of <Connect>, as Twilio documents them, spoken to a real agent of each test."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

import trustme
from twilio.request_validator import RequestValidator
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from tests.integration.twilio.conftest import OURS, SID, THEIRS, TOKEN, World
from tests.sandbox.serve import free_port

Talk = Callable[[ServerConnection], None]


@contextmanager
def an_agent(talk: Talk, *, status: HTTPStatus | None = None, scheme: str = "ws") -> Iterator[str]:
    """The URL of this agent. `status`: its answer to every handshake. The certificate of a wss agent is trusted by nobody."""
    context = None
    if scheme == "wss":
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context := ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def refuse(connection: ServerConnection, _request: Request) -> Response | None:
        return connection.respond(status, "") if status else None

    with serve(talk, "127.0.0.1", 0, process_request=refuse, ssl=context) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{server.socket.getsockname()[1]}/calls"
        finally:
            server.shutdown()
            thread.join()


def hand_over(world: World, url: str, noun: str = "ConversationRelay", attributes: str = "") -> None:
    parameters = '<Parameter name="attempt" value="a &amp; b"/>'
    connect = f'<{noun} url="{url}" {attributes}>{parameters}</{noun}>'
    world.ours.says["hello"] = f'<Response><Connect action="/say/after">{connect}</Connect><Say>never</Say></Response>'


def told(world: World) -> dict[str, str]:
    """The fields after the session that are not in every request about the call."""
    first, *others = world.ours.asked
    return {name: value for name, value in others[-1].fields.items() if name not in first.fields}


def spoken(world: World) -> list[tuple[str, str]]:
    call = world.twilio.calls[-1]
    return [(line["who"], line.get("text") or line.get("said") or line["digits"]) for line in call.transcript]


def test_conversation_relay_is_spoken_as_documented(world: World) -> None:
    got: list[dict[str, Any]] = []
    signed: list[bool] = []

    def talk(ws: ServerConnection) -> None:
        assert ws.request is not None
        header = ws.request.headers["X-Twilio-Signature"]
        signed.append(RequestValidator(TOKEN).validate(f"ws://{ws.request.headers['Host']}/calls", {}, header))
        got.append(json.loads(ws.recv()))
        shout, no_token, no_digit = '{"type": "shout"}', '{"type": "text"}', '{"type": "sendDigits", "digits": "x"}'
        for wrong in ("no json", "[1]", shout, no_token, no_digit):
            ws.send(wrong)
        # The keys come at their own time, between the errors.
        got.extend(sorted((json.loads(ws.recv()) for _ in range(7)), key=lambda message: message["type"] == "dtmf"))
        for message in (
            {"type": "text", "token": "How ", "last": False},
            {"type": "text", "token": "many?", "last": True},
            {"type": "play", "source": "https://a.example/b.mp3"},
            {"type": "sendDigits", "digits": "1w#"},
            {"type": "language", "ttsLanguage": "es-MX", "transcriptionLanguage": "es-MX"},
            {"type": "text", "token": "¿Cuántos?", "last": True},
        ):
            ws.send(json.dumps(message))
        got.append(json.loads(ws.recv()))
        ws.send(json.dumps({"type": "text", "token": "cut short by the end", "last": True}))
        ws.send(json.dumps({"type": "end", "handoffData": '{"x": 1}'}))

    with an_agent(talk) as url:
        hand_over(world, url, attributes='welcomeGreeting="Hi" dtmfDetection="true" language="en-US"')
        world.twilio.behave(to_agent=["12", "Dos"], words_per_second=50)
        call = world.finish()
    setup, *errors = got[:6]
    assert signed == [True]
    assert setup == setup | {
        "type": "setup", "callSid": call.sid, "accountSid": SID, "from": OURS, "to": THEIRS,
        "customParameters": {"attempt": "a & b"},
    }  # fmt: skip
    assert {error["type"] for error in errors} == {"error"}
    assert errors[0]["description"] == "Invalid message received: no json"
    keys = [{"type": "dtmf", "digit": digit} for digit in "12"]
    assert got[6:] == [*keys, {"type": "prompt", "voicePrompt": "Dos", "lang": "es-MX", "last": True}]
    said = [(who, text) for who, text in spoken(world) if text != "cut short by the end"]
    agent = ("Hi", "How many?", "https://a.example/b.mp3", "¿Cuántos?")
    assert sorted(said[:6]) == [*sorted(("agent", text) for text in agent), ("person", "12"), ("person", "Dos")]
    assert said[6:] == [("call", "Hello there")]
    session, duration = setup["sessionId"], told(world)["SessionDuration"]
    ended = {"SessionStatus": "ended", "HandoffData": '{"x": 1}'}
    assert told(world) == {"SessionId": session, "SessionDuration": duration, **ended}
    assert duration.isdigit()
    assert world.codes() == [64107] * 5


def test_person_interrupts_the_agent_and_hangs_up(world: World) -> None:
    got: list[dict[str, Any]] = []

    def talk(ws: ServerConnection) -> None:
        ws.recv()
        ws.send(json.dumps({"type": "text", "token": "a long story " * 500, "last": True}))
        got.extend(json.loads(message) for message in ws)

    with an_agent(talk) as url:
        hand_over(world, url)
        world.twilio.behave(outcome="person")
        world.call()
        world.answer()
        world.until(lambda: world.told("say"))
        world.act("say", words="Stop")
        world.act("press", keys="9")  # keys are not detected here
        world.until(lambda: len(got) == 2)
        world.act("hang-up")
        world.twilio.wait_quiet()
    interrupt, prompt = got
    assert interrupt["type"] == "interrupt"
    assert "a long story ".startswith(interrupt["utteranceUntilInterrupt"][:8])
    assert isinstance(interrupt["durationUntilInterruptMs"], int)
    assert prompt == {"type": "prompt", "voicePrompt": "Stop", "lang": "en-US", "last": True}
    assert told(world)["SessionStatus"] == "completed"
    assert world.ours.asked[-1].fields["CallStatus"] == "completed"
    assert spoken(world) == [("person", "Stop"), ("person", "9")]


def test_agent_that_fails_is_reported_with_its_code(world: World) -> None:
    """What Twilio posts, and what its debugger holds; in a Stream's fields nothing tells a failure."""

    def talk(ws: ServerConnection, message: str | None = None) -> None:
        ws.recv()
        if message is not None:
            ws.send(message)
            list(ws)

    close, too_long, one_message = talk, partial(talk, message="x" * 1_000_000), partial(talk, message="{}")
    nowhere = f"ws://127.0.0.1:{free_port()}"
    cases: list[tuple[str, Talk | str, dict[str, Any], int, int]] = [
        ("refused", nowhere, {}, 64102, 31901),
        ("404", close, {"status": HTTPStatus.NOT_FOUND}, 64102, 31920),
        ("strange certificate", close, {"scheme": "wss"}, 64102, 31910),
        ("closed", close, {}, 64105, 31903),
        ("too long", too_long, {}, 64105, 31903),
        ("on demand: refused", close, {"fault": "refused"}, 64102, 31901),
        ("on demand: handshake", close, {"fault": "handshake"}, 64102, 31920),
        ("on demand: tls", close, {"fault": "tls"}, 64102, 31910),
        ("on demand: broken", one_message, {"fault": "break:1"}, 64105, 31903),
    ]
    wrong = []
    for name, agent, how, relay, stream in cases:
        for noun, code in (("ConversationRelay", relay), ("Stream", stream)):
            served = {name: how[name] for name in how if name != "fault"}
            with an_agent(close if isinstance(agent, str) else agent, **served) as url:
                hand_over(world, agent if isinstance(agent, str) else url, noun)
                world.twilio.behave(agent_fault=how.get("fault"), times=1)
                world.finish()
            found = world.codes(), told(world).get("SessionStatus"), told(world).get("ErrorCode")
            expected = [code], *(("failed", str(code)) if noun == "ConversationRelay" else (None, None))
            if found != expected or spoken(world)[-1] != ("call", "Hello there"):
                wrong.append((name, noun, found, expected))
    assert wrong == []


def test_stream_is_spoken_as_documented(world: World) -> None:
    got: list[dict[str, Any]] = []
    numbers: list[int] = []

    def talk(ws: ServerConnection) -> None:
        seen: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

        def until(event: str) -> dict[str, Any]:
            """The next message of this event. The digit comes at its own time, perhaps before the marks."""
            while not seen[event]:
                message = json.loads(ws.recv())
                seen[message["event"]].append(message)
                numbers.append(int(message.get("sequenceNumber", 0)))
            got.append(seen[event].pop(0))
            return got[-1]

        until("connected")
        sid = until("start")["streamSid"]

        def send(event: str, **content: Any) -> None:
            ws.send(json.dumps({"event": event, "streamSid": sid, **content}))

        ws.send('{"event": "media"}')
        send("shout")
        send("media", media={"payload": "no base64"})
        hour = base64.b64encode(b"\xff" * 40_000).decode()
        for _ in range(5):
            send("media", media={"payload": hour})
        send("mark", mark={"name": "dropped"})
        send("clear")
        until("mark")
        send("media", media={"payload": base64.b64encode(b"\xff" * 800).decode()})
        send("mark", mark={"name": "played"})
        until("mark")
        until("dtmf")
        until("media")

    with an_agent(talk) as url:
        hand_over(world, url, "Stream")
        world.twilio.behave(to_agent=["5"])
        call = world.finish()
    connected, start, dropped, played, digit, media = got
    assert connected == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    sid = start["streamSid"]
    assert start["start"] == {
        "streamSid": sid, "accountSid": SID, "callSid": call.sid, "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}, "customParameters": {"attempt": "a & b"},
    }  # fmt: skip
    assert [each["mark"]["name"] for each in (dropped, played)] == ["dropped", "played"]
    assert digit["dtmf"] == {"track": "inbound_track", "digit": "5"}
    assert len(base64.b64decode(media["media"]["payload"])) == 160
    assert numbers == sorted(numbers)
    assert told(world) == {"StreamSid": sid}
    assert world.codes() == [31951, 31903]
    assert spoken(world)[-1] == ("call", "Hello there")


def test_words_by_hand_answer_a_gather_that_listens(world: World) -> None:
    for listens, fields in (("dtmf speech", {"SpeechResult": "Yes", "Confidence": "0.9"}), ("dtmf", {"Digits": "3"})):
        gather = f'<Gather input="{listens}" action="/say/after" numDigits="1"><Say>So?</Say></Gather>'
        world.ours.says["hello"] = f"<Response>{gather}</Response>"
        world.ours.asked.clear()
        world.twilio.behave(outcome="person")
        world.call()
        world.answer()
        world.until(lambda: world.told("gather"))
        world.act("say", words="Yes")
        world.act("press", keys="3")
        world.twilio.wait_quiet()
        assert told(world) == told(world) | fields
