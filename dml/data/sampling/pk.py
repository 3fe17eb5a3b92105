"""P x K batches as a pure function of (seed, step, rank, W): nothing to store, nothing to synchronise.

Classes come as endless permutations, one pass after the other, so every class appears once before any
appears again; at its t-th appearance a class gives its next K images, from endless permutations of its own.
"""

from abc import abstractmethod

import numpy as np

from dml.data.sampling.permutations import Integers, Permutations, hash_of
from dml.data.sampling.stream import BatchSampler, Stream
from dml.errors import InvalidSetting

# What a permutation is of, so that classes and the images of a class never share their random numbers.
OF_CLASSES, OF_IMAGES = 1, 2


class Groups:
    """Rows by an integer key: `keys` (U,) the distinct ones, ascending, and each one's rows, ascending."""

    def __init__(self, keys: Integers) -> None:
        self._rows: Integers = np.argsort(keys, kind="stable")
        self.keys, self.sizes = np.unique(keys, return_counts=True)
        self._starts: Integers = np.cumsum(np.append(0, self.sizes))

    def rows(self, number: int) -> Integers:
        """The rows of the `number`-th key."""
        return self._rows[self._starts[number] : self._starts[number + 1]]


class ClassBatchSampler(BatchSampler):
    """Batches of P classes, each giving its next K images; subclasses choose the classes.

    The K rows of a class lie next to each other. Where W divides P, classes are disjoint across ranks within
    a batch; where it divides only P * K, a class may lie on two neighbouring ranks (on more, if K > B/W).

    A class with fewer than K images gives all of them, then again, so that at no time one of its images has
    appeared twice more than another.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        stream: Stream,
    ) -> None:
        super().__init__(classes_per_batch * samples_per_class, stream)
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self._groups = groups
        self._permutations = Permutations()

    @abstractmethod
    def _groups_and_occurrences(self, step: int) -> tuple[Integers, Integers]:
        """(P,) the groups of a step's global batch, and for each how often it has appeared before."""

    def _rows(self, step: int, begin: int, end: int) -> Integers:
        k = self.samples_per_class
        first, last = begin // k, -(-end // k)
        numbers, occurrences = (part[first:last].tolist() for part in self._groups_and_occurrences(step))
        rows = [self._images(*each) for each in zip(numbers, occurrences, strict=True)]
        return np.concatenate(rows)[begin - first * k : end - first * k]

    def _images(self, number: int, occurrence: int) -> Integers:
        """(K,) rows of a group at one of its occurrences, counted from 0."""
        rows = self._groups.rows(number)
        key = hash_of(self.stream.seed, OF_IMAGES, int(self._groups.keys[number]))
        return rows[self._permutations.window(len(rows), self.samples_per_class, occurrence, key)]


class PKBatchSampler(ClassBatchSampler):
    """P classes with K images each: every class once per pass, every image once per round of its class.

    Args:
        class_ids: (N,) int, the class of each row, from 0; ids without rows are left out.
        classes_per_batch: P, of the global batch.
        samples_per_class: K.
        stream: which batches, and whose part of them.

    Raises:
        InvalidSetting: as `BatchSampler`, or there are fewer than P classes.
    """

    def __init__(
        self,
        class_ids: Integers,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        stream: Stream,
    ) -> None:
        super().__init__(
            Groups(class_ids),
            classes_per_batch=classes_per_batch,
            samples_per_class=samples_per_class,
            stream=stream,
        )
        self.classes = self._groups.keys
        require_enough_classes(len(self.classes), classes_per_batch)

    def global_classes(self, step: int) -> Integers:
        """(P,) the distinct classes of a step's global batch."""
        return self.classes[self._groups_and_occurrences(step)[0]]

    def _groups_and_occurrences(self, step: int) -> tuple[Integers, Integers]:
        p, num_classes = self.classes_per_batch, len(self.classes)
        numbers = self._permutations.window(num_classes, p, step, hash_of(self.stream.seed, OF_CLASSES))
        return numbers, (step * p + np.arange(p)) // num_classes


def require_enough_classes(num_classes: int, classes_per_batch: int) -> None:
    """Raises InvalidSetting where there are fewer classes than a batch needs."""
    if num_classes < classes_per_batch:
        raise InvalidSetting(
            f"A batch of {classes_per_batch} classes needs as many in the data; there are "
            f"{num_classes}. Lower classes_per_batch."
        )
