"""Structured logging: one line per event. Phone numbers and secrets are masked, in libraries' lines too.

On Cloud Run, and where standard output is not a terminal, a line is one JSON object for Cloud Logging. On a terminal it is
plain text. Our lines (`structlog.get_logger()`) and the libraries' lines go through one handler, so both are masked, and
lines of different threads do not mix. The libraries log from WARNING: at INFO, twilio and httpx write whole URLs.

https://cloud.google.com/logging/docs/structured-logging
https://cloud.google.com/error-reporting/docs/formatting-error-messages
"""

import contextlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Final, Protocol, TextIO
from urllib.parse import quote

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_OURS: Final = "dispatcher"
_TRACE_ID: Final = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?![0-9a-z])")
_DEEPEST: Final = 8
"""Levels of nesting that are written. A value may contain itself."""

# The start of a word: digits inside a word, such as a SID, are not a phone number. A word also starts after an escape that
# ends in a letter or digit, as in `%3D14155550123` or the repr of a line break.
_BEGIN: Final = r"(?:(?<![0-9A-Za-z%])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
_END: Final = r"(?![0-9A-Za-z])"
_PLUS: Final = r"(?:[+\uff0b]|%(?:25)*2B)"
_PHONE: Final = re.compile(
    # Kept: uuids, whose groups may be all digits, and times with many decimals.
    rf"(?P<kept>(?:{_PLUS}|{_BEGIN})[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}{_END}"
    rf"|{_BEGIN}[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[T ][0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(?:\.[0-9]{{1,9}})?(?!\d))"
    # E.164; then, as people type it, with spaces and dashes; without the plus sign; and as Americans write it.
    rf"|(?P<plus>{_PLUS})(?P<digits>\d{{8,15}}(?!\d)|\d(?:[ ().-]{{0,2}}\d){{7,14}}(?!\d))"
    rf"|{_BEGIN}\d{{8,15}}(?!\d){_END}"
    rf"|{_BEGIN}\(?\d{{3}}\)?[ .-]{{1,2}}\d{{3}}[ .-]\d{{4}}(?!\d){_END}",
    re.IGNORECASE,
)


def mask_phone(text: str) -> str:
    """Reduce each phone number in `text` to its first digit and its last two.

    A phone number is a separate run of 8 to 15 digits, or an American number as people write it. After a plus sign (`%2B`
    in a URL) it may hold spaces and dashes. Digits in a SID or another word, in a uuid and in an ISO time stay.

    >>> mask_phone("calling +14155550123")
    'calling +1*******23'
    """
    return _PHONE.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    if found["kept"]:
        return found["kept"]
    digits = re.sub(r"\D", "", found["digits"] or found[0])
    return f"{found['plus'] or ''}{digits[0]}*******{digits[-2:]}"


class Mask:
    """Replaces phone numbers and secrets at any depth, and turns every other value into one that JSON has."""

    def __init__(self, secrets: Iterable[str]) -> None:
        bare = {part for secret in secrets for part in (secret, secret.removeprefix("whsec_")) if part}
        shapes = bare | {quote(secret, safe="") for secret in bare}
        # The longest first: a shorter secret may be the beginning of a longer one, whose rest would stay.
        longest_first = sorted(shapes, key=len, reverse=True)
        self._secret = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        kept = {name: event.pop(name) for name in ("_record", "_from_structlog")}
        return {self.text(name): self.value(value) for name, value in event.items()} | kept

    def text(self, text: str) -> str:
        # Secrets first: a secret may hold a run of digits, and would not be found after these are masked.
        return mask_phone(self._secret.sub("[secret]", text))

    def value(self, value: Any, depth: int = 0) -> Any:
        # Numbers stay: they are ids, counts and durations. A phone number is always text.
        if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
            return value
        if depth < _DEEPEST:
            if isinstance(value, Mapping):
                return {self.text(_safe_str(key)): self.value(inner, depth + 1) for key, inner in value.items()}
            if isinstance(value, list | tuple | AbstractSet):
                return [self.value(inner, depth + 1) for inner in value]
        return self.text(_safe_str(value))


