"""How far a long piece of work is, as lines for whoever waits: `embed: 20 of 400 fragments, 12 s left`."""

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from types import TracebackType
from typing import Self

EVERY_S = 5.0

logger = logging.getLogger(__name__)


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


class Ticker:
    """How far a stage is, a line every `every_s` seconds from a thread of its own, as long as it goes on.

    So whoever waits sees one also while the stage is in code that counts nothing. What the stage does at
    present is told by `begin` and `count`, which any function that it calls may use.

    Args:
        stage: the whole, as `ingest`.
        say: takes a line; None: the log.
        every_s: seconds between two lines.
        clock: seconds that only grow.

    Example:
        >>> with Ticker("ingest") as ticker:
        ...     begin("listing", "entries")
        ...     count(20)
        ...     ticker.line()
        'ingest: listing, 20 entries so far, 0 s'
    """

    def __init__(
        self,
        stage: str,
        say: Callable[[str], None] | None = None,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._say, self._every_s, self._clock = stage, say or logger.info, every_s, clock
        self._lock, self._ended = threading.Lock(), threading.Event()
        self.begin("")

    def begin(self, part: str, units: str = "", total: int | None = None) -> None:
        """From now on the stage is at this part of it, which has so many units, or nobody knows how many."""
        with self._lock:
            self._part, self._units, self._total = part, units, total
            self._done, self._start = 0, self._clock()

    def count(self, number: int = 1) -> None:
        """So many units more are done; from any thread."""
        with self._lock:
            self._done += number

    def line(self) -> str:
        """What is told."""
        with self._lock:
            seconds = self._clock() - self._start
            parts = [f"{self._stage}: {self._part}" if self._part else self._stage]
            if self._total is not None:
                parts.append(f"{self._done} of {self._total} {self._units}")
            elif self._units:
                parts.append(f"{self._done} {self._units} so far")
            if self._total is None or not self._done:
                parts.append(f"{seconds:.0f} s")
            elif self._done < self._total:
                parts.append(time_left(seconds / self._done * (self._total - self._done)))
            return ", ".join(parts)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        threading.Thread(target=copy_context().run, args=(self._tell,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        _current.reset(self._token)

    def _tell(self) -> None:
        while not self._ended.wait(self._every_s):
            self._say(self.line())


_current: ContextVar[Ticker | None] = ContextVar("ticker", default=None)


def begin(part: str, units: str = "", total: int | None = None) -> None:
    """`Ticker.begin` of the stage that goes on, if there is one."""
    if (ticker := _current.get()) is not None:
        ticker.begin(part, units, total)


def count(number: int = 1) -> None:
    """`Ticker.count` of the stage that goes on, if there is one."""
    if (ticker := _current.get()) is not None:
        ticker.count(number)


def time_left(seconds: float) -> str:
    """Example:
    >>> time_left(12.3), time_left(200), time_left(8000)
    ('12 s left', '3 min left', '2 h 13 min left')
    """
    if seconds < 100:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
