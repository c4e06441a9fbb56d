"""Findings: the lines of the doctor's report, and words for a connection that failed."""

import socket
import ssl
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx

Clocks = MutableMapping[str, float]
"""Seconds by which the clock of each host is ahead of ours."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` is set exactly when there is something to do."""

    check: str
    state: Literal["ok", "warning", "wrong", "skipped"]
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def skipped(check: str, why: str) -> Finding:
    """The check does not apply here, or something that another line calls wrong prevents it."""
    return Finding(check, "skipped", why)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


def wrong(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "wrong", found, advice)


def note_clock(clocks: Clocks, host: str, date: str | None) -> None:
    """Compare an HTTP Date header with our clock. A missing or malformed one is ignored."""
    try:
        clocks[host] = parsedate_to_datetime(date or "").timestamp() - time.time()
    except ValueError:
        return


def why_no_answer(error: BaseException) -> str:
    """Why a host gave no HTTP answer."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not valid for us: {cause.verify_message}"
    words: dict[str, type[BaseException] | tuple[type[BaseException], ...]] = {
        "its host name does not resolve": socket.gaierror,
        "TLS failed: the listener does not speak it": ssl.SSLError,
        "it cannot be connected to in time": httpx.ConnectTimeout,
        "it did not answer in time": (httpx.TimeoutException, TimeoutError),
        "it refuses connections": ConnectionRefusedError,
    }
    said = (said for said, kind in words.items() if any(isinstance(cause, kind) for cause in causes))
    return next(said, f"the connection failed ({type(error).__name__})")


def shown_url(url: str) -> str:
    """Without user, query and fragment, which may hold a secret."""
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return "an invalid URL"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
