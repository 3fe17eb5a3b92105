"""What an enrolment costs, and what is left after twenty kills: `python -m benchmarks.enrolment`.

A writer enrols and forgets vectors, another process builds the log into the next version of the index again
and again, and this one searches all the while. Writer and builder are killed (SIGKILL) at random moments and
begin again. Then what was acknowledged is counted. The disk's own fsync stands beside the enrolments.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.refs import IndexRef
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, publish_index
from dml.retrieval.index import find_index

NAME, KEPT, FORGOTTEN_EVERY = "people", "kept", 4
_VISIBLE_S = 1.0


def unit_vectors(rows: int, dim: int, seed: int) -> NDArray[np.float32]:
    """(N, D) random float32 of unit length."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def make_index(folder: Path, rows: int, dim: int) -> IndexRef:
    """A published index of random vectors, in a new store."""
    np.save(folder / "vectors.npy", unit_vectors(rows, dim, 0))
    imported = import_vectors(str(folder / "store"), NAME, folder / "vectors.npy")
    ref = build_index(str(folder / "store"), NAME, imported.embeddings, IndexConfig())
    publish_index(str(folder / "store"), ref)
    return ref


def write(store: str, first: int) -> None:
    """Enrol without end, and forget every fourth item; a line of what is acknowledged and when."""
    gallery = Gallery.open(store, NAME)
    dim = gallery.ref.embeddings.dim
    for number in range(first, first + 10**9):
        begin = time.time()
        id_ = f"{KEPT if number % FORGOTTEN_EVERY else 'gone'}-{number}"
        gallery.enrol(f"person {number}", vectors=unit_vectors(1, dim, number), ids=[id_])
        print(f"enrolled {id_} {begin} {time.time()}", flush=True)
        if not id_.startswith(KEPT):
            print(f"forgetting {id_} 0 0", flush=True)
            gallery.forget(id_)
            print(f"forgotten {id_} 0 {time.time()}", flush=True)


def build(store: str) -> None:
    """Build the log into the next version and publish it, without end."""
    while True:
        table = find_index(store, NAME).embeddings
        changes = collect_changes(store, NAME, table)
        publish_index(store, build_index(store, NAME, table, IndexConfig(), changes=changes))
        print("published", flush=True)


@dataclass
class Outcome:
    """What was acknowledged, and what was found of it."""

    kills: int = 0
    published: int = 0
    searches: int = 0
    enrol_ms: list[float] = field(default_factory=list)
    visible_ms: list[float] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0
    double: int = 0
    resurrected: int = 0
    failed_searches: int = 0


