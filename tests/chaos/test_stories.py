"""explain_call_job after each step of random histories: a story for every job, in order, without a whole number, never an error."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.chaos.test_state_machine import IN_CHAOS, NUMBERS, SETTINGS, Dispatching, a_copy, the_machine
from tests.database.test_explain import faults, story
from tests.sandbox.postgres import Postgres


class Telling(Dispatching):
    @invariant()
    def every_job_has_a_story(self) -> None:
        for job in self.jobs:
            lines = story(self.steps, job_id=job)
            wrong = list(faults(lines, numbers=NUMBERS))
            self.require(not wrong, "every job has a story", (wrong, lines))


@pytest.mark.timeout(7200 if IN_CHAOS else 180)
def test_every_history_can_be_told_after_each_step(postgres: Postgres, template_database: str) -> None:
    with a_copy(postgres, template_database, "stories") as url, the_machine(url, machine=Telling) as machine:
        run_state_machine_as_test(cast(Any, machine), settings=SETTINGS)
