"""The facts that `check_call_setup` reports about a database. The doctor judges them."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict


class _Fact(BaseModel):
    """As check_call_setup answers. A newer database may say more; an older one less, where there is a default."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class VaultFacts(_Fact):
    """`hmac`: hexadecimal, of the nonce, under the key that signs webhooks."""

    url: str | None = None
    form: Literal["missing", "no prefix", "not base64", "ok"] = "missing"
    hmac: str | None = None
    error: str | None = None


class WebhookAnswer(_Fact):
    """One request of pg_net's, whoever's it was: an HTTP status, or an error."""

    status: int | None
    error: str | None
    age_s: float


class NetFacts(_Fact):
    installed: bool = True
    waiting: int = 0
    oldest_waiting: int | None = None
    answers: list[WebhookAnswer] = []
    error: str | None = None


class FunctionFacts(_Fact):
    """`required` is how many arguments, from the first, have no default."""

    name: str
    signature: str
    arguments: list[str]
    required: int
    definer: bool
    service: bool
    open_to: list[str]


class TableFacts(_Fact):
    name: str
    rls: bool
    open_to: list[str]


class TriggerFacts(_Fact):
    name: str
    table: str
    enabled: bool


class CallFacts(_Fact):
    """The row of private.call_settings. paused_until is a time or "infinity", in the database's words."""

    paused_until: str | None
    pause_reason: str | None
    paused_by: Literal["hand", "halt", "calls_per_day", "restore"] | None
    verified_phones_only: bool


class SetupFacts(_Fact):
    """A database as it is. Ages are in seconds; `migrations` is None when their history cannot be read, `dangling` are
    functions that ours call and that are not there."""

    now: AwareDatetime
    postgres: str
    read_only: bool
    migrations: list[str] | None
    vault: VaultFacts
    net: NetFacts
    functions: list[FunctionFacts]
    dangling: list[str]
    private_open_to: list[str]
    tables: list[TableFacts]
    triggers: list[TriggerFacts]
    indexes: Annotated[list[str], BeforeValidator(lambda names: [str(name).removeprefix("public.") for name in names])]
    calls: CallFacts | None
    oldest_due_s: float | None
    oldest_unattended_s: float | None
    missed_signups: int
