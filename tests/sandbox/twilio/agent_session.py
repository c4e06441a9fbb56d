"""Twilio's end of a socket to an agent: the two protocols of <Connect>, spoken as a real client.

ConversationRelay: setup, prompt, dtmf, interrupt and error to the agent; text, play, sendDigits, language and end from it.
www.twilio.com/docs/voice/conversationrelay/websocket-messages
Stream: connected, start, media, dtmf, mark and stop to the agent; media, mark and clear from it.
www.twilio.com/docs/voice/media-streams/websocket-messages
What Twilio does not document is done the harder way: `end` drops words that are not spoken yet, and a socket that closes without
`end` has failed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.sandbox.twilio.twiml import ApplicationError, Connect

if TYPE_CHECKING:
    from tests.sandbox.twilio.call_simulator import Call, Exchange

CONNECT_SECONDS = 5.0
LONGEST_MESSAGE = 64 * 1024
FRAME_SECONDS = 0.02
SILENCE, VOICE = b"\xff" * 160, b"\x80\x00" * 80
"""20 ms of mu-law at 8 kHz."""
SECONDS_A_WORD = 0.4


class Session(ABC):
    """One handover. `run` returns the fields that are posted to `action`, or raises SessionFailed."""

    broke = 64105
    cannot = 64102

    def __init__(self, host: Exchange, call: Call, connect: Connect, signature: str) -> None:
        self.host, self.call, self.connect, self.signature = host, call, connect, signature
        self.sid = "VX" + uuid.uuid4().hex
        self.began = time.monotonic()
        self.pauses: asyncio.Queue[None] = asyncio.Queue()  # the agent has stopped speaking
        self.messages = 0
        self.hung_up = False
        self.ws: aiohttp.ClientWebSocketResponse

    async def run(self) -> dict[str, str]:
        """Until the agent ends it, it fails, or a person of the rules hangs up. Cancelled when the call is over."""
        fault = self.call.conduct.agent_fault or ""
        if fault and not fault.startswith("break"):
            return self.failed(self.code_of(fault), f"{fault} {self.connect.url}")
        async with aiohttp.ClientSession(trust_env=False) as http:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    headers = {"X-Twilio-Signature": self.signature}
                    self.ws = await http.ws_connect(self.connect.url, headers=headers, max_msg_size=LONGEST_MESSAGE)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                return self.failed(self.code_of(error), f"{type(error).__name__}: {self.connect.url}")
            tasks = [asyncio.ensure_future(work) for work in (self.read(), self.person())]
            speaker = asyncio.ensure_future(self.speaker())
            try:
                await self.greet()
                await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
                return next(task for task in tasks if task.done()).result()
            except ConnectionError as error:
                return self.failed(self.broke, str(error))
            finally:
                for task in (*tasks, speaker):
                    task.cancel()
                await asyncio.gather(*tasks, speaker, return_exceptions=True)
                with contextlib.suppress(ConnectionError, TimeoutError):
                    async with asyncio.timeout(1):
                        await self.bye()

    def code_of(self, _error: object) -> int:
        return self.cannot

    async def read(self) -> dict[str, str]:
        while True:
            message = await self.ws.receive()
            if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                return self.failed(self.broke, f"the socket closed ({message.type.name} {self.ws.close_code})")
            self.messages += 1
            if self.call.conduct.agent_fault == f"break:{self.messages}":
                return self.failed(self.broke, "broken on demand")
            try:
                content = json.loads(message.data)
                if not isinstance(content, dict):
                    raise TypeError(content)
                ended = await self.obey(content)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                await self.object_to(str(message.data)[:200])
            else:
                if ended is not None:
                    return ended

    async def person(self) -> dict[str, str]:
        """What the person presses and says: by hand, or `to_agent` of the rules, one after each pause of the agent."""
        call = self.call
        if call.in_hand:
            call.inputs = asyncio.Queue()
            while True:
                kind, text = await call.inputs.get()
                await self.hears(text, by_key=kind == "digits")
        for text in call.conduct.to_agent:
            await self.pauses.get()
            await self.hears(text, by_key=re.fullmatch(r"[0-9*#]+", text) is not None)
            call.gathers += 1
            if call.conduct.hangup_after is not None and call.gathers >= call.conduct.hangup_after:
                self.hung_up = True
                return {}
        await asyncio.Event().wait()
        raise AssertionError

    async def hears(self, text: str, *, by_key: bool) -> None:
        if by_key:
            self.host.hear(self.call, digits=text)
            for digit in text:
                await self.send_digit(digit)
        elif text:
            self.host.hear(self.call, said=text)
            await self.send_words(text)

    async def send(self, **message: Any) -> None:
        await self.ws.send_str(json.dumps(message))

    def fields(self, status: str, **more: str) -> dict[str, str]:
        seconds = str(round(time.monotonic() - self.began))
        return {"SessionId": self.sid, "SessionStatus": status, "SessionDuration": seconds, **more}

    def failed(self, code: int, message: str) -> dict[str, str]:
        self.host.note(self.call, ApplicationError(code, message))
        return self.fields("failed", ErrorCode=str(code), ErrorMessage=message)

    @abstractmethod
    async def greet(self) -> None: ...
    @abstractmethod
    async def obey(self, message: dict[str, Any]) -> dict[str, str] | None:
        """Raises KeyError, TypeError or ValueError for a message that the protocol does not know. -> the fields of the end"""

    @abstractmethod
    async def speaker(self) -> None: ...
    @abstractmethod
    async def object_to(self, message: str) -> None: ...
    @abstractmethod
    async def send_digit(self, digit: str) -> None: ...
    @abstractmethod
    async def send_words(self, words: str) -> None: ...

    async def bye(self) -> None:
        await self.ws.close()


class Relay(Session):
    """ConversationRelay: Twilio recognizes and speaks, the agent reads and writes text."""

    def __init__(self, host: Exchange, call: Call, connect: Connect, signature: str) -> None:
        super().__init__(host, call, connect, signature)
        told = dict(connect.attributes)
        self.language = told.get("ttsLanguage") or told.get("language", "en-US")
        self.heard_in = told.get("transcriptionLanguage") or told.get("language", "en-US")
        self.welcome, self.detects_keys = told.get("welcomeGreeting", ""), told.get("dtmfDetection") == "true"
        self.token = ""
        self.to_say: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.saying: tuple[asyncio.Task[None], str, float] | None = None

    async def greet(self) -> None:
        call = self.call
        await self.send(
            type="setup", sessionId=self.sid, accountSid=call.account_sid, parentCallSid="", callSid=call.sid,
            **{"from": call.from_}, to=call.to, forwardedFrom="", callType="PSTN", callerName="",
            direction="outbound-api", callStatus="IN-PROGRESS", customParameters=dict(self.connect.parameters),
        )  # fmt: skip
        if self.welcome:
            self.to_say.put_nowait((self.welcome, self.language))

    async def obey(self, message: dict[str, Any]) -> dict[str, str] | None:
        match message["type"]:
            case "text":
                self.token += _text(message["token"])
                if message.get("last", False) is True and self.token.strip():
                    self.to_say.put_nowait((self.token.strip(), message.get("lang") or self.language))
                    self.token = ""
            case "play":
                self.to_say.put_nowait((_text(message["source"]), self.language))
            case "sendDigits":
                if not re.fullmatch(r"[0-9*#wA-D]+", message["digits"]):
                    raise ValueError(message)
            case "language":
                self.language = message.get("ttsLanguage") or self.language
                self.heard_in = message.get("transcriptionLanguage") or self.heard_in
            case "end":
                return self.fields("ended", HandoffData=_text(message.get("handoffData", "")))
            case _:
                raise ValueError(message)
        return None

    async def speaker(self) -> None:
        while True:
            text, language = await self.to_say.get()
            task = asyncio.ensure_future(self.host.speak(self.call, text, language, "agent"))
            self.saying = task, text, time.monotonic()
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()
                self.saying = None
            if self.to_say.empty():
                self.pauses.put_nowait(None)

    async def object_to(self, message: str) -> None:
        self.host.note(self.call, ApplicationError(64107, f"ConversationRelay: Invalid Message Received: {message}"))
        await self.send(type="error", description=f"Invalid message received: {message}")

    async def send_digit(self, digit: str) -> None:
        if self.detects_keys:
            await self.send(type="dtmf", digit=digit)

    async def send_words(self, words: str) -> None:
        if self.saying is not None:
            task, text, began = self.saying
            self.to_say = asyncio.Queue()
            task.cancel()
            seconds = time.monotonic() - began
            said = " ".join(text.split()[: int(seconds / SECONDS_A_WORD)])
            heard = {"utteranceUntilInterrupt": said, "durationUntilInterruptMs": round(seconds * 1000)}
            await self.send(type="interrupt", **heard)
        await self.send(type="prompt", voicePrompt=words, lang=self.heard_in, last=True)


class Stream(Session):
    """Raw sound, both ways. Words of the person arrive as that many seconds of noise, of the agent as seconds of sound."""

    broke = 31903

    def __init__(self, host: Exchange, call: Call, connect: Connect, signature: str) -> None:
        super().__init__(host, call, connect, signature)
        self.sid = "MZ" + uuid.uuid4().hex
        self.number = 0
        self.voiced = 0  # frames of noise still to send
        self.buffer: deque[tuple[float, str]] = deque()  # seconds of sound, or the name of a mark
        self.warned = False

    def code_of(self, error: object) -> int:
        if error == "handshake" or isinstance(error, aiohttp.WSServerHandshakeError):
            return 31920
        tls = aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError
        return 31910 if error == "tls" or isinstance(error, tls) else 31901

    def fields(self, status: str, **_more: str) -> dict[str, str]:
        """Twilio documents no fields of its own for a Stream's end."""
        return {"StreamSid": self.sid}

    async def event(self, event: str, **content: Any) -> None:
        self.number += 1
        await self.send(event=event, sequenceNumber=str(self.number), streamSid=self.sid, **content)

    async def greet(self) -> None:
        await self.send(event="connected", protocol="Call", version="1.0.0")
        await self.event(
            "start",
            start={
                "streamSid": self.sid, "accountSid": self.call.account_sid, "callSid": self.call.sid, "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": dict(self.connect.parameters),
            },
        )  # fmt: skip

    async def obey(self, message: dict[str, Any]) -> dict[str, str] | None:
        if message["streamSid"] != self.sid:
            raise ValueError(message)
        match message["event"]:
            case "media":
                try:
                    sound = base64.b64decode(message["media"]["payload"], validate=True)
                except binascii.Error as error:
                    raise ValueError(message) from error
                self.buffer.append((len(sound) / 8000, ""))
            case "mark":
                self.buffer.append((0.0, _text(message["mark"]["name"])))
            case "clear":
                marks = [name for _, name in self.buffer if name]
                self.buffer.clear()
                for name in marks:
                    await self.event("mark", mark={"name": name})
            case _:
                raise ValueError(message)
        return None

    async def speaker(self) -> None:
        """A frame of the person each 20 ms, and what the agent has sent, in its own time."""
        chunk, spoken, due = 0, 0.0, 0.0
        while True:
            await asyncio.sleep(FRAME_SECONDS)
            chunk, frame = chunk + 1, VOICE if self.voiced else SILENCE
            self.voiced = max(0, self.voiced - 1)
            media = {"track": "inbound", "chunk": str(chunk), "timestamp": str(chunk * 20)}
            await self.event("media", media={**media, "payload": base64.b64encode(frame).decode()})
            while self.buffer and due <= chunk * FRAME_SECONDS:
                seconds, mark = self.buffer.popleft()
                spoken, due = spoken + seconds, max(due, chunk * FRAME_SECONDS) + seconds * self.host.pace(self.call)
                if mark:
                    await self.event("mark", mark={"name": mark})
            if spoken and not self.buffer and due <= chunk * FRAME_SECONDS:
                await self.host.speak(self.call, f"({spoken:.1f} s of sound)", "", "agent")
                self.pauses.put_nowait(None)
                spoken = 0.0

    async def object_to(self, message: str) -> None:
        if not self.warned:
            self.host.note(self.call, ApplicationError(31951, f"Stream - Protocol - Invalid Message: {message}"))
        self.warned = True

    async def send_digit(self, digit: str) -> None:
        await self.event("dtmf", dtmf={"track": "inbound_track", "digit": digit})

    async def send_words(self, words: str) -> None:
        self.voiced += round(len(words.split()) * SECONDS_A_WORD / FRAME_SECONDS)

    async def bye(self) -> None:
        await self.event("stop", stop={"accountSid": self.call.account_sid, "callSid": self.call.sid})
        await super().bye()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
