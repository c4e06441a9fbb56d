"""A call's life in the Twilio stand-in: it waits in the queue, rings, a person or a machine answers, the TwiML is executed.

    queued -> (initiated) -> ringing -> in-progress -> completed
       |                        |-> busy | no-answer | failed
       +------------------------+-> canceled

`Exchange` is Twilio's side, `Call` what it knows of one call. Whatever ends a call goes through `Exchange._finish`, once.
A Dial makes a second leg, a Call with a parent: it rings, its whisper is spoken, and the two are connected until either hangs up.
Time: the queue, the ringing, TimeLimit and `talk_s` run in real seconds. Speech runs at `words_per_second`; pauses and the
silence after a Gather shrink in the same proportion to the 2.5 words a second of a human voice.
All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import math
import random
import re
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, urljoin, urlsplit

from tests.sandbox.events import Events
from tests.sandbox.twilio import twiml
from tests.sandbox.twilio.agent_session import Relay, Session, Stream
from tests.sandbox.twilio.behaviour import Act, Conduct, Speech
from tests.sandbox.twilio.create_call_validation import Event, Order, Refusal
from tests.sandbox.twilio.twiml import (
    ApplicationError,
    Connect,
    Dial,
    Document,
    Gather,
    Hangup,
    Pause,
    Play,
    Redirect,
    Say,
)
from tests.sandbox.twilio.webhooks import Hook, Webhooks

API = "2010-04-01"
Status = Literal["queued", "ringing", "in-progress", "completed", "busy", "failed", "no-answer", "canceled"]
LIVE = {"queued", "ringing", "in-progress"}
Input = tuple[Literal["digits", "said", ""], str]
Step = tuple[str, str, dict[str, str]]  # the next request: method, URL, fields
Picked = Literal["answered", "busy", "no-answer", "failed", "machine"]
DECISIONS: dict[str, Picked] = {
    "answer": "answered", "decline": "busy", "busy": "busy", "let-ring": "no-answer", "voice-mail": "machine",
}  # fmt: skip
DECLINED = 603  # the SIP code of a phone that declines; its line is busy, says Twilio
SIP = {"completed": 200, "busy": 486, "no-answer": 487, "failed": 404, "canceled": 487}

HUMAN_WORDS_PER_SECOND = 2.5
DETECTION_SECONDS = {"human": 2.0, "machine": 4.0}  # how long answering machine detection listens
QUEUE_SECONDS = 86_400  # a fuller queue takes no more calls (error 22005)
PATIENCE = 100  # documents a person listens to: a TwiML loop ends here, not at TimeLimit
DIAL_BUFFER_S = 5  # Twilio rings so much longer than a Dial's timeout
WHISPER_VERBS = (Say, Play, Gather, Hangup)  # www.twilio.com/docs/voice/twiml/number#attributes-url
APOLOGY = "We are sorry, an application error has occurred. Goodbye."


def rfc2822(at: datetime | None) -> str | None:
    return None if at is None else email.utils.format_datetime(at.astimezone(UTC))


def iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(eq=False)
class Call:
    """One call that Twilio took. slot: when its turn to be dialed comes, and accepted, both by the monotonic clock."""

    account_sid: str
    order: Order
    conduct: Conduct
    accepted: float
    accepted_at: datetime
    slot: float
    parent: Call | None = None  # of a second leg
    bridged: bool = False  # a second leg that was connected with its parent
    hung_up: bool = False  # by a Hangup
    sid: str = field(default_factory=lambda: "CA" + uuid.uuid4().hex)
    status: Status = "queued"
    updated_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    answered: float | None = None
    duration_s: int | None = None
    sip_code: int | None = None
    picked_up_by: Literal["human", "machine"] | None = None
    detected: str | None = None  # AnsweredBy, where detection was asked for
    reached: bool = False  # a human heard at least one Say
    gathers: int = 0
    sequence: int = 0
    transcript: list[dict[str, str]] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)
    events: list[dict[str, object]] = field(default_factory=list)  # requests to the application, and its answers
    history: list[dict[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    line: asyncio.Lock = field(default_factory=asyncio.Lock)  # callbacks of one call leave one after the other
    held: list[Hook] = field(default_factory=list)
    diversions: asyncio.Queue[Document] = field(default_factory=asyncio.Queue)  # they interrupt the conversation
    decisions: asyncio.Queue[Picked] = field(default_factory=asyncio.Queue)  # of a person, about the ringing phone
    inputs: asyncio.Queue[Input] = field(default_factory=asyncio.Queue)  # of a person, by hand

    @property
    def to(self) -> str:
        return self.order.to

    @property
    def from_(self) -> str:
        return self.order.from_

    @property
    def url(self) -> str | None:
        return self.order.url

    @property
    def direction(self) -> str:
        return "outbound-dial" if self.parent else "outbound-api"

    @property
    def in_hand(self) -> bool:
        """Whether a person holds the phone, and decides."""
        return self.conduct.outcome == "person"

    def report(self) -> dict[str, object]:
        """As `/_sandbox/calls` shows it. answered_by: who picked up, whether or not Twilio was asked to detect it."""
        return {
            "sid": self.sid, "to": self.to, "from": self.from_, "status": self.status,
            "accepted_at": iso(self.accepted_at), "url": self.url, "answered_by": self.picked_up_by,
            "duration_s": self.duration_s, "reached": self.reached, "history": list(self.history),
            "transcript": list(self.transcript), "errors": list(self.errors),
            **({"parent": self.parent.sid, "bridged": self.bridged} if self.parent else {}),
        }  # fmt: skip

    def resource(self) -> dict[str, object]:
        """As Twilio's API shows it."""
        uri = f"/{API}/Accounts/{self.account_sid}/Calls/{self.sid}"
        parts = (
            *("notifications", "recordings", "payments", "events", "siprec", "streams", "transcriptions"),
            *("user_defined_message_subscriptions", "user_defined_messages"),
        )
        return {
            "sid": self.sid, "account_sid": self.account_sid, "parent_call_sid": self.parent.sid if self.parent else None,
            "to": self.to, "to_formatted": _formatted(self.to), "from": self.from_, "from_formatted": _formatted(self.from_),
            "phone_number_sid": number_sid(self.from_), "status": self.status, "direction": self.direction,
            "date_created": rfc2822(self.accepted_at), "date_updated": rfc2822(self.updated_at or self.accepted_at),
            "start_time": rfc2822(self.started_at), "end_time": rfc2822(self.ended_at),
            "duration": str(self.duration_s) if self.status == "completed" else None,
            "queue_time": str(round(max(0.0, self.slot - self.accepted) * 1000)), "answered_by": self.detected,
            "price": None, "price_unit": "USD", "api_version": API, "forwarded_from": None, "group_sid": None,
            "caller_name": None, "trunk_sid": None, "uri": f"{uri}.json",
            "subresource_uris": {part: f"{uri}/{part.title().replace('_', '')}.json" for part in parts},
        }  # fmt: skip

    def fields(self, status: str | None = None) -> dict[str, str]:
        """What every webhook of this call says. Cities and such are often blank: so they are here."""
        fields = {
            "CallSid": self.sid, "AccountSid": self.account_sid, "From": self.from_, "To": self.to,
            "Caller": self.from_, "Called": self.to, "CallStatus": status or self.status, "Direction": self.direction,
            "ApiVersion": API,
        }  # fmt: skip
        if self.parent:
            fields["ParentCallSid"] = self.parent.sid
        for who, number in (("From", self.from_), ("Caller", self.from_), ("To", self.to), ("Called", self.to)):
            country = "US" if number.startswith("+1") else ""
            fields |= {f"{who}City": "", f"{who}State": "", f"{who}Zip": "", f"{who}Country": country}
        if self.detected:
            fields["AnsweredBy"] = self.detected
        return fields


