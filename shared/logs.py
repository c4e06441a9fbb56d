"""One JSON object a line, as Cloud Logging reads it; readable lines on a terminal. Nothing that leaves holds a phone number
or a secret, whoever wrote the line: masking is the last step before rendering, for our own lines and for the libraries'.

https://cloud.google.com/logging/docs/structured-logging
"""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

TRACE = "logging.googleapis.com/trace"
LABELS = "logging.googleapis.com/labels"

# Eight to fifteen digits that stand alone, as E.164 has them, with or without the plus sign (%2B in a URL). Not part of a
# SID, a uuid, a time with its colons, a decimal number or a longer run of digits.
_PHONE = re.compile(r"(?<![\w.:/-])(\+|%2B)?([1-9][0-9])([0-9]{4,11})([0-9]{2})(?![\w:-]|\.[0-9])", re.IGNORECASE)
_PLUS_PHONE = re.compile(r"(\+|%2B)([1-9][0-9])([0-9]{4,11})([0-9]{2})(?![0-9])", re.IGNORECASE)


def mask_phone(text: str) -> str:
    """Every phone number in `text`, less all but its first two and last two digits.

    >>> mask_phone("calling +14155550123")
    'calling +14•••23'
    """
    masked = _PLUS_PHONE.sub(r"\1\2•••\4", text)
    return _PHONE.sub(lambda found: f"{found[1] or ''}{found[2]}•••{found[4]}", masked)


class _Mask:
    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        return {str(key): self._value(value) for key, value in event.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self._value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(inner) for inner in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        text = str(value)
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return mask_phone(text)


def _one_line_exception(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["stack_trace"] = "".join(traceback.format_exception(error))  # JSON keeps it on one line
    return event


def _for_cloud_logging(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    shaped: EventDict = {
        "severity": str(event.pop("level", "info")).upper(),
        "message": event.pop("event", ""),
        "time": event.pop("timestamp", None),
    }
    trace, project = event.pop("trace", None), os.environ.get("GOOGLE_CLOUD_PROJECT")
    if trace:
        shaped[TRACE] = f"projects/{project}/traces/{trace}" if project else trace
    labels = {name: str(event[name]) for name in ("job", "attempt") if event.get(name) is not None}
    if labels:
        shaped[LABELS] = labels
    return {**shaped, **event}


def configure_logs(stream: TextIO | None = None, *, as_json: bool | None = None, secrets: Iterable[str] = ()) -> None:
    """Once a process. `as_json`: not given, on Cloud Run and wherever standard output is no terminal."""
    stream = stream or sys.stdout
    if as_json is None:
        as_json = "K_SERVICE" in os.environ or not stream.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _one_line_exception,
    ]
    render: list[structlog.typing.Processor]
    if as_json:
        render = [_Mask(secrets), _for_cloud_logging, structlog.processors.JSONRenderer(json.dumps, ensure_ascii=False)]
    else:
        render = [_Mask(secrets), structlog.dev.ConsoleRenderer()]
    structlog.configure(
        processors=[*shared, *render],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(
        handlers=[handler], level=logging.WARNING, force=True
    )  # twilio and httpx log URLs with numbers at INFO


def bind_trace(headers: Any) -> None:
    """X-Cloud-Trace-Context (TRACE/SPAN;o=1) or traceparent (version-trace-span-flags), when one is there."""
    found = re.match(r"([0-9a-f]{32})/", headers.get("X-Cloud-Trace-Context", "")) or re.match(
        r"[0-9a-f]{2}-([0-9a-f]{32})-", headers.get("traceparent", "")
    )
    if found:
        structlog.contextvars.bind_contextvars(trace=found[1])


def clear() -> None:
    """Forget what was bound: a thread serves one request after another."""
    structlog.contextvars.clear_contextvars()
