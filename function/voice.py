"""Answer Twilio's request for TwiML: when a person picks up, and after each key or silence."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from function.twilio_form import VoiceRequest
from shared.conversation import turns, twiml
from shared.conversation.library import Scripts
from shared.conversation.script import Script
from shared.conversation.turns import Place, Turn
from shared.jobs import JobsUnavailable
from shared.models import Answer, CallEvent, LiveCall

if TYPE_CHECKING:
    from shared.dispatcher import Dispatcher

log = structlog.get_logger()

# The database did not answer while a person is on the line: they are asked to wait this often, for this long in all.
MAX_WAITS = 2
PATIENCE_SECONDS = 20
PAUSE_SECONDS = 2
DETECTION_PAUSE_SECONDS = 3
DETECTION_WAITS = 5
"""How often the call pauses before an agent or a colleague has it, while Twilio listens for a machine: at most 30 s in all."""
AGENT = "agent"
"""The question that an agent answers when its work is done. Twilio does not report how a Stream ended."""


def handle(asked: VoiceRequest, dispatcher: "Dispatcher", scripts: Scripts) -> str:
    """Return the TwiML for this attempt's person; a hang-up for an unwanted call. Costs one RPC, a wish for later two.

    When the database does not answer, the person is asked to wait, and Twilio to ask again; at last comes the apology.
    """
    attempt, place = asked.attempt, asked.place
    if attempt and place and place.at.startswith(turns.WHISPER):
        return _whisper(attempt, place, asked, dispatcher, scripts.named(place.script))
    if attempt is None or not asked.event.call_sid:
        log.critical("a call without a known attempt: hanging up", kind="call_unknown", call_sid=asked.event.call_sid)
        return twiml.hang_up()
    if place is None:
        return _begin(attempt, asked, dispatcher, scripts)
    return _go_on(attempt, place, asked, dispatcher, scripts.named(place.script))


def _begin(attempt: UUID, asked: VoiceRequest, dispatcher: "Dispatcher", scripts: Scripts) -> str:
    try:
        call = dispatcher.record_status(attempt, _answered(asked.event))
    except JobsUnavailable as error:
        _log_unstored(asked, Answer(""), error)
        return _wait(asked, scripts.default, "")
    script = scripts.for_person(call.job) if call.job else scripts.default
    return _render(turns.first_turn(script), script, call, asked, dispatcher)


def _go_on(attempt: UUID, place: Place, asked: VoiceRequest, dispatcher: "Dispatcher", script: Script) -> str:
    digits, heard, call_sid = asked.digits, asked.heard, asked.event.call_sid
    if asked.second_leg:
        talked = not place.at.startswith(turns.DIAL)
        log.info("a colleague's leg ended", call_sid=call_sid, status=asked.second_leg, talked=talked)
    turn = turns.next_turn(script, place, digits, heard)
    spoken = heard if heard and not digits and (turn.learned or turn.opts_out) else None
    answer = Answer(script.opt_out.key if turn.opts_out else digits, opt_out=turn.opts_out, heard=spoken)
    if learned := turn.learned:
        answer = replace(answer, digits=learned.key, question=learned.question, meaning=learned.meaning)
    try:
        if turn.later:
            # One RPC more: who this is, and when they may be called. Then answer and wish are stored in one step.
            call = dispatcher.record_status(attempt, _answered(asked.event))
            later_at = dispatcher.find_later(call, turn.later)
            if later_at is None:  # the key counts as not understood
                turn, answer = turns.next_turn(script, place, ""), Answer(digits)
            else:
                answer = replace(answer, later_at=later_at)
        call = dispatcher.record_answer(attempt, call_sid, answer)
    except JobsUnavailable as error:
        _log_unstored(asked, answer, error)
        if turn.place and turn.place.at.startswith(turns.OPT_OUT):  # a wish in words cannot wait: no URL holds it
            return twiml.render_twiml(turn, script, None, asked.action)
        return _wait(asked, script, answer.digits)  # spoken words travel in no URL, only their key
    if place.at == turns.AGENT_FAILED and script.connect is not None:
        turn = _turn_after_failure(script, place, turn, call, asked)
    if turn.later:
        agreed = dispatcher.later_in_words(call, script.language)
        turn = turns.agreed_turn(turn, agreed) if agreed else Turn(says=(script.goodbye,))
    return _render(turn, script, call, asked, dispatcher)


def _turn_after_failure(script: Script, place: Place, turn: Turn, call: LiveCall, asked: VoiceRequest) -> Turn:
    """An agent that has recorded an answer to "agent" has ended well, however its socket closed."""
    if AGENT in call.agent_answers:
        return turns.next_turn(script, replace(place, at=turns.AGENT_ENDED), "")
    if asked.event.call_status == "completed":  # the person hung up
        return turn
    about = {"attempt": str(asked.attempt), "call_sid": asked.event.call_sid, "error_code": asked.event.error_code}
    log.error("the agent's session failed: the script goes on", kind="agent_failed", **about)
    return turn


def _whisper(attempt: UUID, place: Place, asked: VoiceRequest, dispatcher: "Dispatcher", script: Script) -> str:
    """On a colleague's leg, which has a SID of its own. The database is asked about the person's call, once."""
    dialed = turns.dialed_answer(script, place)
    if dialed is None or dialed.answer.whisper is None:
        return twiml.hang_up()
    if asked.digits:
        return twiml.join_the_two()
    person = None
    if asked.first_leg:
        try:
            call = dispatcher.record_status(attempt, CallEvent(asked.first_leg, "in-progress"))
        except JobsUnavailable as error:
            log.error("the database did not answer; a colleague hears the whisper without a name", reason=str(error))
        else:
            if not call.is_wanted:
                return twiml.hang_up()
            person = call.job
    return twiml.render_whisper(script, dialed.answer.whisper, person)


def _answered(event: CallEvent) -> CallEvent:
    return replace(event, call_status=event.call_status or "in-progress")


def _wait(asked: VoiceRequest, script: Script, keys: str) -> str:
    """Ask the person to wait and Twilio to ask again, MAX_WAITS times within PATIENCE_SECONDS; then apologize."""
    now = time.time()
    since = asked.waiting_since or int(now)
    if asked.waits >= MAX_WAITS or now + PAUSE_SECONDS > since + PATIENCE_SECONDS:
        return twiml.render_twiml(turns.apology_turn(script), script, None)
    return twiml.render_wait(script, PAUSE_SECONDS, _url_after_wait(asked, asked.place, since, keys))


def _url_after_wait(asked: VoiceRequest, place: Place | None, since: int, keys: str) -> str:
    return twiml.place_url(asked.action, place, waits=asked.waits + 1, since=since, keys=keys)


def _render(turn: Turn, script: Script, call: LiveCall, asked: VoiceRequest, dispatcher: "Dispatcher") -> str:
    if not call.is_wanted or call.job is None:
        _log_unwanted(asked.event.call_sid, call)
        return twiml.hang_up()
    # A voicemail speaks, too. `by_machine` is false once it has said an answer, so only a key proves a person here.
    unproved = turn.dials and not asked.pressed
    if turn.opts_out or call.opted_out:
        turn = turns.opt_out_turn(script)
    elif call.by_machine:
        turn = turns.voicemail_turn(script)
    elif (turn.connects or unproved) and dispatcher.awaits_detection(call) and asked.waits < DETECTION_WAITS:
        at = asked.place if turn.dials and asked.place else Place(script.name, turns.CONNECT)
        since = asked.waiting_since or int(time.time())
        action = _url_after_wait(asked, at, since, turn.learned.key if turn.learned else "")
        return twiml.render_wait(script, DETECTION_PAUSE_SECONDS, action, asked.waits == 0)
    elif turn.connects and asked.attempt is not None:
        return twiml.render_handover(script, call.job, asked.attempt, asked.action)
    dialed = turns.dialed_answer(script, turn.place) if turn.dials and turn.place else None
    if turn.place and dialed:
        transfer = dispatcher.plan_transfer(dialed.answer, call, asked.picked_up_at)
        is_machine = (call.answered_by or "").startswith(("machine", "fax"))
        if transfer and (asked.pressed or not is_machine):
            log.info("a colleague is rung", call_sid=asked.event.call_sid, limit_s=transfer.limit_s)
            return twiml.render_transfer(turn, transfer, script, call.job, asked.action)
        turn = turns.next_turn(script, turn.place, "")
    may_ask_for_later = dispatcher.may_ask_for_later(call)
    turn = turns.turn_without(script, turn, call.agent_answers, may_ask_for_later=may_ask_for_later)
    return twiml.render_twiml(turn, script, call.job, asked.action)


def _log_unstored(asked: VoiceRequest, answer: Answer, error: Exception) -> None:
    """Log enough for a person to store the answer by hand: the attempt's id leads to the job and the number."""
    call_sid = asked.event.call_sid
    about = {"attempt": str(asked.attempt), "call_sid": call_sid, "digits": answer.digits, "reason": str(error)}
    meanwhile = "the person waits, or hears the apology"
    if answer.opt_out:
        by_hand = "an opt-out was not stored: call opt_out() for this attempt's number"
        log.critical(by_hand, kind="opt_out_not_stored", **about)
    elif answer.question is not None:
        learned = {"question": answer.question, "meaning": answer.meaning}
        log.error(f"an answer was not stored; {meanwhile}", kind="answer_not_stored", **learned, **about)
    else:
        at = asked.place.at if asked.place else None
        log.error(f"the database did not answer; {meanwhile}", kind="database_down", at=at, **about)


def _log_unwanted(call_sid: str, call: LiveCall) -> None:
    if call.state in ("duplicate", None):
        kind = "call_duplicate" if call.state else "call_unknown"
        log.critical("an unwanted call was answered: hanging up", kind=kind, call_sid=call_sid, state=call.state)
    else:
        log.warning("an unwanted call was answered: hanging up", kind="call_unwanted", call_sid=call_sid)
