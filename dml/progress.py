"""How far a long piece of work is, as lines for whoever waits: `embed: 20 of 400 fragments, 12 s left`."""

import time
from collections.abc import Callable

EVERY_S = 5.0


class Progress:
    """A progress callback (units done, units in all): a line at the first unit, then at most every `every_s`
    seconds, and at the end.

    Args:
        what: the work, as `embed`.
        units: what is counted, in the plural, as `fragments`.
        say: takes a line.
        every_s: seconds between two lines.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        what: str,
        units: str,
        say: Callable[[str], None],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._units, self._say = what, units, say
        self._every_s, self._clock = every_s, clock
        self._start = self._now = clock()
        self._last: float | None = None
        self._before = self._done = 0

    def __call__(self, done: int, total: int) -> None:
        former, now = self._now, self._clock()
        if done <= self._done:  # another pass of the same work, begun when the former ended
            self._start, self._last = former, None
        self._done, self._now = done, now
        if self._last is None:
            self._before = done - 1  # what an earlier, killed run has left was not done in this time
        elif done < total and now - self._last < self._every_s:
            return
        self._last = now
        line = f"{self._what}: {done} of {total} {self._units}"
        if done < total:
            seconds = (now - self._start) / (done - self._before) * (total - done)
            line += f", {time_left(seconds)}"
        self._say(line)


def time_left(seconds: float) -> str:
    """Example:
    >>> time_left(12.3), time_left(200), time_left(8000)
    ('12 s left', '3 min left', '2 h 13 min left')
    """
    if seconds < 100:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
