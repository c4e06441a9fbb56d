"""Would this number be called, and when? Who waits, and why? By the dispatcher's own rules; it never dials or writes.

    python -m function.explain +14155550100 --mode demo --at "2026-12-25 12:00" --metadata '{"timezone": "America/Denver"}'
    python -m function.explain    all who wait: how many are called now, later and never, by reason

For a number it asks neither Twilio nor the database. Caps, pauses and opt-outs stand there: `select explain_call_job(42)`.
Exit code 0: it is answered; 1: the database did not answer; 2: an argument, a setting or a script is wrong.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from shared.conversation.library import ScriptError, Scripts
from shared.conversation.rehearse import quoted
from shared.conversation.turns import first_turn
from shared.jobs import Jobs, JobsUnavailable
from shared.logs import mask_phone
from shared.models import Person
from shared.screening import PutOff, Refusal, parse_number, persons_clock, screen
from shared.settings import Settings, SettingsError, load_settings
from shared.stats import Waiting, WaitingJob

UNUSED: Final = {
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "0" * 32,
    "API_BASE_URL": "http://127.0.0.1",
}
"""Required settings that no answer depends on: they need not be set. Nor these, for a number."""
UNUSED_FOR_A_NUMBER: Final = UNUSED | {
    "SUPABASE_URL": "http://127.0.0.1",
    "SUPABASE_SERVICE_KEY": "sb_secret_" + "0" * 24,
}
SOME_NUMBER: Final = "+15005550006"
"""Twilio's test number, in place of a TWILIO_PHONE_NUMBER that is not set."""
FOR_GOOD: Final = ("opted_out", "user_banned", "number_reached")
LONGEST: Final = 1000  # of a value in the metadata; the database passes no longer one on

Verdict = tuple[str, str, datetime | None]
"""now, later or never; the code of the reason; from when."""


def judge(held: Refusal | PutOff | None) -> Verdict:
    """The meaning of `screen`'s answer: the dispatcher refuses, puts off and dials by the same one."""
    if isinstance(held, PutOff):
        return "later", held.code, held.until
    return ("now", "", None) if held is None else ("never", held.code, None)


def judge_waiting(job: WaitingJob, waiting: Waiting, settings: Settings) -> Verdict:
    """A job that is due later is judged by the rules of that moment."""
    if job.held in FOR_GOOD:
        return "never", job.held, None
    number, moment = parse_number(job.phone_number, settings), max(waiting.now, job.due_at)
    when, code, until = judge(screen(number, job.metadata, settings, moment, redial=job.redial))
    if when == "never":
        return when, code, until
    if job.due_at > waiting.now:
        return "later", job.reason_code or "not_due_yet", until or job.due_at
    if waiting.paused is not None:
        return "later", "paused", until
    return ("later", job.held, job.until) if job.held else (when, code, until)


def explain_waiting(jobs: Jobs, settings: Settings) -> Iterator[str]:
    """All who wait, in a few lines. Raises JobsUnavailable."""
    found: dict[tuple[str, str], list[tuple[datetime | None, int]]] = defaultdict(list)
    per_number, per_prefix = settings.calls_per_number_per_day, settings.calls_per_prefix_per_hour
    waiting = jobs.waiting(0, calls_per_number_per_day=per_number, calls_per_prefix_per_hour=per_prefix)
    paused = waiting.paused
    while waiting.jobs:
        for job in waiting.jobs:
            when, code, until = judge_waiting(job, waiting, settings)
            found[when, code].append((until, job.id))
        last = waiting.jobs[-1].id
        waiting = jobs.waiting(last, calls_per_number_per_day=per_number, calls_per_prefix_per_hour=per_prefix)
    number = sum(map(len, found.values()))
    yield f"{number} jobs wait" + (f"; all calls are paused: {mask_phone(paused)}" if paused else "")
    for group in ("now", "later", "never"):
        reasons = {code: each for (when, code), each in found.items() if when == group}
        yield f"{group:6} {sum(map(len, reasons.values()))}"
        for code, each in sorted(reasons.items(), key=lambda reason: -len(reason[1])):
            from_ = min((until for until, _ in each if until), default=None)
            if code:
                since = f", the first from {from_.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if from_ else ""
                yield f"       {len(each)} {code}{since}, such as job {each[0][1]}"
    yield "The story of one: select explain_call_job(<job>)"


