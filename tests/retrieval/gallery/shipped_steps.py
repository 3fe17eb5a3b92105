"""Kills who writes to the log of a gallery on S3 at chosen moments, one after another.

    python -m tests.retrieval.gallery.shipped_steps STORE FOLDER

Each kill is of a forked process. After it the same machine and a new one have the same: all of the write or
nothing of it, and everything before it. Then the write is done again, and is there once.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dml import storage
from dml.errors import GalleryBusy
from dml.retrieval.gallery.log import Entry, Log, erased_id
from dml.retrieval.gallery.segments import Segments
from dml.retrieval.gallery.shipped import open_shipped_log
from tests.retrieval.gallery.people import vectors_of
from tests.retrieval.gallery.steps import forked

EMBEDDER = "given"


class Moment(NamedTuple):
    """When a function of a file begins or ends, for the nth time."""

    file: str
    function: str
    event: str
    occurrence: int = 1


def ids_of(number: int) -> list[str]:
    return [f"one {number}", f"two {number}"]


def write(log: Log, op: str, number: int) -> None:
    def entries() -> None:
        revision = log.revision + 1
        for id_, vector in zip(ids_of(number), vectors_of(2, number), strict=True):
            is_new = op == "enrol"
            entry = Entry(op, id_, "crowd" if is_new else None, vector=vector if is_new else None)
            log.write(revision, entry, embedder=EMBEDDER)
        log.set_revision(revision)

    log.transact(entries)


def enrol(log: Log, number: int) -> None:
    write(log, "enrol", number)


def forget(log: Log, number: int) -> None:
    write(log, "forget", number)
    log.truncate()


def erase(log: Log, number: int) -> None:
    write(log, "forget", number)
    log.transact(lambda: [log.rename_forgotten(id_, erased_id(id_)) for id_ in ids_of(number)])
    log.truncate()


def publish(log: Log, _: int) -> None:
    with log.held():
        pass


Action = Callable[[Log, int], None]
KILLS: list[tuple[Action, Moment]] = [
    (enrol, Moment("gallery/segments.py", "write_new", "call")),  # before the segment is written
    (enrol, Moment("storage/conditional.py", "replace_if_unchanged", "return")),  # before anybody knows
    (enrol, Moment("gallery/local_copy.py", "_take", "return")),  # before the commit in the copy
    (enrol, Moment("gallery/shipped.py", "_ship", "return")),  # before it is acknowledged
    (forget, Moment("gallery/shipped.py", "truncate", "call")),  # found no more, but still in a segment
    (forget, Moment("gallery/segments.py", "write", "call", 2)),
    (forget, Moment("gallery/segments.py", "write", "return", 2)),  # before the copy has the new ETag
    (erase, Moment("gallery/shipped.py", "_ship", "return", 2)),  # the id is still in two segments
    (erase, Moment("gallery/segments.py", "write", "return", 3)),  # and in one
    (publish, Moment("gallery/shipped.py", "_ship", "return")),  # holding the log
    (publish, Moment("gallery/segments.py", "write_new", "call", 2)),  # about to give it back
]


class Machine:
    """A machine with a cache of its own, and a store."""

    def __init__(self, folder: str, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def log(self, busy_timeout_s: float = 10.0, hold_s: float = 1.0) -> Log:
        path = self.cache / self.folder.rpartition("/")[2] / "log.sqlite"
        log = open_shipped_log(path, self.folder, create=True, busy_timeout_s=busy_timeout_s, hold_s=hold_s)
        assert log is not None
        return log

    def do(self, action: Action, number: int) -> None:
        log = self.log()
        action(log, number)
        log.close()

    def do_until(self, moment: Moment, action: Action, number: int) -> None:
        """Die at a moment."""
        log, left = self.log(), moment.occurrence

        def step(frame, event, argument):
            nonlocal left
            code = frame.f_code
            if (event, code.co_name) == (moment.event, moment.function) and code.co_filename.endswith(
                moment.file
            ):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(step)
        action(log, number)

    def entries(self) -> dict[str, tuple[str, bytes]]:
        """What it has of each item: the last change, and the vector."""
        log = self.log()
        log.follow()
        entries = log.entries_after(0, EMBEDDER)
        log.close()
        assert len(entries) == len({entry.id for entry in entries})
        return {e.id: (e.op, b"" if e.vector is None else e.vector.tobytes()) for e in entries}


def expected(action: Action, number: int) -> dict[str, tuple[str, bytes]]:
    """What there is of these items when an action is done."""
    vectors = vectors_of(2, number)
    if action is erase:
        return {erased_id(id_): ("forget", b"") for id_ in ids_of(number)}
    if action is forget:
        return dict.fromkeys(ids_of(number), ("forget", b""))
    return {id_: ("enrol", v.tobytes()) for id_, v in zip(ids_of(number), vectors, strict=True)}


def check_kill(folder: str, caches: Path, action: Action, moment: Moment, number: int) -> None:
    own, new = Machine(folder, caches / "own"), Machine(folder, caches / "new")
    own.do(enrol, 1000)
    if action is not enrol:
        own.do(enrol, number)
    before = own.entries()
    assert forked(lambda: own.do_until(moment, action, number)) == signal.SIGKILL

    found = own.entries()
    others = {id_: entry for id_, entry in before.items() if id_ not in ids_of(number)}
    mine = {id_: entry for id_, entry in found.items() if id_ not in others}
    assert new.entries() == found, "a machine that has nothing has the same"
    assert others.items() <= found.items(), "nothing is lost of what was there"
    nothing = {} if action is enrol else expected(enrol, number)
    assert mine in (nothing, expected(forget, number), expected(action, number)), "all of it, or nothing"

    if action is publish:
        waiting = new.log(busy_timeout_s=0.1, hold_s=60)
        try:
            enrol(waiting, number)
        except GalleryBusy:
            waiting.close()
        else:
            raise AssertionError("who writes must wait for one who publishes")
        # then not for ever: a second by the clock of the server
    new.do(action, number)
    done = {**others, **expected(action, number)}
    assert new.entries() == own.entries() == done
    if action in (forget, erase):
        segments = Segments(folder)
        for listed in segments.list_from(0):
            read = segments.read(listed)
            assert read is not None
            of_item = [c.entry for c in read[0].changes if c.entry.id in ids_of(number)]
            assert all(e.op == "forget" and e.vector is None for e in of_item), listed
            assert action is forget or not of_item, listed


def main() -> None:
    store, caches = sys.argv[1], Path(sys.argv[2])
    for number, (action, moment) in enumerate(KILLS):
        start = time.monotonic()
        try:
            check_kill(storage.join(store, "galleries", f"{number}"), caches, action, moment, number)
        except BaseException:
            print(f"{action.__name__} was killed at {moment}", file=sys.stderr)
            raise
        print(f"{action.__name__} at {moment}: {time.monotonic() - start:.1f} s")
    print(f"{len(KILLS)} kills")


if __name__ == "__main__":
    main()
