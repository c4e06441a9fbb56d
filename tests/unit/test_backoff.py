"""Waiting longer each time, and never all at once."""

from hypothesis import given
from hypothesis import strategies as st

from shared import backoff


def exact(low: float, high: float) -> float:
    return 1.0


def test_each_wait_is_twice_the_last() -> None:
    assert backoff.delays(60, 4, uniform=exact) == (60, 120, 240)


def test_a_single_attempt_has_nothing_to_wait_for() -> None:
    assert backoff.delays(60, 1) == ()


def test_no_wait_is_longer_than_six_hours() -> None:
    assert max(backoff.delays(3600, 10, uniform=exact)) == 6 * 3600


@given(st.floats(0.01, 3600), st.integers(1, 10))
def test_jitter_spreads_by_a_fifth_at_most(base: float, attempts: int) -> None:
    plain = backoff.delays(base, attempts, uniform=exact)
    for wait, middle in zip(backoff.delays(base, attempts), plain, strict=True):
        assert 0.8 * middle - 1e-9 <= wait <= 1.2 * middle + 1e-9


def test_two_that_fail_together_do_not_come_back_together() -> None:
    assert backoff.jittered(60) != backoff.jittered(60)
