"""N-way K-shot classification: which of N new classes, each known by K examples, is it?"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.intervals import Interval, mean_interval
from dml.metrics.ranking import check_finite
from dml.similarity import at_least_float32


@dataclass(frozen=True)
class FewShot:
    """Shares of queries classified right, one per episode: (E,) float64."""

    class_mean: Tensor
    """By the nearest mean of a class's examples, in Euclidean distance."""
    nearest: Tensor
    """By the most similar single example; the same as `class_mean` for one shot."""

    def means(self) -> dict[str, float]:
        """Over the episodes: accuracies in [0, 1] by the names of the methods."""
        return {"class_mean": float(self.class_mean.mean()), "nearest": float(self.nearest.mean())}

    def intervals(self, confidence: float = 0.95) -> dict[str, Interval]:
        """Of the means, over episodes; the items are always these, so it says nothing about others."""
        return {
            "class_mean": mean_interval(self.class_mean, confidence=confidence),
            "nearest": mean_interval(self.nearest, confidence=confidence),
        }


def few_shot(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ways: int = 20,
    shots: int = 1,
    queries_per_class: int = 1,
    episodes: int = 1000,
    within: Tensor | None = None,
    seed: int = 0,
) -> FewShot:
    """Accuracy over random episodes, all methods on the same ones.

    An episode draws `ways` classes, and of each `shots` examples and `queries_per_class` others, without
    replacement. Equally near classes: the one drawn first, so an embedding that says nothing gets 1 / ways.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        ways: classes of an episode.
        shots: examples of each class.
        queries_per_class: items of each class to classify.
        episodes: how many.
        within: (N,) int64: an episode's classes are of one value, as Omniglot's within-alphabet trials (Lake
            et al. 2015, 20 ways, 1 shot; there each trial is of two people's drawings); None: any classes, as
            Vinyals et al. 2016. Values with too few classes are never drawn.
        seed: of the episodes; they are the same on every device.

    Raises:
        ValueError: different lengths, an embedding that is no number, a count below 1 (ways: 2), a class of
            several values of `within`, or too few classes that are large enough.

    Source: Snell et al. 2017, arXiv:1703.05175 (class means); Vinyals et al. 2016, arXiv:1606.04080.
    """
    if len(embeddings) != len(labels) or (within is not None and len(within) != len(labels)):
        raise ValueError(
            f"embeddings, labels and within must be equally long; got {len(embeddings)}, {len(labels)}"
            f"{'' if within is None else f', {len(within)}'}."
        )
    if ways < 2 or min(shots, queries_per_class, episodes) < 1:
        raise ValueError(
            f"ways must be 2 or more, shots, queries_per_class and episodes 1 or more; got {ways}, {shots}, "
            f"{queries_per_class}, {episodes}."
        )
    check_finite(embeddings, "embeddings")
    vectors = at_least_float32(embeddings)
    pools = _pools(labels.cpu(), None if within is None else within.cpu(), ways, shots + queries_per_class)
    right: dict[str, list[float]] = {"class_mean": [], "nearest": []}
    truth = torch.arange(ways, device=vectors.device)[:, None]
    for rows in _episodes(pools, ways, shots + queries_per_class, episodes, seed):
        drawn = vectors[rows.to(vectors.device)]
        support, queries = drawn[:, :shots], drawn[:, shots:]
        sums = support.sum(1)
        # Nearest in |q - S/K|^2, times K^2 and without |q|^2, the same for every class: exact where the sums
        # are, so that equal means tie and do not differ by the rounding of a division.
        by_mean = (2 * shots * queries @ sums.T - (sums * sums).sum(1)).argmax(2)
        by_nearest = torch.einsum("cqd,wsd->cqws", queries, support).amax(3).argmax(2)
        right["class_mean"].append(float((by_mean == truth).double().mean()))
        right["nearest"].append(float((by_nearest == truth).double().mean()))
    return FewShot(**{name: torch.tensor(values, dtype=torch.float64) for name, values in right.items()})


def _pools(labels: Tensor, within: Tensor | None, ways: int, size: int) -> list[list[Tensor]]:
    """Of each value of `within`, the rows of every class that is large enough."""
    groups: dict[int, list[Tensor]] = {}
    for label in torch.unique(labels):
        rows = (labels == label).nonzero()[:, 0]
        values = [0] if within is None else torch.unique(within[rows]).tolist()
        if len(values) > 1:
            raise ValueError(
                f"Every class must have one value of `within`; class {int(label)} has {values}. Take an "
                "attribute of classes, not of items."
            )
        if len(rows) >= size:
            groups.setdefault(values[0], []).append(rows)
    pools = [pool for pool in groups.values() if len(pool) >= ways]
    if not pools:
        most = max(map(len, groups.values()), default=0)
        raise ValueError(
            f"An episode needs {ways} classes of {size} items or more"
            f"{'' if within is None else ' with one value of `within`'}; got {most}. Lower ways, shots or "
            "queries_per_class."
        )
    return pools


def _episodes(pools: list[list[Tensor]], ways: int, size: int, episodes: int, seed: int) -> Iterator[Tensor]:
    """(ways, size) rows of each episode; the first of a class's are its examples."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(episodes):
        pool = pools[int(torch.randint(0, len(pools), (1,), generator=generator))]
        classes = torch.randperm(len(pool), generator=generator)[:ways].tolist()
        yield torch.stack(
            [pool[c][torch.randperm(len(pool[c]), generator=generator)[:size]] for c in classes]
        )
