"""Reads a TwiML document as Twilio would: Say, Play, Pause, Gather, Connect, Redirect and Hangup. Anything else is an error.

Codes and limits are those of Twilio's error dictionary and of its pages on the verbs (www.twilio.com/docs/voice/twiml).
Where Twilio only warns and goes on, a `Document` carries the warning: a test can insist that there is none.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

MAX_BYTES = 64 * 1024
MAX_SAY_CHARACTERS = 4096
MAX_URL = 4000
MAX_PARAMETER = 500  # name and value of a Parameter together
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # ws is allowed here, as Twilio never does
XML_TYPES = {"text/xml", "application/xml", "text/html"}  # what Twilio reads as TwiML; text/plain is not done here

Method = Literal["GET", "POST"]


class ApplicationError(Exception):
    """What Twilio writes in its debugger when the customer's application, not the call, is at fault."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Say:
    text: str
    times: int = 1
    language: str = "en-US"


@dataclass(frozen=True)
class Play:
    url: str
    times: int = 1


@dataclass(frozen=True)
class Pause:
    """length: seconds."""

    length: int = 1


@dataclass(frozen=True)
class Gather:
    """timeout: seconds of silence that end it. action: None is the URL of the document it stands in."""

    prompt: tuple[Say | Play | Pause, ...] = ()
    action: str | None = None
    method: Method = "POST"
    timeout: int = 5
    num_digits: int | None = None
    finish_on_key: str = "#"
    on_empty_result: bool = False
    listens: bool = False


@dataclass(frozen=True)
class Connect:
    """A call handed over to a socket. `attributes`: of the noun, without its url."""

    kind: Literal["ConversationRelay", "Stream"]
    url: str
    action: str | None
    method: Method
    parameters: tuple[tuple[str, str], ...]
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Dial:
    """A second leg to one Number. timeout, time_limit: seconds. whisper: the URL of the Number."""

    number: str
    action: str | None = None
    method: Method = "POST"
    timeout: int = 30
    time_limit: int = 14_400
    caller_id: str | None = None
    whisper: str | None = None
    whisper_method: Method = "POST"


@dataclass(frozen=True)
class Redirect:
    url: str
    method: Method = "POST"


@dataclass(frozen=True)
class Hangup:
    pass


Verb = Say | Play | Pause | Gather | Connect | Dial | Redirect | Hangup


@dataclass
class Document:
    verbs: list[Verb] = field(default_factory=list)
    warnings: list[ApplicationError] = field(default_factory=list)


ATTRIBUTES = {
    "Response": set[str](),
    "Say": {"voice", "language", "loop"},
    "Play": {"loop"},
    "Pause": {"length"},
    "Gather": {
        *("action", "method", "timeout", "numDigits", "finishOnKey", "actionOnEmptyResult", "input", "language", "hints"),
        *("speechTimeout", "profanityFilter", "speechModel", "enhanced", "bargeIn", "debug", "partialResultCallback"),
        *("partialResultCallbackMethod", "maxSpeechTime"),
    },
    "Connect": {"action", "method"},
    "ConversationRelay": {
        *("url", "language", "ttsLanguage", "transcriptionLanguage", "ttsProvider", "voice", "transcriptionProvider"),
        *("speechModel", "profanityFilter", "dtmfDetection", "welcomeGreeting", "welcomeGreetingInterruptible", "debug"),
        *("interruptible", "interruptSensitivity", "preemptible", "hints", "reportInputDuringAgentSpeech"),
    },
    "Stream": {"url", "name", "track", "statusCallback", "statusCallbackMethod"},
    "Parameter": {"name", "value"},
    "Dial": {
        *("action", "method", "timeout", "timeLimit", "callerId", "answerOnBridge", "hangupOnStar", "record", "trim"),
        *("ringTone", "sequential", "recordingStatusCallback", "recordingTrack", "referUrl", "referMethod"),
    },
    "Number": {"url", "method", "sendDigits", "byoc", "statusCallback", "statusCallbackEvent", "statusCallbackMethod"},
    "Redirect": {"method"},
    "Hangup": set[str](),
}  # fmt: skip
# The forms of www.twilio.com/docs/voice/twiml/say/text-speech; which names there are, Twilio alone knows.
VOICE = re.compile(r"man|woman|alice|Polly\.[A-Z][A-Za-z]+(-[A-Z][A-Za-z-]+)?|Google\.[A-Za-z0-9-]+")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
SSML = {"break", "emphasis", "lang", "p", "phoneme", "prosody", "s", "say-as", "sub", "w"}


