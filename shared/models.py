"""The values that travel between the modules: SQL answers, Twilio's calls and events, verdicts, results of a step.

Each value is checked once, where it enters the program. All of them are frozen.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

CallStatus = Literal[
    "queued", "initiated", "ringing", "in-progress", "completed", "busy", "no-answer", "failed", "canceled"
]
JobStatus = Literal["queued", "dialing", "in_doubt", "calling", "completed", "failed", "canceled"]
AttemptState = Literal["started", "in_doubt", "accepted", "ended", "refused", "absent", "duplicate"]

CALL_SID = re.compile(r"CA[0-9a-f]{32}")
FINAL_CALL_STATUSES: frozenset[CallStatus] = frozenset({"completed", "busy", "no-answer", "failed", "canceled"})


class SqlAnswer(BaseModel):
    """The answer of an SQL function. Unknown keys are ignored, so newer SQL can serve older code."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Person(SqlAnswer):
    """The data that a script may say: the person's name, and how they signed up."""

    first_name: str | None
    signup_mode: str
    metadata: dict[str, Any]


class ClaimedJob(Person):
    id: int
    phone_number: str
    phone_e164: str


class Attempt(SqlAnswer):
    id: UUID
    number: int = Field(ge=1)


class Redial(SqlAnswer):
    """Nobody picked up the last call, which began at `missed_at`. This one was due at `due_at`."""

    missed_at: datetime
    due_at: datetime


class Claimed(SqlAnswer):
    outcome: Literal["claimed"]
    job: ClaimedJob
    attempt: Attempt
    now: datetime
    redial: Redial | None = None


class Wait(SqlAnswer):
    """CALLS_PER_SECOND leaves no slot now, or a lock in the database is held (reason): nothing was claimed."""

    outcome: Literal["wait"]
    wait_s: float
    reason: str | None = None


class Paused(SqlAnswer):
    outcome: Literal["paused"]
    until: datetime | Literal["infinity"]
    reason: str | None
    just_now: bool = False


class Unparsed(SqlAnswer):
    """The number, as typed, is not E.164. SQL cannot parse it; Python does."""

    outcome: Literal["unparsed"]
    job_id: int
    phone_number: str


class NothingDue(SqlAnswer):
    """No job to dial. For a job asked for by id, its state; `status` None means that the job does not exist."""

    outcome: Literal["none"]
    status: JobStatus | None
    due_at: datetime | None
    reason_code: str | None = None


Claim = Annotated[Claimed | Wait | Paused | Unparsed | NothingDue, Field(discriminator="outcome")]


class LiveJob(Person):
    """`laters`: how many earlier calls of this job ended with the person asking for a later one."""

    id: int
    status: JobStatus
    phone_e164: str | None = None
    laters: int = 0


class LiveCall(SqlAnswer):
    """The database's answer about a live call. `then`: keep the call, or end it.

    by_machine: a machine answered, as far as we know. machine_now: this event is the first to say so.
    answered_by: Twilio's word for who answered, when it is known.
    later_at: when the person is called again, as they asked in this call. now: the database's clock.
    agent_answers: question -> meaning, as an agent recorded them in this call. opted_out: in this call.
    """

    then: Literal["keep", "end", "unknown"]
    state: AttemptState | None
    call_status: CallStatus | None
    job: LiveJob | None
    moved: bool = False
    by_machine: bool = False
    answered_by: str | None = None
    machine_now: bool = False
    later_at: datetime | None = None
    now: datetime | None = None
    agent_answers: dict[str, str] = {}
    opted_out: bool = False

    @property
    def is_wanted(self) -> bool:
        return self.then == "keep"


class OpenCall(SqlAnswer):
    """A call to follow up: in doubt, without news, or a duplicate."""

    outcome: Literal["ask"]
    state: Literal["in_doubt", "accepted", "duplicate"]
    attempt: UUID
    job_id: int
    call_sid: str | None
    phone_e164: str
    from_e164: str | None = None
    started_at: datetime
    asked_at: datetime
    end: bool
    put_off: bool = False
    metadata: dict[str, Any] = {}
    lease_ran_out: bool


