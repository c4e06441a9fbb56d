"""Findings: the lines of the doctor's report, and words for a connection that failed."""

import socket
import ssl
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx

Clocks = MutableMapping[str, float]
"""Seconds by which the clock of each host is ahead of ours."""

_CAUSES: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "its TLS certificate is not valid for us",
    socket.gaierror: "its host name does not resolve",
    ssl.SSLError: "TLS failed: the listener does not speak it",
    httpx.ConnectTimeout: "it cannot be connected to in time",
    httpx.TimeoutException: "it did not answer in time",
    TimeoutError: "it did not answer in time",
    ConnectionRefusedError: "it refuses connections",
}


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
    """The check does not apply here, or another line names the failure that prevents it."""
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
    """Why a host gave no HTTP answer: the most telling error of the chain."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for kind, said in _CAUSES.items():
        for cause in chain:
            if isinstance(cause, kind):
                return f"{said}: {cause.verify_message}" if isinstance(cause, ssl.SSLCertVerificationError) else said
    return f"the connection failed ({type(error).__name__})"


def shown_url(url: str) -> str:
    """Without user, query and fragment, which may hold a secret."""
    try:
        parts = urlsplit(url.strip())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "an invalid URL"
