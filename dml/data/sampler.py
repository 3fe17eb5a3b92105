"""P x K batches as a pure function of (seed, step, rank, W): nothing to store, nothing to synchronise.

Classes come as endless permutations, one pass after the other, so every class appears once before any
appears again; at its t-th appearance a class gives its next K images, from endless permutations of its own.
The stream of global batches is the same for any number of workers W; worker r takes the r-th block of P/W
classes.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting

Integers = NDArray[np.int64]

# What a permutation is of, so that classes and the images of a class never share their chance.
_OF_CLASSES, _OF_IMAGES = 1, 2
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
# Shorter permutations cost less to draw again than to keep; kept ones take at most 160 MB.
_KEPT_FROM_ITEMS, _KEPT_ITEMS = 512, 20_000_000


class PKBatchSampler:
    """Batches of P classes with K images each; iterate it, or hand it to a DataLoader as `batch_sampler`.

    A class with fewer than K images gives all of them, then again from a fresh permutation, so that none of
    them appears twice more than another.

    Args:
        class_ids: (N,) int, the class of each row, from 0; ids without rows are left out.
        classes_per_batch: P, of the global batch.
        samples_per_class: K.
        seed: decides the stream.
        rank: whose part of each global batch.
        world_size: W, must divide P, so that classes are disjoint across ranks within a batch.
        num_steps: how many batches there are.
        first_step: where iteration starts; starting at a late step costs what starting at the first does.

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
        sizes = np.bincount(class_ids)
        self.classes: Integers = np.flatnonzero(sizes)
        if len(self.classes) < classes_per_batch:
            raise InvalidSetting(
                f"A batch of {classes_per_batch} classes needs as many in the data; there are "
                f"{len(self.classes)}. Lower classes_per_batch."
            )
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.num_steps, self.first_step = num_steps, first_step
        # Rows by class, one class after the other, and where each class begins.
        self._rows = _rows_by_class(class_ids)
        self._starts: Integers = np.concatenate([[0], np.cumsum(sizes)])
        self._permutations = _Permutations()

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.num_steps):
            yield self.batch(step).tolist()

    def batch(self, step: int) -> Integers:
        """(P/W * K,) rows of this rank at a step, the K of a class next to each other."""
        share = self.classes_per_batch // self.world_size
        first = self.rank * share
        appearances = range(step * self.classes_per_batch + first, (step + 1) * self.classes_per_batch)
        classes = self.global_classes(step)[first : first + share]
        return np.concatenate(
            [
                self._images(int(label), appearance // len(self.classes))
                for label, appearance in zip(classes, appearances, strict=False)
            ]
        )

    def global_classes(self, step: int) -> Integers:
        """(P,) the distinct classes of a step's global batch."""
        key = _hash(self.seed, _OF_CLASSES)
        return self.classes[self._permutations.window(len(self.classes), self.classes_per_batch, step, key)]

    def _images(self, label: int, appearance: int) -> Integers:
        """(K,) rows of a class at its `appearance`-th turn: it has one in each pass."""
        rows = self._rows[self._starts[label] : self._starts[label + 1]]
        key = _hash(self.seed, _OF_IMAGES, label)
        return rows[self._permutations.window(len(rows), self.samples_per_class, appearance, key)]


def _rows_by_class(class_ids: Integers) -> Integers:
    """What a stable argsort gives, in two thirds of its time: sorting numbers beats sorting places."""
    keys = class_ids.astype(np.int64) << 32
    keys |= np.arange(len(class_ids))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


class _Permutations:
    """Endless random permutations of n items, one after the other, cut into windows without repetition."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Integers] = OrderedDict()
        self._num_kept_items = 0

    def window(self, n: int, size: int, index: int, key: int) -> Integers:
        """(size,) the items of the `index`-th window: distinct, and each item once per permutation.

        With n < size no window can be distinct: each then has permutations of its own, the last in part.
        """
        if n < size:
            rounds = [self._permutation(n, _hash(key, index, part)) for part in range(-(-size // n))]
            return np.concatenate(rounds)[:size]
        number, offset = divmod(index * size, n)
        if n < 3 * size:
            # Too few items to move any out of a neighbour's way. The same order again and again has no
            # repetition in a window either; a new one comes when windows and permutations end together.
            same_order = size // math.gcd(n, size)
            order = self._permutation(n, _hash(key, number // same_order))
            return order[(offset + np.arange(size)) % n]
        items = self._parted(n, size, number, key)[offset : offset + size]
        missing = size - len(items)
        return np.concatenate([items, self._parted(n, size, number + 1, key)[:missing]]) if missing else items

    def _parted(self, n: int, size: int, number: int, key: int) -> Integers:
        """The `number`-th permutation, its head without the items at the end of the one before.

        A window may begin at the end of one permutation and go on at the head of the next. Items of the head
        that it has already are swapped with the first others behind the head. The end of a permutation is
        never changed, so nothing depends on what was done to those before: any step costs the same.
        """
        order = self._permutation(n, _hash(key, number))
        before = number * n % size
        if before == 0:
            return order
        head = size - before
        taken = self._permutation(n, _hash(key, number - 1))[-before:]
        clashing = np.flatnonzero(np.isin(order[:head], taken))
        # Of `size` items at most `before` are taken, so there are enough; 3 * size <= n keeps off the end.
        free = head + np.flatnonzero(~np.isin(order[head : head + size], taken))[: len(clashing)]
        order = order.copy()
        order[clashing], order[free] = order[free], order[clashing]
        return order

    def _permutation(self, n: int, key: int) -> Integers:
        """A random order of 0 to n - 1, kept while it is long and recent."""
        found = self._kept.get((n, key))
        if found is not None:
            return found
        order = permutation(n, key)
        if n >= _KEPT_FROM_ITEMS:
            self._kept[n, key] = order
            self._num_kept_items += n
            while self._num_kept_items > _KEPT_ITEMS and len(self._kept) > 2:
                (dropped, _), _ = self._kept.popitem(last=False)
                self._num_kept_items -= dropped
        return order


def permutation(n: int, key: int) -> Integers:
    """(n,) a random order of 0 to n - 1, a function of the key on every machine and in every version.

    The order of SplitMix64's numbers, which are distinct; Steele, Lea and Flood 2014, OOPSLA, sec. 4.
    """
    state = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    order: Integers = np.argsort(_mix(state))
    return order


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection in which every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(*parts: int) -> int:
    """64 bits that depend on every part and on their order; the same finaliser, on Python's integers."""
    value = 0
    for part in parts:
        value = (value + part + _GOLDEN) & _MASK
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value
