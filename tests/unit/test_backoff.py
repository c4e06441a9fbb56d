"""Each wait longer than the last, or as listed; and never all at once."""

from hypothesis import given
from hypothesis import strategies as st

from shared import backoff


def exact(low: float, high: float) -> float:
    return 1.0


def test_waits_double_or_follow_the_list() -> None:
    cases = {
        ((60.0,), 4): (60, 120, 240),
        ((60.0,), 1): (),
        ((3600.0,), 6): (3600, 7200, 14400, 21600, 21600),  # no wait of the backoff is longer than six hours
        ((86400.0,), 2): (21600,),
        ((600.0, 3600.0, 21600.0, 86400.0), 5): (600, 3600, 21600, 86400),
        ((600.0, 3600.0, 21600.0, 86400.0), 3): (600, 3600),
        ((600.0, 300.0), 1): (),
    }
    assert {case: backoff.delays(*case, uniform=exact) for case in cases} == cases


@given(st.lists(st.floats(0.01, 3600), min_size=1, max_size=9), st.integers(1, 10))
def test_jitter_spreads_by_a_fifth_at_most(given_s: list[float], attempts: int) -> None:
    plain = backoff.delays(given_s, attempts, uniform=exact)
    for wait, middle in zip(backoff.delays(given_s, attempts), plain, strict=True):
        assert 0.8 * middle - 1e-9 <= wait <= 1.2 * middle + 1e-9


def test_two_that_fail_together_do_not_come_back_together() -> None:
    assert backoff.jittered(60) != backoff.jittered(60)
    assert backoff.delays([60, 60], 3) != backoff.delays([60, 60], 3)
