"""Similarities of impostor pairs: probes and a gallery in, the most similar pairs of two identities out."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PAIRS_KEPT = 2_000_000
_BLOCK_SIMILARITIES = 1 << 24


Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Vectors (n, D) of unit length, of the rows (n,)."""


@dataclass(frozen=True)
class ProbeMaxima:
    """How similar the most similar identity was to each probe of a search, its own left out."""

    maxima: NDArray[np.float32]
    """(P,)"""
    identities: NDArray[np.int64]
    """(P,) of the probes."""
    num_enrolled: int


@dataclass(frozen=True)
class ImpostorPairs:
    """The most similar impostor pairs of one search or of several, and how many pairs there were."""

    similarities: NDArray[np.float32]
    """(E,) descending."""
    pair_probes: NDArray[np.int64]
    """(E,) identity of each pair's probe."""
    pair_enrolled: NDArray[np.int64]
    """(E,) the enrolled identity of each pair."""
    num_pairs: int
    """Kept or not."""
    num_probes: int
    num_identities: int
    """Different ones among the probes."""


@dataclass(frozen=True)
class ImpostorScores:
    """The most similar impostor pairs of a search of probes in a gallery, and every probe's maximum."""

    similarities: NDArray[np.float32]
    """(E,) of the pairs kept: all, or the most similar."""
    pair_probes: NDArray[np.int64]
    """(E,) identity of each pair's probe."""
    pair_enrolled: NDArray[np.int64]
    """(E,) the enrolled identity of each pair."""
    maxima: NDArray[np.float32]
    """(P,) the highest similarity of each probe to another identity."""
    probes: NDArray[np.int64]
    """(P,) identity of each probe."""
    enrolled: NDArray[np.int64]
    """(N,) the enrolled identities, ascending."""
    floor: float = -math.inf
    """Pairs of at least this similarity are kept."""

    @property
    def num_pairs(self) -> int:
        """Pairs of a probe and another identity, kept or not."""
        return _num_pairs(self.probes, self.enrolled)

    def num_pairs_among(self, selected: NDArray[np.bool_]) -> int:
        """Pairs of two selected identities, kept or not.

        Args:
            selected: a truth value for each identity.
        """
        return _num_pairs(self.probes[selected[self.probes]], self.enrolled[selected[self.enrolled]])

    def pairs(self) -> ImpostorPairs:
        """The pairs kept, the most similar first."""
        pool = ImpostorPool(np.empty(0, dtype=np.int64), max_kept=len(self.similarities))
        pool.add(self)
        return pool.pairs()

    def probe_maxima(self) -> ProbeMaxima:
        """What is needed of the scores to count the probes beyond a threshold."""
        return ProbeMaxima(self.maxima, self.probes, len(self.enrolled))


def _num_pairs(probes: NDArray[np.int64], enrolled: NDArray[np.int64]) -> int:
    # An identity is enrolled several times where a pair is of images.
    first = np.searchsorted(enrolled, probes, side="left")
    num_mated = int((np.searchsorted(enrolled, probes, side="right") - first).sum())
    return len(probes) * len(enrolled) - num_mated


