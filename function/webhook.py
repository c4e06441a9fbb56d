"""Handle Supabase's Database Webhook for an inserted job. It is a hint to dial now; the sweep is the guarantee."""

import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from function.worker import TWILIO_WAITERS
from shared.models import StepResult

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

TABLE = "outbound_call_jobs"
# Longest wait for a rate-limit slot. pg_net times out after 10 s, and the Twilio request still has to fit.
MAX_WAIT_SECONDS = 4.0
# As many may wait at once as one call a second serves in that time. pg_net sends up to 200 webhooks at once: if all of
# them waited, no thread would be left for /voice. Other requests return at once; the sweep dials their jobs.
MAX_WAITERS = 4
_waiting = threading.BoundedSemaphore(MAX_WAITERS)


class BadPayload(Exception):
    """The body is not a Database Webhook. The message names the field."""


class _Record(BaseModel):
    id: Annotated[int, Field(strict=True, ge=1, lt=2**63)]


class _Event(BaseModel):
    """The body of both kinds of webhook. `record` holds only the id in ours, and the whole row in a dashboard webhook."""

    model_config = ConfigDict(extra="ignore")

    type: str
    table: str
    schema_: Annotated[str, Field(alias="schema")] = "public"
    record: dict[str, Any] | None = None


def handle(body: bytes, dispatcher: "Dispatcher") -> dict[str, Any]:
    """Dial the webhook's job and return the outcome. Raises BadPayload, JobsUnavailable."""
    try:
        event = _Event.model_validate_json(body)
        if (event.type, event.schema_, event.table) != ("INSERT", "public", TABLE):
            return {"ignored": f"{event.type} on {event.schema_}.{event.table}"[:100]}
        if event.record is None:
            raise BadPayload("record.id is missing")
        job_id = _Record.model_validate(event.record).id
    except ValidationError as error:
        raise BadPayload(_first(error)) from error
    return answer(_dial_or_leave_to_sweep(job_id, dispatcher))


def _dial_or_leave_to_sweep(job_id: int, dispatcher: "Dispatcher") -> StepResult:
    until = time.monotonic() + MAX_WAIT_SECONDS
    if not TWILIO_WAITERS.acquire(blocking=False):
        return StepResult("waiting", job_id)
    try:
        step = dispatcher.dial_one(job_id)
        if step.outcome != "waiting" or not _waiting.acquire(blocking=False):
            return step
        try:
            return _wait_and_dial(step, job_id, dispatcher, until)
        finally:
            _waiting.release()
    finally:
        TWILIO_WAITERS.release()


def _wait_and_dial(step: StepResult, job_id: int, dispatcher: "Dispatcher", until: float) -> StepResult:
    while step.outcome == "waiting" and time.monotonic() + step.wait_s < until:
        time.sleep(step.wait_s)
        step = dispatcher.dial_one(job_id)
    return step


def answer(step: StepResult) -> dict[str, Any]:
    """The response body. It holds no personal data: every database role can read pg_net's stored responses."""
    if step.outcome == "nothing":
        return {"ignored": step.detail, "job": step.job_id}
    reason = {"reason": step.detail} if step.outcome == "paused" else {}
    return {"did": step.outcome, "job": step.job_id, **reason}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return "the body is not JSON"
    if where in ("id", "record"):
        where = "record.id"
    return f"{where or 'the body'}: {first['msg']}"
