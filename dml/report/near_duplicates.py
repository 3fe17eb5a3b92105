"""Images that are nearly the same: candidates by perceptual hash, confirmed by their thumbnails."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dml.progress import Ticker
from dml.report.perceptual_hash import perceptual_hashes, structure_similarity
from dml.retrieval.hamming import CodePairs, pairs_within

MAX_DISTANCE, MIN_SIMILARITY = 6, 0.97
"""Measured on real data: docs/looking.md."""
_MOST_CANDIDATES = 512  # of one image, whose thumbnails are compared
_PAIRS_COMPARED = 1 << 13  # at a time: 64 MiB


@dataclass(frozen=True)
class NearDuplicates:
    """Of each of Q images its nearest near-duplicate in a gallery."""

    nearest: NDArray[np.int64]
    """(Q,) row of the gallery; -1 for an image that has none."""
    distances: NDArray[np.int32]
    """(Q,) bits of the hashes that differ."""
    similarities: NDArray[np.float32]
    """(Q,) of the thumbnails' structure."""
    num_pairs: int
    """All pairs of near-duplicates, not only the nearest; at least so many where `truncated`."""
    truncated: int
    """Images with more candidates by hash than are compared; their nearest by hash are."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The images that have one, the most alike first, of equal ones the first."""
        rows = np.flatnonzero(self.nearest >= 0)
        order = np.lexsort((rows, self.distances[rows], -self.similarities[rows]))
        ordered: NDArray[np.int64] = rows[order]
        return ordered

    def pairs(self) -> list[tuple[int, int]]:
        """(image, its nearest) in the order of `rows`."""
        return [(int(row), int(self.nearest[row])) for row in self.rows]


def find_near_duplicates(
    images: NDArray[np.uint8],
    gallery: NDArray[np.uint8] | None = None,
    *,
    max_distance: int = MAX_DISTANCE,
    min_similarity: float = MIN_SIMILARITY,
    most_candidates: int = _MOST_CANDIDATES,
    pairs_at_a_time: int = _PAIRS_COMPARED,
    part: str = "near-duplicates",
) -> NearDuplicates:
    """Find each image's near-duplicates.

    Two images are near-duplicates where their hashes differ in at most `max_distance` bits and their
    thumbnails' `structure_similarity` is at least `min_similarity`. Colour is not compared.

    Args:
        images: (Q, S, S) thumbnails.
        gallery: (N, S, S) thumbnails; None: the images themselves, each without itself.
        max_distance: in bits of 64.
        min_similarity: in [-1, 1].
        most_candidates: by hash, of one image; bounds the time where very many are alike.
        pairs_at_a_time: compared by their thumbnails; bounds the memory.
        part: the name of this step in progress messages.
    """
    hashes = perceptual_hashes(images)
    others, other_hashes = (images, hashes) if gallery is None else (gallery, perceptual_hashes(gallery))
    nearest = _Nearest(len(images), within=gallery is None, pairs_at_a_time=pairs_at_a_time)
    most = most_candidates + (gallery is None)  # an image is its own nearest candidate
    with Ticker("near-duplicates") as ticker:
        ticker.begin(part, "images", len(images))
        for block in pairs_within(hashes, other_hashes, max_distance=max_distance, most=most):
            nearest.add(block, images, others, min_similarity)
            ticker.count(block.num_queries)
    return nearest.result()


class _Nearest:
    """The nearest so far, and how many pairs there were."""

    def __init__(self, num_images: int, *, within: bool, pairs_at_a_time: int) -> None:
        self._within, self._pairs_at_a_time = within, pairs_at_a_time
        self._nearest = np.full(num_images, -1, np.int64)
        self._distances = np.zeros(num_images, np.int32)
        self._similarities = np.zeros(num_images, np.float32)
        self._num_kept = self._truncated = 0

    def add(
        self, block: CodePairs, images: NDArray[np.uint8], gallery: NDArray[np.uint8], min_similarity: float
    ) -> None:
        """Confirm a block's candidates. A query's are all in one block."""
        self._truncated += len(block.truncated)
        for start in range(0, len(block.queries), self._pairs_at_a_time):
            part = slice(start, start + self._pairs_at_a_time)
            queries, rows, distances = block.queries[part], block.gallery[part], block.distances[part]
            alike = structure_similarity(images[queries], gallery[rows])
            kept = alike >= min_similarity
            if self._within:
                kept &= queries != rows
            self._num_kept += int(kept.sum())
            self._keep_nearest(queries[kept], rows[kept], distances[kept], alike[kept])

    def _keep_nearest(
        self,
        queries: NDArray[np.int64],
        rows: NDArray[np.int64],
        distances: NDArray[np.int32],
        similarities: NDArray[np.float32],
    ) -> None:
        order = np.lexsort((rows, distances, -similarities, queries))
        first = order[np.flatnonzero(np.diff(queries[order], prepend=-1))]
        # A query's candidates may be in two parts; the former ones have no larger distance, and no larger row
        # of an equal one.
        better = (self._nearest[queries[first]] < 0) | (
            similarities[first] > self._similarities[queries[first]]
        )
        chosen = first[better]
        self._nearest[queries[chosen]] = rows[chosen]
        self._distances[queries[chosen]] = distances[chosen]
        self._similarities[queries[chosen]] = similarities[chosen]

    def result(self) -> NearDuplicates:
        # Within one set a pair is met from both its images, unless one of them has too many candidates.
        num_pairs = -(-self._num_kept // 2) if self._within else self._num_kept
        return NearDuplicates(self._nearest, self._distances, self._similarities, num_pairs, self._truncated)