def parse(body: bytes, content_type: str) -> Document:
    """Raises ApplicationError: what Twilio would not execute."""
    if content_type not in XML_TYPES:
        raise ApplicationError(12300, f"Invalid Content-Type: {content_type or 'none'}")
    if len(body) > MAX_BYTES:
        raise ApplicationError(11750, "TwiML response body too large")
    try:
        root = ET.fromstring(body)
    except ET.ParseError as error:
        raise ApplicationError(12100, f"Document parse failure: {error}") from None
    if root.tag != "Response":
        raise ApplicationError(12102, f"The root element must be Response, not {root.tag}")
    document = Document()
    _check(root, document)
    document.verbs = [_verb(element, document) for element in root]
    return document


def _verb(element: ET.Element, document: Document) -> Verb:
    _check(element, document)
    match element.tag:
        case "Say":
            return _say(element, document)
        case "Play":  # a file at an absolute URL; `digits` is not done here
            if not re.fullmatch(r"https?://\S+", url := _inner(element)) or len(url) > MAX_URL:
                raise ApplicationError(11100, f"Invalid URL format: {url or 'no URL to play'}")
            return Play(url, _integer(element, "loop", 1, 0, 13410) or 1000)
        case "Pause":
            return Pause(_integer(element, "length", 1, 0, 13910))
        case "Gather":
            return _gather(element, document)
        case "Connect":
            return _connect(element, document)
        case "Dial":
            return _dial(element, document)
        case "Redirect":
            return Redirect(_inner(element), _method(element, 13710))
        case "Hangup":
            return Hangup()
        case _:
            raise ApplicationError(12200, f"Schema validation: {element.tag} is no verb that may stand here")


def _say(element: ET.Element, document: Document) -> Say:
    if not VOICE.fullmatch(voice := element.get("voice", "man")):
        document.warnings.append(ApplicationError(13511, f"Say: Invalid voice value {voice!r}"))
    if not LANGUAGE.fullmatch(language := element.get("language", "en-US")):
        document.warnings.append(ApplicationError(12200, f"Schema validation: Say: {language!r} is no language"))
    for inner in element.iter():
        if inner is not element and inner.tag not in SSML:
            raise ApplicationError(12200, f"Schema validation: {inner.tag} may not stand in Say")
    text = " ".join("".join(element.itertext()).split())
    if not text or len(text) > MAX_SAY_CHARACTERS:
        raise ApplicationError(13520, "Say: Invalid text")
    times = _integer(element, "loop", 1, 0, 13510) or 1000  # loop="0" is for ever, which Twilio ends at 1000
    return Say(text, times, language)


def _gather(element: ET.Element, document: Document) -> Gather:
    prompt: list[Say | Play | Pause] = []
    for inner in element:
        if inner.tag not in ("Say", "Play", "Pause"):
            raise ApplicationError(13320, f"Gather: Invalid nested verb {inner.tag}")
        prompt.append(_verb(inner, document))  # type: ignore[arg-type]
    inputs = element.get("input", "dtmf").split()
    if "dtmf" not in inputs or not set(inputs) <= {"dtmf", "speech"}:
        raise ApplicationError(12200, "the stand-in gathers keys, or keys and speech (input dtmf, dtmf speech)")
    hints = element.get("hints", "").split(",")
    if len(hints) > 500 or max(map(len, hints)) > 101:
        document.warnings.append(ApplicationError(13330, "Gather: Invalid hints value"))
    # "auto" needs a model, which is not done here.
    if not re.fullmatch(r"[1-9][0-9]*", element.get("speechTimeout", "1")):
        document.warnings.append(ApplicationError(13327, "Gather: Invalid speechTimeout value"))
    if not LANGUAGE.fullmatch(language := element.get("language", "en-US")):
        document.warnings.append(ApplicationError(12200, f"Schema validation: Gather: {language!r} is no language"))
    finish = element.get("finishOnKey", "#")
    if len(action := element.get("action", "")) > MAX_URL or re.search(r"\s", action):
        raise ApplicationError(13310, f"Gather: Invalid action URL {action!r}")
    if finish not in set("0123456789#*") | {""}:
        raise ApplicationError(13311, f"Gather: Invalid finishOnKey value {finish!r}")
    empty = element.get("actionOnEmptyResult", "false")
    if empty not in ("true", "false"):
        raise ApplicationError(13338, f"Gather: Invalid actionOnEmptyResult value {empty!r}")
    return Gather(
        prompt=tuple(prompt), action=action or None, method=_method(element, 13312),
        timeout=_integer(element, "timeout", 5, 0, 13313),
        num_digits=_integer(element, "numDigits", None, 1, 13314) if "numDigits" in element.attrib else None,
        finish_on_key=finish, on_empty_result=empty == "true", listens="speech" in inputs,
    )  # fmt: skip


