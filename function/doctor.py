"""The doctor: is everything set up so that people are called? It asks, and never dials or writes.

Where RESULT_URL is set, it sends one event of the type `test` there.

    python -m function.doctor           one line for each check: ok, warning, wrong or skipped, with advice
    python -m function.doctor --json    for scripts: a list of {check, state, found, advice}

Run it where the function, the worker or the cron job runs: same image, same environment. Exit code 0: ok, perhaps with
warnings; 1: something is wrong, or calls are paused; 2: the settings cannot be read.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

from shared.doctor.database import check_database
from shared.doctor.findings import Finding, ok, skipped, warning, wrong
from shared.doctor.twilio import check_twilio
from shared.doctor.url import check_public_url
from shared.logs import Mask
from shared.results import post_test
from shared.screening import AREA_CODES_READ_ON, Refusal, parse_number, screen
from shared.settings import Settings, SettingsError, load_settings, unknown_settings

SKEW_SECONDS: Final = 60.0
"""Signatures are accepted for 5 minutes, and our own clock limits a dial to 2 s."""
AREA_CODES_AGE: Final = timedelta(days=270)
"""About eight area codes come into service each year."""
ENVIRONMENT: Final = "set it where this container gets its environment; .env.example describes each setting"
RECEIVER: Final = {
    "HTTP 401": "give the receiver this RESULT_SECRET; in front of it no login (Supabase: deploy with --no-verify-jwt)",
    "HTTP 404": "set RESULT_URL to the receiver's exact address",
    "HTTP 410": "the receiver wants no events: each result that it answers so is never told",
    "its certificate could not be verified": "serve the whole chain, for the host of RESULT_URL; results wait meanwhile",
    "due": "results wait meanwhile, and are sent again for three days",
}
_MARKS: Final = {"ok": "ok", "warning": "WARNING", "wrong": "WRONG", "skipped": "skipped"}


def examine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """All findings, in order. A check that fails does not stop the others."""
    clocks: dict[str, float] = {}
    yield from _settings(settings, environ)
    yield from _old_tables(settings)
    yield from check_database(settings, clocks)
    yield from check_twilio(settings)
    yield from check_public_url(settings, clocks)
    yield from _results(settings)
    yield _clock(clocks)


def _settings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield ok("settings", "all are there and well-formed")
    if unknown := unknown_settings(environ):
        names = ", ".join(name + (f" (do you mean {near}?)" if near else "") for name, near in unknown.items())
        yield warning("unknown settings", f"nothing reads {names}", "correct the names, or take them out")
    if not settings.dispatch_secrets:
        found = "DISPATCH_SECRET is not set: right for a worker or a cron job; the web function does not start"
        yield warning("webhook secret", found, 'for HTTP, make one: echo "whsec_$(openssl rand -base64 32)"')
    now, numbers = datetime.now(UTC), [parse_number(number, settings) for number in settings.call_only_to or ()]
    screened = [screen(number, {}, settings, now) for number in numbers]
    if refused := [answer for answer in screened if isinstance(answer, Refusal)]:
        found = f"{len(refused)} of its {len(screened)} numbers would be refused: {refused[0].reason}"
        yield wrong("CALL_ONLY_TO", found, "name their countries in CALL_COUNTRIES; only ordinary phones are called")
    elif screened:
        called = "1 number is" if len(screened) == 1 else f"{len(screened)} numbers are"
        found = f"only {called} called, other jobs fail: right for staging and a first call"
        yield warning("CALL_ONLY_TO", found, "take CALL_ONLY_TO out of the environment to call everybody")


def _old_tables(settings: Settings) -> Iterator[Finding]:
    today, hours = datetime.now(UTC).date(), settings.calling_hours
    if today - AREA_CODES_READ_ON > AREA_CODES_AGE:
        advice = "upgrade: jobs with a newer area code fail (area_code_unknown)"
        yield warning("area codes", f"our table of area codes is of {AREA_CODES_READ_ON:%d %b %Y}", advice)
    if hours and hours.review_after and today > hours.review_after:
        found = f"the rules of {settings.call_hours} were read on {hours.read}; their review was due by {hours.review_after}"
        advice = "read the sources in shared/hours again, correct the rules, and set a new date"
        yield warning("CALL_HOURS", found, advice)


def _results(settings: Settings) -> Iterator[Finding]:
    """The receiver's answer to a signed event. Only the host is shown, because path and query may hold a secret."""
    if settings.result_url is None:
        return
    outcome = post_test(settings)
    found = f"{urlsplit(settings.result_url).hostname} answers an event of the type test: {outcome.note}"
    if outcome.state == "told":
        yield ok("results", found)
    else:
        yield wrong("results", found, RECEIVER.get(outcome.note, f"read the receiver's log; {RECEIVER['due']}"))


def _clock(clocks: Mapping[str, float]) -> Finding:
    if off := [f"{host} by {ahead:+.0f} s" for host, ahead in clocks.items() if abs(ahead) > SKEW_SECONDS]:
        ntp = "set this machine's clock by NTP: signatures older than 5 minutes are refused"
        return warning("clock", f"ours differs from {', '.join(off)}", ntp)
    return ok("clock", f"agrees with {', '.join(clocks)}") if clocks else skipped("clock", "no host answered")


def _print(findings: Iterable[Finding], settings: Settings | None, as_json: bool) -> list[dict[str, str]]:
    """Each finding without secrets and whole numbers: hosts may answer with any text. -> the printed findings."""
    mask = Mask(settings.secrets if settings else ())
    ours = settings.api_base_url if settings else "\0"  # may hold a project's number, and stays whole, to be copied
    shown: list[dict[str, str]] = []
    for finding in findings:
        line = {"check": finding.check, "state": finding.state, "found": finding.found, "advice": finding.advice}
        line = {key: ours.join(map(mask.text, " ".join(text.split()).split(ours))) for key, text in line.items()}
        shown.append(line)
        if not as_json:
            print(f"{_MARKS[line['state']]:8} {line['check']:20} {line['found']}", flush=True)
            if line["advice"]:
                print(f"{'':29} -> {line['advice']}", flush=True)
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        count = Counter(line["state"] for line in shown)
        print(", ".join(f"{count[state]} {state}" for state in _MARKS if count[state]))
    return shown


def main(arguments: list[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m function.doctor", description="Is everything set up? Never dials.")
    parser.add_argument("--json", action="store_true", help="for scripts: a list of {check, state, found, advice}")
    options = parser.parse_args(arguments)
    environ = os.environ if environ is None else environ
    try:
        settings = load_settings(http=False, environ=environ)
    except SettingsError as error:
        _print([wrong("settings", problem, ENVIRONMENT) for problem in error.problems], None, options.json)
        return 2
    shown = _print(examine(settings, environ), settings, options.json)
    return int(any(line["state"] == "wrong" for line in shown))


if __name__ == "__main__":
    sys.exit(main())
