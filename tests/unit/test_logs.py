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
def test_no_number_that_stands_alone_survives(before: str, left: str, number: str, right: str, after: str) -> None:
    text = mask_phone(f"{before}{left}{number}{right}{after}")
    # What is before or after may be digits, too: then the run is another one, and may be too long for a number.
    if not re.search(r"[0-9A-Za-z]", before[-1:] + after[:1]):
        assert number not in text


@given(st.text("abcXYZ019 =/"), st.sampled_from(["+", "%2B", "%2b", "%252B", "\uff0b"]), digits, st.text("abcXYZ /&="))
def test_no_number_with_a_plus_sign_survives_wherever_it_stands(
    before: str, plus: str, number: str, after: str
) -> None:
    assert number not in mask_phone(f"{before}{plus}{number}{after}")


@pytest.mark.parametrize(
    "written",
    ["+1 415 555 0123", "+1 (415) 555-0123", "+1.415.555.0123", "(415) 555-0123", "415-555-0123", "415.555.0123"],
)
def test_a_number_as_people_type_it_is_masked(written: str) -> None:
    assert re.fullmatch(r"\+?\d\*{7}23", mask_phone(written))


def test_a_masked_number_keeps_what_tells_it_from_another() -> None:
    assert mask_phone(f"from {NUMBER} to 14155550199 2 times") == "from +1*******23 to 1*******99 2 times"
    assert mask_phone("?To=%2B14155550123&Page=0") == "?To=%2B1*******23&Page=0"


@given(st.uuids() | st.integers(0, 10**20).map(lambda number: UUID(f"{number:032d}")), before_it, after_it)
def test_uuids_are_kept(uuid: UUID, left: str, right: str) -> None:
    assert str(uuid) in mask_phone(f"{left}{uuid}{right}")


@given(
    st.sampled_from(["CA", "AC", "PN"]),
    st.text("0123456789", min_size=32, max_size=32) | st.uuids().map(lambda u: u.hex),
)
def test_sids_are_kept(kind: str, rest: str) -> None:
    assert mask_phone(f"/Calls/{kind}{rest}.json") == f"/Calls/{kind}{rest}.json"


@given(
    st.datetimes(timezones=st.just(UTC), min_value=datetime(1000, 1, 1)) | st.datetimes(min_value=datetime(1000, 1, 1)),
    st.sampled_from(["T", " "]),
)
def test_times_are_kept(moment: datetime, between: str) -> None:
    assert mask_phone(moment.isoformat(between)) == moment.isoformat(between)


@pytest.mark.parametrize(
    "kept", ["127.0.0.1:54321", "2026-11-24", "2026-11-24T00:35:28.123456789+00:00", "0.25 ms", "30007"]
)
def test_what_is_no_number_is_kept(kept: str) -> None:
    assert mask_phone(kept) == kept


def test_a_line_is_one_json_object_as_cloud_logging_reads_it(out: Written) -> None:
    log.info("called", job=12345678901, delay_s=0.5, nothing=None)
    line = out.line()
    assert (line["severity"], line["message"]) == ("INFO", "called")
    assert (line["job"], line["delay_s"], line["nothing"]) == (12345678901, 0.5, None)
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(line["time"]) < timedelta(minutes=1)


def test_each_line_is_one_write(out: Written) -> None:
    log.info("first\nline")
    log.warning("second")
    assert [text.count("\n") for text in out.writes] == [1, 1]
    assert all(text.endswith("}\n") for text in out.writes)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_the_severity_is_the_level(out: Written, level: str) -> None:
    getattr(log, level)("event")
    assert [line["severity"] for line in out.lines()] == ([level.upper()] if level != "debug" else [])


def test_job_and_attempt_are_labels(out: Written) -> None:
    with structlog.contextvars.bound_contextvars(job=12345678, attempt="d9428888-122b-11e1-b85c-61cd3cbb3210"):
        log.info("event")
    assert out.line()["logging.googleapis.com/labels"] == {
        "job": "12345678",
        "attempt": "d9428888-122b-11e1-b85c-61cd3cbb3210",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Cloud-Trace-Context": f"{TRACE}/123;o=1"},
        {"x-cloud-trace-context": TRACE},
        {"Traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        {"X-Cloud-Trace-Context": "odd", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
    ],
)
def test_lines_of_a_request_bear_its_trace(
    out: Written, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "a-project")
    bind_trace(headers)
    log.info("event")
    assert out.line()["logging.googleapis.com/trace"] == f"projects/a-project/traces/{TRACE}"


@given(st.dictionaries(st.sampled_from(["X-Cloud-Trace-Context", "traceparent", "Host"]), st.text("0a/-;\x00é")))
def test_an_odd_trace_header_is_no_trace(headers: dict[str, str]) -> None:
    clear()
    bind_trace(headers)
    assert structlog.contextvars.get_contextvars().get("trace", "0" * 32).isalnum()


