"""Findings: the lines of the doctor's report."""

import contextlib
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, Literal
from urllib.parse import urlsplit

Clocks = MutableMapping[str, float]
"""Seconds by which the clock of each host is ahead of ours."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `advice` is set exactly when there is something to do."""

    state: Literal["ok", "warning", "wrong", "skipped"]
    check: str
    found: str
    advice: str = ""


ok: Final = partial(Finding, "ok")
warning: Final = partial(Finding, "warning")
wrong: Final = partial(Finding, "wrong")
skipped: Final = partial(Finding, "skipped")
"""The check does not apply here, or another line names the failure that prevents it."""


def note_clock(clocks: Clocks, host: str, date: str | None) -> None:
    """Compare an HTTP Date header with our clock. A missing or malformed one is ignored."""
    with contextlib.suppress(ValueError):
        clocks[host] = parsedate_to_datetime(date or "").timestamp() - time.time()


def shown_url(url: str) -> str:
    """Without user, query and fragment, which may hold a secret."""
    try:
        parts = urlsplit(url.strip())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "an invalid URL"
