"""How much one caller may ask: a bucket of tokens for each, filled at a rate."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_CALLERS = 10_000


class Rates:
    """Token buckets by caller.

    Args:
        rate: tokens a second.
        burst: tokens of a full bucket.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, tokens: int = 1) -> int:
        """Take tokens: 0, or in how many seconds there will be enough, and then none is taken.

        More tokens than a full bucket has are let through by a full one, which is then in debt.
        """
        now = self._clock()
        left, at = self._buckets.pop(caller, (float(self._burst), now))
        left = min(left + (now - at) * self._rate, self._burst)
        wanted = min(tokens, self._burst)
        wait = 0 if left >= wanted else max(math.ceil((wanted - left) / self._rate), 1)
        self._buckets[caller] = (left if wait else left - tokens, now)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        return wait
