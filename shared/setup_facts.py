"""The facts that `check_call_setup` reports about a database. The doctor judges them."""

from typing import Literal

from pydantic import AwareDatetime

from shared.models import SqlAnswer


class VaultFacts(SqlAnswer):
    """`hmac`: hexadecimal, of the nonce, under the key that signs webhooks; None without a secret."""

    url: str | None = None
    hmac: str | None = None
    error: str | None = None


class WebhookAnswer(SqlAnswer):
    """The result of one pg_net request, an HTTP status or an error. It may belong to another webhook of the project."""

    status: int | None
    error: str | None
    age_s: float


class NetFacts(SqlAnswer):
    waiting: int = 0
    oldest_waiting: int | None = None
    answers: tuple[WebhookAnswer, ...] = ()
    error: str | None = None


class CallFacts(SqlAnswer):
    """The row of private.call_settings. paused_until is a time or "infinity", as the database writes it."""

    paused_until: str | None
    paused_by: Literal["hand", "halt", "calls_per_day", "restore"] | None
    pause_reason: str | None
    verified_phones_only: bool


class SetupFacts(SqlAnswer):
    """`functions`: those of ours that the service may call. `guards`: valid indexes that forbid duplicates. Ages in seconds.

    `open`: our functions, tables and views that anon or authenticated may use, as GRANT names them.
    """

    now: AwareDatetime
    postgres: str
    read_only: bool
    vault: VaultFacts
    net: NetFacts
    functions: list[str]
    open: list[str]
    guards: list[str]
    calls: CallFacts | None
    oldest_due_s: float | None
    missed_signups: int
