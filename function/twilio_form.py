"""What Twilio posts about a call, read once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast, get_args
from uuid import UUID

from shared.conversation.turns import Place
from shared.models import FINAL_CALL_STATUSES, CallStatus
from shared.telephony import CALL_SID

_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_KEYS: Final = re.compile(r"[0-9*#A-D]{1,32}")


@dataclass(frozen=True)
class CallEvent:
    """`call_status` is None when Twilio says a word that we do not know (`said`); new ones may come without notice.

    `digits`: the keys that were pressed in a Gather; "" for silence.
    """

    call_sid: str
    call_status: CallStatus | None
    said: str
    answered_by: str | None
    duration_s: int | None
    sip_code: int | None
    error_code: str | None
    digits: str = ""

    @property
    def is_live(self) -> bool:
        return self.call_status not in FINAL_CALL_STATUSES


def read_event(form: Mapping[str, str]) -> CallEvent:
    """Proved to be Twilio's before it comes here. Unknown, missing and odd fields are fine; call_sid is then empty."""
    said = form.get("CallStatus", "")
    return CallEvent(
        call_sid=sid if CALL_SID.fullmatch(sid := form.get("CallSid", "")) else "",
        call_status=cast(CallStatus, said) if said in get_args(CallStatus) else None,
        said=said[:40],
        answered_by=_word(form.get("AnsweredBy")),
        duration_s=_int(form.get("CallDuration")),
        sip_code=_int(form.get("SipResponseCode")),
        error_code=_word(form.get("ErrorCode")),
        digits=keys if _KEYS.fullmatch(keys := form.get("Digits", "")) else "",
    )


def read_attempt(text: str | None) -> UUID | None:
    """The attempt's id from the URL that we made; None when it is not one."""
    try:
        return UUID(text or "")
    except ValueError:
        return None


def read_place(query: Mapping[str, str]) -> Place | None:
    """Where in the conversation a Gather of ours stood; None at its beginning. An odd place is one that no script has."""
    if "at" not in query:
        return None
    tries = _int(query.get("try"))
    return Place(query.get("script", ""), query["at"] if tries else "", tries or 1)


def _word(text: str | None) -> str | None:
    return text if text and _WORD.fullmatch(text) else None


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 9 else None
