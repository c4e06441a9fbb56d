"""`python -m shared.conversation.rehearse check [folder]`: check each script, and print it as a person hears it."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from shared.conversation import turns
from shared.conversation.checks import PARAMETERS
from shared.conversation.later import time_in_words, wished_moment
from shared.conversation.library import FOLDER, ScriptError, Scripts
from shared.conversation.script import GOODBYE, Answer, Connect, Question, Script
from shared.conversation.texts import Recording, Texts, given
from shared.conversation.turns import Place, Turn
from shared.logs import mask_phone
from shared.models import Person
from shared.settings import SettingsError, load_settings

USAGE = "usage: python -m shared.conversation.rehearse check [folder]"


def main(arguments: list[str] | None = None) -> int:
    """0: all scripts are valid. 1: the problems were printed. 2: the arguments are wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] != ["check"] or len(given) > 2:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        settings = load_settings(http=False)
    except SettingsError:
        settings = None
    try:
        scripts = list(Scripts(Path(given[1]) if given[1:] else FOLDER, settings))
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 1
    for script in scripts:
        print("\n".join(rehearse(script)), end="\n\n")
    print(f"{len(scripts)} scripts, all of them valid")
    if settings is None and any(answer.dial for script in scripts for _, answer in script.answers()):
        unknown = "the service's settings are not known here"
        print(f"{unknown}: CALL_COUNTRIES and our own number were not compared with dial")
    return 0


def rehearse(script: Script) -> Iterator[str]:
    """The whole script, line by line, as a person hears it whose name and company are unknown."""
    yield f"{script.name}.toml   {', '.join([script.language, script.voice])}"
    if script.listen != "keys":
        yield "  hears the digits one to nine, and the words behind each answer"
    if script.aliases:
        yield f"  also for {', '.join(script.aliases)}"
    turn = turns.first_turn(script)
    yield from quoted(script, turn.says + turn.asks)
    if script.connect is not None:
        yield from _handover(script, script.connect)
    elif not script.questions:
        yield "    (silence, or any key but the one to opt out)"
        yield from quoted(script, turns.next_turn(script, Place(script.name, GOODBYE), "").says)
    for number, question in enumerate(script.questions):
        yield f"  {question.id}"
        if number or script.connect is not None:
            yield from quoted(script, (question.say,))
        yield from _answers(script, question)
    yield f"  {script.opt_out.key}, at any time: never called again"
    yield from quoted(script, (script.opt_out.confirm,))
    if script.opt_out.ask is not None:
        yield f"  on a spoken opt-out{_heard(script.opt_out.hear)}"
        yield from quoted(script, (script.opt_out.ask,))
        yield f"    then never called again{_heard(script.opt_out.yes)}"
    yield "  on an answering machine" + ("" if script.machine else ": hangs up")
    yield from quoted(script, turns.voicemail_turn(script).says)
    yield "  when our database is down"
    yield from quoted(script, given(script.please_wait) + turns.apology_turn(script).says)


def _handover(script: Script, connect: Connect) -> Iterator[str]:
    yield f"  hands over to the agent at {connect.url}, as a {connect.kind}"
    yield f"    it is told {', '.join([*PARAMETERS, *connect.metadata])}"
    yield from quoted(script, given(connect.welcome))
    for at, event in ((turns.AGENT_ENDED, "has ended"), (turns.AGENT_FAILED, "cannot be had, or breaks")):
        turn = turns.next_turn(script, Place(script.name, at), "")
        yield f"    when the agent {event}: {_following(turn)}"
        yield from quoted(script, turn.says)


def _answers(script: Script, question: Question) -> Iterator[str]:
    for key, answer in question.answers.items():
        turn = turns.next_turn(script, Place(script.name, question.id), key)
        if answer.later:  # as on a Monday at two in the afternoon
            now = datetime(2026, 1, 5, 14, tzinfo=UTC)
            turn = turns.agreed_turn(turn, time_in_words(script.language, wished_moment(answer.later, now), now))
        then = "a colleague" if turn.dials else f"called again, {answer.later}" if answer.later else _following(turn)
        yield f"    {key} = {answer.means}, then {then}{_heard(answer.hear)}"
        yield from quoted(script, turn.says)
        if turn.dials and turn.place:
            yield from _transfer(script, answer, turn.place)
    times = {0: "not asked again", 1: "asked once more"}.get(question.repeat, f"asked {question.repeat} times more")
    yield f"    silence, or another key: {times}, then goodbye"
    if question.repeat:
        yield from quoted(script, turns.next_turn(script, Place(script.name, question.id), "").says)
    yield from quoted(script, turns.next_turn(script, Place(script.name, question.id, question.repeat + 1), "").says)


def _transfer(script: Script, answer: Answer, place: Place) -> Iterator[str]:
    hours = f", {answer.hours} by the clock of {answer.zone}" if answer.hours else ""
    yield f"      puts through to {mask_phone(answer.dial or '')}{hours}; rings {answer.ring_s} seconds; the colleague hears"
    yield from quoted(script, given(answer.whisper))
    turn = turns.next_turn(script, place, "")
    yield f"      when no colleague presses a key: {_following(turn)}"
    yield from quoted(script, turn.says)


def _heard(phrases: list[str]) -> str:
    return f"   when it hears {', '.join(map(repr, phrases))}" if phrases else ""


def _following(turn: Turn) -> str:
    return turn.place.at if turn.place else GOODBYE


def quoted(script: Script, texts: Texts, person: Person | None = None) -> Iterator[str]:
    for text in texts:
        if isinstance(text, Recording):
            yield f"      plays {text.play}"
        words = text.words if isinstance(text, Recording) else text
        if words is not None:
            yield f'      "{script.fill(words, person)}"'


if __name__ == "__main__":
    sys.exit(main())
