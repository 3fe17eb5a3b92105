"""A file lock between the processes and threads of one machine."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that only one process or thread of this machine has at a time.

    The operating system releases the lock of a killed process.

    Args:
        lock: the lock file, created if missing. It is never removed, since that would be a race.
        wait: True waits until the lock is free; False does not wait.

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
            logger.info("waiting for another process that holds %s", lock)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield True
