"""Progress of a long stage as text lines: `embed: 20 of 400 fragments, 12 s left`."""

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
    """A progress callback (units done, total units): one line at the first unit, then at most one every
    `every_s` seconds, and one at the end.

    Args:
        what: name of the stage, such as `embed`.
        units: the counted things in the plural, such as `fragments`.
        report: receives each line.
        every_s: minimum seconds between two lines.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        what: str,
        units: str,
        report: Callable[[str], None],
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._units, self._report = what, units, report
        self._every_s, self._clock = every_s, clock
        self._start = self._now = clock()
        self._last: float | None = None
        self._before = self._done = 0

    def __call__(self, done: int, total: int) -> None:
        former, now = self._now, self._clock()
        if done <= self._done:  # a new pass of the same work, which started when the former one ended
            self._start, self._last = former, None
        self._done, self._now = done, now
        if self._last is None:
            self._before = done - 1  # units done by an earlier, killed run do not count
        elif done < total and now - self._last < self._every_s:
            return
        self._last = now
        line = f"{self._what}: {done} of {total} {self._units}"
        if done < total:
            seconds = (now - self._start) / (done - self._before) * (total - done)
            line += f", {format_time_left(seconds)}"
        self._report(line)


class Ticker:
    """Progress of a running stage, reported every `every_s` seconds from a background thread.

    So lines appear also while the stage runs code that counts nothing. Any function of the stage can call
    `begin` and `count` to say what it is doing.

    Args:
        stage: name of the stage, such as `ingest`.
        report: receives each line; None writes to the log.
        every_s: seconds between two lines.
        clock: a monotonic clock in seconds.

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
        report: Callable[[str], None] | None = None,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._report, self._every_s, self._clock = stage, report or logger.info, every_s, clock
        self._lock, self._ended = threading.Lock(), threading.Event()
        self.begin("")

    def begin(self, part: str, units: str = "", total: int | None = None) -> None:
        """Start a part of the stage with `total` units; None if the number is unknown."""
        with self._lock:
            self._part, self._units, self._total = part, units, total
            self._done, self._start = 0, self._clock()

    def count(self, number: int = 1) -> None:
        """Add to the units done; can be called from any thread."""
        with self._lock:
            self._done += number

    def line(self) -> str:
        """The present line."""
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
                parts.append(format_time_left(seconds / self._done * (self._total - self._done)))
            return ", ".join(parts)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        threading.Thread(target=copy_context().run, args=(self._report_periodically,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        _current.reset(self._token)

    def _report_periodically(self) -> None:
        while not self._ended.wait(self._every_s):
            self._report(self.line())


_current: ContextVar[Ticker | None] = ContextVar("ticker", default=None)


def begin(part: str, units: str = "", total: int | None = None) -> None:
    """`Ticker.begin` of the running stage, if there is one."""
    if (ticker := _current.get()) is not None:
        ticker.begin(part, units, total)


def count(number: int = 1) -> None:
    """`Ticker.count` of the running stage, if there is one."""
    if (ticker := _current.get()) is not None:
        ticker.count(number)


def format_time_left(seconds: float) -> str:
    """The remaining time as text.

    Example:
    >>> format_time_left(12.3), format_time_left(200), format_time_left(8000)
    ('12 s left', '3 min left', '2 h 13 min left')
    """
    if seconds < 100:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
