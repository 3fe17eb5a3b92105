"""One at a time, of all processes on this machine."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Of all processes and threads on this machine one at a time; the lock of a killed one is free.

    Args:
        lock: a file, made where it is missing; it stays, since removing it would race.
        wait: until no other has it; False goes on at once.

    Yields:
        Whether this process has the lock.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            logger.info("waits until another process is done: it holds %s", lock)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield True