_Pairs = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Similarities, identities of the probes, and enrolled identities."""


class ImpostorPool:
    """The most similar impostor pairs of searches that are added one after another.

    Args:
        folds: (N,) fold of each identity; empty where none is left out.
        max_kept: about how many pairs are kept, the most similar of all. Memory: 40 bytes each, and 8 for
            each probe.
    """

    def __init__(self, folds: NDArray[np.int64], *, max_kept: int = MAX_PAIRS_KEPT) -> None:
        self._folds, self._max_kept = folds, max_kept
        none = np.empty(0, dtype=np.int64)
        self._kept: list[_Pairs] = [(none.astype(np.float32), none, none)]
        self._probes: list[NDArray[np.int64]] = []
        self._floor = -math.inf
        self._is_sorted = True
        self._num_pairs = 0
        self._num_pairs_without = np.zeros(int(folds.max(initial=-1)) + 1, dtype=np.int64)

    @property
    def num_searches(self) -> int:
        """How many were added."""
        return len(self._probes)

    def add(self, scores: ImpostorScores) -> None:
        """Add the pairs of a search, of identities numbered as all others."""
        self._probes.append(scores.probes)
        self._num_pairs += scores.num_pairs
        for fold in range(len(self._num_pairs_without)):
            self._num_pairs_without[fold] += scores.num_pairs_among(self._folds != fold)
        self._floor = max(self._floor, scores.floor)  # searches may keep different shares
        pairs = scores.similarities, scores.pair_probes, scores.pair_enrolled
        self._kept.append(_chosen(pairs, scores.similarities >= self._floor))
        self._is_sorted = False
        if sum(len(similarities) for similarities, *_ in self._kept) > 2 * self._max_kept:
            similarities = np.concatenate([similarities for similarities, *_ in self._kept])
            index = len(similarities) - self._max_kept
            self._floor = max(self._floor, float(np.partition(similarities, index)[index]))
            self._kept = [self._joined()]

    def _joined(self) -> _Pairs:
        """The pairs from the floor on."""
        kept = [_chosen(pairs, pairs[0] >= self._floor) for pairs in self._kept]
        similarities, pair_probes, pair_enrolled = (
            np.concatenate(column) for column in zip(*kept, strict=True)
        )
        return similarities, pair_probes, pair_enrolled

    def pairs(self, *, without: int | None = None) -> ImpostorPairs:
        """The pairs kept, the most similar first.

        Args:
            without: a fold; a pair with an identity of it is left out.
        """
        if not self._is_sorted:
            joined = self._joined()
            self._kept = [_chosen(joined, np.argsort(-joined[0], kind="stable"))]
            self._is_sorted = True
        (similarities, pair_probes, pair_enrolled) = self._kept[0]
        probes = np.concatenate(self._probes or [np.empty(0, dtype=np.int64)])
        num_pairs = self._num_pairs
        if without is not None:
            is_other = self._folds != without
            kept = is_other[pair_probes] & is_other[pair_enrolled]
            similarities, pair_probes, pair_enrolled = _chosen(self._kept[0], kept)
            probes = probes[is_other[probes]]
            num_pairs = int(self._num_pairs_without[without])
        return ImpostorPairs(
            similarities, pair_probes, pair_enrolled, num_pairs, len(probes), len(np.unique(probes))
        )


def _chosen(pairs: _Pairs, which: NDArray[Any]) -> _Pairs:
    similarities, pair_probes, pair_enrolled = pairs
    return similarities[which], pair_probes[which], pair_enrolled[which]


def sample_probes(identities: NDArray[np.int64], max_probes: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Rows of at most so many probes: one of each identity, then a second, until there are enough.

    Args:
        identities: (N,) of the rows.
        max_probes: how many rows to choose at most.
        seed: of the choice.
    """
    shuffled = np.random.default_rng(seed).permutation(len(identities))
    by_identity = shuffled[np.argsort(identities[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(identities[by_identity], prepend=identities.min(initial=0) - 1))
    occurrence = np.empty(len(identities), dtype=np.int64)
    occurrence[by_identity] = np.arange(len(identities)) - np.repeat(
        starts, np.diff(starts, append=len(identities))
    )
    chosen = shuffled[np.argsort(occurrence[shuffled], kind="stable")][:max_probes]
    return np.sort(chosen)


def impostor_scores(
    probes: NDArray[np.float32],
    probe_identities: NDArray[np.int64],
    take: Take,
    identities: NDArray[np.int64],
    *,
    rows: NDArray[np.int64] | None = None,
    by_image: bool = False,
    max_kept: int = MAX_PAIRS_KEPT,
) -> ImpostorScores:
    """Compare every probe with every other identity of a gallery, in blocks of the gallery.

    Args:
        probes: (P, D) unit length; a probe that is enrolled counts as one that is not: the identity that
            it shows is left out.
        probe_identities: (P,) numbered from 0.
        take: the gallery's vectors by row.
        identities: (N,) of the gallery's rows, numbered from 0.
        rows: (n,) the gallery: these rows; None: all N.
        by_image: a pair is a probe and an image, as in verification, not a probe and the most similar image
            of an identity.
        max_kept: about how many pairs are kept, the most similar ones. Memory: 20 bytes each.
    """
    rows = np.arange(len(identities)) if rows is None else rows
    rows = rows[np.argsort(identities[rows], kind="stable")]
    labels = identities[rows]
    starts = np.arange(len(rows)) if by_image else np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    enrolled = labels[starts]
    floor = _floor(probes, probe_identities, take, rows, starts, enrolled, max_kept)
    maxima = np.full(len(probes), -np.inf, dtype=np.float32)
    none = np.empty(0, dtype=np.int64)
    kept = [(maxima[:0], none, none)]
    for columns, similarities in _similarity_blocks(probes, take, rows, starts):
        is_mated = probe_identities[:, None] == enrolled[None, columns]
        similarities[is_mated] = -np.inf
        np.maximum(maxima, similarities.max(axis=1), out=maxima)
        which, column = np.nonzero(similarities >= floor)
        kept.append((similarities[which, column], probe_identities[which], enrolled[columns][column]))
    return ImpostorScores(
        similarities=np.concatenate([similarities for similarities, _, _ in kept]),
        pair_probes=np.concatenate([pair_probes for _, pair_probes, _ in kept]),
        pair_enrolled=np.concatenate([pair_enrolled for _, _, pair_enrolled in kept]),
        maxima=maxima,
        probes=probe_identities,
        enrolled=enrolled,
        floor=floor,
    )


def _similarity_blocks(
    probes: NDArray[np.float32], take: Take, rows: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of identities, and (P, identities) their similarities to the probes."""
    block = max(_BLOCK_SIMILARITIES // max(len(probes), 1), 1)
    first = 0
    while first < len(starts):
        last = max(int(np.searchsorted(starts, starts[first] + block)), first + 1)
        stop = starts[last] if last < len(starts) else len(rows)
        similarities = probes @ take(rows[starts[first] : stop]).T
        yield (
            slice(first, last),
            np.maximum.reduceat(similarities, starts[first:last] - starts[first], axis=1),
        )
        first = last


def _floor(
    probes: NDArray[np.float32],
    probe_identities: NDArray[np.int64],
    take: Take,
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
    enrolled: NDArray[np.int64],
    max_kept: int,
) -> float:
    """The similarity that about `max_kept` pairs reach, from a sample of probes and identities."""
    num_pairs = len(probes) * len(starts)
    if num_pairs <= 2 * max_kept:
        return -2.0  # below every cosine, above the -infinity of mated pairs
    random = np.random.default_rng(0)
    sampled = np.sort(random.choice(len(probes), min(len(probes), 512), replace=False))
    columns = np.sort(random.choice(len(starts), min(len(starts), 20_000), replace=False))
    stops = np.append(starts[1:], len(rows))[columns]
    sampled_rows = np.concatenate([np.arange(a, b) for a, b in zip(starts[columns], stops, strict=True)])
    sampled_starts = np.concatenate([[0], np.cumsum(stops - starts[columns])[:-1]])
    parts = []
    for block, similarities in _similarity_blocks(probes[sampled], take, rows[sampled_rows], sampled_starts):
        is_mated = probe_identities[sampled, None] == enrolled[columns][None, block]
        parts.append(similarities[~is_mated])
    return float(np.quantile(np.concatenate(parts), 1 - max_kept / num_pairs))
