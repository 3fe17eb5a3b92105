"""N-way K-shot classification: which of N new classes, each known by K examples, is it?"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import check_labelled, check_unit_rows, checked_count
from dml.metrics.intervals import Interval, class_weights, percentile_interval
from dml.similarity import at_least_float32


@dataclass(frozen=True)
class FewShot:
    """Shares of queries classified right, one per episode: (E,) float64."""

    class_mean: Tensor
    """By the nearest mean of a class's examples, in Euclidean distance."""
    nearest: Tensor
    """By the most similar single example; the same as `class_mean` for one shot."""
    num_queries: Tensor
    """(C,) int64: queries of each class that could be drawn, over all episodes."""
    errors: dict[str, Tensor]
    """Method to (C,) int64: a class's queries taken for another, and others' taken for it."""

    def means(self) -> dict[str, float]:
        """Over the episodes: accuracies in [0, 1] by the names of the methods."""
        return {"class_mean": float(self.class_mean.mean()), "nearest": float(self.nearest.mean())}

    def intervals(self, *, resamples: int = 1000) -> dict[str, Interval]:
        """Of the means, 95 %, for other classes like these: percentile bootstrap over classes.

        An error is of two classes, the query's and the one it was taken for, as an impostor pair is: drawn w
        and v times, it counts w + v - 1 times (Hajek's projection of w v), the class's queries w times. The
        episodes' own noise is in it. Intervals over episodes would say nothing of other classes.

        Raises:
            ValueError: no resample.
        """
        num_queries = self.num_queries.double()
        accuracies: dict[str, list[Tensor]] = {name: [] for name in self.errors}
        for weights in class_weights(len(num_queries), resamples, seed=0):
            for name, errors in self.errors.items():
                # Every error stands with both of its classes.
                wrong = weights @ errors.double() - errors.sum() / 2
                accuracies[name].append((1 - wrong / (weights @ num_queries).clamp_min(1)).clamp(0, 1))
        return {name: percentile_interval(torch.cat(parts)) for name, parts in accuracies.items()}


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
        ValueError: different lengths, rows not of length 1, a count that is no whole number or below 1 (ways:
            2), a class of several values of `within`, or too few classes that are large enough.

    Source: Snell et al. 2017, arXiv:1703.05175 (class means); Vinyals et al. 2016, arXiv:1606.04080.
    """
    check_labelled(embeddings, labels, within=within)
    check_unit_rows(embeddings)
    ways, shots = checked_count("ways", ways, at_least=2), checked_count("shots", shots)
    queries_per_class = checked_count("queries_per_class", queries_per_class)
    episodes, seed = checked_count("episodes", episodes), checked_count("seed", seed, at_least=None)
    vectors = at_least_float32(embeddings)
    pools = class_pools(
        labels.cpu(), None if within is None else within.cpu(), ways, shots + queries_per_class
    )
    counts = _Counts(_dense_classes(labels.cpu(), pools), queries_per_class)
    for rows in draw_episodes(pools, ways, shots + queries_per_class, episodes, seed):
        drawn = vectors[rows.to(vectors.device)]
        counts.observe(rows, _ways_taken(support=drawn[:, :shots], queries=drawn[:, shots:]))
    return counts.few_shot()


def _ways_taken(support: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """What each method takes an episode's queries for.

    Args:
        support: (ways, shots, D) float, unit length.
        queries: (ways, queries_per_class, D) float, unit length.

    Returns:
        Method to (ways, queries_per_class) int64, the number of a class among the episode's.
    """
    sums, shots = support.sum(1), support.shape[1]
    # Nearest in |q - S/K|^2, times K^2 and without |q|^2, the same for every class: exact where the sums
    # are, so that equal means tie and do not differ by the rounding of a division.
    by_mean = (2 * shots * queries @ sums.T - (sums * sums).sum(1)).argmax(2)
    by_nearest = torch.einsum("cqd,wsd->cqws", queries, support).amax(3).argmax(2)
    return {"class_mean": by_mean, "nearest": by_nearest}


class _Counts:
    """What was right and wrong in the episodes so far.

    Args:
        classes: (N,) int64, of each row, numbered from 0; -1 for rows that are not drawn.
        queries_per_class: in each episode.
    """

    def __init__(self, classes: Tensor, queries_per_class: int) -> None:
        self._classes, self._queries_per_class = classes, queries_per_class
        self._num_queries = torch.zeros(int(classes.max()) + 1, dtype=torch.int64)
        self._accuracies: dict[str, list[float]] = {"class_mean": [], "nearest": []}
        self._errors = {name: torch.zeros_like(self._num_queries) for name in self._accuracies}

    def observe(self, rows: Tensor, taken: dict[str, Tensor]) -> None:
        """One episode.

        Args:
            rows: (ways, size) int64, as drawn.
            taken: as `_ways_taken`.
        """
        way_classes = self._classes[rows[:, 0]]
        self._num_queries[way_classes] += self._queries_per_class
        for name, ways in taken.items():
            is_right = (ways == torch.arange(len(ways), device=ways.device)[:, None]).cpu()
            self._accuracies[name].append(float(is_right.double().mean()))
            self._errors[name][way_classes] += (~is_right).sum(1)
            self._errors[name].index_add_(0, way_classes[ways.cpu().flatten()], (~is_right).flatten().long())

    def few_shot(self) -> FewShot:
        accuracies = {
            name: torch.tensor(shares, dtype=torch.float64) for name, shares in self._accuracies.items()
        }
        return FewShot(**accuracies, num_queries=self._num_queries, errors=self._errors)


def _dense_classes(labels: Tensor, pools: list[list[Tensor]]) -> Tensor:
    """(N,) int64: the classes that can be drawn, numbered from 0; -1 for rows of others."""
    classes = torch.full_like(labels, -1)
    for number, rows in enumerate(rows for pool in pools for rows in pool):
        classes[rows] = number
    return classes


def class_pools(labels: Tensor, within: Tensor | None, ways: int, size: int) -> list[list[Tensor]]:
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


def draw_episodes(
    pools: list[list[Tensor]], ways: int, size: int, episodes: int, seed: int
) -> Iterator[Tensor]:
    """(ways, size) rows of each episode; the first of a class's are its examples."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(episodes):
        pool = pools[int(torch.randint(0, len(pools), (1,), generator=generator))]
        classes = torch.randperm(len(pool), generator=generator)[:ways].tolist()
        yield torch.stack(
            [pool[c][torch.randperm(len(pool[c]), generator=generator)[:size]] for c in classes]
        )