class _Process:
    """A writer or builder that is killed and begins again, and what it said."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.enrolment", *arguments]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.endswith("\n"):
                self.lines.append(line.strip())

    def kill(self) -> str:
        """SIGKILL; what it had complained of, if it had ended by itself."""
        ended = self._child.poll()
        self._child.send_signal(signal.SIGKILL)
        self._child.wait()
        self._reading.join()
        assert self._child.stderr is not None
        return self._child.stderr.read() if ended is not None else ""


def storm(folder: Path, *, kills: int, rows: int, dim: int, between_s: float, seed: int = 0) -> Outcome:
    """Write, build and search at once, with kills; count what is left.

    Args:
        folder: empty.
        kills: of writer or builder.
        rows: of the index in the beginning.
        dim: D.
        between_s: mean time between kills.
        seed: of their moments.
    """
    make_index(folder, rows, dim)
    store, rng, outcome = str(folder / "store"), random.Random(seed), Outcome()
    searcher = Gallery.open(store, NAME, readonly=True)
    first, done, stop = 0, [], threading.Event()
    writer, builder = _Process("--write", store, "--first", "0"), _Process("--build", store)
    forgotten_at: dict[str, float] = {}

    def search() -> None:
        queries, begun = unit_vectors(8, dim, 1), 0
        while not stop.is_set():
            try:
                begin = time.time()  # before the log is looked at
                live = searcher.live
                embedder = live.ref.embeddings.embedder.fingerprint
                answers = live.search(queries, 10, embedder=embedder).answers
                outcome.searches += 1
                for answer in (answer for of_query in answers for answer in of_query):
                    outcome.resurrected += forgotten_at.get(answer.id, begin) < begin - _VISIBLE_S
                lines = [line.split() for line in writer.lines[begun:]]
                begun += len(lines)
                forgotten_at.update((line[1], float(line[3])) for line in lines if line[0] == "forgotten")
                kept = [line for line in lines if line[0] == "enrolled" and line[1].startswith(KEPT)]
                if kept:  # the latest, as soon as this process finds it
                    while not searcher.holds(kept[-1][1]) and not stop.is_set():
                        time.sleep(0.002)
                    outcome.visible_ms.append(1e3 * (time.time() - float(kept[-1][3])))
                if begun > len(writer.lines):
                    begun = 0  # another writer
                if rng.random() < 0.05:
                    searcher.refresh()
            except Exception as error:
                outcome.failed_searches += 1
                print(f"a search failed: {type(error).__name__}: {error}", file=sys.stderr)

    searching = threading.Thread(target=search)
    searching.start()
    try:
        for number in range(kills):
            while not writer.lines or not builder.lines:
                time.sleep(0.05)  # both have begun
            time.sleep(rng.expovariate(1 / between_s))
            if number % 2:
                outcome.published += len(builder.lines)
                print(builder.kill(), file=sys.stderr, end="")
                builder = _Process("--build", store)
            else:
                print(writer.kill(), file=sys.stderr, end="")
                done += writer.lines
                first += 1_000_000
                writer = _Process("--write", store, "--first", str(first))
            outcome.kills += 1
        time.sleep(between_s)
    finally:
        stop.set()
        searching.join()
        outcome.published += len(builder.lines)
        print(builder.kill(), writer.kill(), file=sys.stderr, end="")
    _count([line.split() for line in [*done, *writer.lines]], store, outcome)
    return outcome


def _count(said: list[list[str]], store: str, outcome: Outcome) -> None:
    enrolled = {number for word, number, *_ in said if word == "enrolled"}
    going = {number for word, number, *_ in said if word == "forgetting"}
    gone = {number for word, number, *_ in said if word == "forgotten"}
    outcome.enrol_ms = [
        1e3 * (float(end) - float(begin)) for word, _, begin, end in said if word == "enrolled"
    ]
    outcome.acknowledged = len(enrolled) + len(gone)
    for name in (NAME, *(f"{NAME}@{find_index(store, NAME).version}",)):
        ids = Gallery.open(store, name, readonly=True).live.items["id"].to_pylist()
        outcome.lost += len(enrolled - going - set(ids))
        outcome.double += len(ids) - len(set(ids))
        outcome.resurrected += len(gone & set(ids))


def fsync_ms(folder: Path, times: int = 200) -> list[float]:
    """Milliseconds to write 4 KiB to this disk and wait for it."""
    taken = []
    with (folder / "probe").open("wb") as file:
        for _ in range(times):
            begin = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            taken.append(1e3 * (time.perf_counter() - begin))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20_000, help="of the index in the beginning")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--between-s", type=float, default=3.0, help="mean time between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", metavar="STORE", help=argparse.SUPPRESS)
    parser.add_argument("--build", metavar="STORE", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.first)
    if arguments.build:
        build(arguments.build)
    with tempfile.TemporaryDirectory() as folder:
        disk = fsync_ms(Path(folder))
        outcome = storm(
            Path(folder),
            kills=arguments.kills,
            rows=arguments.rows,
            dim=arguments.dim,
            between_s=arguments.between_s,
            seed=arguments.seed,
        )
    for what, taken in (
        ("fsync", disk),
        ("enrol", outcome.enrol_ms),
        ("visible elsewhere", outcome.visible_ms),
    ):
        p50, p99 = np.percentile(taken or [np.nan], [50, 99])
        print(f"{what:18} p50 {p50:8.1f} ms, p99 {p99:8.1f} ms of {len(taken)}")
    print(
        f"{outcome.kills} kills, {outcome.published} versions published, {outcome.searches} searches of 8\n"
        f"acknowledged {outcome.acknowledged}: lost {outcome.lost}, double {outcome.double}, "
        f"resurrected {outcome.resurrected}; failed searches {outcome.failed_searches}"
    )


if __name__ == "__main__":
    main()
