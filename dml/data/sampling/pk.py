"""P x K batches as a pure function of (seed, step, rank, W), so ranks share no state.

Classes are drawn from consecutive permutations, so every class appears once before any class appears again.
At each appearance a class gives its next K images, from consecutive permutations of its images.
"""

from abc import abstractmethod

import numpy as np

from dml.data.sampling.permutations import CLASS_STREAM, IMAGE_STREAM, Integers, Permutations, hash_of
from dml.data.sampling.stream import BatchSampler, Stream
from dml.errors import InvalidSetting


class Groups:
    """Rows grouped by an integer key: `keys` (U,) distinct and ascending; the rows of a key ascend."""

    def __init__(self, keys: Integers) -> None:
        self._rows: Integers = np.argsort(keys, kind="stable")
        self.keys, self.sizes = np.unique(keys, return_counts=True)
        self._starts: Integers = np.cumsum(np.append(0, self.sizes))

    def rows(self, number: int) -> Integers:
        """The rows of `keys[number]`."""
        return self._rows[self._starts[number] : self._starts[number + 1]]


class ClassBatchSampler(BatchSampler):
    """Batches of P classes, each giving its next K images; subclasses choose the classes.

    The K rows of a class are adjacent. If W divides P, the ranks have disjoint classes within a batch; if it
    divides only P * K, a class can be split over two neighbouring ranks (over more, if K > B/W).

    A class with fewer than K images repeats them; the numbers of times that its images have appeared never
    differ by more than one.
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
        """(P,) groups of a step's global batch, and (P,) the number of earlier appearances of each."""

    def _rows(self, step: int, begin: int, end: int) -> Integers:
        k = self.samples_per_class
        first, last = begin // k, -(-end // k)
        numbers, occurrences = (part[first:last].tolist() for part in self._groups_and_occurrences(step))
        rows = [self._images(*pair) for pair in zip(numbers, occurrences, strict=True)]
        return np.concatenate(rows)[begin - first * k : end - first * k]

    def _images(self, number: int, occurrence: int) -> Integers:
        """(K,) rows of a group at one of its occurrences, counted from 0."""
        rows = self._groups.rows(number)
        key = hash_of(self.stream.seed, IMAGE_STREAM, int(self._groups.keys[number]))
        return rows[self._permutations.window(len(rows), self.samples_per_class, occurrence, key)]


class PKBatchSampler(ClassBatchSampler):
    """P classes with K images each; every class once per pass, every image once per pass of its class.

    Args:
        class_ids: (N,) int, the class of each row, from 0; ids without rows are left out.
        classes_per_batch: P, of the global batch.
        samples_per_class: K.
        stream: the steps, and this rank's part.

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
        numbers = self._permutations.window(num_classes, p, step, hash_of(self.stream.seed, CLASS_STREAM))
        return numbers, (step * p + np.arange(p)) // num_classes


def require_enough_classes(num_classes: int, classes_per_batch: int) -> None:
    """Raise InvalidSetting if there are fewer classes than a batch needs."""
    if num_classes < classes_per_batch:
        raise InvalidSetting(
            f"A batch of {classes_per_batch} classes needs as many in the data; there are "
            f"{num_classes}. Lower classes_per_batch."
        )
