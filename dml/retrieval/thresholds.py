"""Thresholds of open-set identification: impostors' similarities in, the threshold for an FPIR out.

Of N enrolled identities a probe of somebody else reaches a threshold t with probability

    FPIR = 1 - (1 - p(t))^N        p(t): share of impostor pairs (probe, identity) that are t or more similar

so FPIR = 1 % at N = 50,000 needs the similarity that one pair in five million reaches. p(t) is read from the
pairs where many are beyond t, and further out from a generalised Pareto distribution fitted to the most
similar ones. A threshold beyond which fewer than `FEWEST_BEYOND` pairs of identities are seen is refused.
The other extreme-value distribution, a Gumbel of the probes' maxima in a small gallery, is not used: fitted
at N = 1,000 and carried to 10,000 it gave an FPIR of 0.0 % where 1 % was asked for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dml.errors import InvalidData, InvalidSetting
from dml.reports import CheckedFpir

FEWEST_BEYOND = 10
"""Pairs of identities beyond a threshold without which nothing is promised: 10 give +-63 % of the rate."""
NUM_FOLDS = 5
_TAIL_SHARE, _FEWEST_IN_TAIL, _MOST_IN_TAIL = 0.001, 500, 20_000
_LARGEST_TAIL_SHARE = 0.1
_KEPT_PAIRS = 2_000_000
_LARGEST = 1_000
_QUANTILES = 64
_BLOCK_SIMILARITIES = 1 << 24

Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Vectors (n, D) of unit length, of the rows (n,)."""


class ImpostorTail(BaseModel):
    """How similar impostors are: the tail of p(t), from a sample of pairs (probe, enrolled identity)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int = Field(description="pairs of a probe and an enrolled identity that is not its own")
    probes: int
    identities: int = Field(description="different identities among the probes")
    location: float = Field(description="similarity from which on the Pareto distribution holds")
    share: float = Field(description="of the pairs, beyond the location")
    scale: float = Field(description="of the Pareto distribution")
    shape: float = Field(description="of the Pareto distribution; below 0 the similarities have an upper end")
    quantiles: list[tuple[float, float]] = Field(
        description="share of the pairs and the similarity that it reaches, up to the location"
    )
    largest: list[float] = Field(
        description="highest similarity of each pair of two identities, the highest first; at most 1,000"
    )

    def similarity_at(self, pair_rate: float) -> float:
        """The similarity that this share of the impostor pairs reaches."""
        if pair_rate >= self.share:
            rates, similarities = zip(*self.quantiles, strict=True)  # rates descend
            return float(np.interp(-pair_rate, [-rate for rate in rates], similarities))
        beyond = math.log(pair_rate / self.share)
        if abs(self.shape) < 1e-9:
            return self.location - self.scale * beyond
        return self.location + self.scale * math.expm1(-self.shape * beyond) / self.shape

    def threshold(self, num_identities: int, fpir: float) -> float:
        """The threshold for an FPIR among so many enrolled identities, whether or not it can be promised."""
        return self.similarity_at(pair_rate(num_identities, fpir))

    def num_beyond(self, threshold: float) -> int:
        """Pairs of two identities seen at or beyond a threshold, each counted once; at most 1,000."""
        return sum(similarity >= threshold for similarity in self.largest)

    def promised(self, num_identities: int, fpir: float, what: str) -> float:
        """The threshold for an FPIR, if enough pairs were seen beyond it.

        Args:
            num_identities: N, enrolled.
            fpir: wanted.
            what: whose threshold, to begin a sentence with.

        Raises:
            InvalidSetting: fewer than `FEWEST_BEYOND`.
        """
        threshold = self.threshold(num_identities, fpir)
        beyond = self.num_beyond(threshold)
        if beyond < FEWEST_BEYOND:
            wanted = self.identities * FEWEST_BEYOND // max(beyond, 1)
            rate = f"an FPIR of {fpir:.3g} among {num_identities} identities"
            if num_identities == 1:
                rate = f"a false-match rate of {fpir:.3g}"
            raise InvalidSetting(
                f"{what}: {rate} needs {FEWEST_BEYOND} pairs of different identities beyond the threshold; "
                f"it has {beyond}, of {self.identities} identities. Calibrate with some {wanted}, "
                "or ask for a higher rate."
            )
        return threshold


@dataclass(frozen=True)
class ImpostorScores:
    """The most similar impostor pairs of a search of probes in a gallery, and every probe's maximum."""

    similarities: NDArray[np.float32]
    """(E,) of the pairs kept: all, or the most similar."""
    of_probes: NDArray[np.int64]
    """(E,) identity of each pair's probe."""
    of_enrolled: NDArray[np.int64]
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
        names, counts = np.unique(
            self.enrolled, return_counts=True
        )  # several times where a pair is of images
        own = np.searchsorted(names, self.probes).clip(max=max(len(names) - 1, 0))
        num_own = int(counts[own][names[own] == self.probes].sum()) if len(names) else 0
        return len(self.probes) * len(self.enrolled) - num_own

    def among(self, taking_part: NDArray[np.bool_]) -> "ImpostorScores":
        """The pairs of which both identities take part; `taking_part` has a truth value for each identity."""
        kept = taking_part[self.of_probes] & taking_part[self.of_enrolled]
        probes = taking_part[self.probes]
        return ImpostorScores(
            self.similarities[kept],
            self.of_probes[kept],
            self.of_enrolled[kept],
            self.maxima[probes],
            self.probes[probes],
            self.enrolled[taking_part[self.enrolled]],
            self.floor,
        )

    def at_least(self, floor: float) -> "ImpostorScores":
        """The same, with those pairs alone kept that are so similar."""
        if floor <= self.floor:
            return self
        kept = self.similarities >= floor
        return replace(
            self,
            similarities=self.similarities[kept],
            of_probes=self.of_probes[kept],
            of_enrolled=self.of_enrolled[kept],
            floor=floor,
        )


