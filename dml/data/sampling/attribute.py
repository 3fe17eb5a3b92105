"""P x K batches whose classes share one value of an attribute: a category, a camera, a region."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dml.data.sampling.permutations import CLASS_STREAM, VALUE_STREAM, Integers, hash_of, random_bits
from dml.data.sampling.pk import ClassBatchSampler, Groups, require_enough_classes
from dml.data.sampling.stream import Stream
from dml.errors import InvalidSetting


class AttributeBatchSampler(ClassBatchSampler):
    """Every batch has P classes with the same value, so the attribute does not distinguish its negatives.

    Values alternate in proportion to their classes: a cycle gives each value as many batches as it has
    classes (divided by the greatest common divisor of these numbers), spread evenly over the cycle. Within a
    value every class appears once per pass, as in `PKBatchSampler`; at the end of each cycle the numbers of
    appearances of two classes differ by at most one.

    Args:
        class_ids: (N,) int, the class of each row.
        values: (N,) int, the value of each row, from 0.
        classes_per_batch: P, of the global batch.
        samples_per_class: K.
        small_values: treatment of values with fewer than P classes: "pool" joins them into one group (with
            the smallest other value, if the group has fewer than P classes); "refuse" raises.
        several_values: treatment of classes with more than one value: "refuse" raises; "majority" gives all
            rows of a class to its most frequent value (the first of equals); "split" uses the rows of each
            value separately.
        value_names: names of the values for messages.
        stream: the steps, and this rank's part.

    Raises:
        InvalidSetting: as `BatchSampler`; fewer than P classes; or what `small_values` and `several_values`
            refuse.

    Source: the category-balanced sampling of OML's examples, whose stream depends on the number of workers.
    """

    def __init__(
        self,
        class_ids: Integers,
        values: Integers,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        small_values: Literal["pool", "refuse"] = "pool",
        several_values: Literal["refuse", "majority", "split"] = "refuse",
        value_names: Sequence[object] | None = None,
        stream: Stream,
    ) -> None:
        if len(class_ids) != len(values):
            raise ValueError(
                f"Every row needs one class and one value; got {len(class_ids)} and {len(values)}."
            )
        class_ids, values = (numbers.astype(np.int64, copy=False) for numbers in (class_ids, values))
        num_classes, num_values = int(class_ids.max()) + 1, int(values.max()) + 1
        names = value_names if value_names is not None else range(num_values)
        groups = Groups(values * num_classes + class_ids)
        changed = _one_value_each(groups, num_classes, several_values, names)
        if changed is not None:
            values = changed[class_ids]
            groups = Groups(values * num_classes + class_ids)
        # The value that each value is grouped under; a pool is represented by its first member.
        self.pooled_into = _pools(groups, num_classes, classes_per_batch, small_values, names)
        if (self.pooled_into != np.arange(len(self.pooled_into))).any():
            groups = Groups(self.pooled_into[values] * num_classes + class_ids)
        super().__init__(
            groups,
            classes_per_batch=classes_per_batch,
            samples_per_class=samples_per_class,
            stream=stream,
        )
        self._classes: Integers = groups.keys % num_classes
        self._values, sizes = np.unique(groups.keys // num_classes, return_counts=True)
        self._starts: Integers = np.cumsum(np.append(0, sizes))
        self._cycle = _Cycle(sizes // math.gcd(*sizes.tolist()))

    def value(self, step: int) -> int:
        """The value of all classes of a step's global batch; for a pool, its first member."""
        return int(self._values[self._cycle.value_at(self.stream.seed, step)[0]])

    def global_classes(self, step: int) -> Integers:
        """(P,) the distinct classes of a step's global batch."""
        return self._classes[self._groups_and_occurrences(step)[0]]

    def _groups_and_occurrences(self, step: int) -> tuple[Integers, Integers]:
        p = self.classes_per_batch
        number, occurrence = self._cycle.value_at(self.stream.seed, step)
        start, end = self._starts[number : number + 2].tolist()
        key = hash_of(self.stream.seed, CLASS_STREAM, int(self._values[number]))
        numbers = start + self._permutations.window(end - start, p, occurrence, key)
        return numbers, (occurrence * p + np.arange(p)) // (end - start)


