"""The counts that `call_job_stats` answers: each sweep logs them, and the alerts watch them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Stats(BaseModel):
    """Counts of jobs and calls. `oldest_*_s` are ages in seconds, 0 if there are none; `*_1h`, `*_24h` count the last hours.

    held_by_rule: jobs that wait for calling hours or another time of day, by the words of the rule.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

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
    held_by_rule: dict[str, int]
    missed_signups: int
    paused: bool
    paused_by: Literal["hand", "halt", "calls_per_day", "restore"] | None
    paused_until: datetime | Literal["infinity"] | None
    pause_reason: str | None
    halts: int
    results_due: int
    results_oldest_s: float
    results_gave_up: int
