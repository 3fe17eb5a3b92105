"""Similarities of impostor pairs: probes and a gallery in, the most similar pairs of two identities out."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_MAX_PAIRS_KEPT = 2_000_000
_BLOCK_SIMILARITIES = 1 << 24


Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Vectors (n, D) of unit length, of the rows (n,)."""


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
        # An identity is enrolled several times where a pair is of images.
        identities, counts = np.unique(self.enrolled, return_counts=True)
        if not len(identities):
            return 0
        mates = np.searchsorted(identities, self.probes).clip(max=len(identities) - 1)
        num_mated = int(counts[mates][identities[mates] == self.probes].sum())
        return len(self.probes) * len(self.enrolled) - num_mated

    def restricted_to(self, selected: NDArray[np.bool_]) -> "ImpostorScores":
        """The pairs of two selected identities.

        Args:
            selected: a truth value for each identity.
        """
        kept = selected[self.pair_probes] & selected[self.pair_enrolled]
        probes = selected[self.probes]
        return ImpostorScores(
            self.similarities[kept],
            self.pair_probes[kept],
            self.pair_enrolled[kept],
            self.maxima[probes],
            self.probes[probes],
            self.enrolled[selected[self.enrolled]],
            self.floor,
        )

    def at_least(self, floor: float) -> "ImpostorScores":
        """The same scores with only the pairs of at least this similarity."""
        if floor <= self.floor:
            return self
        kept = self.similarities >= floor
        return replace(
            self,
            similarities=self.similarities[kept],
            pair_probes=self.pair_probes[kept],
            pair_enrolled=self.pair_enrolled[kept],
            floor=floor,
        )


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
    max_kept: int = _MAX_PAIRS_KEPT,
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
