"""The doctor: is everything set up so that people are called? It asks, and never dials or writes.

    python -m function.doctor           one line for each check: ok, warning, wrong or skipped, with advice
    python -m function.doctor --json    for scripts: a list of {check, state, found, advice}

Run it where the function, the worker or the cron job runs: same image, same environment. Exit code 0: ok, perhaps with
warnings; 1: something is wrong, or calls are paused; 2: the settings cannot be read.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

import phonenumbers

from shared.conversation.library import ScriptError, Scripts
from shared.doctor.database import check_database
from shared.doctor.findings import Finding, ok, skipped, warning, wrong
from shared.doctor.twilio import check_twilio
from shared.doctor.url import check_public_url
from shared.logs import mask_phone
from shared.screening import Refusal, library_date, parse_number, screen, table_date
from shared.settings import Settings, SettingsError, load_settings, unknown_settings

SKEW_SECONDS: Final = 60.0
"""Signatures are accepted for 5 minutes, and our own clock limits a dial to 2 s."""
AREA_CODES_AGE: Final = timedelta(days=270)
"""About eight area codes come into service each year."""
ENVIRONMENT: Final = "set it where this container gets its environment; .env.example describes each setting"

_MARKS: Final = {"ok": "ok      ", "warning": "WARNING ", "wrong": "WRONG   ", "skipped": "skipped "}


def examine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """All findings, in order. A check that fails does not stop the others."""
    clocks: dict[str, float] = {}
    yield from _settings(settings, environ)
    yield from _scripts()
    yield _area_codes()
    yield from _hours(settings)
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "database": lambda: check_database(settings, clocks),
        "Twilio": lambda: check_twilio(settings),
        "public address": lambda: check_public_url(settings, clocks),
    }
    for name, check in parts.items():
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - the other parts go on
            failure = f"the doctor failed: {type(error).__name__}: {error}"
            yield wrong(name, failure, "this is a fault of the doctor's: please report it")
    yield _clock(clocks)


def _settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield ok("settings", "all are there and well-formed")
    if unknown := unknown_settings(environ):
        names = ", ".join(name + (f" (do you mean {near}?)" if near else "") for name, near in unknown.items())
        yield warning("unknown settings", f"nothing reads {names}", "correct the names, or take them out")
    if not settings.dispatch_secrets:
        found = "DISPATCH_SECRET is not set: right for a worker or a cron job; the web function does not start"
        yield warning("webhook secret", found, 'for HTTP, make one: echo "whsec_$(openssl rand -base64 32)"')
    if settings.call_only_to is None:
        return
    numbers = [parse_number(number, settings) for number in settings.call_only_to]
    screened = [screen(number, {}, settings, datetime.now(UTC)) for number in numbers]
    if refused := [answer for answer in screened if isinstance(answer, Refusal)]:
        found = f"{len(refused)} of its {len(screened)} numbers would be refused: {refused[0].reason}"
        yield wrong("CALL_ONLY_TO", found, "name their countries in CALL_COUNTRIES; only ordinary phones are called")
    else:
        called = "1 number is" if len(screened) == 1 else f"{len(screened)} numbers are"
        found = f"only {called} called, other jobs fail: right for staging and a first call"
        yield warning("CALL_ONLY_TO", found, "take CALL_ONLY_TO out of the environment to call everybody")


def _scripts() -> Iterator[Finding]:
    try:
        Scripts()
    except ScriptError as error:
        yield wrong("scripts", str(error), "correct the files in shared/scripts, and build the image again")
    else:
        yield ok("scripts", "the scripts of the calls are valid")


def _area_codes() -> Finding:
    """The library and our table must know the area codes in service. A new one is refused until an upgrade."""
    library = library_date()
    age = f"of {library:%B %Y}" if library else "newer or older than the one our table was compared with"
    found = f"phonenumbers {phonenumbers.__version__}, {age}; our table of area codes is of {table_date():%d %b %Y}"
    if datetime.now(UTC).date() - table_date() > AREA_CODES_AGE:
        return warning("area codes", found, "upgrade: jobs with a newer area code fail (area_code_unknown)")
    return ok("area codes", found)


def _hours(settings: Settings) -> Iterator[Finding]:
    """Rules by place get old: laws change."""
    hours = settings.calling_hours
    if hours and hours.review_after and datetime.now(UTC).date() > hours.review_after:
        found = f"the rules of {settings.call_hours} were read on {hours.read}; their review was due by {hours.review_after}"
        advice = "read the sources in shared/hours again, correct the rules, and set a new date"
        yield warning("CALL_HOURS", found, advice)


def _clock(clocks: Mapping[str, float]) -> Finding:
    if off := [f"{host} by {ahead:+.0f} s" for host, ahead in clocks.items() if abs(ahead) > SKEW_SECONDS]:
        ntp = "set this machine's clock by NTP: signatures older than 5 minutes are refused"
        return warning("clock", f"ours differs from {', '.join(off)}", ntp)
    return ok("clock", f"agrees with {', '.join(clocks)}") if clocks else skipped("clock", "no host answered")


def _hide(finding: Finding, settings: Settings | None) -> Finding:
    """One line, without secrets and whole numbers. Hosts may answer with any text."""

    def clean(text: str) -> str:
        text = " ".join(text.split())
        if settings is None:
            return mask_phone(text)
        for secret in settings.secrets:
            for shape in (secret, secret.removeprefix("whsec_"), quote(secret, safe="")):
                text = text.replace(shape, "[secret]")
        # Our own address stays whole, to be copied. It may hold a project's number.
        return settings.api_base_url.join(mask_phone(part) for part in text.split(settings.api_base_url))

    return replace(finding, found=clean(finding.found), advice=clean(finding.advice))


def _print(findings: Iterable[Finding], settings: Settings | None, as_json: bool) -> list[Finding]:
    shown = []
    for finding in findings:
        finding = _hide(finding, settings)
        shown.append(finding)
        if not as_json:
            print(f"{_MARKS[finding.state]} {finding.check:20} {finding.found}", flush=True)
            if finding.advice:
                print(f"{'':29} -> {finding.advice}", flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in shown], indent=2))
    else:
        count = {state: sum(finding.state == state for finding in shown) for state in _MARKS}
        print(", ".join(f"{number} {state}" for state, number in count.items() if number))
    return shown


def main(arguments: list[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m function.doctor", description="Is everything set up? Never dials.")
    parser.add_argument("--json", action="store_true", help="for scripts: a list of {check, state, found, advice}")
    options = parser.parse_args(arguments)
    environ = os.environ if environ is None else environ
    try:
        settings = load_settings(http=False, environ=environ)
    except SettingsError as error:
        problems = [wrong("settings", problem, ENVIRONMENT) for problem in error.problems]
        _print([*problems, *_scripts()], None, options.json)
        return 2
    shown = _print(examine(settings, environ), settings, options.json)
    return 1 if any(finding.state == "wrong" for finding in shown) else 0


if __name__ == "__main__":
    sys.exit(main())
