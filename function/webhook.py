"""Supabase's Database Webhook: a job was inserted. A hint to dial it now; the sweep would, a little later."""

import threading
import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.dispatcher import Dispatcher
from shared.models import StepResult

TABLE = "outbound_call_jobs"
MAX_WAIT_SECONDS = 4.0  # for the pace of calls; pg_net waits 10 s for us, and the request to Twilio is still to come
# So many may wait at once, about as many as one call a second lets through meanwhile. In a burst pg_net sends 200 at once: if all
# of them waited, no thread would be left to tell Twilio what to say. Who may not wait is left to the sweep.
MAX_WAITERS = 4
_waiting = threading.BoundedSemaphore(MAX_WAITERS)


class BadPayload(Exception):
    """The body is not a Database Webhook's. The message names the field."""


class _Record(BaseModel):
    id: Annotated[int, Field(strict=True, ge=1, lt=2**63)]


class _Event(BaseModel):
    """What both kinds of webhook send; our own puts nothing but the id into `record`, the dashboard's the whole row."""

    model_config = ConfigDict(extra="ignore")

    type: str
    table: str
    schema_: Annotated[str, Field(alias="schema")] = "public"
    record: dict[str, Any] | None = None


def handle(body: bytes, dispatcher: Dispatcher) -> dict[str, Any]:
    """Dial the job that the webhook names. -> what was done. Raises BadPayload, JobsUnavailable."""
    try:
        event = _Event.model_validate_json(body)
        if (event.type, event.schema_, event.table) != ("INSERT", "public", TABLE):
            return {"ignored": f"{event.type} on {event.schema_}.{event.table}"[:100]}
        if event.record is None:
            raise BadPayload("record.id is missing")
        job_id = _Record.model_validate(event.record).id
    except ValidationError as error:
        raise BadPayload(_first(error)) from error
    return answer(_dial(job_id, dispatcher))


def _dial(job_id: int, dispatcher: Dispatcher) -> StepResult:
    until = time.monotonic() + MAX_WAIT_SECONDS
    step = dispatcher.dial_one(job_id)
    if step.outcome != "waiting" or not _waiting.acquire(blocking=False):
        return step
    try:
        return _wait_and_dial(step, job_id, dispatcher, until)
    finally:
        _waiting.release()


def _wait_and_dial(step: StepResult, job_id: int, dispatcher: Dispatcher, until: float) -> StepResult:
    while step.outcome == "waiting" and time.monotonic() + step.wait_s < until:
        time.sleep(step.wait_s)
        step = dispatcher.dial_one(job_id)
    return step


def answer(step: StepResult) -> dict[str, Any]:
    """Nothing here names the person: pg_net keeps our answers where every database role can read them."""
    if step.outcome == "nothing":
        return {"ignored": step.detail, "job": step.job_id}
    return {"did": step.outcome, "job": step.job_id}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        return "the body is not JSON"
    if where in ("id", "record"):
        where = "record.id"
    return f"{where or 'the body'}: {first['msg']}"
