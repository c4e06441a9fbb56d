"""The counts that `call_job_stats` answers, and the jobs that wait, as `waiting_calls` answers."""

from datetime import datetime
from typing import Any, Literal

from shared.models import Redial, SqlAnswer


class Stats(SqlAnswer):
    """Counts of jobs and calls. `oldest_*_s` are ages in seconds, 0 if there are none; `*_1h`, `*_24h` count the last hours.

    Each sweep logs them, and the alerts watch them.
    held_by_rule: jobs that wait for calling hours or another time of day, by the words of the rule.
    """

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


class WaitingJob(SqlAnswer):
    """A queued job. `held`: what a claim would hold it for, until `until`, if that is known and is not for good."""

    id: int
    phone_number: str
    metadata: dict[str, Any]
    due_at: datetime
    reason_code: str | None
    redial: Redial | None
    held: str | None
    until: datetime | None


class Waiting(SqlAnswer):
    """Some of the jobs that wait, by id, for `python -m function.explain`. `paused`: why all calls are paused, if they are."""

    now: datetime
    paused: str | None
    jobs: tuple[WaitingJob, ...]
