"""P x K batches as a pure function of (seed, step, rank, W): nothing to store, nothing to synchronise.

Classes come as endless permutations, one pass after the other, so every class appears once before any
appears again; at its t-th appearance a class gives its next K images, from endless permutations of its own.
"""

from abc import abstractmethod

import numpy as np

from dml.data.sampling.permutations import Integers, Permutations, hash_of
from dml.data.sampling.stream import BatchStream
from dml.errors import InvalidSetting

# What a permutation is of, so that classes and the images of a class never share their chance.
OF_CLASSES, OF_IMAGES = 1, 2
_ROW_BITS = 32


class Groups:
    """Rows by an integer key: `names` (U,) the distinct keys, ascending, and each one's rows, ascending."""

    def __init__(self, keys: Integers) -> None:
        names = None
        if len(keys) and int(keys.max()) >= 1 << (63 - _ROW_BITS):
            names, keys = np.unique(keys, return_inverse=True)
        # What a stable argsort gives, in two thirds of its time: sorting numbers beats sorting places.
        self._rows = keys.astype(np.int64)
        self._rows <<= _ROW_BITS
        self._rows |= np.arange(len(keys))
        self._rows.sort()
        keys = self._rows >> _ROW_BITS
        self._rows &= (1 << _ROW_BITS) - 1
        begins = np.flatnonzero(keys[1:] != keys[:-1]) + 1
        self._starts: Integers = np.concatenate([[0], begins, [len(keys)]])
        self.sizes: Integers = np.diff(self._starts)
        found = keys[self._starts[:-1]]
        self.names: Integers = found if names is None else names[found]

    def rows(self, number: int) -> Integers:
        """The rows of the `number`-th name."""
        return self._rows[self._starts[number] : self._starts[number + 1]]


class ClassBatches(BatchStream):
    """Batches of P classes, each giving its next K images; which classes, the heirs say.

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
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int,
        first_step: int = 0,
    ) -> None:
        super().__init__(
            batch_size=classes_per_batch * samples_per_class,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_steps=num_steps,
            first_step=first_step,
        )
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self._groups = groups
        self._permutations = Permutations()

    @abstractmethod
    def _turns(self, step: int) -> tuple[Integers, Integers]:
        """(P,) the groups of a step's global batch, and for each how often it has appeared before."""

    def _rows(self, step: int, begin: int, end: int) -> Integers:
        k = self.samples_per_class
        first, last = begin // k, -(-end // k)
        numbers, turns = (part[first:last].tolist() for part in self._turns(step))
        rows = [self._images(number, turn) for number, turn in zip(numbers, turns, strict=True)]
        return np.concatenate(rows)[begin - first * k : end - first * k]

    def _images(self, number: int, turn: int) -> Integers:
        """(K,) rows of a group at its turn."""
        rows = self._groups.rows(number)
        key = hash_of(self.seed, OF_IMAGES, int(self._groups.names[number]))
        return rows[self._permutations.window(len(rows), self.samples_per_class, turn, key)]


class PKBatchSampler(ClassBatches):
    """P classes with K images each: every class once per pass, every image once per round of its class.

    Args:
        class_ids: (N,) int, the class of each row, from 0; ids without rows are left out.
        classes_per_batch: P, of the global batch.
        samples_per_class: K.
        seed, rank, world_size, num_steps, first_step: as `BatchStream`.

    Raises:
        InvalidSetting: as `BatchStream`, or there are fewer than P classes.
    """

    def __init__(
        self,
        class_ids: Integers,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_steps: int,
        first_step: int = 0,
    ) -> None:
        super().__init__(
            Groups(class_ids),
            classes_per_batch=classes_per_batch,
            samples_per_class=samples_per_class,
            seed=seed,
            rank=rank,
            world_size=world_size,
            num_steps=num_steps,
            first_step=first_step,
        )
        self.classes = self._groups.names
        refuse_too_few(len(self.classes), classes_per_batch)

    def global_classes(self, step: int) -> Integers:
        """(P,) the distinct classes of a step's global batch."""
        return self.classes[self._turns(step)[0]]

    def _turns(self, step: int) -> tuple[Integers, Integers]:
        p, num_classes = self.classes_per_batch, len(self.classes)
        numbers = self._permutations.window(num_classes, p, step, hash_of(self.seed, OF_CLASSES))
        return numbers, (step * p + np.arange(p)) // num_classes


def refuse_too_few(num_classes: int, classes_per_batch: int) -> None:
    """Raises InvalidSetting where there are fewer classes than a batch needs."""
    if num_classes < classes_per_batch:
        raise InvalidSetting(
            f"A batch of {classes_per_batch} classes needs as many in the data; there are "
            f"{num_classes}. Lower classes_per_batch."
        )
