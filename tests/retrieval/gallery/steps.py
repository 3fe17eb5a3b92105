"""Kills a build of a gallery's log, its publication and the erasure at every step, one after another.

    python -m tests.retrieval.gallery.steps FOLDER MOST

A step is the call of a function that writes, publishes, points, removes or reads the log. Each kill is of a
forked process, on a copy of the store; then others open what is left, and finish the work.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from dml.embedding.forget import vectors_containing
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, versions_holding
from dml.retrieval.index import find_index
from flows.forget import _build_again, erase_forgotten
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of

STEPS = (
    "dml/storage/",
    "dml/embedding/forget.py",
    "dml/embedding/imported",
    "dml/retrieval/gallery/",
    "dml/retrieval/index.py",
    "dml/lineage",
)
KEPT, SECRET = [f"one {number}" for number in range(5)], "Rumpelstiltskin"
NAME = "people"


def make(folder: Path) -> str:
    """A store with a version into which somebody was built, who was forgotten since."""
    store = str(folder / "store")
    ref = publish(store, folder, NAME, items_of(ROWS), vectors_of(ROWS, 1))
    gallery = Gallery.open(store, NAME)
    gallery.enrol(SECRET, vectors=vectors_of(1, 77), ids=[SECRET])
    gallery.enrol("crowd", vectors=vectors_of(3, 5), ids=KEPT[:3])
    _build_again(store, ref, ref.embeddings)
    gallery.forget([SECRET, "photo 3"])
    gallery.update("photo 4", attributes={"region": "north"})
    gallery.enrol("crowd", vectors=vectors_of(2, 6), ids=KEPT[3:])
    gallery.close()
    return store


def work(store: str) -> None:
    """Build the log in, as `dml reindex`, then erase what was forgotten, as `dml forget --now`."""
    ref = find_index(store, NAME)
    collect_changes(store, NAME, ref.embeddings)
    _build_again(store, ref, ref.embeddings)
    erase_forgotten(store, NAME)


def check(store: str) -> None:
    """Nothing is lost, twice or back."""
    expected = {f"photo {row}" for row in range(ROWS) if row != 3} | set(KEPT)
    gallery = Gallery.open(store, NAME)
    ids = gallery.live.items["id"].to_pylist()
    assert sorted(ids) == sorted(expected), set(ids) ^ expected
    embedder = gallery.ref.embeddings.embedder.fingerprint
    found = gallery.live.search(vectors_of(1, 77), ROWS + 9, embedder=embedder).answers[0]
    assert {answer.id for answer in found} == expected
    assert gallery.item("photo 4").attributes["region"] == "north"
    gallery.close()


def finish(store: str) -> None:
    """The next one finishes what was killed."""
    check(store)
    work(store)
    check(store)
    assert forgotten_ids(store, NAME) == [], forgotten_ids(store, NAME)
    assert versions_holding(store, NAME, [SECRET, "photo 3"]) == []
    assert vectors_containing(store, NAME, ["photo 3"]) == []
    for path in Path(store).rglob("*"):
        if path.is_file() and not path.name.endswith("-shm"):
            assert SECRET.encode() not in path.read_bytes(), path


def forked(action: Callable[[], None]) -> int:
    """How a process ended that did this."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def counted(store: str, kill_at: int, report: Path) -> None:
    """Do the work; die at a step, or write how many there are."""
    steps: list[str] = []

    def step(frame, event, argument):
        if event == "call" and any(part in frame.f_code.co_filename for part in STEPS):
            steps.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)
            if len(steps) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(step)
    try:
        work(store)
    finally:
        sys.setprofile(None)
    report.write_text("\n".join(steps))


def chosen(steps: list[str], most: int) -> list[int]:
    """The first and the last call of each function, spread over `most`; numbers from 1."""
    edges = {name: number for number, name in enumerate(steps, 1)}
    edges |= {f"first {name}": number for number, name in reversed(list(enumerate(steps, 1)))}
    numbers = sorted(set(edges.values()))
    return numbers[:: max(1, -(-len(numbers) // most))]


def main() -> None:
    folder, most = Path(sys.argv[1]), int(sys.argv[2])
    assert forked(lambda: print(make(folder))) == 0
    report, copy = folder / "steps", folder / "copy"

    def restored() -> str:
        # The same path: an artefact's URI is what it was.
        shutil.rmtree(folder / "store", ignore_errors=True)
        shutil.copytree(copy, folder / "store")
        return str(folder / "store")

    shutil.copytree(folder / "store", copy)
    assert forked(lambda: counted(restored(), 0, report)) == 0
    steps = report.read_text().splitlines()
    kills = chosen(steps, most)
    for number in kills:
        ended = forked(lambda number=number: counted(restored(), number, report))
        assert ended == signal.SIGKILL, (number, ended)
        assert forked(lambda: finish(str(folder / "store"))) == 0, f"killed at {number}, {steps[number - 1]}"
    print(f"{len(kills)} kills at {len(steps)} steps")


if __name__ == "__main__":
    main()
