"""Parse the form that Twilio posts about a call, and the query string of the URLs that we gave it."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast, get_args
from uuid import UUID

import structlog

from shared.conversation.hearing import LEAST_CONFIDENCE
from shared.conversation.script import GOODBYE
from shared.conversation.turns import AGENT_ENDED, AGENT_FAILED, DIAL, Place
from shared.models import CALL_SID, CallEvent, CallStatus

log = structlog.get_logger()

MOST_HEARD: Final = 500
"""Longest spoken answer, in characters. Longer speech is a conversation with somebody else in the room."""

_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_KEYS: Final = re.compile(r"[0-9*#A-D]{1,32}")


@dataclass(frozen=True)
class VoiceRequest:
    """Twilio's request for the next words, parsed.

    `place` is None when the person picks up. `action` is the URL, without a place, that Twilio requests next. `picked_up_at`:
    Unix seconds. `first_leg`: on a colleague's leg, the SID of the person's call; else "". `second_leg`: how that leg ended.
    `pressed`: `digits` were pressed just now, not spoken and not before a wait. `waits`: how often the person was asked to wait
    for this answer. `waiting_since`: the first time, in Unix seconds; 0 before it.
    """

    attempt: UUID | None
    event: CallEvent
    first_leg: str
    second_leg: str | None
    picked_up_at: int
    place: Place | None
    digits: str
    pressed: bool
    heard: str
    waits: int
    waiting_since: int
    action: str


def read_voice_request(form: Mapping[str, str], query: Mapping[str, str], voice_url: str) -> VoiceRequest:
    """Parse an authenticated request. `voice_url`: the URL of the settings, without a query."""
    attempt = read_attempt(query.get("attempt"))
    picked_up_at = _unix_time(query, "picked_up") or int(time.time())
    return VoiceRequest(
        attempt=attempt,
        event=read_event(form),
        first_leg=_sid(form.get("ParentCallSid")),
        second_leg=_word(form.get("DialCallStatus")),
        picked_up_at=picked_up_at,
        place=read_place(query, form),
        digits=read_digits(form, query),
        pressed=bool(read_digits(form, {})),
        heard=read_heard(form),
        waits=_int(query.get("waits")) or 0,
        waiting_since=_unix_time(query, "since"),
        action=f"{voice_url}?attempt={attempt}&picked_up={picked_up_at}",
    )


def read_event(form: Mapping[str, str]) -> CallEvent:
    """Parse an authenticated form. Unknown, missing and invalid fields are allowed; `call_sid` is then empty.

    So it is for a colleague's leg: that is no call of ours, and must not count as a second one of its attempt.
    The result of asynchronous machine detection has AnsweredBy and no CallStatus: the call is in progress.
    """
    answered_by = _word(form.get("AnsweredBy"))
    status = form.get("CallStatus") or ("in-progress" if answered_by else "")
    if status and status not in get_args(CallStatus):
        log.warning("unknown CallStatus", call_sid=form.get("CallSid", "")[:40], status=status[:40])
    return CallEvent(
        call_sid="" if _sid(form.get("ParentCallSid")) else _sid(form.get("CallSid")),
        call_status=cast(CallStatus, status) if status in get_args(CallStatus) else None,
        answered_by=answered_by,
        duration_s=_int(form.get("CallDuration")),
        sip_code=_int(form.get("SipResponseCode")),
        error_code=_word(form.get("ErrorCode")),
    )


def read_digits(form: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The keys pressed in a Gather, or, after a wait, in the URL; "" for silence. Keys beside the end of a colleague's leg are
    not the person's answer."""
    if "DialCallStatus" in form:
        return ""
    keys = form.get("Digits") or query.get("keys", "")
    return keys if _KEYS.fullmatch(keys) else ""


def read_heard(form: Mapping[str, str]) -> str:
    """The words spoken in a Gather; "" for silence, and for words of which Twilio is too unsure."""
    words = " ".join("".join(c if c.isprintable() else " " for c in form.get("SpeechResult", "")).split())
    try:
        sure = float(form.get("Confidence", "1")) >= LEAST_CONFIDENCE
    except ValueError:
        sure = False
    return words if sure and len(words) <= MOST_HEARD else ""


def read_attempt(text: str | None) -> UUID | None:
    """The attempt's id from our URL; None if it is not a UUID."""
    try:
        return UUID(text or "")
    except ValueError:
        return None


def read_place(query: Mapping[str, str], form: Mapping[str, str]) -> Place | None:
    """Position in the script, from the Gather's action URL; None on the first request.

    An invalid value maps to a position that no script has. After a handover the form says how the agent's session ended, and
    after a talk with a colleague only the goodbye follows.
    """
    if "at" not in query:
        return None
    at, tries = query["at"], _int(query.get("try"))
    if at == AGENT_FAILED and _session_ended(form):
        at = AGENT_ENDED
    elif at.startswith(DIAL) and _talked(form):
        at = GOODBYE
    return Place(query.get("script", ""), at if tries else "", tries or 1)


def _session_ended(form: Mapping[str, str]) -> bool:
    """Whether the agent, or the person, ended the session of a ConversationRelay. A Stream's end has no such fields."""
    return form.get("SessionStatus") in ("ended", "completed") and not form.get("ErrorCode")


def _talked(form: Mapping[str, str]) -> bool:
    """Whether the two legs were connected. A leg that ended in the whisper is "completed", too: DialBridged tells them apart.

    https://www.twilio.com/docs/voice/twiml/changelog (2020.12.09)
    """
    return form.get("DialCallStatus") in ("completed", "answered") and form.get("DialBridged", "").lower() == "true"


def _unix_time(query: Mapping[str, str], name: str) -> int:
    return _int(query.get(name), longest=11) or 0


def _sid(text: str | None) -> str:
    return text if text and CALL_SID.fullmatch(text) else ""


def _word(text: str | None) -> str | None:
    return text if text and _WORD.fullmatch(text) else None


def _int(text: str | None, longest: int = 8) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) <= longest else None
