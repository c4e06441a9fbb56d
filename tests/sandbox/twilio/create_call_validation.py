"""What Twilio accepts as a new call, and the error code it gives for all else.

Codes: Twilio's error dictionary (www.twilio.com/docs/api/errors); test numbers: www.twilio.com/docs/iam/test-credentials.
The rules here stand alone. Where Twilio's own description of the Calls API lies beside the repository, each request is
held to that as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import jsonschema

from tests.sandbox.twilio import twiml

MAX_INLINE = 4000  # characters of a document that comes with a request
DESCRIPTION = Path(__file__).resolve().parents[4] / "shared/twilio/calls.openapi.json"

Event = Literal["initiated", "ringing", "answered", "completed"]
EVENTS: tuple[Event, ...] = ("initiated", "ringing", "answered", "completed")

TEST_FROM = {"+15005550006": None, "+15005550001": 21212}
TEST_TO = {"+15005550001": 21217, "+15005550002": 21214, "+15005550003": 21215, "+15005550004": 21216}

MESSAGES = {
    20001: "Unknown parameters", 20003: "Authenticate", 20004: "Method not allowed", 20007: "Page size too large",
    20404: "The requested resource was not found", 20422: "Invalid parameter", 20429: "Too Many Requests",
    20500: "An internal server error has occurred", 20503: "Service Unavailable", 21201: "No 'To' number is specified",
    21205: "Url parameter is required", 21206: "Invalid SendDigits", 21208: "Invalid Timeout", 21209: "Invalid Method",
    21210: "The source phone number provided is not yet verified for your account",
    21211: "The phone number you are attempting to call is not valid",
    21212: "The 'From' number is not a valid phone number", 21213: "'From' phone number is required",
    21214: "'To' phone number cannot be reached",
    21215: "Account not authorized to call this number; check your geographic permissions",
    21216: "Account not allowed to call this number", 21217: "Phone number does not appear to be valid",
    21218: "Invalid ApplicationSid", 21220: "Call is not in the expected state", 21234: "Invalid MachineDetection",
    21609: "Invalid StatusCallback url", 21626: "Invalid StatusCallbackEvent", 22005: "Call queue full",
    32018: "Twiml size exceeded maximum allowed value of 4000 characters",
}  # fmt: skip
STATUSES = {20003: 401, 20004: 405, 20005: 403, 20006: 403, 20008: 403, 20403: 403, 20404: 404, 20429: 429}

PARAMETERS = {
    *("To", "From", "Url", "Twiml", "ApplicationSid", "Method", "FallbackUrl", "FallbackMethod", "StatusCallback"),
    *("StatusCallbackMethod", "StatusCallbackEvent", "Timeout", "TimeLimit", "SendDigits", "CallerId", "CallReason"),
    *(
        "CallToken",
        "Byoc",
        "SipAuthUsername",
        "SipAuthPassword",
        "ClientNotificationUrl",
        "Record",
        "RecordingChannels",
    ),
    *("RecordingTrack", "RecordingStatusCallback", "RecordingStatusCallbackMethod", "RecordingStatusCallbackEvent"),
    *("Trim", "MachineDetection", "MachineDetectionTimeout", "MachineDetectionSpeechThreshold"),
    *("MachineDetectionSpeechEndThreshold", "MachineDetectionSilenceTimeout", "AsyncAmd", "AsyncAmdStatusCallback"),
    "AsyncAmdStatusCallbackMethod",
}


class Refusal(Exception):
    """Twilio says no: {code, message, more_info, status}."""

    def __init__(self, code: int, detail: str = "") -> None:
        self.code, self.status = code, status_of(code)
        self.message = MESSAGES.get(code, f"Error {code}") + (f": {detail}" if detail else "")
        super().__init__(self.message)

    def body(self) -> dict[str, object]:
        more_info = f"https://www.twilio.com/docs/errors/{self.code}"
        return {"code": self.code, "message": self.message, "more_info": more_info, "status": self.status}


def status_of(code: int) -> int:
    """The HTTP status of a Twilio code; 20500 to 20599 spell it out, a code of three digits is one."""
    if code < 1000:
        return code
    return STATUSES.get(code, code - 20000 if 20500 <= code <= 20599 else 400)


@dataclass(frozen=True)
class Order:
    """A call as asked for. ring_limit and time_limit: seconds."""

    to: str
    from_: str
    url: str | None
    ring_limit: int
    time_limit: int
    twiml: str | None = None
    method: str = "POST"
    status_callback: str | None = None
    status_callback_method: str = "POST"
    events: frozenset[str] = frozenset()
    machine_detection: str | None = None
    async_amd: bool = False
    async_amd_callback: str | None = None
    async_amd_callback_method: str = "POST"


def read(form: Mapping[str, list[str]], own_number: str, warn: list[dict[str, object]]) -> Order:
    """The order in a create request; what Twilio would only warn of goes to `warn`. Raises Refusal."""
    for name in sorted(form.keys() - PARAMETERS):
        warn.append({"code": 20001, "message": f"Unknown parameters: {name}"})
    one = {name: values[-1] for name, values in form.items() if values[-1] != ""}

    to = one.get("To") or _refuse(21201)
    from_ = one.get("From") or _refuse(21213)
    if not {"Url", "Twiml", "ApplicationSid"} & one.keys():
        raise Refusal(21205)
    _numbers(to, from_, own_number)
    if "ApplicationSid" in one:
        # Its Url and callbacks live in an Application resource; the stand-in has none.
        raise Refusal(21218, "the stand-in has no applications")
    if "FallbackUrl" in one:
        raise Refusal(20422, "the stand-in does not ask a FallbackUrl")
    if len(one.get("Twiml", "")) > MAX_INLINE:
        raise Refusal(32018)
    events = form.get("StatusCallbackEvent") or ["completed"]
    if wrong := [event for event in events if event not in EVENTS]:
        raise Refusal(21626, ", ".join(wrong))
    if not re.fullmatch(r"[0-9A-D#*wW]{0,32}", one.get("SendDigits", "")):
        raise Refusal(21206)
    detection = one.get("MachineDetection")
    if detection not in (None, "Enable", "DetectMessageEnd"):
        raise Refusal(21234, str(detection))
    if one.get("AsyncAmd", "false") not in ("true", "false"):
        raise Refusal(20422, "AsyncAmd")
    asynchronous = one.get("AsyncAmd") == "true"
    if asynchronous and "AsyncAmdStatusCallback" not in one:
        warn.append({"code": 21262, "message": "AsyncAmd without AsyncAmdStatusCallback"})

    order = Order(
        to=to, from_=from_, url=_url(one, "Url", 21205), twiml=None if "Url" in one else one.get("Twiml"),
        method=_method(one, "Method"), status_callback=_url(one, "StatusCallback", 21609),
        status_callback_method=_method(one, "StatusCallbackMethod"), events=frozenset(events),
        ring_limit=_integer(one, "Timeout", 60, 1, 600, 21208),
        time_limit=_integer(one, "TimeLimit", 14_400, 1, 86_400, 20422),
        machine_detection=None if "SendDigits" in one else detection, async_amd=asynchronous,
        async_amd_callback=_url(one, "AsyncAmdStatusCallback", 21609),
        async_amd_callback_method=_method(one, "AsyncAmdStatusCallbackMethod"),
    )  # fmt: skip
    _hold_to_description(form)
    return order


def read_twiml(text: str) -> twiml.Document:
    """A document that comes with the request. Raises Refusal: one that cannot be executed is none to start with."""
    if len(text) > MAX_INLINE:
        raise Refusal(32018)
    try:
        return twiml.parse(text.encode(), "text/xml")
    except twiml.ApplicationError as error:
        raise Refusal(20422, f"Twiml: {error.code}: {error.message}") from None


def _numbers(to: str, from_: str, own_number: str) -> None:
    if from_ != own_number:
        code = TEST_FROM.get(from_, 21210 if _is_e164(from_) else 21212)
        if code is not None:
            raise Refusal(code, from_)
    if to in TEST_TO:
        raise Refusal(TEST_TO[to], to)
    if not _is_e164(to) or to == from_:
        raise Refusal(21211, to)


def _is_e164(number: str) -> bool:
    return re.fullmatch(r"\+[1-9]\d{6,14}", number) is not None


def _url(one: Mapping[str, str], name: str, code: int) -> str | None:
    """Absolute http(s), at most 4000 characters, no underscore in the host."""
    given = one.get(name)
    if given is None:
        return None
    try:
        parts = urlsplit(given)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Refusal(code, name) from None
    if parts.scheme not in ("http", "https") or not host or "_" in host or len(given) > 4000 or re.search(r"\s", given):
        raise Refusal(code, name)
    return given


def _method(one: Mapping[str, str], name: str) -> str:
    method = one.get(name, "POST").upper()
    return method if method in ("GET", "POST") else _refuse(21209, name)


def _integer(one: Mapping[str, str], name: str, default: int, least: int, most: int, code: int) -> int:
    given = one.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", given) or not least <= int(given) <= most:
        raise Refusal(code, f"{name}={given}")
    return int(given)


def _refuse(code: int, detail: str = "") -> str:
    raise Refusal(code, detail)


@cache
def description() -> dict[str, Any] | None:
    """Twilio's description of the Calls API; None where it is absent."""
    return json.loads(DESCRIPTION.read_text()) if DESCRIPTION.is_file() else None


@cache
def _described_request() -> jsonschema.Draft202012Validator | None:
    described = description()
    if described is None:
        return None
    create = described["paths"]["/2010-04-01/Accounts/{AccountSid}/Calls.json"]["post"]
    schema = create["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"]
    return jsonschema.Draft202012Validator(schema)


def _hold_to_description(form: Mapping[str, list[str]]) -> None:
    validator = _described_request()
    if validator is None:
        return
    properties = validator.schema["properties"]  # type: ignore[index]
    given = {name: values for name, values in form.items() if name in properties and values[-1] != ""}
    typed = {name: _typed(properties[name]["type"], values) for name, values in given.items()}
    if error := next(validator.iter_errors(typed), None):
        name = str(error.path[0]) if error.path else ""
        raise Refusal({"Timeout": 21208, "ApplicationSid": 21218}.get(name, 20422), f"{name}: {error.message}")


def _typed(kind: str, values: list[str]) -> object:
    """A form knows only strings: what each says, where it says it rightly, in its described type."""
    last = values[-1]
    match kind:
        case "array":
            return values
        case "integer" if re.fullmatch(r"-?\d{1,18}", last):
            return int(last)
        case "boolean" if last in ("true", "false"):
            return last == "true"
        case _:
            return last
