"""The tail of impostors' similarities: scores of impostor pairs in, the threshold for an FPIR out.

Of N enrolled identities a probe of somebody else reaches a threshold t with probability

    FPIR = 1 - (1 - p(t))^N        p(t): share of impostor pairs (probe, identity) that are t or more similar

so FPIR = 1 % at N = 50,000 needs the similarity that one pair in five million reaches. p(t) is read from the
pairs where many are beyond t, and further out from a generalised Pareto distribution fitted to the most
similar ones; but not below what is read, as long as 10 pairs are beyond. A threshold beyond which fewer than
`MIN_PAIRS_BEYOND` pairs of identities are seen is refused. The other extreme-value distribution, a Gumbel of
the probes' maxima in a small gallery, is not used: fitted at N = 1,000 and carried to 10,000 it gave an FPIR
of 0.0 % where 1 % was asked for.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from dml.errors import InvalidData, InvalidSetting
from dml.reports import CheckedFpir
from dml.retrieval.impostors import ImpostorPairs, ImpostorPool, ProbeMaxima

MIN_PAIRS_BEYOND = 10
"""Pairs of identities beyond a threshold without which nothing is promised: 10 give +-63 % of the rate."""
NUM_FOLDS = 5
_TAIL_SHARE, _MIN_IN_TAIL, _MAX_IN_TAIL = 0.001, 500, 20_000
_MAX_TAIL_SHARE = 0.1
MAX_LARGEST, NUM_QUANTILES = 1_000, 96


class ImpostorTail(BaseModel):
    """How similar impostors are: the tail of p(t), from a sample of pairs (probe, enrolled identity)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int = Field(description="pairs of a probe and an enrolled identity of another person")
    probes: int
    identities: int = Field(description="different identities among the probes")
    location: float = Field(description="similarity from which on the Pareto distribution holds")
    share: float = Field(description="of the pairs, beyond the location")
    scale: float = Field(description="of the Pareto distribution")
    shape: float = Field(description="of the Pareto distribution; below 0 the similarities have an upper end")
    quantiles: list[tuple[float, float]] = Field(
        description="share of the pairs and the similarity that it reaches, up to 10 pairs"
    )
    largest: list[float] = Field(
        description="highest similarity of each pair of two identities, the highest first; at most 1,000"
    )

    def similarity_at(self, pair_rate: float) -> float:
        """The similarity that this share of the impostor pairs reaches, by those seen and the distribution.

        The higher of both where both have one: a few near-copies, such as twins, are a hump of their own,
        which a distribution fitted to thousands of pairs does not see.
        """
        rates, similarities = zip(*self.quantiles, strict=True)  # rates descend
        seen = float(np.interp(-math.log(pair_rate), -np.log(rates), similarities))
        if pair_rate >= self.share:
            return seen
        by_pareto = self.pareto_similarity_at(pair_rate)
        return max(seen, by_pareto) if pair_rate >= rates[-1] else by_pareto

    def pareto_similarity_at(self, pair_rate: float) -> float:
        """The similarity that this share of the pairs reaches, below `share`, by the Pareto distribution."""
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

    def supported_threshold(self, num_identities: int, fpir: float, what: str) -> float:
        """The threshold for an FPIR, if enough pairs were seen beyond it.

        Args:
            num_identities: N, enrolled.
            fpir: wanted.
            what: whose threshold, to begin a sentence with.

        Raises:
            InvalidSetting: fewer than `MIN_PAIRS_BEYOND`.
        """
        threshold = self.threshold(num_identities, fpir)
        beyond = self.num_beyond(threshold)
        if beyond < MIN_PAIRS_BEYOND:
            # As many as the few pairs that were seen beyond say, and no fewer than the rate does.
            by_rate = MIN_PAIRS_BEYOND / fpir
            by_rate = math.ceil(math.sqrt(2 * by_rate) if num_identities == 1 else by_rate)
            wanted = max(self.identities * MIN_PAIRS_BEYOND // max(beyond, 1), by_rate)
            rate = f"an FPIR of {fpir:.3g} among {num_identities} identities"
            if num_identities == 1:
                rate = f"a false-match rate of {fpir:.3g}"
            raise InvalidSetting(
                f"{what}: {rate} needs {MIN_PAIRS_BEYOND} pairs of different identities beyond the "
                f"threshold; it has {beyond}, of {self.identities} identities. Calibrate with some {wanted}, "
                "or ask for a higher rate."
            )
        return threshold


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


def fit_tail(
    pairs: ImpostorPairs, *, num_largest: int = MAX_LARGEST, num_quantiles: int = NUM_QUANTILES
) -> ImpostorTail:
    """The tail of impostor pairs.

    Args:
        pairs: of one search, or of several searches pooled.
        num_largest: pairs of two identities whose similarities it keeps at most.
        num_quantiles: that it keeps, a third of them above the location.

    Raises:
        InvalidData: there are fewer than 20 pairs, or their similarities are all the same.
    """
    num_pairs, num_kept = pairs.num_pairs, len(pairs.similarities)
    if min(num_pairs, num_kept) < 2 * MIN_PAIRS_BEYOND:
        raise InvalidData(
            f"A tail needs {2 * MIN_PAIRS_BEYOND} impostor pairs; got {num_pairs}. Add items of others."
        )
    wanted = min(max(_TAIL_SHARE * num_pairs, _MIN_IN_TAIL), _MAX_IN_TAIL, _MAX_TAIL_SHARE * num_pairs)
    size = min(max(int(wanted), MIN_PAIRS_BEYOND), num_kept - 1)
    location = float(pairs.similarities[size])
    scale, shape = fit_pareto(pairs.similarities[:size].astype(np.float64) - location)
    above = num_quantiles // 3
    spaced = [
        np.geomspace(MIN_PAIRS_BEYOND, size + 1, above),
        np.geomspace(size + 1, num_kept, num_quantiles - above),
    ]
    ranks = np.unique(np.concatenate(spaced).astype(np.int64))[::-1]
    reached = pairs.similarities[ranks - 1].astype(np.float64).round(7)
    return ImpostorTail(
        pairs=num_pairs,
        probes=pairs.num_probes,
        identities=pairs.num_identities,
        location=location,
        share=size / num_pairs,
        scale=scale,
        shape=shape,
        quantiles=list(zip((ranks / num_pairs).tolist(), reached.tolist(), strict=True)),
        largest=_largest_of_identities(pairs, num_largest),
    )


def _largest_of_identities(pairs: ImpostorPairs, number: int) -> list[float]:
    """The highest similarity of each unordered pair of identities, descending."""
    # The most similar pairs are often of few identities; then more pairs are read.
    size = 4 * number
    while True:
        one, other = pairs.pair_probes[:size], pairs.pair_enrolled[:size]
        low, high = np.minimum(one, other), np.maximum(one, other)
        first = np.unique(low * (high.max(initial=0) + 1) + high, return_index=True)[1]
        if len(first) >= number or size >= len(pairs.similarities):
            break
        size *= 8
    largest: list[float] = pairs.similarities[np.sort(first)[:number]].astype(np.float64).round(7).tolist()
    return largest


def identity_folds(num_identities: int, *, seed: int = 0) -> NDArray[np.int64]:
    """(N,) the fold of each identity, as even as can be."""
    return np.random.default_rng(seed).permutation(num_identities) % NUM_FOLDS


def held_out_tails(pool: ImpostorPool) -> list[ImpostorTail]:
    """For each fold of identities the tail of the pairs of all others, without its largest."""
    return [fit_tail(pool.pairs(without=fold), num_largest=0) for fold in range(NUM_FOLDS)]


def held_out_fpir(
    searches: Sequence[tuple[ProbeMaxima, Sequence[float]]], folds: NDArray[np.int64]
) -> CheckedFpir:
    """The FPIR where each fold's probes meet the threshold that was set without them.

    Args:
        searches: one or several, each with the thresholds of the folds.
        folds: (N,) fold of each identity.
    """
    import torch

    from dml.metrics.intervals import clustered_wilson_interval

    raised = np.concatenate(
        [found.maxima >= np.asarray(limits)[folds[found.identities]] for found, limits in searches]
    )
    probes = np.concatenate([found.identities for found, _ in searches])
    interval = clustered_wilson_interval(torch.from_numpy(raised), torch.from_numpy(probes))
    return CheckedFpir(
        fpir=float(raised.mean()),
        low=interval.low,
        high=interval.high,
        probes=len(raised),
        identities=len(np.unique(probes)),
        enrolled=max(found.num_enrolled for found, _ in searches),
    )