def pair_rate(num_identities: int, fpir: float) -> float:
    """p: the rate of impostor pairs beyond the threshold that gives this FPIR among N enrolled identities."""
    return -math.expm1(math.log1p(-fpir) / num_identities)


def fit_pareto(excesses: NDArray[np.float64]) -> tuple[float, float]:
    """Scale and shape of a generalised Pareto distribution, by probability-weighted moments.

    Args:
        excesses: (K,) above the location, 0 or more.

    Raises:
        InvalidData: they are all the same, so that they have no distribution.

    Source: Hosking and Wallis 1987, Technometrics 29(3); their k is -shape. For the shapes of similarities,
    between -0.5 and 0.2, as good as maximum likelihood, and it always has a result.

    Example:
        >>> scale, shape = fit_pareto(np.random.default_rng(0).exponential(0.05, 100_000))
        >>> round(scale, 2), abs(round(shape, 1))
        (0.05, 0.0)
    """
    ascending = np.sort(excesses)
    mean = float(ascending.mean()) if len(ascending) else 0.0
    if len(ascending) < 2 or ascending[0] == ascending[-1] or mean <= 0:
        raise InvalidData(
            f"A tail must have different similarities; got {len(ascending)} that are all the same. Check "
            "whether the embeddings of different identities are copies of each other."
        )
    above = 1 - (np.arange(1, len(ascending) + 1) - 0.35) / len(ascending)
    weighted = float((above * ascending).mean())
    shape = 2 - mean / (mean - 2 * weighted)
    return 2 * mean * weighted / (mean - 2 * weighted), shape


