"""Our search beside one by Faiss alone at the same recall, taking turns so that both have the same load."""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks._search_peers import K, recall_of
from dml.retrieval.tune import refined

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
_MOST = 512
_SINGLE = 100


@dataclass(frozen=True)
class ByFaiss:
    """An index that Faiss alone searches, slower and with a higher recall at a higher parameter."""

    name: str
    index: faiss.Index
    vectors: faiss.Index
    """Flat, to compare candidates in full."""
    k_factor: int = 0
    """Candidates per answer; 0: it keeps the vectors."""

    def at(self, value: int) -> Search:
        """The search with a value of its parameter, which the index has from now on."""
        faiss.ParameterSpace().set_index_parameter(self.index, self.parameter, value)
        searched = refined(self.index, self.vectors, self.k_factor)
        return lambda queries: searched.search(queries, K)[1]

    @property
    def parameter(self) -> str:
        return "efSearch" if faiss.try_extract_index_ivf(self.index) is None else "nprobe"


@dataclass(frozen=True)
class Ratio:
    """Queries a second of ours / theirs, at our recall: medians of all rounds."""

    setting: str
    recall: float
    alone: float
    in_batch: float


def ratio_at_equal_recall(
    ours: Search, theirs: ByFaiss, queries: NDArray[np.float32], truth: NDArray[np.int64], *, rounds: int = 15
) -> Ratio:
    """Their recall goes in steps of the parameter: their time at our recall is that between two steps."""
    recall = recall_of(ours(queries), truth)

    def recall_at(value: int) -> float:
        return recall_of(theirs.at(value)(queries), truth)

    above = min(bisect_left(range(1, _MOST), recall, key=recall_at) + 1, _MOST)
    below = max(above - 1, 1)
    low, high = recall_at(below), recall_at(above)
    share = float(np.clip((recall - low) / (high - low), 0, 1)) if high > low else 1.0
    ratios = []
    for _ in range(rounds):
        first = _taking_turns(ours, theirs.at(below), queries)
        second = _taking_turns(ours, theirs.at(above), queries)
        ratios.append((1 - share) * first + share * second)
    alone, in_batch = np.median(ratios, axis=0).tolist()
    return Ratio(f"{theirs.parameter}={below + share * (above - below):.2f}", recall, alone, in_batch)


def _taking_turns(ours: Search, theirs: Search, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Their processor time / ours, of a query alone and in a batch of all."""
    singles = [queries[row : row + 1] for row in np.random.default_rng().choice(len(queries), _SINGLE, False)]
    alone = np.array([_seconds(ours, theirs, query, turn) for turn, query in enumerate(singles)])
    batch = np.array([_seconds(ours, theirs, queries, turn) for turn in range(4)])
    (our_alone, their_alone), (our_batch, their_batch) = np.median(alone, 0), np.median(batch, 0)
    return np.array([their_alone / our_alone, their_batch / our_batch])


def _seconds(ours: Search, theirs: Search, queries: NDArray[np.float32], turn: int) -> tuple[float, float]:
    """Of ours and theirs; each is first in half of the turns, since the second finds code in the cache."""
    taken = [0.0, 0.0]
    for which in (0, 1) if turn % 2 == 0 else (1, 0):
        search = theirs if which else ours
        start = time.thread_time_ns()
        search(queries)
        taken[which] = (time.thread_time_ns() - start) / 1e9
    return taken[0], taken[1]
