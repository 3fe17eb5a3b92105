"""Recall of live queries: a sample of them is compared with every item that matches, in the background."""

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dml.metrics.intervals import wilson_interval
from dml.retrieval.answer import Answer
from dml.serving.app.metrics import Metrics
from dml.serving.app.opened import OpenIndex
from dml.serving.app.where import Wheres

logger = logging.getLogger(__name__)

_MOST_WAITING = 64
_KEPT = 10_000
"""Answers of each index over which the recall is taken: those of the last 1,000 queries at k = 10."""
_EQUAL = 1e-5


@dataclass(frozen=True)
class Sampled:
    """A query that was answered."""

    opened: OpenIndex
    vector: NDArray[np.float32]
    k: int
    where: Wheres
    answers: Sequence[Answer]


class RecallSampler:
    """Measures the recall of some queries; more than it can are let go.

    Args:
        share: of the queries.
        metrics: which it sets.
        seed: of the draw.
    """

    def __init__(self, share: float, metrics: Metrics, *, seed: int | None = None) -> None:
        self._share, self._metrics, self._random = share, metrics, random.Random(seed)
        self._counts: dict[str, deque[tuple[int, int]]] = {}
        self._versions: dict[str, str] = {}
        self._waiting, self._lock = 0, threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recall")

    def offer(self, sampled: Sampled) -> None:
        """Perhaps measure this query later; the caller must hold its index."""
        if self._random.random() >= self._share:
            return
        with self._lock:
            if self._waiting >= _MOST_WAITING or not sampled.opened.uses.begin():
                return
            self._waiting += 1
        self._pool.submit(self._measure, sampled)

    def follow(self, versions: Mapping[str, str]) -> None:
        """Drop what was measured of versions that are no longer in use: each has a recall of its own.

        Args:
            versions: in use, by the index's name.
        """
        with self._lock:
            for name in [name for name, version in self._versions.items() if versions.get(name) != version]:
                self._counts.pop(name, None)
                for gauge in (self._metrics.recall, self._metrics.recall_low, self._metrics.recall_high):
                    gauge.remove(name)
            self._versions = dict(versions)

    def close(self) -> None:
        """End, after the query at hand."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _measure(self, sampled: Sampled) -> None:
        try:
            found, expected = recall_of(sampled)
            self._record(sampled.opened, found, expected)
        except Exception:
            logger.exception("the recall of a query could not be measured")
        finally:
            with self._lock:
                self._waiting -= 1
            sampled.opened.uses.end()

    def _record(self, opened: OpenIndex, found: int, expected: int) -> None:
        name = opened.ref.name
        with self._lock:
            if self._versions.get(name) == opened.ref.version:
                self._count(name, found, expected)

    def _count(self, name: str, found: int, expected: int) -> None:
        counts = self._counts.setdefault(name, deque())
        counts.append((found, expected))
        while sum(number for _, number in counts) > _KEPT and len(counts) > 1:
            counts.popleft()
        hits, trials = (sum(column) for column in zip(*counts, strict=True))
        self._metrics.recall_queries.labels(name).inc()
        if not trials:
            return
        interval = wilson_interval(hits, trials)
        self._metrics.recall.labels(name).set(hits / trials)
        self._metrics.recall_low.labels(name).set(interval.low)
        self._metrics.recall_high.labels(name).set(interval.high)


def recall_of(sampled: Sampled) -> tuple[int, int]:
    """How many answers are as similar as the exact ones, and how many these are; equals are alike."""
    exact = sampled.opened.index.exact_similarities(sampled.vector, sampled.k, where=sampled.where)
    least = float(exact[-1]) if len(exact) else math.inf
    found = sum(answer.similarity >= least - _EQUAL for answer in sampled.answers)
    return min(found, len(exact)), len(exact)