def fit_tail(parts: Sequence[ImpostorScores]) -> ImpostorTail:
    """The tail of the impostor pairs of one search, or of several searches pooled.

    Raises:
        InvalidData: there are fewer than 20 pairs, or their similarities are all the same.
    """
    num_pairs = sum(part.num_pairs for part in parts)
    floor = max((part.floor for part in parts), default=-math.inf)  # where several keep different shares
    parts = [part.at_least(floor) for part in parts]
    similarities = np.concatenate([part.similarities for part in parts] or [np.empty(0, np.float32)])
    if num_pairs < 2 * FEWEST_BEYOND or len(similarities) < 2 * FEWEST_BEYOND:
        raise InvalidData(
            f"A tail needs {2 * FEWEST_BEYOND} impostor pairs; got {num_pairs}. Add items of others."
        )
    order = np.argsort(-similarities, kind="stable")
    similarities = similarities[order].astype(np.float64)
    wanted = min(
        max(_TAIL_SHARE * num_pairs, _FEWEST_IN_TAIL), _MOST_IN_TAIL, _LARGEST_TAIL_SHARE * num_pairs
    )
    size = min(max(int(wanted), FEWEST_BEYOND), len(similarities) - 1)
    location = float(similarities[size])
    scale, shape = fit_pareto(similarities[:size] - location)
    ranks = np.unique(np.geomspace(size + 1, len(similarities), _QUANTILES).astype(np.int64))[::-1]
    probes = np.concatenate([part.probes for part in parts])
    return ImpostorTail(
        pairs=num_pairs,
        probes=len(probes),
        identities=len(np.unique(probes)),
        location=location,
        share=size / num_pairs,
        scale=scale,
        shape=shape,
        quantiles=[(rank / num_pairs, round(float(similarities[rank - 1]), 7)) for rank in ranks.tolist()],
        largest=_largest_of_identities(parts, order, similarities),
    )


def _largest_of_identities(
    parts: Sequence[ImpostorScores], order: NDArray[np.int64], descending: NDArray[np.float64]
) -> list[float]:
    """The highest similarity of each unordered pair of identities, descending."""
    of_probes = np.concatenate([part.of_probes for part in parts])[order]
    of_enrolled = np.concatenate([part.of_enrolled for part in parts])[order]
    low, high = np.minimum(of_probes, of_enrolled), np.maximum(of_probes, of_enrolled)
    pairs = low * (high.max(initial=0) + 1) + high
    for size in (
        64 * _LARGEST,
        len(order),
    ):  # the second where few pairs of identities have the first of them
        first = np.unique(pairs[:size], return_index=True)[1]
        if len(first) >= _LARGEST:
            break
    largest: list[float] = descending[np.sort(first)[:_LARGEST]].round(7).tolist()
    return largest


