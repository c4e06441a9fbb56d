"""The doctor: is everything set up so that people will be called? It asks, and never dials nor writes.

    python -m function.doctor           one line a check: ok, warning, wrong, or skipped; and what to do
    python -m function.doctor --json    the same for scripts: a list of {check, state, found, advice}

To be run where the function, the worker or the cron job runs: same image, same environment. Exit code 0: ok, perhaps with
warnings; 1: something is wrong; 2: the settings cannot be read.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

import phonenumbers

from shared.conversation.library import ScriptError, Scripts
from shared.doctor.database import look
from shared.doctor.findings import Clocks, Finding, ok, skipped, warning, wrong
from shared.doctor.twilio import check_twilio
from shared.doctor.url import check_public_url, check_vault_url
from shared.logs import mask_phone
from shared.screening import Refusal, library_date, parse_number, screen, table_date
from shared.settings import Settings, SettingsError, load_settings
from shared.setup_facts import SetupFacts

MAX_WAIT_SECONDS: Final = 20.0
"""For all hosts together; each is asked with timeouts of its own, and a name that takes long to resolve knows none."""
SKEW_SECONDS: Final = 60.0
"""Signatures are believed for 5 minutes, and a dial within 2 s is measured by our own clock."""

AREA_CODES_AGE: Final = timedelta(days=270)
"""About eight area codes come into service each year."""

_MARKS: Final = {"ok": "ok      ", "warning": "WARNING ", "wrong": "WRONG   ", "skipped": "skipped "}


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, in order. What one check finds never keeps another from looking."""
    clocks: dict[str, float] = {}
    yield from _settings(settings)
    yield from _scripts()
    yield from _area_codes()
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        "database": lambda: _database(settings, clocks),
        "Twilio": lambda: check_twilio(settings, clocks),
        "public address": lambda: check_public_url(settings, clocks),
    }
    yield from _all_at_once(parts)
    yield _clock(clocks)


def _all_at_once(parts: Mapping[str, Callable[[], Iterable[Finding]]]) -> Iterator[Finding]:
    """The findings of each part, in order. A part that hangs is left behind with what it has found so far."""
    until = time.monotonic() + MAX_WAIT_SECONDS
    found: dict[str, list[Finding]] = {name: [] for name in parts}

    def work(name: str) -> None:
        try:
            for finding in parts[name]():
                found[name].append(finding)
        except Exception as error:  # noqa: BLE001 - the others are still to be told
            odd = f"the doctor stumbled: {type(error).__name__}: {error}"
            found[name].append(wrong(name, odd, "this is a fault of the doctor's: please report it"))

    threads = {name: threading.Thread(target=work, args=(name,), daemon=True) for name in parts}
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        so_far = list(found[name])
        if thread.is_alive():
            late = f"no end within {MAX_WAIT_SECONDS:g} s"
            so_far.append(
                wrong(name, late, "a host hangs, or its name takes for ever to resolve: look at DNS and egress rules")
            )
        yield from so_far


def _scripts() -> Iterator[Finding]:
    try:
        Scripts()
    except ScriptError as error:
        yield wrong("scripts", str(error), "correct the files in shared/scripts, and build the image anew")
    else:
        yield ok("scripts", "what the calls say is valid")


def _settings(settings: Settings) -> Iterator[Finding]:
    yield ok("settings", "all are there and well-formed")
    if not settings.dispatch_secrets:
        yield warning(
            "webhook secret",
            "DISPATCH_SECRET is not set: right for a worker or a cron job (function.sweep); the web function would not start",
            'where HTTP is served, make one: echo "whsec_$(openssl rand -base64 32)"',
        )
    if settings.call_only_to is not None:
        now = datetime.now(UTC)
        numbers = [parse_number(number, settings) for number in settings.call_only_to]
        screened = [screen(number, {}, settings, now) for number in numbers]
        refused = [answer for answer in screened if isinstance(answer, Refusal)]
        if refused:
            yield wrong(
                "CALL_ONLY_TO",
                f"{len(refused)} of its {len(screened)} numbers would be refused all the same: {refused[0].reason}",
                "name their countries in CALL_COUNTRIES; only numbers of ordinary phones are called",
            )
            return
        called = "1 number is" if len(screened) == 1 else f"{len(screened)} numbers are"
        yield warning(
            "CALL_ONLY_TO",
            f"only {called} called, other jobs fail: right for staging and a first call",
            "take CALL_ONLY_TO out of the environment when everybody is to be called",
        )


def _area_codes() -> Iterator[Finding]:
    """The library and our table must know the area codes in service: a new one is refused until an upgrade."""
    library = library_date()
    age = f"of {library:%B %Y}" if library else "newer or older than the one our table was compared with"
    found = f"phonenumbers {phonenumbers.__version__}, {age}; our table of area codes is of {table_date():%d %b %Y}"
    if datetime.now(UTC).date() - table_date() > AREA_CODES_AGE:
        yield warning(
            "area codes", found, "upgrade: jobs with an area code in service since then fail (area_code_unknown)"
        )
    else:
        yield ok("area codes", found)


def _database(settings: Settings, clocks: Clocks) -> Iterator[Finding]:
    for found in look(settings, clocks):
        yield check_vault_url(settings, found) if isinstance(found, SetupFacts) else found


def _clock(clocks: Mapping[str, float]) -> Finding:
    off = {host: ahead for host, ahead in clocks.items() if abs(ahead) > SKEW_SECONDS}
    if off:
        said = ", ".join(f"{host} by {ahead:+.0f} s" for host, ahead in off.items())
        return warning(
            "clock",
            f"ours differs from {said}",
            "set this machine's clock by NTP: old signatures are refused after 5 minutes",
        )
    return (
        ok("clock", f"agrees with {', '.join(clocks)}")
        if clocks
        else skipped("clock", "nobody answered to compare it with")
    )


def _hide(finding: Finding, settings: Settings | None) -> Finding:
    """Whatever a host said: it is one line, and no secret and no whole number leaves the program."""

    def clean(text: str) -> str:
        text = " ".join(text.split())
        if settings is None:
            return mask_phone(text)
        for secret in settings.secrets:
            for shape in (secret, secret.removeprefix("whsec_"), quote(secret, safe="")):
                text = text.replace(shape, "[secret]")
        # Our own address may hold a project's number, and is there to be copied.
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
        advice = "set it where this container gets its environment; .env.example says what each setting is"
        problems = [wrong("settings", problem, advice) for problem in error.problems]
        _print([*problems, *_scripts()], None, options.json)
        return 2
    shown = _print(examine(settings), settings, options.json)
    return 1 if any(finding.state == "wrong" for finding in shown) else 0


if __name__ == "__main__":
    sys.exit(main())