def explain_number(
    typed: str, mode: str | None, at: datetime | None, given: dict[str, Any], settings: Settings
) -> Iterator[str]:
    """The answer about one number, in a few lines. `at` without an offset is by the person's clock. Raises ScriptError."""
    spoken = {key: value for key, value in given.items() if isinstance(value, str | int | float)}
    metadata = {key: value for key, value in spoken.items() if len(str(value)) <= LONGEST}
    number, zone, at = parse_number(typed, settings), ZoneInfo("UTC"), at or datetime.now(UTC)
    if not isinstance(number, Refusal):
        zone, _ = persons_clock(number, metadata, at.replace(tzinfo=at.tzinfo or UTC))
    at = at.replace(tzinfo=at.tzinfo or zone)
    held = screen(number, metadata, settings, at.astimezone(UTC))
    when, code, until = judge(held)
    yield f"number  {'cannot be read' if isinstance(number, Refusal) else f'{mask_phone(number.e164)} ({number.region})'}"
    yield f"moment  {_told(at, zone)}"
    yield f"called  {when}" + (f": {mask_phone(held.reason)} ({code})" if held else "")
    if until:
        yield f"from    {_told(until, zone)}"
    if when != "never":
        mode = mode or str(metadata.get("signup_mode") or "default")
        person = Person(first_name=None, signup_mode=mode, metadata=metadata)  # its name is read from the metadata
        script = Scripts().for_person(person)
        yield f"by      {settings.twilio_phone_number}"
        yield f"words   {script.name}.toml ({script.language}, {script.voice})"
        turn = first_turn(script)
        yield from quoted(script, turn.says + turn.asks, person)
    yield "Caps, opt-outs and pauses are in the database: select explain_call_job(p_phone_number => '<number>')"


def _told(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%A %d %B %Y %H:%M} in {zone.key} ({moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC)"


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a time such as "2026-12-25 12:00"') from None
    if not 2000 <= moment.year <= 2100:
        raise argparse.ArgumentTypeError("the year must be between 2000 and 2100")
    return moment


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"invalid JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object such as {"timezone": "Europe/Berlin"}')
    return value


def _mode(text: str) -> str:
    if not 1 <= len(text.strip()) <= 64:
        raise argparse.ArgumentTypeError("must have 1 to 64 characters")
    return text.strip().lower()


def main(arguments: list[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    about = "Who is called, and why not? Never dials."
    parser = argparse.ArgumentParser(prog="python -m function.explain", description=about)
    parser.add_argument("number", nargs="?", help="as typed; without it: all who wait")
    parser.add_argument("--mode", type=_mode, help="the signup_mode, which chooses the script")
    when = "by the person's clock, or with an offset; default: now"
    parser.add_argument("--at", type=_moment, metavar="TIME", help=when)
    signup = 'of the sign-up: {"timezone": "Europe/Berlin"}'
    parser.add_argument("--metadata", type=_object, metavar="JSON", help=signup)
    options = parser.parse_args(arguments)
    for name in ("mode", "at", "metadata"):
        if options.number is None and getattr(options, name) is not None:
            parser.error(f"argument --{name}: needs a number")
    environ = {name: value for name, value in (os.environ if environ is None else environ).items() if value.strip()}
    unused = UNUSED
    if options.number is not None:
        unused = UNUSED_FOR_A_NUMBER | {"TWILIO_PHONE_NUMBER": SOME_NUMBER}
        if "TWILIO_PHONE_NUMBER" not in environ:
            print(f"TWILIO_PHONE_NUMBER is not set: answered as for {SOME_NUMBER}", file=sys.stderr)
    try:
        settings = load_settings(http=False, environ={**unused, **environ})
        if options.number is not None:
            lines = explain_number(options.number, options.mode, options.at, options.metadata or {}, settings)
        else:
            from shared.database import connect

            lines = explain_waiting(Jobs(connect(settings)), settings)
        for line in lines:
            print(line)
    except (SettingsError, ScriptError) as error:
        print(error, file=sys.stderr)
        return 2
    except JobsUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
