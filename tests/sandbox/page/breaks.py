"""What the telephone page breaks: switches that stay on, and things that are done once. All of it happens to real parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import aiohttp
import phonenumbers.timezone
import psycopg

from tests.sandbox.numbers import numbers
from tests.sandbox.page.watch import FINAL, Watch
from tests.sandbox.twilio.behaviour import Rule

if TYPE_CHECKING:
    from tests.sandbox.sandbox import Sandbox

FREEZE_S = 10.0
LIST_DELAY_S = 4.0  # below the settling time; beyond it one repeat is possible, and the README says so
PEOPLE, CROWD = 60, 200
AT_ONCE = 20
STEP_S, END_S = 12.0, 150.0
NIGHT, MORNING = 3, 10
HOURS = "08:00-21:00"


class Switch(NamedTuple):
    """label, help: on the page. group: of several with one group only one is on. rule: for every call, while it is on."""

    group: str
    label: str
    help: str
    rule: dict[str, Any] | None = None


SWITCHES = {
    "answer_lost": Switch("create", "Twilio takes the call, the answer is lost",
        "The job is in doubt until Twilio's list or a callback tells.", {"create": "accept_then_drop"}),
    "answers_500": Switch("create", "Twilio takes the call and answers 500",
        "An error that does not say whether the phone will ring.", {"create": "accept_then_500"}),
    "takes_late": Switch("create", "Twilio takes the call late",
        "The request times out; a second later the call exists.", {"create": "accept_late"}),
    "hangs": Switch("create", "Twilio does not answer",
        "No call is taken. After the settling time it is dialed again, three times at most.", {"create": "hang"}),
    "too_many": Switch("create", "Twilio answers 429",
        "Too many requests: the job waits, and no attempt is spent.", {"create": "error:20429"}),
    "suspended": Switch("create", "The Twilio account is suspended",
        "All calls halt. After you switch it off they go on by themselves.", {"create": "error:20003"}),
    "callbacks_lost": Switch("callbacks", "Callbacks are lost",
        "The sweep asks Twilio how the call ended.", {"callbacks": "none"}),
    "callbacks_twice": Switch("callbacks", "Callbacks come twice",
        "The second one changes nothing.", {"callbacks": "twice"}),
    "callbacks_shuffled": Switch("callbacks", "Callbacks come in any order",
        "A call moves only forward.", {"callbacks": "shuffled"}),
    "list_late": Switch("list", "The list of calls lags 4 s",
        "A job in doubt waits for it.", {"list_delay_s": LIST_DELAY_S}),
    "webhooks_lost": Switch("webhooks", "Webhooks are lost", "The sweep finds the sign-up a second later."),
    "receiver_refuses": Switch("receiver", "The receiver of results answers 500",
        "They are sent again, with the same id."),
    "receiver_hangs": Switch("receiver", "The receiver of results hangs", "No call and no callback waits for it."),
    "paused": Switch("paused", "Calls are paused", "pause_calls(); off is resume_calls()."),
    "night": Switch("night", "It is 03:00 where the phone is", "Nobody is called. Off: it is 10:00 there."),
}  # fmt: skip
ACTIONS: dict[str, tuple[str, str]] = {
    "kill": ("Kill the function (kill -9)", "Its whole process group; it starts again, as on Cloud Run."),
    "freeze": (f"Freeze the function for {FREEZE_S:g} s", "Its claims run out meanwhile."),
    "postgres": ("Restart Postgres", "Everything that talks to it must connect again."),
    "opt_out": ("Opt this number out", "The number in the form is never called again."),
    "crowd": (f"{CROWD} sign-ups at once", "They answer by themselves, and press keys."),
}
WORST_HOUR = (
    *("answer_lost", "answers_500", "takes_late", "hangs", "too_many", "suspended", "callbacks_lost"),
    *("callbacks_twice", "callbacks_shuffled", "list_late", "webhooks_lost", "kill", "freeze", "postgres", "night"),
)


class Wrong(Exception):
    """The page asked for something that cannot be done; the message is for the person."""


class Breaks:
    """In the page's event loop. `on`: the switches that are on. `people`: rules of the phones that a person holds, by number."""

    def __init__(self, sandbox: Sandbox, watch: Watch, session: Callable[[], aiohttp.ClientSession]) -> None:
        self._sandbox, self._watch, self._session = sandbox, watch, session
        self.on: dict[str, Rule | None] = {}
        self.people: dict[str, Rule] = {}
        self._crowd = (number for number in numbers() if number[:5] != "+1415")  # the form proposes those
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.worst: dict[str, Any] = {"running": False}

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # -- switches -----------------------------------------------------------------------------------------------------

    async def switch(self, name: str, on: bool, number: str = "") -> None:
        """Raises Wrong."""
        if name not in SWITCHES:
            raise Wrong(f"there is no switch {name!r}")
        if on == (name in self.on):
            return
        if on:
            for other in [other for other in self.on if SWITCHES[other].group == SWITCHES[name].group]:
                await self.switch(other, False, number)
        await self._turn(name, on, number)
        self._sandbox.events.tell("switches", on=sorted(self.on), name=name, now=on)

    async def _turn(self, name: str, on: bool, number: str) -> None:
        rules, known = self._sandbox.twilio.rules, SWITCHES[name].rule
        if on:
            rule = self.on[name] = Rule.model_validate(known) if known else None
            if rule:
                rules.add(rule)
        elif old := self.on.pop(name):
            rules.remove(old)
        match name:
            case "webhooks_lost" if self._sandbox.webhooks:
                self._sandbox.webhooks.loses = on
            case "receiver_refuses" | "receiver_hangs" if self._sandbox.receiver:
                do = {"receiver_refuses": "refuse", "receiver_hangs": "hang"}[name]
                self._sandbox.receiver.behave(do=do if on else "take")
            case "paused":
                await self._sql("select public." + ("pause_calls('paused on the page')" if on else "resume_calls()"))
            case "suspended" if not on:
                await self._sql("select public.resume_calls()")
            case "night":
                await self._set_hour(number, NIGHT if on else MORNING, HOURS if on else "always")

    async def _set_hour(self, number: str, hour: int, hours: str) -> None:
        """Time goes on to this hour where the phone is, and the function calls in these hours."""
        twilio, now = self._sandbox.twilio, self._sandbox.twilio.now()
        there = now.astimezone(_zone(number))
        target = there.replace(hour=hour, minute=0, second=0, microsecond=0)
        if target <= there:
            target += timedelta(days=1)
        ahead = (target - there).total_seconds() + (now - datetime.now(now.tzinfo)).total_seconds()
        await twilio.set_clock(ahead)
        if self._sandbox.function:
            await asyncio.to_thread(self._sandbox.function.restart, {"CALL_HOURS": hours})

    # -- once ---------------------------------------------------------------------------------------------------------

    async def act(self, name: str, number: str = "") -> None:
        """Raises Wrong."""
        actions: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "kill": self._kill, "freeze": self._freeze, "postgres": self._restart_postgres, "worst_hour": self._worst_hour,
            "opt_out": partial(self._opt_out, number), "crowd": partial(self.sign_up_crowd, CROWD),
        }  # fmt: skip
        if name not in actions:
            raise Wrong(f"there is no action {name!r}")
        if name in self._tasks and not self._tasks[name].done():
            raise Wrong("this is still under way")
        self._sandbox.events.tell("action", name=name, label=ACTIONS.get(name, ("The worst hour",))[0])
        self._tasks[name] = asyncio.create_task(actions[name]())
        if name == "opt_out":
            await self._tasks[name]  # the person is told what is wrong with the number

    def _pid(self) -> int:
        pid = self._sandbox.ready.function_pid
        if pid is None:
            raise Wrong("the sandbox runs without the function")
        return pid

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # dead already: it is being started
            os.killpg(self._pid(), signal.SIGKILL)

    async def _freeze(self) -> None:
        pid = self._pid()
        try:
            os.killpg(pid, signal.SIGSTOP)
            await asyncio.sleep(FREEZE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)
        self._sandbox.events.tell("action", name="freeze", label="The function goes on")

    async def _restart_postgres(self) -> None:
        await asyncio.to_thread(self._sandbox.postgres.restart)
        self._sandbox.events.tell("action", name="postgres", label="Postgres is back")

    async def _opt_out(self, number: str) -> None:
        try:
            await self._sql("select public.opt_out(%s, 'on the page')", number)
        except psycopg.Error as error:
            raise Wrong(str(error).splitlines()[0]) from None

    async def _sql(self, query: str, *values: object) -> None:
        connection = await psycopg.AsyncConnection.connect(self._sandbox.ready.database_url, autocommit=True)
        async with connection:
            await connection.execute(query.encode(), values)

    # -- people -------------------------------------------------------------------------------------------------------

    def hold(self, number: str, words_per_second: float | None) -> None:
        """A person holds this phone from now on."""
        if old := self.people.pop(number, None):
            self._sandbox.twilio.rules.remove(old)
        pace = {"words_per_second": words_per_second} if words_per_second else {}
        self.people[number] = Rule.model_validate({"to": number, "outcome": "person", **pace})
        self._sandbox.twilio.rules.add(self.people[number])

    async def sign_up(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """supabase-js's own request. -> status and answer of the sandbox's Auth"""
        ready = self._sandbox.ready
        headers = {"apikey": ready.supabase_anon_key, "Authorization": f"Bearer {ready.supabase_anon_key}"}
        url = f"{ready.supabase_url}/auth/v1/signup"
        async with self._session().post(url, json=body, headers=headers) as answer:
            said = await answer.json()
        facts = {"to": body.get("phone"), "user": (said.get("user") or {}).get("id")}
        self._sandbox.events.tell("signup", **facts, answer=answer.status, error=said.get("msg"))
        return answer.status, said

    async def sign_up_crowd(self, people: int) -> None:
        """People who answer by themselves. Every fifth line is busy the first time, every seventh does not pick up then."""
        free = asyncio.Semaphore(AT_ONCE)

        async def one(place: int) -> None:
            number = next(self._crowd)
            rules = self._sandbox.twilio.rules
            rules.add(Rule.model_validate({"to": number, "digits": ("2", "1", "1")}))
            if first := "busy" if place % 5 == 4 else "no-answer" if place % 7 == 6 else None:
                rules.add(Rule.model_validate({"to": number, "outcome": first, "times": 1}))
            data = {"first_name": NAMES[place % len(NAMES)], "signup_mode": MODES[place % len(MODES)]}
            async with free:
                await self.sign_up({"phone": number, "password": "correct horse", "data": data})

        await asyncio.gather(*(one(place) for place in range(people)))

    async def _worst_hour(self) -> None:
        """All that can be broken, one after the other, with four people each. Then nothing is broken, until all are settled."""
        began, before = time.monotonic(), set(self._watch.jobs)

        def ours() -> list[dict[str, Any]]:
            return [job for number, job in self._watch.jobs.items() if number not in before]

        def tell(**facts: Any) -> None:
            self.worst = {**facts, "of": len(WORST_HOUR), "seconds": round(time.monotonic() - began)}
            self._sandbox.events.tell("worst", **self.worst)

        async def wait(seconds: float, people: int = 0) -> None:
            """Until at least so many have signed up and all are settled."""
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if len(ours()) >= people and all(job["status"] in FINAL for job in ours()):
                    return
                await asyncio.sleep(0.2)

        each = PEOPLE // len(WORST_HOUR)
        try:
            for step, name in enumerate(WORST_HOUR, 1):
                is_switch = name in SWITCHES
                tell(running=True, step=step, label=SWITCHES[name].label if is_switch else ACTIONS[name][0])
                if is_switch:
                    await self.switch(name, True)
                await self.sign_up_crowd(each)
                if not is_switch:
                    await self.act(name)
                await wait(STEP_S, step * each)
                if is_switch:
                    await self.switch(name, False)
            tell(running=True, step=len(WORST_HOUR), label="Everything works again: the rest is settled")
            await wait(END_S)
            await asyncio.sleep(1)  # for the counts
            open_ = sum(job["finished_at"] is None for job in ours())
            tell(running=False, done=True, people=len(ours()), open=open_, counts=dict(self._watch.counts))
        except BaseException:
            tell(running=False)
            raise


NAMES = ("Ada", "Bob", "Cleo", "Dana", "Emil", "Fay", "Gus", "Hana", "Ivo", "June")
MODES = ("demo", "waitlist", "prueba", "default")


def _zone(number: str) -> ZoneInfo:
    """Of the phone; New York where the number does not tell."""
    with contextlib.suppress(phonenumbers.NumberParseException):
        zone = phonenumbers.timezone.time_zones_for_number(phonenumbers.parse(number))[0]
        if zone != phonenumbers.timezone.UNKNOWN_TIMEZONE:
            return ZoneInfo(zone)
    return ZoneInfo("America/New_York")
