"""N-way K-shot classification accuracy: queries of N new classes with K labelled examples each."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dml.metrics.arguments import check_labelled, check_unit_rows, checked_count
from dml.metrics.intervals import Interval, class_weights, percentile_interval
from dml.similarity import at_least_float32


@dataclass(frozen=True)
class FewShot:
    """Accuracy of each episode by two methods, (E,) float64."""

    class_mean: Tensor
    """Accuracy of the nearest class mean in Euclidean distance."""
    nearest: Tensor
    """Accuracy of the most similar example; equals `class_mean` for one shot."""
    num_queries: Tensor
    """(C,) int64: number of queries of each class over all episodes."""
    errors: dict[str, Tensor]
    """Method to (C,) int64: errors of a class as true class plus errors as predicted class."""

    def means(self) -> dict[str, float]:
        """Mean accuracy over the episodes in [0, 1], for each method."""
        return {"class_mean": float(self.class_mean.mean()), "nearest": float(self.nearest.mean())}

    def intervals(self, *, resamples: int = 1000) -> dict[str, Interval]:
        """95 % intervals of the means, by percentile bootstrap over classes.

        An error involves two classes, the true one and the predicted one. If these are sampled w and v times,
        it counts w + v - 1 times (Hajek's projection of w v), and the queries of the class w times. The
        variance of the episodes is included. Intervals over episodes would not generalize to other classes.

        Raises:
            ValueError: `resamples` is below 1.
        """
        num_queries = self.num_queries.double()
        accuracies: dict[str, list[Tensor]] = {name: [] for name in self.errors}
        for weights in class_weights(len(num_queries), resamples, seed=0):
            for name, errors in self.errors.items():
                # Every error is counted for both of its classes.
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
    """Few-shot accuracy on random episodes, with the same episodes for all methods.

    An episode samples `ways` classes, and for each class `shots` examples and `queries_per_class` queries,
    without replacement. Ties go to the class that was sampled first, so a constant embedding gets 1 / ways.

    Args:
        embeddings: (N, D) float, unit length.
        labels: (N,) int64 class ids.
        ways: classes per episode.
        shots: examples per class.
        queries_per_class: queries per class.
        episodes: number of episodes.
        within: (N,) int64; all classes of an episode have the same value, like the within-alphabet trials of
            Omniglot (Lake et al. 2015, 20 ways, 1 shot; there each trial uses drawings of two people). None:
            any classes, as in Vinyals et al. 2016. Values with too few classes are not sampled.
        seed: of the episodes, which are the same on every device.

    Raises:
        ValueError: different lengths, rows that do not have length 1, a count that is not an integer of at
            least 1 (ways: 2), a class with several values of `within`, or too few large classes.

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
        counts.observe(rows, _predictions(support=drawn[:, :shots], queries=drawn[:, shots:]))
    return counts.few_shot()


def _predictions(support: Tensor, queries: Tensor) -> dict[str, Tensor]:
    """The predictions of each method for the queries of an episode.

    Args:
        support: (ways, shots, D) float, unit length.
        queries: (ways, queries_per_class, D) float, unit length.

    Returns:
        Method to (ways, queries_per_class) int64, index of the predicted class in the episode.
    """
    sums, shots = support.sum(1), support.shape[1]
    # Nearest in |q - S/K|^2, times K^2 and without |q|^2, the same for every class: exact where the sums
    # are, so that equal means tie and do not differ by the rounding of a division.
    by_mean = (2 * shots * queries @ sums.T - (sums * sums).sum(1)).argmax(2)
    by_nearest = torch.einsum("cqd,wsd->cqws", queries, support).amax(3).argmax(2)
    return {"class_mean": by_mean, "nearest": by_nearest}


class _Counts:
    """Counts of correct and wrong predictions over episodes.

    Args:
        classes: (N,) int64 class of each row, numbered from 0; -1 for rows that are never sampled.
        queries_per_class: in each episode.
    """

    def __init__(self, classes: Tensor, queries_per_class: int) -> None:
        self._classes, self._queries_per_class = classes, queries_per_class
        self._num_queries = torch.zeros(int(classes.max()) + 1, dtype=torch.int64)
        self._accuracies: dict[str, list[float]] = {"class_mean": [], "nearest": []}
        self._errors = {name: torch.zeros_like(self._num_queries) for name in self._accuracies}

    def observe(self, rows: Tensor, predictions: dict[str, Tensor]) -> None:
        """Add one episode.

        Args:
            rows: (ways, size) int64 sampled rows.
            predictions: result of `_predictions`.
        """
        way_classes = self._classes[rows[:, 0]]
        self._num_queries[way_classes] += self._queries_per_class
        for name, ways in predictions.items():
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
    """(N,) int64: classes that can be sampled, numbered from 0; -1 for other rows."""
    classes = torch.full_like(labels, -1)
    for number, rows in enumerate(rows for pool in pools for rows in pool):
        classes[rows] = number
    return classes


def class_pools(labels: Tensor, within: Tensor | None, ways: int, size: int) -> list[list[Tensor]]:
    """For each value of `within`, the rows of every class that is large enough."""
    groups: dict[int, list[Tensor]] = {}
    for label in torch.unique(labels):
        rows = (labels == label).nonzero()[:, 0]
        values = [0] if within is None else torch.unique(within[rows]).tolist()
        if len(values) > 1:
            raise ValueError(
                f"Every class must have one value of `within`; class {int(label)} has {values}. Use an "
                "attribute of classes, not of items."
            )
        if len(rows) >= size:
            groups.setdefault(values[0], []).append(rows)
    pools = [pool for pool in groups.values() if len(pool) >= ways]
    if not pools:
        num_available = max(map(len, groups.values()), default=0)
        raise ValueError(
            f"An episode needs {ways} classes of {size} items or more"
            f"{'' if within is None else ' with one value of `within`'}; got {num_available}. Lower ways, "
            "shots or queries_per_class."
        )
    return pools


def draw_episodes(
    pools: list[list[Tensor]], ways: int, size: int, episodes: int, seed: int
) -> Iterator[Tensor]:
    """(ways, size) rows of each episode; the first rows of a class are its examples."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(episodes):
        pool = pools[int(torch.randint(0, len(pools), (1,), generator=generator))]
        classes = torch.randperm(len(pool), generator=generator)[:ways].tolist()
        yield torch.stack(
            [pool[c][torch.randperm(len(pool[c]), generator=generator)[:size]] for c in classes]
        )
