"""Findings: the lines of the doctor's report, and the words for a connection that failed."""

import socket
import ssl
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx

State = Literal["ok", "warning", "wrong", "skipped"]

NO_WEBHOOKS = "without DISPATCH_SECRET no webhooks are served: jobs wait for the sweep"

Clocks = MutableMapping[str, float]
"""How many seconds the clock of each host that answered is ahead of ours."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` says what to do, and is empty exactly when nothing is to be done."""

    check: str
    state: State
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def skipped(check: str, why: str) -> Finding:
    """It does not apply here, or cannot be looked at because of what another line calls wrong."""
    return Finding(check, "skipped", why)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


def wrong(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "wrong", found, advice)


def note_clock(clocks: Clocks, host: str, date: str | None) -> None:
    """Take down an HTTP Date header; one that is missing or odd says nothing."""
    try:
        clocks[host] = parsedate_to_datetime(date or "").timestamp() - time.time()
    except ValueError:
        return


def why_no_answer(error: BaseException) -> str:
    """Why a host gave no HTTP answer, in words."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "its host name does not resolve"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not valid for us: {cause.verify_message}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "TLS failed: what listens there does not speak it"
    if any(isinstance(cause, httpx.ConnectTimeout) for cause in causes):
        return "it cannot be connected to in time"
    if any(isinstance(cause, httpx.TimeoutException | TimeoutError) for cause in causes):
        return "it did not answer in time"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return "it refuses connections"
    return f"the connection failed ({type(error).__name__})"


def shown_url(url: str) -> str:
    """For people: without user, query and fragment, which may hold a secret."""
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return "what is no URL"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