def test_what_one_request_bound_does_not_stay_for_the_next(out: Written) -> None:
    structlog.contextvars.bind_contextvars(job=1)
    bind_trace({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    clear()
    log.info("event")
    assert out.line().keys() == {"severity", "message", "time"}


def test_an_exception_is_one_line_that_error_reporting_takes(out: Written) -> None:
    try:
        raise RuntimeError(f"https://api.example/?To=%2B14155550123\n{SECRET}")
    except RuntimeError:
        log.exception("a fault of ours")
    line = out.line()
    assert line["severity"] == "ERROR"
    assert line["@type"].endswith("ReportedErrorEvent")
    assert line["stack_trace"].startswith("Traceback (most recent call last):\n")
    assert line["stack_trace"].endswith("RuntimeError: https://api.example/?To=%2B1*******23\n[secret]")


def test_numbers_are_masked_at_any_depth_and_in_any_kind_of_value(out: Written) -> None:
    error = ValueError(NUMBER)
    log.info(NUMBER, a=NUMBER, b={NUMBER: [{"c": (NUMBER,)}]}, d={NUMBER}, e=error, f=NUMBER.encode(), _g=NUMBER)
    assert "4155550" not in out.getvalue()
    assert out.line()["b"] == {"+1*******23": [{"c": ["+1*******23"]}]}


@pytest.mark.parametrize(
    "text",
    [SECRET, f"Bearer {SECRET}", "?key=whsec_c2VjcmV0%2B%2Fsecret%2F14155550123%3D", SECRET.removeprefix("whsec_")],
)
def test_secrets_are_replaced_wherever_they_occur(out: Written, text: str) -> None:
    log.info(text, field={text: [text]})
    logging.getLogger("a.library").error("sent %s", text)
    assert "c2VjcmV0" not in out.getvalue()
    assert out.getvalue().count("[secret]") == 4


def test_no_part_of_a_secret_is_left_where_another_is_its_beginning() -> None:
    out = Written()
    configure_logs(out, secrets=["abcdef", "abcdefghi"])
    log.info("abcdefghi")
    assert out.line()["message"] == "[secret]"


@given(st.dictionaries(st.text(min_size=1), st.text() | st.floats() | st.binary() | st.none(), max_size=4), st.text())
def test_no_value_can_break_the_line(fields: dict[str, Any], text: str) -> None:
    out = Written()
    configure_logs(out)
    log.info("%s", text, fields=fields)
    line = json.loads(out.getvalue(), parse_constant=pytest.fail)
    assert out.getvalue().isascii()
    assert out.getvalue().count("\n") == 1
    assert line["severity"] == "INFO"


def test_a_field_cannot_hide_what_cloud_logging_reads(out: Written) -> None:
    log.error("event", message="another", severity="DEBUG", time="never")
    line = out.line()
    assert (line["severity"], line["message"]) == ("ERROR", "event")
    assert line["time"] != "never"


def test_a_value_that_contains_itself_or_cannot_be_shown_does_not_stop_the_work(out: Written) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    endless: list[Any] = []
    endless.append(endless)
    log.info("event", odd=Odd(), endless=endless)
    assert out.line()["odd"] == "<Odd>"


def test_a_line_that_cannot_be_written_is_not_shown_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(Written):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    configure_logs(Full())
    log.info(NUMBER, number=NUMBER)
    shown = capsys.readouterr()
    assert json.loads(shown.err)["message"] == "a log line could not be written"
    assert "4155550" not in shown.err + shown.out


def test_what_libraries_tell_below_a_warning_is_never_written(out: Written) -> None:
    for name in ("twilio.http_client", "httpx", "werkzeug"):
        library = logging.getLogger(name)
        before = library.level
        library.setLevel(logging.DEBUG)
        library.info("POST https://api.example/?To=%s", NUMBER)
        library.setLevel(before)
    assert out.getvalue() == ""


def test_what_libraries_warn_of_is_a_line_like_ours(out: Written) -> None:
    logging.getLogger("twilio.http_client").warning("cannot reach %s", NUMBER)
    line = out.line()
    assert (line["severity"], line["message"]) == ("WARNING", "cannot reach +1*******23")
    assert line["logger"] == "twilio.http_client"


def test_gunicorn_writes_our_lines_although_it_sets_up_its_own_later(
    out: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    gunicorn = GunicornLogger(Config())
    gunicorn.error("worker gave up on %s", NUMBER)
    gunicorn.info("booting")
    assert out.line()["message"] == "worker gave up on +1*******23"
    assert capsys.readouterr().err == ""


def test_logs_can_be_configured_again(out: Written) -> None:
    again = Written()
    configure_logs(again)
    log.info("event")
    logging.getLogger("a.library").error("event")
    assert (len(out.lines()), len(again.lines())) == (0, 2)


def test_a_terminal_gets_lines_for_people() -> None:
    out = Written(terminal=True)
    configure_logs(out, secrets=[SECRET])
    log.warning(f"called {NUMBER}\x1b[2J\n", secret=SECRET)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert re.match(r"\d\d:\d\d:\d\d \[warning *\] called \+1\*{7}23\\x1b\[2J\\n +secret=\[?'?\[secret\]", plain)
    assert plain.count("\n") == 1


def test_cloud_run_gets_json_whatever_its_output_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K_SERVICE", "calls")
    out = Written(terminal=True)
    configure_logs(out)
    log.info("event")
    assert out.line()["message"] == "event"