class Nothing(SqlAnswer):
    """Nothing is due."""

    outcome: Literal["none"]


NextOpenCall = Annotated[OpenCall | Nothing, Field(discriminator="outcome")]


class Found(SqlAnswer):
    outcome: Literal["found"]
    call_sid: str


class Absent(SqlAnswer):
    outcome: Literal["absent"]
    job_status: JobStatus


class NotYet(SqlAnswer):
    """Twilio does not list the call yet, and the settling time has not passed."""

    outcome: Literal["not_yet"]


class Ambiguous(SqlAnswer):
    """More than one listed call could be this attempt. None is bound."""

    outcome: Literal["ambiguous"]
    calls: int


class Settled(SqlAnswer):
    """Another process settled the attempt first."""

    outcome: Literal["settled"]


Settlement = Annotated[Found | Absent | NotYet | Ambiguous | Settled, Field(discriminator="outcome")]


class ClaimedResult(SqlAnswer):
    """An event to tell at RESULT_URL. `body` is sent letter by letter; `try` counts from 1."""

    outcome: Literal["claimed"]
    id: UUID
    try_: int = Field(alias="try", ge=1)
    type: str
    job_id: int | None
    body: str = Field(repr=False)


NextResult = Annotated[ClaimedResult | Nothing, Field(discriminator="outcome")]


@dataclass(frozen=True)
class Verdict:
    """The meaning of a failed request for a call.

    refused   Twilio will never take this call. The job ends.
    later     Twilio did not take the call and may take it later. The attempt does not count.
    halt      Our account or configuration is broken. The attempt does not count, and all calls pause.
    in_doubt  Twilio may have taken the call. Nobody dials until that is settled.
    """

    kind: Literal["refused", "later", "halt", "in_doubt"]
    code: str
    reason: str


@dataclass(frozen=True)
class CallEvent:
    """One event of a call, as Twilio reports it. The fields are the arguments of record_call_status.

    An empty `call_sid` is not a SID. `call_status` is None for a status that we do not know; Twilio adds new ones.
    """

    call_sid: str
    call_status: CallStatus | None
    answered_by: str | None = None
    duration_s: int | None = None
    sip_code: int | None = None
    error_code: str | None = None


@dataclass(frozen=True)
class Answer:
    """A key press in a conversation, "" for silence. The fields are the arguments of record_call_answer.

    `heard`: the words that were said in place of the key. They are personal, and never logged.
    `later_at`: when the person wants to be called again.
    """

    digits: str
    question: str | None = None
    meaning: str | None = None
    opt_out: bool = False
    heard: str | None = field(default=None, repr=False)
    later_at: datetime | None = None


@dataclass(frozen=True)
class TwilioCall:
    """A call in Twilio's API. `created_at` has whole seconds."""

    sid: str
    status: CallStatus
    created_at: datetime
    duration_s: int | None
    answered_by: str | None

    @property
    def event(self) -> CallEvent:
        return CallEvent(self.sid, self.status, self.answered_by, self.duration_s)


@dataclass(frozen=True)
class Placed:
    """Twilio took a call. `queue_s` is Twilio's estimate of the wait in its queue, in seconds."""

    call_sid: str
    queue_s: float


@dataclass(frozen=True)
class StepResult:
    """The result of one step of the dispatcher: one claim to dial, or one follow-up of an open call."""

    outcome: Literal[
        "called", "refused", "put_off", "halted", "in_doubt",  # dialing
        "settled", "asked", "ended", "still_in_doubt", "unasked",  # following up
        "waiting", "paused", "nothing",
    ]  # fmt: skip
    job_id: int | None = None
    detail: str | None = None
    wait_s: float = 0.0


Step = StepResult | Callable[[], StepResult]
"""A claim's step: its result, or the work that is still to do."""


def finished(step: Step) -> StepResult:
    return step if isinstance(step, StepResult) else step()