def sample_probes(identities: NDArray[np.int64], most: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Rows of at most so many probes: one of each identity, then a second, until there are enough.

    Args:
        identities: (N,) of the rows.
        most: probes.
        seed: of the choice.
    """
    shuffled = np.random.default_rng(seed).permutation(len(identities))
    by_identity = shuffled[np.argsort(identities[shuffled], kind="stable")]
    starts = np.flatnonzero(np.diff(identities[by_identity], prepend=identities.min(initial=0) - 1))
    turn = np.empty(len(identities), dtype=np.int64)
    turn[by_identity] = np.arange(len(identities)) - np.repeat(
        starts, np.diff(starts, append=len(identities))
    )
    chosen = shuffled[np.argsort(turn[shuffled], kind="stable")][:most]
    return np.sort(chosen)


def impostor_scores(
    probes: NDArray[np.float32],
    probe_identities: NDArray[np.int64],
    take: Take,
    identities: NDArray[np.int64],
    *,
    rows: NDArray[np.int64] | None = None,
    by_image: bool = False,
    most_kept: int = _KEPT_PAIRS,
) -> ImpostorScores:
    """Compare every probe with every other identity of a gallery, in blocks of the gallery.

    Args:
        probes: (P, D) unit length; a probe that is enrolled counts as one that is not: its own identity is
            left out.
        probe_identities: (P,) numbered from 0.
        take: the gallery's vectors by row.
        identities: (N,) of the gallery's rows, numbered from 0.
        rows: (n,) the gallery: these rows; None: all N.
        by_image: a pair is a probe and an image, as in verification, not a probe and the most similar image
            of an identity.
        most_kept: pairs kept, about; the most similar ones. Memory: 20 bytes each.
    """
    rows = np.arange(len(identities)) if rows is None else rows
    rows = rows[np.argsort(identities[rows], kind="stable")]
    labels = identities[rows]
    starts = np.arange(len(rows)) if by_image else np.flatnonzero(np.diff(labels, prepend=labels[:1] - 1))
    enrolled = labels[starts]
    floor = _floor(probes, probe_identities, take, rows, starts, enrolled, most_kept)
    maxima = np.full(len(probes), -np.inf, dtype=np.float32)
    none = np.empty(0, dtype=np.int64)
    kept = [(maxima[:0], none, none)]
    for columns, similarities in _compared(probes, take, rows, starts):
        own = probe_identities[:, None] == enrolled[None, columns]
        similarities[own] = -np.inf
        np.maximum(maxima, similarities.max(axis=1), out=maxima)
        which, column = np.nonzero(similarities >= floor)
        kept.append((similarities[which, column], probe_identities[which], enrolled[columns][column]))
    return ImpostorScores(
        similarities=np.concatenate([similarities for similarities, _, _ in kept]),
        of_probes=np.concatenate([of_probes for _, of_probes, _ in kept]),
        of_enrolled=np.concatenate([of_enrolled for _, _, of_enrolled in kept]),
        maxima=maxima,
        probes=probe_identities,
        enrolled=enrolled,
        floor=floor,
    )


def _compared(
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
    most_kept: int,
) -> float:
    """The similarity that about `most_kept` pairs reach, from a sample of probes and identities."""
    num_pairs = len(probes) * len(starts)
    if num_pairs <= 2 * most_kept:
        return -2.0  # no cosine is, but the own identity's -infinity is not kept
    random = np.random.default_rng(0)
    some = np.sort(random.choice(len(probes), min(len(probes), 512), replace=False))
    few = np.sort(random.choice(len(starts), min(len(starts), 20_000), replace=False))
    stops = np.append(starts[1:], len(rows))[few]
    chosen = np.concatenate([np.arange(a, b) for a, b in zip(starts[few], stops, strict=True)])
    their_starts = np.concatenate([[0], np.cumsum(stops - starts[few])[:-1]])
    parts = []
    for columns, similarities in _compared(probes[some], take, rows[chosen], their_starts):
        own = probe_identities[some, None] == enrolled[few][None, columns]
        parts.append(similarities[~own])
    return float(np.quantile(np.concatenate(parts), 1 - most_kept / num_pairs))


def fold_of_identities(num_identities: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(N,) the fold of each identity, as even as can be."""
    return np.random.default_rng(seed).permutation(num_identities) % NUM_FOLDS


def tails_without_each_fold(parts: Sequence[ImpostorScores], folds: NDArray[np.int64]) -> list[ImpostorTail]:
    """For each fold of identities the tail of the pairs in which none of them takes part."""
    return [fit_tail([part.among(folds != fold) for part in parts]) for fold in range(NUM_FOLDS)]


def check_thresholds(
    searches: Sequence[tuple[ImpostorScores, Sequence[float]]], folds: NDArray[np.int64]
) -> CheckedFpir:
    """The FPIR where each fold's probes meet the threshold that was set without them.

    Args:
        searches: one or several, each with the thresholds of the folds.
        folds: (N,) fold of each identity.
    """
    import torch

    from dml.metrics.intervals import clustered_wilson_interval

    raised = np.concatenate(
        [scores.maxima >= np.asarray(limits)[folds[scores.probes]] for scores, limits in searches]
    )
    probes = np.concatenate([scores.probes for scores, _ in searches])
    interval = clustered_wilson_interval(torch.from_numpy(raised), torch.from_numpy(probes))
    return CheckedFpir(
        fpir=float(raised.mean()),
        low=interval.low,
        high=interval.high,
        probes=len(raised),
        identities=len(np.unique(probes)),
        enrolled=max(len(scores.enrolled) for scores, _ in searches),
    )
