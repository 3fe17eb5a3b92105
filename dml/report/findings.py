"""Queries and items to inspect: failures, suspected labels, and differences between two embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.ranking import Items, Ranking
from dml.metrics.retrieval import QueryMetrics
from dml.reports import WinLossTie

_TIE = 1e-9  # values are fractions of small counts: smaller differences are rounding errors
_FEWEST_AGREEING = 2  # one neighbour of another label is a mistake of the embedding, not evidence


@dataclass(frozen=True)
class Neighbors:
    """The nearest answers of Q queries, on the CPU; rows are those of the split."""

    rows: Tensor
    """(Q,) int64: the queries."""
    labels: Tensor
    """(Q,) int64: labels of the queries."""
    answers: Tensor
    """(Q, depth) int64: rows, the nearest first."""
    answer_labels: Tensor
    """(Q, depth) int64."""
    similarities: Tensor
    """(Q, depth) float; -inf if there are fewer answers."""
    relevant: Tensor
    """(Q,) int64: positives in the gallery."""
    gallery_labels: Tensor
    """(G,) int64: of the gallery."""

    @property
    def right(self) -> Tensor:
        """(Q, depth) bool."""
        return (self.answer_labels == self.labels[:, None]) & (self.similarities > -torch.inf)


@dataclass(frozen=True)
class Suspect:
    """An item whose nearest neighbours all have one label, which differs from its label."""

    query: int
    """Index among the queries, not a row of the split."""
    label: int
    agreed: int
    """The label of the neighbours."""
    num_agreeing: int
    similarity: float
    """Mean similarity to these neighbours."""


def nearest(queries: Items, gallery: Items | None = None, *, depth: int) -> Neighbors:
    """The `depth` nearest items of every query, with the same exclusions as the metrics.

    Args:
        queries: their ids are rows.
        gallery: theirs too; None: the queries.
        depth: how many answers; fewer where the gallery is smaller.
    """
    gallery = queries if gallery is None else gallery
    assert queries.ids is not None
    assert gallery.ids is not None
    ranking = Ranking(queries, gallery)
    blocks = list(ranking.blocks(depth))
    positions = torch.cat([block.answers for block in blocks])
    return Neighbors(
        rows=queries.ids.cpu(),
        labels=queries.labels.cpu(),
        answers=gallery.ids[positions].cpu(),
        answer_labels=gallery.labels[positions].cpu(),
        similarities=torch.cat([block.similarities for block in blocks]).cpu(),
        relevant=ranking.relevant.cpu(),
        gallery_labels=gallery.labels.cpu(),
    )


def worst_queries(metrics: QueryMetrics, neighbors: Neighbors, count: int) -> list[int]:
    """The queries with the lowest MAP@R; ties by the highest similarity of the first answer.

    Queries without a positive cannot fail, and are left out.
    """
    rows, values = metrics.rows.cpu(), metrics.values["map_at_r"].cpu()
    by_surety = neighbors.similarities[rows, 0].argsort(descending=True, stable=True)
    order = by_surety[values[by_surety].argsort(stable=True)]
    return [int(query) for query in rows[order[:count]]]


def confident_mistakes(neighbors: Neighbors, count: int) -> list[int]:
    """The queries with a positive and a wrong first answer, by descending similarity."""
    wrong = (~neighbors.right[:, 0] & (neighbors.relevant > 0)).nonzero()[:, 0]
    order = neighbors.similarities[wrong, 0].argsort(descending=True, stable=True)
    return [int(query) for query in wrong[order[:count]]]


def label_suspects(neighbors: Neighbors, *, agreeing: int = 5) -> list[Suspect]:
    """Items whose nearest neighbours all have one other label, by descending similarity.

    The first `agreeing` answers must agree; where the other class has fewer items, all of those it has, two
    at least. An item without a positive is never suspected: nothing could confirm its label.

    Args:
        neighbours: at least `agreeing` deep, or as deep as the gallery.
        agreeing: number of neighbours that must agree, 2 or more.

    Raises:
        ValueError: fewer than 2, since one neighbour of another label proves nothing.
    """
    if agreeing < _FEWEST_AGREEING:
        raise ValueError(f"agreeing must be {_FEWEST_AGREEING} or more; got {agreeing}. 5 is usual.")
    present = neighbors.similarities[:, :agreeing] > -torch.inf
    labels = neighbors.answer_labels[:, :agreeing]
    agreed = labels[:, 0].contiguous()
    # A run of equal labels from the nearest on: cumulative product of agreement is 1 as long as it lasts.
    run = ((labels == agreed[:, None]) & present).long().cumprod(1).sum(1)
    classes, sizes = torch.unique(neighbors.gallery_labels, return_counts=True)
    needed = sizes[torch.searchsorted(classes, agreed)].clamp(max=agreeing)
    chosen = (run >= needed) & (run >= _FEWEST_AGREEING)
    chosen &= (agreed != neighbors.labels) & (neighbors.relevant > 0)
    suspects = [
        Suspect(
            query=query,
            label=int(neighbors.labels[query]),
            agreed=int(agreed[query]),
            num_agreeing=int(run[query]),
            similarity=float(neighbors.similarities[query, : int(run[query])].mean()),
        )
        for query in chosen.nonzero()[:, 0].tolist()
    ]
    return sorted(suspects, key=lambda suspect: (-suspect.similarity, suspect.query))


@dataclass(frozen=True)
class ClassGain:
    """The MAP@R of one class in two embeddings."""

    label: int
    num_queries: int
    first: float
    """Mean over its queries."""
    second: float

    @property
    def gain(self) -> float:
        return self.first - self.second


def win_loss_tie(gains: Sequence[float]) -> WinLossTie:
    """Counts of gains above 0, below 0 and equal to 0, within rounding."""
    won, lost = sum(gain > _TIE for gain in gains), sum(gain < -_TIE for gain in gains)
    return WinLossTie(won=won, lost=lost, tied=len(gains) - won - lost)


def class_gains(first: QueryMetrics, second: QueryMetrics, metric: str = "map_at_r") -> list[ClassGain]:
    """The gains of all classes with a query, in descending order; ties by class id.

    Args:
        first: of one embedding.
        second: of the other, on the same queries in the same order.
        metric: one that both have.
    """
    labels, index, sizes = torch.unique(first.labels.cpu(), return_inverse=True, return_counts=True)
    means = [
        torch.zeros(len(labels), dtype=torch.float64).index_add_(0, index, queries.values[metric].cpu())
        / sizes
        for queries in (first, second)
    ]
    columns = zip(labels.tolist(), sizes.tolist(), means[0].tolist(), means[1].tolist(), strict=True)
    return sorted(
        (ClassGain(*column) for column in columns), key=lambda by_class: (-by_class.gain, by_class.label)
    )


def only_right(ours: Neighbors, theirs: Neighbors, gains: Mapping[int, float], count: int) -> list[int]:
    """The queries whose first answer is right here and wrong there, the largest gain first.

    Args:
        ours: of the embedding that finds them.
        theirs: of the other, for the same queries and gallery.
        gains: by query, what ours is better by; of all queries with a positive.
        count: how many at most.
    """
    chosen = (ours.right[:, 0] & ~theirs.right[:, 0]).nonzero()[:, 0].tolist()
    return sorted(chosen, key=lambda query: (-gains[query], query))[:count]