class _Cycle:
    """Endless cycles in which value v has `shares[v]` batches, evenly spread, in a new order per cycle."""

    def __init__(self, shares: Integers) -> None:
        self.shares = shares
        self._value_of_entry = np.repeat(np.arange(len(shares)), shares)
        self._before: Integers = np.cumsum(shares) - shares
        self._drawn: tuple[int, int, Integers] | None = None

    def value_at(self, seed: int, step: int) -> tuple[int, int]:
        """(v, t): the value of a step's batch, and the number of earlier batches of v."""
        cycle, index = divmod(step, len(self._value_of_entry))
        entry = int(self._order(seed, cycle)[index])
        value = int(self._value_of_entry[entry])
        return value, cycle * int(self.shares[value]) + entry - int(self._before[value])

    def _order(self, seed: int, cycle: int) -> Integers:
        """Entry j of value v comes at a random time in [j, j + 1) / shares[v]: one in each such interval."""
        if self._drawn is not None and self._drawn[:2] == (seed, cycle):
            return self._drawn[2]
        jitter = (
            random_bits(len(self._value_of_entry), hash_of(seed, VALUE_STREAM, cycle)) >> np.uint64(11)
        ) * 2.0**-53
        entry = np.arange(len(self._value_of_entry)) - self._before[self._value_of_entry]
        order: Integers = np.argsort((entry + jitter) / self.shares[self._value_of_entry], kind="stable")
        self._drawn = (seed, cycle, order)
        return order


def _one_value_each(
    groups: Groups, num_classes: int, several_values: str, names: Sequence[object]
) -> Integers | None:
    """(num_classes,) the value assigned to each class; None if nothing changes."""
    values, classes = np.divmod(groups.keys, num_classes)
    counts = np.bincount(classes)
    if several_values == "split" or counts.max() == 1:
        return None
    if several_values == "refuse":
        first = int(np.argmax(counts > 1))
        several = [names[value] for value in values[classes == first].tolist()]
        raise InvalidSetting(
            f"Every class must have one value of the attribute; {np.count_nonzero(counts > 1)} classes have "
            f"several, such as class {first} with {several[:5]}. Set several_values to 'majority' (the most "
            "frequent one) or 'split' (the class appears under each, with the rows of that one)."
        )
    # The last assignment wins: the largest group, or the first value of equals.
    order = np.lexsort((-values, groups.sizes))
    most = np.zeros(num_classes, dtype=np.int64)
    most[classes[order]] = values[order]
    return most


def _pools(
    groups: Groups, num_classes: int, classes_per_batch: int, small_values: str, names: Sequence[object]
) -> Integers:
    """(V,) the value that each value's classes go to: itself, or the pool's first member."""
    values, classes = np.divmod(groups.keys, num_classes)
    require_enough_classes(len(np.unique(classes)), classes_per_batch)
    sizes = np.bincount(values)
    pooled_into = np.arange(len(sizes))
    small = np.flatnonzero((sizes > 0) & (sizes < classes_per_batch))
    if not len(small):
        return pooled_into
    if small_values == "refuse":
        few = {str(names[value]): int(sizes[value]) for value in small[:5].tolist()}
        raise InvalidSetting(
            f"Every value of the attribute must have {classes_per_batch} classes, enough for a batch; "
            f"{len(small)} have fewer, such as {few}. Lower classes_per_batch, or set small_values to "
            "'pool'."
        )
    by_size = np.argsort(sizes, kind="stable")
    large = by_size[sizes[by_size] >= classes_per_batch]
    pool = small
    if len(np.unique(classes[np.isin(values, pool)])) < classes_per_batch:
        pool = np.append(pool, large[:1])  # which alone has enough, so there is one: C >= P
    pooled_into[pool] = pool.min()
    return pooled_into
