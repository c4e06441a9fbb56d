"""The jobs that wait, as `waiting_calls` answers: `python -m function.explain` counts them by reason."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared.models import Redial


class WaitingJob(BaseModel):
    """A queued job. `held`: what a claim would hold it for, until `until`, if that is known and is not for good."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    id: int
    phone_number: str
    metadata: dict[str, Any]
    due_at: datetime
    reason_code: str | None
    redial: Redial | None
    held: str | None
    until: datetime | None


class Waiting(BaseModel):
    """Some of the jobs that wait, by id. `paused`: why all calls are paused, if they are."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    now: datetime
    paused: str | None
    jobs: tuple[WaitingJob, ...]
