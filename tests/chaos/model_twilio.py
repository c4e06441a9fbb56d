"""A model of Twilio for the state machine: what it has done, whether or not anybody was told. A stand-in, without any HTTP.

It keeps the promises that the design leans on, and no others:
- it makes a call at most LATE_S after the request for it, whatever the caller sees of the answer;
- it lists a call within LISTED_WITHIN_S of making it: together less than the settling time. A call may break that promise
  (`listed_late`); then one repeat is possible, and the README says so;
- no call lives longer than LIFE_S, which is less than the time after which an unknown end is given up;
- it refuses, or takes, or does neither: who was refused has no call.
Callbacks may be lost, repeated and shuffled, an answer may be lost, a request to end a call may fail, a fresh SID may be 404.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

LATE_S = 15.0
LISTED_WITHIN_S = 90.0
LIFE_S = 3_600.0

ON_THE_WAY = ("queued", "initiated", "ringing", "in-progress")
FINAL_WORDS = ("completed", "busy", "no-answer", "failed", "canceled")
WORDS = (*ON_THE_WAY, *FINAL_WORDS)
# What may come next. Only who was reached has `completed`, and who was reached has nothing else.
NEXT = {
    "queued": ("initiated", "failed", "canceled"),
    "initiated": ("ringing", "failed", "canceled"),
    "ringing": ("in-progress", "busy", "no-answer", "failed", "canceled"),
    "in-progress": ("completed",),
}


def rank(word: str) -> int:
    return min(WORDS.index(word), len(ON_THE_WAY))


@dataclass(frozen=True)
class Request:
    """For whom a call was asked. `round` is how often the job was retried by hand: each time anew, a call is wanted."""

    attempt: UUID
    job: int
    round: int
    to: str


@dataclass(eq=False)
class Call:
    sid: str
    request: Request
    made_at: float
    listed_at: float
    listed_late: bool
    words: list[str] = field(default_factory=lambda: ["queued"])
    told: str | None = None  # the furthest word that the dispatcher has had; of final words the first
    asked_for_later: bool = False

    @property
    def status(self) -> str:
        return self.words[-1]

    def is_told(self, word: str) -> None:
        if self.told is None or rank(word) > rank(self.told):
            self.told = word

    @property
    def is_live(self) -> bool:
        return self.status not in FINAL_WORDS

    @property
    def reached_a_person(self) -> bool:
        return "in-progress" in self.words

    @property
    def wants_no_more(self) -> bool:
        return self.reached_a_person and not self.asked_for_later

    def __repr__(self) -> str:
        return f"<call {self.sid[-3:]} of job {self.request.job}, {self.status}>"


class Twilio:
    """Seconds are those of the model's clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Call] = []

    def make(self, request: Request, *, late_s: float, listed_after_s: float) -> Call:
        assert late_s <= LATE_S
        made_at = self.now + late_s
        sid = f"CA{len(self.calls) + 1:032x}"
        call = Call(sid, request, made_at, made_at + listed_after_s, listed_after_s > LISTED_WITHIN_S)
        self.calls.append(call)
        return call

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for call in self.made:
            if call.is_live and call.made_at + LIFE_S <= self.now:
                self.over(call, "completed" if call.reached_a_person else "no-answer")

    @property
    def made(self) -> list[Call]:
        """Without those that a request on its way has not made yet."""
        return [call for call in self.calls if call.made_at <= self.now]

    @property
    def live(self) -> list[Call]:
        return [call for call in self.made if call.is_live]

    def listed(self, to: str, since: float) -> list[Call]:
        """As Telephony.find asks: newest first, `date_created` in whole seconds, five seconds for clocks that differ."""
        found = [c for c in self.made if c.request.to == to and c.listed_at <= self.now and c.made_at // 1 >= since - 5]
        return found[::-1]

    def goes_on(self, call: Call, to: str) -> None:
        """Up to this word, by the shortest way."""
        ways = [[call.status]]
        while (way := ways.pop(0))[-1] != to:
            ways += [[*way, word] for word in NEXT.get(way[-1], ())]
        call.words += way[1:]

    def over(self, call: Call, how: str) -> None:
        if how not in NEXT[call.status]:
            self.goes_on(call, "ringing")
        call.words.append(how)

    def end(self, call: Call) -> None:
        """Our own request to end it. Of a call that is over already, nothing comes of it."""
        if call in self.live:
            call.words.append("completed" if call.reached_a_person else "canceled")
