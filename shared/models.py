"""What travels between the parts: the answers of the SQL functions, the verdicts on Twilio, the outcomes of one step.

Each value is checked once, where it comes in, and is frozen from then on.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

CallStatus = Literal[
    "queued", "initiated", "ringing", "in-progress", "completed", "busy", "no-answer", "failed", "canceled"
]
JobStatus = Literal["queued", "dialing", "in_doubt", "calling", "completed", "failed", "canceled"]
AttemptState = Literal["started", "in_doubt", "accepted", "ended", "refused", "absent", "duplicate"]

FINAL_CALL_STATUSES: frozenset[CallStatus] = frozenset({"completed", "busy", "no-answer", "failed", "canceled"})


class _Answer(BaseModel):
    """An answer of an SQL function: unknown keys are let through, so that newer SQL serves older code."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Person(_Answer):
    """What a script may say of the person and how they signed up."""

    first_name: str | None
    signup_mode: str
    metadata: dict[str, Any]


class ClaimedJob(Person):
    id: int
    user_id: UUID
    phone_number: str
    phone_e164: str


class Attempt(_Answer):
    id: UUID
    number: int = Field(ge=1)


class Claimed(_Answer):
    outcome: Literal["claimed"]
    job: ClaimedJob
    attempt: Attempt
    now: datetime


class Wait(_Answer):
    """The pace of calls leaves no room now."""

    outcome: Literal["wait"]
    wait_s: float


class Paused(_Answer):
    outcome: Literal["paused"]
    until: datetime | Literal["infinity"]
    reason: str | None
    just_now: bool = False


class Unparsed(_Answer):
    """What was typed is not E.164 as it stands."""

    outcome: Literal["unparsed"]
    job_id: int
    phone_number: str


class NothingDue(_Answer):
    """Nothing to dial; of a job asked for by its id, what it is instead (None: there is no such job)."""

    outcome: Literal["none"]
    status: JobStatus | None
    due_at: datetime | None
    reason_code: str | None = None


Claim = Annotated[Claimed | Wait | Paused | Unparsed | NothingDue, Field(discriminator="outcome")]


class LiveJob(Person):
    id: int
    status: JobStatus


class LiveCall(_Answer):
    """What the database says about a call that Twilio has told us of. `then`: keep it, or end it.

    by_machine: it was answered by a machine, as far as anyone knows. machine_now: that is the news.
    """

    then: Literal["keep", "end", "unknown"]
    state: AttemptState | None
    call_status: CallStatus | None
    job: LiveJob | None
    moved: bool = False
    by_machine: bool = False
    machine_now: bool = False

    @property
    def is_wanted(self) -> bool:
        return self.then == "keep"


class OpenCall(_Answer):
    """A call to look after: in doubt, without news, or one too many."""

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


class NoOpenCall(_Answer):
    outcome: Literal["none"]


NextOpenCall = Annotated[OpenCall | NoOpenCall, Field(discriminator="outcome")]


class Found(_Answer):
    outcome: Literal["found"]
    call_sid: str
    call_status: CallStatus
    then: Literal["keep", "end", "unknown"]


class Absent(_Answer):
    outcome: Literal["absent"]
    job_status: JobStatus


class NotYet(_Answer):
    """Not listed, and it is too early to believe that."""

    outcome: Literal["not_yet"]


class Ambiguous(_Answer):
    """More than one call could be it: none is bound."""

    outcome: Literal["ambiguous"]
    calls: int


class Settled(_Answer):
    """Somebody else settled it meanwhile."""

    outcome: Literal["settled"]


Settlement = Annotated[Found | Absent | NotYet | Ambiguous | Settled, Field(discriminator="outcome")]


class Stats(_Answer):
    """What is going on. `oldest_*_s` are ages in seconds, 0 where there is none; `*_1h` and `*_24h` are of the last hours."""

    queued: int
    dialing: int
    in_doubt: int
    calling: int
    completed_24h: int
    failed_24h: int
    canceled_24h: int
    failures_24h: dict[str, int]
    due: int
    oldest_due_s: float
    oldest_doubt_s: float
    live_duplicates: int
    duplicates_24h: int
    calls_1h: int
    answered_1h: int
    calls_24h: int
    answered_24h: int
    opt_outs_24h: int
    held_by_prefix: int
    missed_signups: int
    paused: bool
    paused_by: Literal["hand", "halt", "calls_per_day"] | None
    paused_until: datetime | Literal["infinity"] | None
    pause_reason: str | None
    halts: int


@dataclass(frozen=True)
class Verdict:
    """What a failed request to Twilio means.

    refused   Twilio will never take this call; the job is over
    later     Twilio took nothing, and may take it later; not an attempt
    halt      our account or configuration is broken, no job is to blame; not an attempt, and everything waits
    in_doubt  Twilio may have taken the call; nobody dials until that is settled
    """

    kind: Literal["refused", "later", "halt", "in_doubt"]
    code: str
    reason: str


@dataclass(frozen=True)
class TwilioCall:
    """A call as Twilio's API gives it. `created_at` has whole seconds."""

    sid: str
    status: CallStatus
    created_at: datetime
    duration_s: int | None
    answered_by: str | None


@dataclass(frozen=True)
class Placed:
    """Twilio took a call. `queue_s` is how long Twilio thinks that it will wait in its queue."""

    call_sid: str
    queue_s: float


@dataclass(frozen=True)
class StepResult:
    """What one step of the dispatcher did: one claim to dial, or one look at an open call."""

    outcome: Literal[
        "called", "refused", "put_off", "halted", "in_doubt",  # dialing
        "settled", "asked", "ended", "still_in_doubt", "unasked",  # looking after
        "waiting", "paused", "nothing",
    ]  # fmt: skip
    job_id: int | None = None
    detail: str | None = None
    wait_s: float = 0.0