def _connect(element: ET.Element, document: Document) -> Connect:
    """One noun: ConversationRelay or Stream. Other nouns are not done here."""
    if len(element) != 1 or (noun := element[0]).tag not in ("ConversationRelay", "Stream"):
        raise ApplicationError(12200, "Schema validation: Connect needs a ConversationRelay or a Stream")
    _check(noun, document)
    url = noun.get("url", "")
    host = urlsplit(url).hostname or ""
    if len(url) > MAX_URL or not re.match(r"wss://" if host not in LOOPBACK else r"wss?://", url):
        raise ApplicationError(64101 if noun.tag == "ConversationRelay" else 31941, f"Invalid URL {url!r}")
    if noun.tag == "Stream" and urlsplit(url).query:
        document.warnings.append(ApplicationError(31920, "Stream: a URL with a query"))
    parameters = []
    for inner in noun:
        _check(inner, document)
        name, value = inner.get("name", ""), inner.get("value", "")
        if inner.tag != "Parameter" or not name or len(name + value) > MAX_PARAMETER:
            raise ApplicationError(12200, f"Schema validation: {noun.tag}: {inner.tag} {name!r}")
        parameters.append((name, value))
    attributes = tuple((name, value) for name, value in noun.attrib.items() if name != "url")
    action = element.get("action") or None
    kind: Literal["ConversationRelay", "Stream"] = "Stream" if noun.tag == "Stream" else "ConversationRelay"
    return Connect(kind, url, action, _method(element, 12200), tuple(parameters), attributes)


def _dial(element: ET.Element, document: Document) -> Dial:
    """One Number. Other nouns, several Numbers and a bare number are not done here."""
    if len(element) != 1 or (noun := element[0]).tag != "Number":
        raise ApplicationError(12200, "Schema validation: the stand-in dials one Number")
    _check(noun, document)
    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", number := _inner(noun)):
        raise ApplicationError(13223, f"Dial->Number: Invalid phone number format {number!r}")
    timeout = _integer(element, "timeout", 30, 5, 13212)
    if timeout > 600:
        document.warnings.append(ApplicationError(13212, "Dial: Invalid timeout value"))
    return Dial(
        number, action=element.get("action") or None, method=_method(element, 13211), timeout=timeout,
        time_limit=_integer(element, "timeLimit", 14_400, 1, 13216), caller_id=element.get("callerId"),
        whisper=noun.get("url") or None, whisper_method=_method(noun, 13221),
    )  # fmt: skip


def _inner(element: ET.Element) -> str:
    return "".join(element.itertext()).strip()


def _check(element: ET.Element, document: Document) -> None:
    for name in element.attrib.keys() - ATTRIBUTES.get(element.tag, element.attrib.keys()):
        document.warnings.append(ApplicationError(12200, f"Schema validation: {element.tag} has no attribute {name}"))


def _method(element: ET.Element, code: int) -> Method:
    methods: dict[str, Method] = {"GET": "GET", "POST": "POST"}
    if (given := element.get("method", "POST").upper()) in methods:
        return methods[given]
    raise ApplicationError(code, f"{element.tag}: Invalid method value {given!r}")


def _integer(element: ET.Element, name: str, default: int | None, least: int, code: int) -> int:
    given = element.get(name, str(default))
    if not (given.isascii() and given.isdigit()) or int(given) < least:
        raise ApplicationError(code, f"{element.tag}: Invalid {name} value {given!r}")
    return int(given)
