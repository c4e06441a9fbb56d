"""Logs: one line an event, in Cloud Logging's words, and no phone number or secret in any of them."""

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from gunicorn.config import Config
from gunicorn.glogging import Logger as GunicornLogger
from hypothesis import given
from hypothesis import strategies as st

from shared.logs import bind_trace, clear, configure_logs, mask_phone

NUMBER = "+14155550123"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECRET = "whsec_c2VjcmV0+/secret/14155550123="

log = structlog.get_logger()
digits = st.text("0123456789", min_size=8, max_size=15)
# What may stand on either side of a number that stands alone.
after_it = st.sampled_from([*" =:/-_,;.()[]{}<>\"'&?#@!|~*\n\té•", "%20", "%3D", "%2B", "\\n"])
before_it = after_it | st.sampled_from(["%2b", "%252B", "tel:"])


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    root, gunicorn = logging.getLogger(), logging.getLogger("gunicorn.error")
    before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:], root.level, config = before
    gunicorn.filters.clear()
    gunicorn.handlers.clear()
    structlog.configure(**config)
    clear()


class Written(io.StringIO):
    """Standard output that remembers how it was written to."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.writes: list[str] = []
        self._terminal = terminal

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    def isatty(self) -> bool:
        return self._terminal

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture
def out() -> Written:
    written = Written()
    configure_logs(written, secrets=[SECRET])
    return written


@given(st.text(), before_it, digits, after_it, st.text())
def test_number_that_stands_alone_is_masked(before: str, left: str, number: str, right: str, after: str) -> None:
    text = mask_phone(f"{before}{left}{number}{right}{after}")
    # What is before or after may be digits, too: then the run is another one, and may be too long for a number.
    if not re.search(r"[0-9A-Za-z]", before[-1:] + after[:1]):
        assert number not in text


@given(st.text("abcXYZ019 =/"), st.sampled_from(["+", "%2B", "%2b", "%252B", "\uff0b"]), digits, st.text("abcXYZ /&="))
def test_number_with_a_plus_is_masked_anywhere(before: str, plus: str, number: str, after: str) -> None:
    assert number not in mask_phone(f"{before}{plus}{number}{after}")


def test_number_as_people_type_it_is_masked() -> None:
    typed = [
        "+1 415 555 0123", "+1 (415) 555-0123", "+1.415.555.0123", "(415) 555-0123", "415-555-0123", "415.555.0123",
    ]  # fmt: skip
    assert [text for text in typed if not re.fullmatch(r"\+?\d\*{7}23", mask_phone(text))] == []


def test_masked_number_keeps_its_ends() -> None:
    assert mask_phone(f"from {NUMBER} to 14155550199 2 times") == "from +1*******23 to 1*******99 2 times"
    assert mask_phone("?To=%2B14155550123&Page=0") == "?To=%2B1*******23&Page=0"


moments = st.datetimes(datetime(1000, 1, 1)) | st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC))
harmless = (
    st.uuids().map(str)
    | st.integers(0, 10**20).map(lambda number: str(UUID(f"{number:032d}")))
    | st.builds(lambda kind, id_: f"{kind}{id_.hex}", st.sampled_from(["CA", "AC", "PN"]), st.uuids())
    | st.text("0123456789", min_size=32, max_size=32).map(lambda rest: f"CA{rest}")
    | st.builds(lambda moment, between: moment.isoformat(between), moments, st.sampled_from("T "))
    | st.sampled_from(["127.0.0.1:54321", "2026-11-24", "2026-11-24T00:35:28.123456789+00:00", "0.25 ms", "30007"])
)


@given(harmless)
def test_ids_times_and_small_numbers_are_kept(text: str) -> None:
    assert mask_phone(text) == text


@given(st.uuids() | st.integers(0, 10**20).map(lambda number: UUID(f"{number:032d}")), before_it, after_it)
def test_uuids_are_kept_beside_any_sign(uuid: UUID, left: str, right: str) -> None:
    assert str(uuid) in mask_phone(f"{left}{uuid}{right}")
    assert f"/Calls/CA{uuid.hex}.json" in mask_phone(f"{left}/Calls/CA{uuid.hex}.json{right}")


def test_lines_are_json_as_cloud_logging_reads_it(out: Written) -> None:
    labels = {"job": "12345678", "attempt": "d9428888-122b-11e1-b85c-61cd3cbb3210"}
    with structlog.contextvars.bound_contextvars(job=12345678, attempt=labels["attempt"]):
        log.info("called\nAda", count=12345678901, delay_s=0.5, nothing=None)
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("event")
    line, *others = out.lines()
    assert (line["severity"], line["message"], line["logging.googleapis.com/labels"]) == ("INFO", "called\nAda", labels)
    assert (line["count"], line["delay_s"], line["nothing"]) == (12345678901, 0.5, None)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)
    assert [each["severity"] for each in others] == ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert [(text.count("\n"), text[-2:]) for text in out.writes] == [(1, "}\n")] * 5


def test_lines_of_a_request_bear_its_trace(out: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a-project")
    parent = f"00-{TRACE}-b7ad6b7169203331-01"
    table = (
        {"X-Cloud-Trace-Context": f"{TRACE}/123;o=1"}, {"x-cloud-trace-context": TRACE}, {"Traceparent": parent},
        {"X-Cloud-Trace-Context": "odd", "traceparent": parent},
    )  # fmt: skip
    for headers in table:
        clear()
        bind_trace(headers)
        log.info("event")
    traces = [line["logging.googleapis.com/trace"] for line in out.lines()]
    assert traces == [f"projects/a-project/traces/{TRACE}"] * len(table)


@given(st.dictionaries(st.sampled_from(["X-Cloud-Trace-Context", "traceparent", "Host"]), st.text("0a/-;\x00é")))
def test_odd_trace_header_is_no_trace(headers: dict[str, str]) -> None:
    clear()
    bind_trace(headers)
    assert structlog.contextvars.get_contextvars().get("trace", "0" * 32).isalnum()


def test_context_of_a_request_ends_with_it(out: Written) -> None:
    structlog.contextvars.bind_contextvars(job=1)
    bind_trace({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    clear()
    log.info("event")
    assert out.line().keys() == {"severity", "message", "time"}


def test_exception_is_one_line_for_error_reporting(out: Written) -> None:
    try:
        raise RuntimeError(f"https://api.example/?To=%2B14155550123\n{SECRET}")
    except RuntimeError:
        log.exception("a fault of ours")
    line = out.line()
    assert line["severity"] == "ERROR"
    assert line["@type"].endswith("ReportedErrorEvent")
    assert line["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert line["stack_trace"].endswith("RuntimeError: https://api.example/?To=%2B1*******23\n[secret]")


def test_numbers_are_masked_in_values_of_any_kind(out: Written) -> None:
    error = ValueError(NUMBER)
    log.info(NUMBER, a=NUMBER, b={NUMBER: [{"c": (NUMBER,)}]}, d={NUMBER}, e=error, f=NUMBER.encode(), _g=NUMBER)
    assert "4155550" not in out.getvalue()
    assert out.line()["b"] == {"+1*******23": [{"c": ["+1*******23"]}]}


def test_secrets_are_replaced_wherever_they_occur(out: Written) -> None:
    encoded = "?key=whsec_c2VjcmV0%2B%2Fsecret%2F14155550123%3D"
    for n, text in enumerate((SECRET, f"Bearer {SECRET}", encoded, SECRET.removeprefix("whsec_")), 1):
        log.info(text, field={text: [text]})
        logging.getLogger("a.library").error("sent %s", text)
        assert "c2VjcmV0" not in out.getvalue()
        assert out.getvalue().count("[secret]") == 4 * n
    configure_logs(prefixed := Written(), secrets=["abcdef", "abcdefghi"])  # a secret that begins another
    log.info("abcdefghi")
    assert prefixed.line()["message"] == "[secret]"


@given(st.dictionaries(st.text(min_size=1), st.text() | st.floats() | st.binary() | st.none(), max_size=4), st.text())
def test_values_of_any_kind_never_break_lines(fields: dict[str, Any], text: str) -> None:
    out = Written()
    configure_logs(out)
    log.info("%s", text, fields=fields)
    line = json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert out.getvalue().isascii()
    assert out.getvalue().count("\n") == 1
    assert line["severity"] == "INFO"


def test_field_cannot_hide_what_cloud_logging_reads(out: Written) -> None:
    log.error("event", message="another", severity="DEBUG", time="never")
    line = out.line()
    assert (line["severity"], line["message"]) == ("ERROR", "event")
    assert line["time"] != "never"


def test_value_that_cannot_be_shown_stops_nothing(out: Written) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    endless: list[Any] = []
    endless.append(endless)
    log.info("event", odd=Odd(), endless=endless)
    assert out.line()["odd"] == "<Odd>"


def test_line_that_cannot_be_written_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(Written):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    configure_logs(Full())
    log.info(NUMBER, number=NUMBER)
    shown = capsys.readouterr()
    assert json.loads(shown.err)["message"] == "a log line could not be written"
    assert "4155550" not in shown.err + shown.out


def test_warnings_of_libraries_alone_are_lines_like_ours(out: Written) -> None:
    for name in ("twilio.http_client", "httpx", "werkzeug"):
        library = logging.getLogger(name)
        before = library.level
        library.setLevel(logging.DEBUG)
        library.info("POST https://api.example/?To=%s", NUMBER)
        library.setLevel(before)
    logging.getLogger("twilio.http_client").warning("cannot reach %s", NUMBER)
    line = out.line()
    assert (line["severity"], line["message"]) == ("WARNING", "cannot reach +1*******23")
    assert line["logger"] == "twilio.http_client"
    configure_logs(again := Written())  # a second configuration replaces the first
    log.info("event")
    logging.getLogger("a.library").error("event")
    assert (len(out.lines()), len(again.lines())) == (1, 2)


def test_gunicorn_writes_our_lines_despite_its_own(out: Written, capsys: pytest.CaptureFixture[str]) -> None:
    gunicorn = GunicornLogger(Config())
    gunicorn.error("worker gave up on %s", NUMBER)
    gunicorn.info("booting")
    assert out.line()["message"] == "worker gave up on +1*******23"
    assert capsys.readouterr().err == ""


def test_terminal_gets_lines_for_people() -> None:
    out = Written(terminal=True)
    configure_logs(out, secrets=[SECRET])
    log.warning(f"called {NUMBER}\x1b[2J\n", secret=SECRET)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert re.match(r"\d\d:\d\d:\d\d \[warning *\] called \+1\*{7}23\\x1b\[2J\\n +secret=\[?'?\[secret\]", plain)
    assert plain.count("\n") == 1


def test_cloud_run_gets_json_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K_SERVICE", "calls")
    out = Written(terminal=True)
    configure_logs(out)
    log.info("event")
    assert out.line()["message"] == "event"
