"""What a sweep tells whoever is on call."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import create_autospec

from structlog.testing import capture_logs

from function.sweep import sweep_once
from shared.dispatcher import Dispatcher
from shared.jobs import Jobs
from shared.models import Stats, Step
from tests.unit.examples import settings


def told(**stats: object) -> list[dict[str, Any]]:
    """The log of a sweep that found nothing to do."""
    nothing = Stats(
        queued=0, dialing=0, in_doubt=0, calling=0, oldest_due_s=None, live_duplicates=0, held_by_prefix=0,
        missed_signups=0, paused_until=None, pause_reason=None,
    )  # fmt: skip
    dispatcher = create_autospec(
        Dispatcher, instance=True, settings=settings(), jobs=create_autospec(Jobs, instance=True)
    )
    dispatcher.jobs.heal_signups.return_value = 0
    dispatcher.jobs.prune.return_value = {}
    dispatcher.jobs.stats.return_value = nothing.model_copy(update=stats)
    dispatcher.dial_one.return_value = dispatcher.look_after_one.return_value = Step("nothing")
    with capture_logs() as lines:
        sweep_once(dispatcher)
    return cast(list[dict[str, Any]], lines)


def test_a_quiet_sweep_is_one_line_of_information() -> None:
    assert [line["log_level"] for line in told()] == ["info"]


def test_numbers_that_are_held_for_their_prefix_are_an_error_with_their_count() -> None:
    assert [(line["log_level"], line.get("held")) for line in told(held_by_prefix=7)] == [("error", 7), ("info", None)]


def test_a_pause_is_told_with_its_reason() -> None:
    (line,) = told(paused_until="infinity", pause_reason="the script is wrong")
    assert line["log_level"] == "warning"
    assert line["stats"]["pause_reason"] == "the script is wrong"
