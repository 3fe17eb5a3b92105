"""Inverted lists over many enrolled items: vectors in, the rows near a query out, with the recall of that.

As in an IVF index each row is in the list of its nearest centroid, but a list holds row numbers alone: the
vectors are those of the delta, compared in full. Nothing changes once it is made, so searches need no lock.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.retrieval.recall_table import EXACT, Recall

_ITERATIONS, _POINTS_PER_CENTROID = 5, 64  # more of either gains less than 1 % of the rows compared
_K, _STEPS = 10, 50
_MOST_QUERIES, _FEWEST_QUERIES, _MOST_SIMILARITIES = 300, 100, 30_000_000
_SELECTIVITIES = (1.0, 0.25)
_LARGEST_SHARE = 0.5  # of the rows; from there comparing with all of them in one call takes no longer
_SIMILARITIES_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class DeltaLists:
    """The first rows of a delta in inverted lists; make it with `made_of`."""

    centroids: NDArray[np.float32]
    """(L, D)."""
    list_of_row: NDArray[np.uint16]
    """(N,)."""
    num_trained: int
    """Rows that there were when the centroids were trained and the recall was measured."""
    share: float
    """Of the rows that match, those to compare for the 10 nearest; above a half: lists do not pay."""
    recall: Recall
    """Of the 10 nearest, that the share has."""

    @classmethod
    def made_of(cls, vectors: NDArray[np.float32], *, recall: float) -> "DeltaLists":
        """Train the centroids, and measure how much of the lists must be compared.

        The queries are rows that the centroids are not trained on. The share is the smallest at which the
        recall@10 among all rows, and among a quarter of them as under a filter, reaches `recall` with the
        lower end of its 95 % interval.

        Args:
            vectors: (N, D) float32 of unit length, 2 rows or more.
            recall: wanted, (0, 1).
        """
        num_rows, dim = vectors.shape
        rng = np.random.default_rng(0)
        wanted = int(np.clip(_MOST_SIMILARITIES // num_rows, _FEWEST_QUERIES, _MOST_QUERIES))
        queries = np.sort(rng.choice(num_rows, min(wanted, max(num_rows // 5, 1)), replace=False))
        num_lists = min(round(math.sqrt(num_rows)), np.iinfo(np.uint16).max)
        trained_on = np.setdiff1d(
            rng.choice(num_rows, min(num_rows, num_lists * _POINTS_PER_CENTROID), replace=False), queries
        )
        kmeans = faiss.Kmeans(
            dim, num_lists, niter=_ITERATIONS, spherical=True, seed=1, min_points_per_centroid=1
        )
        kmeans.train(vectors[trained_on])
        centroids = np.asarray(kmeans.centroids, np.float32)
        made = cls(centroids, _nearest(vectors, centroids), num_rows, 1.0, EXACT)
        worst = max(
            (
                made._measured(vectors, queries, np.asarray(rng.random(num_rows) < each), recall)
                for each in _SELECTIVITIES
            ),
            key=lambda measured: measured[0],
        )
        return replace(made, share=worst[0], recall=worst[1])

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.list_of_row)

    @property
    def num_bytes(self) -> int:
        """Memory."""
        return self.centroids.nbytes + self.list_of_row.nbytes + self._order.nbytes

    def with_rows(self, vectors: NDArray[np.float32]) -> "DeltaLists":
        """With more rows (M, D) at the end."""
        added = _nearest(vectors, self.centroids)
        return replace(self, list_of_row=np.concatenate([self.list_of_row, added]))

    def without(self, is_kept: NDArray[np.bool_]) -> "DeltaLists":
        """With the rows (N,) that are kept, numbered anew; a list without rows is left out.

        The centroid of a list of one row is that row, so it must not stay when that is forgotten.
        """
        kept = self.list_of_row[is_kept]
        left, numbers = np.unique(kept, return_inverse=True)
        return replace(self, centroids=self.centroids[left], list_of_row=numbers.astype(np.uint16))

    def pays(self, k: int) -> bool:
        """Whether the k nearest are found in less time than by comparing with all rows."""
        return self._share_for(k) <= _LARGEST_SHARE

    def candidates(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.int64] | None
    ) -> Iterator[NDArray[np.int64]]:
        """For each query the rows of its nearest lists, until these have the share of what matches.

        Args:
            queries: (Q, D) float32.
            k: nearest rows that are wanted.
            rows: (n,) int64, those of the N rows that match; None: all.

        Returns:
            Each ascending; k or more, or all that match.
        """
        sizes, is_match = self._sizes, None
        num_matching = self.num_rows
        if rows is not None:
            sizes = np.bincount(self.list_of_row[rows], minlength=len(self.centroids))
            is_match = np.zeros(self.num_rows, np.bool_)
            is_match[rows] = True
            num_matching = len(rows)
        wanted = max(math.ceil(self._share_for(k) * num_matching), k)
        for similarities in queries @ self.centroids.T:
            nearest = np.argsort(-similarities)
            last = int(np.searchsorted(sizes[nearest].cumsum(), wanted))
            found = np.concatenate([self._rows_of(number) for number in nearest[: last + 1]])
            if is_match is not None:
                found = found[is_match[found]]
            found.sort()
            yield found

    def _share_for(self, k: int) -> float:
        """Ten times as many nearest rows lie as deep in ten times as many rows."""
        return self.share * max(k / _K, 1.0)

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.bincount(self.list_of_row, minlength=len(self.centroids))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.list_of_row, kind="stable")

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *self._sizes.cumsum().tolist()]

    def _rows_of(self, number: int) -> NDArray[np.int64]:
        return self._order[self._starts[number] : self._starts[number + 1]]

    def _measured(
        self,
        vectors: NDArray[np.float32],
        queries: NDArray[np.int64],
        is_match: NDArray[np.bool_],
        recall: float,
    ) -> tuple[float, Recall]:
        """The share of the matching rows to compare, and the recall that it has."""
        import torch

        from dml.metrics.intervals import clustered_wilson_interval

        depths = self._depths(vectors, queries, is_match)
        of_query = torch.arange(len(depths)).repeat_interleave(depths.shape[1])
        wanted = np.unique(np.append(np.quantile(depths, np.linspace(recall, 1, _STEPS), method="higher"), 0))
        for depth in wanted:  # the last one has them all, but few queries have a wide interval all the same
            found = torch.from_numpy((depths <= depth).ravel())
            interval = clustered_wilson_interval(found, of_query)
            if interval.low >= recall:
                break
        else:
            return 1.0, EXACT
        value = float((depths <= depth).mean())
        num_matching = int(is_match.sum())
        return (int(depth) + 1) / num_matching, Recall(
            value=value, basis="calibrated", low=interval.low, high=interval.high, num_queries=len(depths)
        )

    def _depths(
        self, vectors: NDArray[np.float32], queries: NDArray[np.int64], is_match: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """(Q, 10) how many matching rows lie in the lists before that of each of a query's nearest rows."""
        rows = np.flatnonzero(is_match)
        sizes = np.bincount(self.list_of_row[rows], minlength=len(self.centroids))
        k = min(_K, len(rows) - 1)
        depths = np.empty((len(queries), k), np.int64)
        at_once = max(_SIMILARITIES_AT_ONCE // len(rows), 1)
        matching = vectors if len(rows) == len(vectors) else vectors[rows]
        for start in range(0, len(queries), at_once):
            block = queries[start : start + at_once]
            similarities = vectors[block] @ matching.T
            similarities[rows == block[:, None]] = -np.inf  # a query is not an answer to itself
            nearest = np.argpartition(similarities, -k, axis=1)[:, -k:]
            lists = np.argsort(-(vectors[block] @ self.centroids.T), axis=1)
            before = sizes[lists].cumsum(axis=1) - sizes[lists]
            of_list = np.empty_like(before)
            np.put_along_axis(of_list, lists, before, axis=1)
            depths[start : start + at_once] = np.take_along_axis(
                of_list, self.list_of_row[rows[nearest]].astype(np.int64), axis=1
            )
        return depths


def _nearest(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(N,) the number of each vector's nearest centroid."""
    at_once = max(_SIMILARITIES_AT_ONCE // len(centroids), 1)
    numbers = np.empty(len(vectors), np.uint16)
    for start in range(0, len(vectors), at_once):
        block = vectors[start : start + at_once]
        numbers[start : start + at_once] = (block @ centroids.T).argmax(axis=1)
    return numbers