def _safe_str(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a value without a text must not stop the work that logs it
        return f"<{type(value).__name__}>"


def _stack_trace(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    if "exception" in event:
        event["stack_trace"] = event.pop("exception")
    return event


def _for_cloud_logging(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event.pop("_record")
    ours: bool = event.pop("_from_structlog")
    line: EventDict = {
        "severity": record.levelname,
        "message": event.pop("event"),
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
    }
    if record.levelno >= logging.ERROR:
        # With this type, Error Reporting takes the entry without a stack trace, too.
        line["@type"] = "type.googleapis.com/google.devtools.clouderrorreporting.v1beta1.ReportedErrorEvent"
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    if project and "trace" in event:
        line["logging.googleapis.com/trace"] = f"projects/{project}/traces/{event.pop('trace')}"
    labels = {name: str(event[name]) for name in ("job", "attempt") if event.get(name) is not None}
    if labels:
        line["logging.googleapis.com/labels"] = labels
    if not ours:
        line["logger"] = record.name
    # An event's own `message` or `time` must not replace these.
    return {**line, **{name: value for name, value in event.items() if name not in line}}


def _for_people(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog")
    trace = event.pop("stack_trace", None)
    line: EventDict = {name: _printable(value) for name, value in event.items()}
    line["timestamp"] = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
    line["level"] = record.levelname.lower()
    if trace:
        line["exception"] = "\n".join(_printable(part) for part in trace.split("\n"))
    return line


def _printable(value: Any) -> Any:
    """The value without line ends and control characters, which could forge a line or control the terminal."""
    text = _safe_str(value)
    return text if text.isprintable() else repr(text)[1:-1]


class _Lines(logging.StreamHandler[TextIO]):
    """The only handler: it writes every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        # logging itself would print the event unmasked. A log line that fails must not fail its caller.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write('{"severity": "ERROR", "message": "a log line could not be written"}\n')


def _is_wanted(record: logging.LogRecord) -> bool:
    # Loggers set their own levels: werkzeug sets INFO.
    return record.name == _OURS or record.levelno >= logging.WARNING


class _Redirected(logging.Filter):
    """For a logger with a handler of its own: passes each record to ours before that handler sees it."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def filter(self, record: logging.LogRecord) -> bool:
        self._lines.handle(record)
        return False


def configure_logs(stream: TextIO | None = None, json: bool | None = None, *, secrets: Iterable[str] = ()) -> None:
    """Set up logging, once per process, before the first line. A second call replaces the first setup.

    `stream`: standard output by default. `json`: by default, True on Cloud Run and without a terminal. `secrets` are masked
    wherever they occur.
    """
    stream = stream or sys.stdout
    if json is None:
        json = "K_SERVICE" in os.environ or not stream.isatty()
    written: list[Processor] = (
        [_for_cloud_logging, structlog.processors.JSONRenderer()]
        if json
        else [_for_people, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    )
    lines = _Lines(stream)
    lines.addFilter(_is_wanted)
    lines.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars],
            processors=[
                structlog.processors.StackInfoRenderer(),
                structlog.processors.ExceptionRenderer(),
                _stack_trace,
                Mask(secrets),
                *written,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [lines]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)
    # gunicorn sets up its logger after our code is loaded, and its records do not reach the root logger.
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.filters[:] = [_Redirected(lines)]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: logging.getLogger(_OURS),
        cache_logger_on_first_use=False,
    )


class Headers(Protocol):
    """A dict or werkzeug's headers. Readers ignore the case of names."""

    def items(self) -> Iterable[tuple[str, str]]: ...


def bind_trace(headers: Headers) -> None:
    """Add the request's trace id to its lines, from `X-Cloud-Trace-Context` (TRACE/SPAN;o=1) or `traceparent`
    (version-TRACE-span-flags), if one of them is valid."""
    given = {name.lower(): value for name, value in headers.items()}
    for name in ("x-cloud-trace-context", "traceparent"):
        found = _TRACE_ID.match(given.get(name, ""))
        if found:
            structlog.contextvars.bind_contextvars(trace=found[1])
            return


def clear() -> None:
    """Remove the trace id: a thread serves one request after another."""
    structlog.contextvars.clear_contextvars()
