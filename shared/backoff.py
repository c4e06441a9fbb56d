"""How long to wait before the next attempt: exponential, with jitter, pure."""

import random
from collections.abc import Callable

FACTOR = 2.0
JITTER = 0.2  # a burst that failed together must not come back together
LONGEST_SECONDS = 6 * 3600.0


def delays(
    base_s: float, max_attempts: int, uniform: Callable[[float, float], float] = random.uniform
) -> tuple[float, ...]:
    """Seconds to wait after the first attempt, after the second, ...; one fewer than there are attempts.

    >>> delays(60, 3, uniform=lambda low, high: 1.0)
    (60.0, 120.0)
    """
    return tuple(
        min(base_s * FACTOR**n, LONGEST_SECONDS) * uniform(1 - JITTER, 1 + JITTER) for n in range(max_attempts - 1)
    )


def jittered(base_s: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """One wait of about `base_s` seconds, for a job that is put off and not counted."""
    return base_s * uniform(1 - JITTER, 1 + JITTER)
