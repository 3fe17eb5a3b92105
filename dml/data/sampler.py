"""P x K batches as a pure function of (seed, step, rank, W): nothing to store, nothing to synchronise.

Classes come as endless permutations, one after the other, so each class appears once per pass before any
repeats; a class's t-th appearance takes its next K images from endless permutations of its own. Whatever the
number of workers, the stream of global batches is the same, and worker r takes the r-th block of P/W classes.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting

Integers = NDArray[np.int64]
_CLASSES, _IMAGES = 1, 2  # what a permutation is of, so that the two never share their chance


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _keys(*parts: int | Integers) -> NDArray[np.uint64]:
    """A hash of the parts, element by element; equal on every machine and in every version of numpy."""
    key = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(key + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return key


class PKBatchSampler:
    """Batches of P classes with K images each; iterate it, or hand it to a DataLoader as `batch_sampler`.

    Args:
        class_ids: (N,) the class of each row.
        classes_per_batch: P, of the global batch.
        samples_per_class: K. A class with fewer images gives all of them, then starts a new permutation.
        seed: decides the stream.
        rank: whose part of each global batch.
        world_size: W, must divide P, so that classes are disjoint across ranks within a batch.
        num_steps: how many batches there are.
        first_step: where iteration starts; going on at step k costs no more than starting.

    Raises:
        InvalidSetting: P is not a multiple of W, or there are fewer than P classes.
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
        if classes_per_batch % world_size:
            raise InvalidSetting(
                f"classes_per_batch must be a multiple of world_size; got {classes_per_batch} and "
                f"{world_size}. Nearest below: {classes_per_batch - classes_per_batch % world_size}."
            )
        self.sizes = np.bincount(class_ids)
        self.classes = np.flatnonzero(self.sizes)
        if len(self.classes) < classes_per_batch:
            raise InvalidSetting(
                f"A batch of {classes_per_batch} classes needs as many in the data; there are "
                f"{len(self.classes)}. Lower classes_per_batch."
            )
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.num_steps, self.first_step = num_steps, first_step
        # Rows by class, one after the other, and where each class begins.
        self._rows = np.argsort(class_ids, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._pass = lru_cache(maxsize=3)(self._permute_classes)

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.num_steps):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Integers:
        """This rank's rows of a step: (P/W * K,), K neighbours of one class."""
        classes, passes = self.global_classes(step)
        share = self.classes_per_batch // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        return self._images(classes[mine], passes[mine]).ravel()

    def global_classes(self, step: int) -> tuple[Integers, Integers]:
        """The P distinct classes of a global batch, and which pass over the classes each is from."""
        places = np.arange(step * self.classes_per_batch, (step + 1) * self.classes_per_batch)
        passes = places // len(self.classes)
        classes = np.empty_like(places)
        for number in np.unique(passes):
            chosen = passes == number
            classes[chosen] = self._pass(int(number))[places[chosen] % len(self.classes)]
        return classes, passes

    def _permute_classes(self, number: int) -> Integers:
        """The classes in the order of one pass; a batch that straddles two passes has none of them twice."""
        keys = _keys(_CLASSES, self.seed, number, self.classes)
        order: Integers = self.classes[np.argsort(keys, kind="stable")]
        before = number * len(order) % self.classes_per_batch
        if before == 0:
            return order
        # The batch began in the last pass with `before` classes: move those behind the batch's other part.
        tail = self._pass(number - 1)[-before:]
        head = self.classes_per_batch - before
        clash = np.isin(order, tail)
        fresh = np.flatnonzero(~clash)[:head]
        rest = np.setdiff1d(np.arange(len(order)), fresh)
        return order[np.concatenate([fresh, rest])]

    def _images(self, classes: Integers, passes: Integers) -> Integers:
        """(P, K) rows: the next K of each class's endless permutations; `passes` counts its appearances."""
        places = passes[:, None] * self.samples_per_class + np.arange(self.samples_per_class)
        sizes = self.sizes[classes][:, None]
        rounds, offsets = places // sizes, places % sizes
        rows = np.empty_like(places)
        for i, label in enumerate(classes):
            for number in range(int(rounds[i, 0]), int(rounds[i, -1]) + 1):
                chosen = rounds[i] == number
                rows[i, chosen] = self._permute_images(int(label), number)[offsets[i, chosen]]
        return rows

    def _permute_images(self, label: int, number: int) -> Integers:
        """One class's rows in the order of its `number`-th round, with no image twice within K if it has K.

        A visit that straddles two rounds has taken the last images of the former one; those come late in this
        one, as with classes and passes.
        """
        order = self._shuffle_images(label, number)
        size = len(order)
        before = number * size % self.samples_per_class
        if before == 0 or size < self.samples_per_class:
            return order
        tail = self._permute_images(label, number - 1)[-before:]
        head = self.samples_per_class - before
        fresh = order[~np.isin(order, tail)][:head]
        return np.concatenate([fresh, order[~np.isin(order, fresh)]])

    def _shuffle_images(self, label: int, number: int) -> Integers:
        rows = self._rows[self._starts[label] : self._starts[label + 1]]
        return rows[np.argsort(_keys(_IMAGES, self.seed, number, rows), kind="stable")]
