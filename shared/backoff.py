"""The wait before the next attempt: a list of delays, or an exponential backoff; always with jitter. Pure."""

import random
from collections.abc import Callable, Sequence

FACTOR = 2.0
JITTER = 0.2  # a burst that failed together must not come back together
LONGEST_SECONDS = 6 * 3600.0  # of the backoff; a list says its own


def delays(
    given_s: Sequence[float], max_attempts: int, uniform: Callable[[float, float], float] = random.uniform
) -> tuple[float, ...]:
    """Seconds to wait after the first attempt, after the second, ...; one fewer than there are attempts.

    A single number is the base of the backoff. Several are the delays themselves: at least max_attempts - 1.

    >>> delays([60], 4, uniform=lambda low, high: 1.0)
    (60.0, 120.0, 240.0)
    >>> delays([600.0, 3600.0, 86400.0], 3, uniform=lambda low, high: 1.0)
    (600.0, 3600.0)
    """
    if len(given_s) == 1:
        given_s = [min(given_s[0] * FACTOR**n, LONGEST_SECONDS) for n in range(max_attempts - 1)]
    return tuple(jittered(delay_s, uniform=uniform) for delay_s in given_s[: max_attempts - 1])


def jittered(delay_s: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """One wait of about `delay_s` seconds."""
    return delay_s * uniform(1 - JITTER, 1 + JITTER)