@dataclass(eq=False)
class Exchange:
    """Takes orders and sees each call through. words_per_second: how fast a Say is spoken. draw: the conduct for a number."""

    webhooks: Webhooks
    calls_per_second: float
    ring_s: float
    words_per_second: float
    now: Callable[[], datetime]
    events: Events
    draw: Callable[..., Conduct]
    calls: dict[str, Call] = field(default_factory=dict)
    _next_slot: float = 0.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def take(self, account_sid: str, order: Order, conduct: Conduct) -> Call:
        """The call exists from here on. Raises Refusal 22005 when more than a day of calls is waiting."""
        now = time.monotonic()
        slot = max(now, self._next_slot)
        if slot - now > QUEUE_SECONDS:
            raise Refusal(22005)
        self._next_slot = slot + 1 / self.calls_per_second
        call = Call(account_sid, order, conduct, accepted=now, accepted_at=self.now(), slot=slot)
        self.calls[call.sid] = call
        self._tell(call, "call", status="queued")
        self.spawn(self._live(call))
        return call

    def end(self, call: Call, wish: Literal["canceled", "completed"]) -> None:
        """Raises Refusal 21220 where the call is over, or already answered and only to be canceled."""
        if call.status not in LIVE or (wish == "canceled" and call.status == "in-progress"):
            raise Refusal(21220, f"call is {call.status}")
        self._finish(call, "completed" if call.status == "in-progress" else "canceled")

    def divert(self, call: Call, document: Document) -> None:
        """The call goes on with this document, instead of the one that it is in. Raises Refusal 21220 unless it is answered."""
        if call.status != "in-progress":
            raise Refusal(21220, f"call is {call.status}")
        call.diversions.put_nowait(document)

    def act(self, call: Call, act: Act) -> None:
        """What the person does who holds the phone. Raises Refusal 21220 where the call is not in that state."""
        wanted = "in-progress" if act.do in ("press", "say", "hang-up") else "ringing"
        if call.status != wanted or not call.in_hand or call.picked_up_by == "machine":
            raise Refusal(21220, f"{act.do}: the call is {call.status}")
        self._tell(call, "person", do=act.do, keys=act.keys, words=act.words)
        match act.do:
            case "press":
                for key in act.keys:
                    call.inputs.put_nowait(("digits", key))
            case "say":
                call.inputs.put_nowait(("said", act.words))
            case "hang-up":
                self._finish(call, "completed")
            case decision:
                call.sip_code = DECLINED if decision == "decline" else None
                call.decisions.put_nowait(DECISIONS[decision])

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def quiet(self) -> None:
        """Returns when no call is alive and no callback is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def drop_all(self) -> None:
        """Forgets every call, and ends what is under way without a word to anyone. Requests already sent are awaited."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.webhooks.idle()
        self.calls.clear()
        self._next_slot = 0.0

    # -- from the queue to the last word ------------------------------------------------------------------------------

    async def _live(self, call: Call) -> None:
        if await _ends(call, call.slot - time.monotonic()) or not await self._answered(call):
            return
        talk = self._whisper_and_talk(call) if call.parent else self._converse(call)
        # A Dial's timeLimit shrinks with the silences, so that a test need not wait for it.
        limit_s = call.order.time_limit * (min(1, self.pace(call)) if call.parent else 1)
        over = asyncio.ensure_future(call.over.wait())
        conversation: asyncio.Future[Any] = asyncio.ensure_future(talk)
        diverted = asyncio.ensure_future(call.diversions.get())
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    await asyncio.wait({conversation, over, diverted}, return_when="FIRST_COMPLETED")
                    if over.done() or not diverted.done():
                        break
                    conversation.cancel()
                    await asyncio.gather(conversation, return_exceptions=True)
                    conversation = asyncio.ensure_future(self._perform(call, None, diverted.result()))
                    diverted = asyncio.ensure_future(call.diversions.get())
            if conversation.done():
                conversation.result()  # a fault of the stand-in itself must not pass for a hang-up
        except TimeoutError:
            pass  # TimeLimit
        finally:
            for task in (conversation, over, diverted):
                task.cancel()
            await asyncio.gather(conversation, over, diverted, return_exceptions=True)
        self._finish(call, "completed")

    async def _answered(self, call: Call) -> bool:
        """Rings. False: nobody picked up, and the call is over."""
        call.started_at = self.now()
        self._notify(call, "initiated", "initiated")
        self._become(call, "ringing")
        self._notify(call, "ringing", "ringing")
        match await self._picked(call):
            case None:
                return False
            case "busy" | "no-answer" | "failed" as outcome:
                self._finish(call, outcome)
                return False
            case picked:
                call.picked_up_by = "machine" if picked == "machine" else "human"
        call.answered = time.monotonic()
        self._become(call, "in-progress")
        self._notify(call, "answered", "in-progress")
        return True

    async def _picked(self, call: Call) -> Picked | None:
        """What becomes of the ringing; None where the call ended meanwhile."""
        limit = call.order.ring_limit
        if call.conduct.outcome != "person":
            over = await _ends(call, min(self.ring_s, limit))
            return None if over else call.conduct.outcome if self.ring_s <= limit else "no-answer"
        until = time.monotonic() + limit
        try:
            async with asyncio.timeout(limit):
                picked = await call.decisions.get()
        except TimeoutError:
            picked = "no-answer"
        still_rings = 0.0 if picked != "no-answer" else until - time.monotonic()
        return None if await _ends(call, still_rings) else picked

    def _tell(self, call: Call, kind: str, **facts: Any) -> None:
        facts |= {"colleague": True} if call.parent else {}
        self.events.tell(kind, sid=call.sid, to=call.to, attempt=attempt_of(call.url), in_hand=call.in_hand, **facts)

    def pace(self, call: Call) -> float:
        """How much slower than a human voice; silence shrinks with it."""
        return HUMAN_WORDS_PER_SECOND / self._rate(call)

    def _rate(self, call: Call) -> float:
        own = HUMAN_WORDS_PER_SECOND if call.in_hand else self.words_per_second
        return call.conduct.words_per_second or own

    def _become(self, call: Call, status: Status) -> None:
        call.status = status
        call.updated_at = self.now()
        call.history.append({"status": status, "at": iso(call.updated_at)})
        self._tell(call, "call", status=status)

    def _finish(self, call: Call, status: Status) -> None:
        if call.status not in LIVE:
            return
        call.duration_s = math.ceil(time.monotonic() - call.answered) if call.answered is not None else None
        call.sip_code = call.sip_code or SIP[status]
        call.ended_at = self.now()
        self._become(call, status)
        call.over.set()
        call.decisions.put_nowait("no-answer")  # nobody waits for one any more
        seconds = call.duration_s or 0
        ending = {"CallDuration": str(seconds), "Duration": str(math.ceil(seconds / 60))}
        self._notify(call, "completed", status, **ending, SipResponseCode=str(call.sip_code))
        if call.held:
            self.spawn(self._deliver(call, _shuffled(call.held)))
            call.held = []

    # -- what is said, heard and pressed ------------------------------------------------------------------------------

    async def _converse(self, call: Call) -> None:
        """Returns when either side has hung up."""
        if call.order.machine_detection:
            if call.order.async_amd:
                self.spawn(self._detect(call))
            else:
                await self._detect(call)
        await self._perform(call, call.order.url)
        assert call.answered is not None
        if not _has_hung_up(call):
            await asyncio.sleep(call.answered + call.conduct.talk_s - time.monotonic())

    async def _perform(self, call: Call, url: str | None, document: Document | None = None) -> bool:
        """Executes this document, or else the call's first, and all that it leads to. -> whether it was without an error"""
        try:
            if document is None and url is None:
                document = twiml.parse((call.order.twiml or "").encode(), "text/xml")
            await self._follow(call, document or await self._fetch(call, call.order.method, url or ""), url)
        except ApplicationError as error:
            self.note(call, error)
            await self.speak(call, APOLOGY)
            return False
        return True

    async def _follow(self, call: Call, document: Document, url: str | None) -> None:
        """Executes a document and all that it leads to. Raises ApplicationError."""
        for _ in range(PATIENCE):
            for warning in document.warnings:
                self.note(call, warning)
            step = await self._execute(call, document)
            if step is None:
                return
            method, target, fields = step
            url = urljoin(url or "", target)
            if not url.startswith(("http://", "https://")):
                raise ApplicationError(11100, f"Invalid URL format: {url or 'no URL to return to'}")
            document = await self._fetch(call, method, url, fields)

    async def _execute(self, call: Call, document: Document) -> Step | None:
        """Where to go next, or None when the call is over."""
        for verb in document.verbs:
            if call.parent and not isinstance(verb, WHISPER_VERBS):
                raise ApplicationError(13201, f"{type(verb).__name__} may not stand in the document of a Number's url")
            if _has_hung_up(call):
                return None
            match verb:
                case Say() | Play() | Pause():
                    await self._utter(call, verb)
                case Gather():
                    step = await self._gather(call, verb)
                    if step is not None:
                        return step
                case Connect():
                    fields = await self._hand_over(call, verb)
                    if fields is None or verb.action:
                        return None if fields is None else (verb.method, verb.action or "", fields)
                case Dial():
                    fields = await self._dial(call, verb)
                    if verb.action is not None:
                        return verb.method, verb.action, fields
                case Redirect():
                    return verb.method, verb.url, {}
                case Hangup():
                    call.hung_up = True
                    return None
        return None

    async def _hand_over(self, call: Call, connect: Connect) -> dict[str, str] | None:
        """What is posted to `action` when the agent's session ends. None: the person has hung up, and `action` is told beside."""
        kind = Stream if connect.kind == "Stream" else Relay
        session: Session = kind(self, call, connect, self.webhooks.sign(connect.url, {}))
        self._tell(call, "agent", url=connect.url, noun=connect.kind, on=True)
        try:
            fields = await session.run()
        finally:
            self._tell(call, "agent", url=connect.url, noun=connect.kind, on=False)
            hung_up = session.hung_up or call.over.is_set()
            if hung_up and connect.action:
                fields = call.fields("completed") | session.fields("completed")
                self.spawn(self._deliver(call, [Hook(connect.method, urljoin(call.url or "", connect.action), fields)]))
        return None if hung_up else fields

    # -- a second leg -------------------------------------------------------------------------------------------------

    async def _dial(self, call: Call, dial: Dial) -> dict[str, str]:
        """Rings the number until its leg is over. -> the fields of the request to `action`."""
        if dial.caller_id not in (None, call.from_):
            self.note(call, ApplicationError(13214, "Dial: Invalid callerId value"))
        order = Order(
            to=dial.number, from_=dial.caller_id or call.from_, url=dial.whisper, method=dial.whisper_method,
            ring_limit=dial.timeout + DIAL_BUFFER_S, time_limit=dial.time_limit,
        )  # fmt: skip
        now = time.monotonic()
        conduct = self.draw(dial.number, second_leg=True)
        leg = Call(call.account_sid, order, conduct, now, self.now(), slot=now, parent=call)
        self.calls[leg.sid] = leg
        self._tell(leg, "call", status="queued")
        try:
            await self._live(leg)
        finally:
            self._finish(leg, "completed" if leg.status == "in-progress" else "canceled")
            fields = {"DialCallStatus": leg.status, "DialCallSid": leg.sid, "DialBridged": str(leg.bridged).lower()}
            fields |= {"DialCallDuration": str(leg.duration_s)} if leg.duration_s is not None else {}
            if call.over.is_set() and dial.action:  # the person has hung up; Twilio does not document this request
                self.spawn(self._deliver(call, [Hook(dial.method, dial.action, call.fields("completed") | fields)]))
        return fields

    async def _whisper_and_talk(self, leg: Call) -> None:
        """Returns when the leg hangs up, or is hung up by the whisper's document."""
        if leg.order.url is not None and not await self._perform(leg, leg.order.url):
            return
        if leg.hung_up or _has_hung_up(leg):
            return
        leg.bridged = True
        for each in filter(None, (leg, leg.parent)):
            self._tell(each, "bridged")
        await (leg.over.wait() if leg.in_hand else asyncio.sleep(leg.conduct.talk_s))

    async def _gather(self, call: Call, gather: Gather) -> Step | None:
        """The request that its input leads to; None: go on with the next verb."""
        by_hand = call.in_hand and call.picked_up_by == "human"
        digits, finish, spoken = await (self._by_hand(call, gather) if by_hand else self._by_rules(call, gather))
        fields = {"Digits": digits, "FinishedOnKey": finish}
        if spoken:
            fields = {"SpeechResult": spoken.text, "Confidence": str(spoken.confidence)}
        elif not digits and not gather.on_empty_result:
            return None
        return gather.method, gather.action or "", fields

    async def _prompt(self, call: Call, gather: Gather) -> None:
        for verb in gather.prompt:
            await self._utter(call, verb)

    async def _by_rules(self, call: Call, gather: Gather) -> tuple[str, str, Speech | None]:
        """Digits, the key that finished them, and words, as the rules give them; else silence. Keys come first."""
        await self._prompt(call, gather)
        turn, given = call.gathers, call.conduct if call.picked_up_by == "human" else Conduct()
        call.gathers += 1
        pressed = given.digits[turn] if turn < len(given.digits) else ""
        spoken = given.speech[turn] if gather.listens and turn < len(given.speech) else None
        if pressed:
            self._transcribe(call, "person", digits=pressed)
        elif spoken and spoken.text:
            self._transcribe(call, "person", said=spoken.text)
            return "", "", spoken
        digits = ""
        for key in pressed:
            if key == gather.finish_on_key:
                return digits, key, None
            digits += key
            if len(digits) == gather.num_digits:
                return digits, "", None
        await asyncio.sleep(gather.timeout * self.pace(call))
        return digits, "", None

    async def _by_hand(self, call: Call, gather: Gather) -> tuple[str, str, Speech | None]:
        """The same, from a person. The first key or word cuts the prompt short. Silence lasts its real seconds."""
        call.inputs = asyncio.Queue()
        digits, finish, said = "", "", ""
        self._tell(call, "gather", listens=True, speech=gather.listens)
        prompt = asyncio.ensure_future(self._prompt(call, gather))
        try:
            while len(digits) != gather.num_digits and not finish and not said:
                kind, text = await _input(call, prompt, gather.timeout)
                if not kind:
                    break
                if kind == "said":
                    said = text if gather.listens and not digits else ""
                else:
                    finish = text if text == gather.finish_on_key else ""
                    digits += "" if finish else text
                if digits or finish or said:
                    prompt.cancel()
        finally:
            prompt.cancel()
            await asyncio.gather(prompt, return_exceptions=True)
        call.gathers += 1
        self._tell(call, "gather", listens=False, digits=digits, said=said)
        if said or digits:
            self._transcribe(call, "person", **({"said": said} if said else {"digits": digits}))
        return digits, finish, Speech(text=said) if said else None

    async def _utter(self, call: Call, verb: Say | Play | Pause) -> None:
        """A file to play is not fetched: its URL stands in the transcript, and it lasts as long as one word."""
        if isinstance(verb, Pause):
            return await asyncio.sleep(verb.length * self.pace(call))
        for _ in range(verb.times):
            await (self.speak(call, verb.text, verb.language) if isinstance(verb, Say) else self.speak(call, verb.url))
            call.reached = call.reached or call.picked_up_by == "human"
        return None

    async def speak(self, call: Call, text: str, language: str = "en-US", who: str = "call") -> None:
        self._tell(call, "say", text=text, language=language, who=who)
        await asyncio.sleep(len(text.split()) / self._rate(call))
        self._transcribe(call, who, text=text)

    def hear(self, call: Call, *, digits: str = "", said: str = "") -> None:
        """The person presses or says something to an agent."""
        self._transcribe(call, "person", **({"digits": digits} if digits else {"said": said}))
        self._tell(call, "heard", digits=digits, said=said)

    def _transcribe(self, call: Call, who: str, **what: str) -> None:
        call.transcript.append({"who": who, **what, "at": iso(self.now())})

    def note(self, call: Call, error: ApplicationError) -> None:
        call.errors.append({"code": error.code, "message": error.message, "at": iso(self.now())})

    async def _detect(self, call: Call) -> None:
        """Answering machine detection: sets AnsweredBy, and reports it where it runs beside the call."""
        order, by = call.order, call.picked_up_by or "human"
        seconds = DETECTION_SECONDS[by] if call.conduct.detection_s is None else call.conduct.detection_s
        listened = seconds * self.pace(call)
        if await _ends(call, listened):
            return
        at_end = order.machine_detection == "DetectMessageEnd"
        call.detected = "human" if by == "human" else "machine_end_beep" if at_end else "machine_start"
        if order.async_amd and order.async_amd_callback:
            fields = {"CallSid": call.sid, "AccountSid": call.account_sid, "AnsweredBy": call.detected}
            fields["MachineDetectionDuration"] = str(round(seconds * 1000))
            self._post(call, Hook(order.async_amd_callback_method, order.async_amd_callback, fields))

    # -- requests to the application ----------------------------------------------------------------------------------

    async def _fetch(self, call: Call, method: str, url: str, more: dict[str, str] | None = None) -> Document:
        reply = await self._send(call, Hook(method, url, call.fields() | (more or {})))
        return twiml.parse(reply[1], reply[0])

    async def _send(self, call: Call, hook: Hook) -> tuple[str, bytes]:
        """Content type and body. Raises ApplicationError."""
        event: dict[str, object] = {"request": {"url": hook.url}, "response": None}
        call.events.append(event)
        sequence = hook.fields.get("SequenceNumber")
        facts = {"path": urlsplit(hook.url).path, "sequence": sequence, "status": hook.fields.get("CallStatus")}
        facts = {name: fact for name, fact in facts.items() if fact is not None}
        try:
            reply = await self.webhooks.send(hook)
        except ApplicationError as error:
            self._tell(call, "callback", **facts, answer=None, error=error.message)
            raise
        self._tell(call, "callback", **facts, answer=reply.status, ms=round(reply.seconds * 1000))
        event["response"] = {"response_body": reply.body.decode(errors="replace")}
        return reply.content_type, reply.body

    def _notify(self, call: Call, event: Event, status: str, **more: str) -> None:
        """Fires a status callback, where it is subscribed to: numbered, and stamped with the time it arose."""
        if call.order.status_callback is None or event not in call.order.events:
            return
        fields = call.fields(status) | more | {"Timestamp": rfc2822(self.now()) or ""}
        fields |= {"CallbackSource": "call-progress-events", "SequenceNumber": str(call.sequence)}
        if event in ("ringing", "answered"):
            fields["StirStatus"] = "B"
        call.sequence += 1
        self._post(call, Hook(call.order.status_callback_method, call.order.status_callback, fields))

    def _post(self, call: Call, hook: Hook) -> None:
        match call.conduct.callbacks:
            case "none":
                facts = {"sequence": hook.fields.get("SequenceNumber"), "status": hook.fields.get("CallStatus")}
                self._tell(call, "callback", path=urlsplit(hook.url).path, **facts, answer=None, error="lost")
            case "shuffled":
                call.held.append(hook)
            case "twice":
                self.spawn(self._deliver(call, [hook, hook]))
            case "late":
                self.spawn(self._deliver(call, [hook], call.conduct.callback_delay_s))
            case _:
                self.spawn(self._deliver(call, [hook]))

    async def _deliver(self, call: Call, hooks: list[Hook], delay_s: float = 0.0) -> None:
        await asyncio.sleep(delay_s)
        for hook in hooks:
            async with call.line:
                try:
                    await self._send(call, hook)
                except ApplicationError as error:
                    self.note(call, error)


