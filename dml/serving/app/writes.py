"""A write of a request: the caller's key in, a line of the audit log and what became of the write out.

A thread that writes goes on when its request is given up, so the request must know whether it has written.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dml.errors import DmlError, WriteCommitted
from dml.serving.app.audit import Action, AuditLog, Outcome
from dml.serving.app.problems import Refused

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What was written."""

    ids: Sequence[str]
    """Of items."""
    revision: int | None = None
    """Of a gallery."""
    version: str | None = None
    """Of a dataset."""


class WriteProgress:
    """Whether the write of a request is durable; its thread says so, and a request that is given up asks."""

    def __init__(self) -> None:
        self._lock, self._is_given_up = threading.Lock(), False
        self._committed: bool | None = False

    def begin(self) -> None:
        """From now on it may be durable.

        Raises:
            Refused: the request was given up, so nothing may be written any more.
        """
        with self._lock:
            if self._is_given_up:
                raise Refused(503, "timeout", "A write must begin in time", "it did not", "Send it again.")
            self._committed = None

    def end(self, *, committed: bool) -> None:
        """It is durable, or nothing was written."""
        with self._lock:
            self._committed = committed

    def give_up(self) -> bool | None:
        """Whether it is durable; False: it is not, and never will be; None: it may be, or become so."""
        with self._lock:
            self._is_given_up = True
            return self._committed


@dataclass(frozen=True)
class Audited:
    """What is about to be written, and by whom."""

    who: str
    address: str
    request_id: str
    action: Action
    gallery: str
    """Or dataset."""
    progress: WriteProgress
    identity: str | None = None
    ids: Sequence[str] = ()


@contextmanager
def logged_write(audit: AuditLog, audited: Audited) -> Iterator[Callable[[Done], None]]:
    """Log what the block writes, whatever becomes of it; the block gives its result to what is yielded.

    Raises:
        Refused: the log cannot be written: before the block, which then does not run, or after it; or the
            request was given up before the block began.
    """
    with _logged(write_committed=False):
        audit.require_writable()
    audited.progress.begin()
    results: list[Done] = []

    def done(result: Done) -> None:
        audited.progress.end(committed=True)
        results.append(result)

    def record(outcome: Outcome, result: Done) -> None:
        audit.append(
            who=audited.who,
            address=audited.address,
            request_id=audited.request_id,
            action=audited.action,
            gallery=audited.gallery,
            identity=audited.identity,
            ids=result.ids,
            revision=result.revision,
            version=result.version,
            outcome=outcome,
        )

    try:
        yield done
    except Exception as error:
        revision = error.revision if isinstance(error, WriteCommitted) else None
        is_written = bool(results) or revision is not None
        if is_written or _is_refusal(error):  # of another error it is not known
            audited.progress.end(committed=is_written)
        outcome: Outcome = "done" if is_written else "refused" if _is_refusal(error) else "failed"
        with _logged(write_committed=is_written or (False if _is_refusal(error) else None)):
            record(outcome, results[0] if results else Done(audited.ids, revision))
        if results:
            raise Refused(
                503,
                "write_committed",
                "A write must be shown by this process once it is durable",
                "it is durable, and this process does not show it yet",
                "Do not write it again.",
                write_committed=True,
                retry_after=5,
            ) from error
        raise
    with _logged(write_committed=True):
        record("done", results[0])


def refusal_of_timeout(seconds: float, progress: WriteProgress | None) -> Refused:
    """What to answer to a request that is given up.

    Args:
        seconds: in which it must be answered.
        progress: of its write; None: it writes nothing.
    """
    must, again = f"A request must be answered within {seconds:g} s", "Send fewer queries at once, or "
    if progress is None:
        return Refused(503, "timeout", must, "this one was not", f"{again}try again later.", retry_after=5)
    committed = progress.give_up()
    if committed:
        got, do = "this one was not, and what it writes is durable", "Do not write it again."
        return Refused(503, "write_committed", must, got, do, retry_after=5, write_committed=True)
    if committed is None:
        got = "this one was not, and what it writes may be durable, now or soon"
        do = "Ask for the items; or write it again with the same ids: what is there already stays as it is."
        return Refused(503, "write_unknown", must, got, do, retry_after=5, is_write_unknown=True)
    got = "this one was not, and nothing was written"
    return Refused(503, "timeout", must, got, f"{again}again later.", retry_after=5, write_committed=False)


def refusal_of_failure(refused: Refused, progress: WriteProgress | None) -> Refused:
    """What to answer to a request that failed by a mistake of ours, which may have written all the same."""
    if progress is not None:
        refused.write_committed = progress.give_up()
        refused.is_write_unknown = refused.write_committed is None
    return refused


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, DmlError | Refused)


@contextmanager
def _logged(*, write_committed: bool | None) -> Iterator[None]:
    """Refuse a request whose line of the audit log cannot be written.

    Args:
        write_committed: whether what it writes is durable; None: that is not known.
    """
    try:
        yield
    except OSError as error:
        logger.error("the audit log cannot be written: %s", error)
        got, do = {
            True: ("what was written is durable", "Do not write it again, and tell the operator."),
            False: ("nothing was written", "Tell the operator; then write it again."),
            None: (
                "what was written may be durable",
                "Tell the operator; then ask for the items, or write it again with the same ids.",
            ),
        }[write_committed]
        raise Refused(
            503,
            "audit",
            "What is written must be in the audit log",
            f"that cannot be written ({error.strerror}), and {got}",
            do,
            write_committed=write_committed,
            is_write_unknown=write_committed is None,
            retry_after=None if write_committed else 5,
        ) from error
