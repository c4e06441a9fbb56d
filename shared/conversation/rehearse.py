"""`python -m shared.conversation.rehearse check [folder]`: check every script, and print each one as a person hears it."""

import sys
from collections.abc import Iterator
from pathlib import Path

from shared.conversation.script import FOLDER, Question, Script, ScriptError, Scripts
from shared.conversation.turns import Place, Turn, apology_turn, first_turn, next_turn, voicemail_turn

USAGE = "usage: python -m shared.conversation.rehearse check [folder]"


def main(arguments: list[str] | None = None) -> int:
    """0: every script is right; 1: some is not, and all that is wrong was said; 2: the command was not understood."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] != ["check"] or len(given) > 2:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        scripts = list(Scripts(Path(given[1]) if given[1:] else FOLDER))
    except ScriptError as error:
        print(error, file=sys.stderr)
        return 1
    for script in scripts:
        print("\n".join(rehearse(script)), end="\n\n")
    print(f"{len(scripts)} scripts, all of them right")
    return 0


def rehearse(script: Script) -> Iterator[str]:
    """The whole script, line by line, said to somebody of whom nothing is known."""
    yield f"{script.mode}.toml   {script.language}, {script.voice}"
    turn = first_turn(script)
    yield from _said(script, turn.says + turn.asks)
    if not script.questions:
        yield "    (silence, or any key but the one to opt out)"
        yield from _said(script, next_turn(script, Place(script.mode, "goodbye"), "").says)
    for number, question in enumerate(script.questions):
        yield f"  {question.id}"
        if number:
            yield from _said(script, (question.say,))
        yield from _answers(script, question)
    yield f"  {script.opt_out.key}, at any time: never called again"
    yield from _said(script, (script.opt_out.confirm,))
    yield "  on an answering machine" + ("" if script.machine else ": hangs up")
    yield from _said(script, voicemail_turn(script).says)
    yield "  when our database is down"
    yield from _said(script, apology_turn(script).says)


def _answers(script: Script, question: Question) -> Iterator[str]:
    for key, answer in question.answers.items():
        turn = next_turn(script, Place(script.mode, question.id), key)
        yield f"    {key} = {answer.means}, then {_next(turn)}"
        yield from _said(script, turn.says)
    times = {0: "not asked again", 1: "asked once more"}.get(question.repeat, f"asked {question.repeat} times more")
    yield f"    silence, or another key: {times}, then goodbye"
    if question.repeat:
        yield from _said(script, next_turn(script, Place(script.mode, question.id), "").says)
    yield from _said(script, next_turn(script, Place(script.mode, question.id, question.repeat + 1), "").says)


def _next(turn: Turn) -> str:
    return turn.place.at if turn.place else "goodbye"


def _said(script: Script, texts: tuple[str, ...]) -> Iterator[str]:
    return (f'      "{script.say(text, None)}"' for text in texts)


if __name__ == "__main__":
    sys.exit(main())