async def _ends(call: Call, within_s: float) -> bool:
    """Waits so long, or until the call is over; says whether it is."""
    try:
        async with asyncio.timeout(max(0.0, within_s)):
            await call.over.wait()
    except TimeoutError:
        return call.over.is_set()
    return True


async def _input(call: Call, prompt: asyncio.Future[Any], silence_s: float) -> Input:
    """The next key or words; two empty texts after so much silence when the prompt is over."""
    key: asyncio.Future[Input] = asyncio.ensure_future(call.inputs.get())
    try:
        await asyncio.wait([prompt, key], return_when="FIRST_COMPLETED")
        if not key.done():
            await asyncio.wait({key}, timeout=silence_s)
        return key.result() if key.done() else ("", "")
    finally:
        key.cancel()


def attempt_of(url: str | None) -> str | None:
    """The `attempt` in the query of a call's Url: by it a page tells which job the call belongs to."""
    return dict(parse_qsl(urlsplit(url or "").query)).get("attempt")


def _has_hung_up(call: Call) -> bool:
    limit = call.conduct.hangup_after
    return call.picked_up_by == "human" and limit is not None and call.gathers >= limit


def _shuffled(hooks: list[Hook]) -> list[Hook]:
    """In another order than they arose, if there is one."""
    if len(hooks) < 2:
        return hooks
    other = hooks[:]
    while other == hooks:
        random.shuffle(other)
    return other


def _formatted(number: str) -> str:
    match = re.fullmatch(r"\+1(\d{3})(\d{3})(\d{4})", number)
    return "({}) {}-{}".format(*match.groups()) if match else number


def number_sid(number: str) -> str:
    return "PN" + hashlib.md5(number.encode()).hexdigest()
