"""Open-set identification: who of those enrolled is this, or nobody? Error rates as of NIST FRTE 1:N.

A probe is searched in a gallery of enrolled identities. It is mated where its identity is enrolled. A
candidate is returned where its similarity is at least the threshold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import check_unit_rows, checked_count, checked_number, checked_share
from dml.metrics.intervals import Interval, class_weights, clustered_wilson_interval, percentile_interval
from dml.metrics.ranking import BLOCK_ELEMENTS, Items, check_one_space
from dml.similarity import cosine_similarities

_RESAMPLES = 1000


@dataclass(frozen=True)
class IdentificationPoint:
    """A threshold, with its rates and their 95 % intervals."""

    threshold: float
    """Similarity; infinity returns no candidate."""
    fpir: float
    """False-positive identification rate: non-mated probes with any candidate."""
    fpir_interval: Interval
    fnir: float
    """False-negative identification rate: mated probes whose mate is not returned."""
    fnir_interval: Interval


@dataclass(frozen=True)
class DetCurve:
    """Both error rates at each threshold (detection error tradeoff); thresholds descend from infinity."""

    thresholds: Tensor
    """(T,) float64 similarities."""
    fpir: Tensor
    """(T,) float64, ascending from 0 to 1."""
    fnir: Tensor
    """(T,) float64, descending from 1 to that without a threshold."""


@dataclass(frozen=True)
class IdentificationScores:
    """What the search of every probe gave; all rates are counted from it."""

    mates: Tensor
    """(M,) float64: similarity of each mated probe to its own identity, the best of its enrolled images."""
    ranks: Tensor
    """(M,) int64: rank of the mate among the identities, from 1; equally similar ones stand before it."""
    mated_identities: Tensor
    """(M,) int64: whom the mated probes show."""
    maxima: Tensor
    """(U,) float64: the highest similarity of each non-mated probe to anybody enrolled: one, however many
    candidates are returned."""
    non_mated_identities: Tensor
    """(U,) int64: whom the non-mated probes show."""

    def at_threshold(self, threshold: float, *, max_rank: int = 1) -> IdentificationPoint:
        """Both error rates at a threshold.

        Intervals count identities: probes of one person err together (`clustered_wilson_interval`).

        Args:
            threshold: similarity from which on a candidate is returned.
            max_rank: R; the mate must be among so many first candidates.

        Raises:
            ValueError: a threshold that is no number, or a rank below 1.
        """
        threshold = threshold if threshold == float("inf") else checked_number("threshold", threshold)
        missed = ~((self.ranks <= checked_count("max_rank", max_rank)) & (self.mates >= threshold))
        raised = self.maxima >= threshold
        return IdentificationPoint(
            threshold=threshold,
            fpir=float(raised.double().mean()),
            fpir_interval=clustered_wilson_interval(raised, self.non_mated_identities),
            fnir=float(missed.double().mean()),
            fnir_interval=clustered_wilson_interval(missed, self.mated_identities),
        )

    def at_fpir(self, fpir: float, *, max_rank: int = 1, resamples: int = _RESAMPLES) -> IdentificationPoint:
        """Both error rates at the lowest threshold, among the similarities seen, that keeps an FPIR.

        The interval of the FNIR resamples identities, of mated and of non-mated probes, each time with the
        threshold that the resample would choose.

        Args:
            fpir: allowed, (0, 1); NIST's tables use 0.003.
            max_rank: as of `at_threshold`.
            resamples: for the interval.

        Raises:
            ValueError: a rate outside (0, 1), a rank below 1, or no resample.
        """
        fpir = checked_share("fpir", fpir, usual=0.003)
        curve = self.det_curve(max_rank=max_rank)
        allowed = int((curve.fpir <= fpir * (1 + 1e-12)).sum()) - 1
        point = self.at_threshold(float(curve.thresholds[allowed]), max_rank=max_rank)
        rates = self._resampled_fnir(fpir, max_rank, resamples)
        interval = percentile_interval(rates)
        return IdentificationPoint(point.threshold, point.fpir, point.fpir_interval, point.fnir, interval)

    def rank_1(self) -> float:
        """Share of mated probes whose identity is the most similar, without a threshold (NIST's T = 0)."""
        return self.hit_rate(1)

    def hit_rate(self, max_rank: int, threshold: float = -float("inf")) -> float:
        """Share of mated probes whose identity is among the R first candidates.

        Args:
            max_rank: R.
            threshold: only candidates of at least this similarity; by default all.
        """
        max_rank = checked_count("max_rank", max_rank)
        return float(((self.ranks <= max_rank) & (self.mates >= threshold)).double().mean())

    def det_curve(self, *, max_rank: int = 1) -> DetCurve:
        """The two error rates at every threshold at which one of them changes."""
        within = self.mates[self.ranks <= checked_count("max_rank", max_rank)]
        thresholds = torch.unique(torch.cat([self.maxima, within])).flip(0)
        thresholds = torch.cat([thresholds.new_full((1,), torch.inf), thresholds])
        return DetCurve(
            thresholds,
            _num_at_least(self.maxima, thresholds).double() / len(self.maxima),
            1 - _num_at_least(within, thresholds).double() / len(self.mates),
        )

    def _resampled_fnir(self, fpir: float, max_rank: int, resamples: int) -> Tensor:
        """(R,) float64."""
        order = self.maxima.argsort(descending=True)
        maxima = self.maxima[order].cpu()
        impostors, num_impostors = _dense(self.non_mated_identities[order])
        hits = torch.where(self.ranks <= max_rank, self.mates, -torch.inf)
        order = hits.argsort(descending=True)
        hits = hits[order].cpu()
        mated, num_mated = _dense(self.mated_identities[order])
        rates = []
        for of_impostors, of_mated in zip(
            class_weights(num_impostors, resamples, seed=0, block_elements=num_impostors),
            class_weights(num_mated, resamples, seed=1, block_elements=num_mated),
            strict=True,
        ):
            counts = of_impostors[0, impostors].cumsum(0)
            # The first that must not pass; of equals that are not all allowed none passes.
            first = int(torch.searchsorted(counts, fpir * counts[-1] * (1 + 1e-12), right=True))
            weights = of_mated[0, mated]
            rates.append(1 - (weights * (hits > maxima[first])).sum() / weights.sum())
        return torch.stack(rates)


def identification_scores(probes: Items, gallery: Items) -> IdentificationScores:
    """Search every probe in the gallery.

    An identity with several enrolled images has one score: the highest. A gallery of its own for each half of
    the people, as IJB-B and IJB-C have, is searched for itself; `join` puts the results together.

    Args:
        probes: the queries; mated where their label is in the gallery.
        gallery: the enrolled images, whose ids, if there are any, are none of the probes'.

    Returns:
        Scores in float64.

    Raises:
        ValueError: rows that do not have length 1, other devices or dimensions, an enrolled probe, or no
            mated or no non-mated probe.

    Source: Grother et al., NIST FRTE Part 2: Identification, sec. 3 (NISTIR 8271 and its updates): FPIR(N, T)
    and FNIR(N, R, T).

    Example:
        >>> gallery = Items(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> probes = Items(torch.tensor([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]]), torch.tensor([0, 9]))
        >>> scores = identification_scores(probes, gallery)
        >>> point = scores.at_threshold(0.7)
        >>> scores.rank_1(), point.fpir, point.fnir
        (1.0, 1.0, 0.0)
        >>> scores.at_threshold(0.9).fnir  # above 0.8 nobody is returned
        1.0
    """
    _check(probes, gallery)
    names, columns = torch.unique(gallery.labels, return_inverse=True)
    identities = torch.searchsorted(names, probes.labels).clamp_max(len(names) - 1)
    is_mated = names[identities] == probes.labels
    if not is_mated.any() or is_mated.all():
        raise ValueError(
            "Open-set identification needs mated and non-mated probes; got "
            f"{int(is_mated.sum())} and {int((~is_mated).sum())}. Enrol some of the identities, not all."
        )
    parts = [
        _searched(probes.embeddings[rows], gallery.embeddings, columns, identities[rows], len(names))
        for rows in _blocks(len(probes.labels), len(gallery.labels) + len(names))
    ]
    mates, ranks, maxima = (torch.cat(column) for column in zip(*parts, strict=True))
    return IdentificationScores(
        mates=mates[is_mated],
        ranks=ranks[is_mated],
        mated_identities=probes.labels[is_mated],
        maxima=maxima[~is_mated],
        non_mated_identities=probes.labels[~is_mated],
    )


def join(parts: Sequence[IdentificationScores]) -> IdentificationScores:
    """The scores of searches in several galleries as one evaluation.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("parts must hold at least one search; got none.")
    fields = ("mates", "ranks", "mated_identities", "maxima", "non_mated_identities")
    return IdentificationScores(
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    )


def _check(probes: Items, gallery: Items) -> None:
    check_unit_rows(probes.embeddings)
    check_unit_rows(gallery.embeddings)
    check_one_space(probes.embeddings, gallery.embeddings)
    if probes.ids is not None and gallery.ids is not None:
        enrolled = torch.isin(probes.ids, gallery.ids)
        if enrolled.any():
            raise ValueError(
                f"A probe must not be enrolled itself; {int(enrolled.sum())} of {len(enrolled)} are, the "
                f"first with id {int(probes.ids[enrolled][0])}. Take them out of the gallery."
            )


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    block = max(BLOCK_ELEMENTS // max(columns, 1), 1)
    for start in range(0, rows, block):
        yield slice(start, start + block)


def _searched(
    probes: Tensor, gallery: Tensor, columns: Tensor, identities: Tensor, num_identities: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) similarity of the mated identity, its rank, and the maximum over all identities."""
    similarities = cosine_similarities(probes, gallery).double()
    best = similarities.new_full((len(probes), num_identities), -torch.inf)
    best.scatter_reduce_(1, columns.expand(len(probes), -1), similarities, "amax")
    mates = best.gather(1, identities[:, None])
    return mates[:, 0], (best >= mates).sum(1), best.amax(1)


def _num_at_least(values: Tensor, thresholds: Tensor) -> Tensor:
    """(T,) int64: how many of the values reach each threshold."""
    return len(values) - torch.searchsorted(values.sort().values, thresholds)


def _dense(classes: Tensor) -> tuple[Tensor, int]:
    """(N,) int64 classes numbered from 0, and how many there are."""
    numbered = torch.unique(classes.cpu(), return_inverse=True)[1]
    return numbered, int(numbered.max()) + 1
