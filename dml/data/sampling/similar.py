"""P x K batches of similar classes, so that batches contain hard negatives."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dml.data.sampling.permutations import Integers
from dml.data.sampling.pk import PKBatchSampler
from dml.data.sampling.stream import Stream
from dml.errors import InvalidSetting

# Coordinates are multiples of 1/2048: dot products of unit vectors and their partial sums stay below 2^24, so
# float32 holds them exactly in any order of addition, and every rank gets the same batches.
_FIXED_POINT_SCALE = 2048
_BLOCK_ROWS = 1 << 14


class SimilarClassBatchSampler(PKBatchSampler):
    """`PKBatchSampler`'s classes, every `refresh_every_steps` batches regrouped into similar ones.

    The classes of the next n batches are regrouped greedily: the first unassigned class is a seed, and its
    most similar unassigned classes join it, until all are assigned. Every class still appears once per pass.
    Planning n batches costs (n P / S) x (n P) x D. A batch that spans two passes, at most one per pass,
    is not changed.

    A pure function of (seed, step, class vectors), where vectors may change at multiples of n: the n batches
    use the vectors that are set when the first of them is requested. Without vectors it is `PKBatchSampler`.

    Args:
        class_ids: (N,) int, the class of each row, from 0; ids without rows are left out.
        classes_per_batch: P, of the global batch; there must be at least 2 P classes.
        samples_per_class: K.
        refresh_every_steps: n; a seed's neighbours are searched among the P n classes of n batches, one pass
            at a time. Below C / P steps some neighbours are missed; above it, vectors are only more outdated.
        seeds_per_batch: S, divides P; each seed has P/S - 1 neighbours. More seeds give easier batches.
        class_vectors: as `set_class_vectors`.
        stream: the steps, and this rank's part.

    Raises:
        InvalidSetting: as `PKBatchSampler`, fewer than 2 P classes, or S does not divide P.

    Source: Ge et al. 2018, arXiv:1810.06951, sec. 3.3 (anchor neighbourhood: random classes and the nearest
    classes of each); regrouping a whole permutation instead of drawing with replacement is a variant.
    """

    def __init__(
        self,
        class_ids: Integers,
        *,
        classes_per_batch: int,
        samples_per_class: int,
        refresh_every_steps: int,
        seeds_per_batch: int = 1,
        class_vectors: ArrayLike | None = None,
        stream: Stream,
    ) -> None:
        super().__init__(
            class_ids,
            classes_per_batch=classes_per_batch,
            samples_per_class=samples_per_class,
            stream=stream,
        )
        if len(self.classes) < 2 * classes_per_batch:
            raise InvalidSetting(
                f"There must be at least two batches of classes, {2 * classes_per_batch}; got "
                f"{len(self.classes)}. Lower classes_per_batch."
            )
        if classes_per_batch % seeds_per_batch:
            raise InvalidSetting(
                f"classes_per_batch must be a multiple of seeds_per_batch; got {classes_per_batch} and "
                f"{seeds_per_batch}."
            )
        self.refresh_every_steps, self.seeds_per_batch = refresh_every_steps, seeds_per_batch
        self._vectors: NDArray[np.floating] | None = None
        self._plan: tuple[int, dict[int, Integers]] | None = None
        if class_vectors is not None:
            self.set_class_vectors(class_vectors)

    def set_class_vectors(self, vectors: ArrayLike) -> None:
        """Use these vectors from the next group of n batches on; a group that has started is not changed.

        Args:
            vectors: (C, D) float, row c of class id c, any length; zeros for a class not seen yet. They
                are not copied, so do not change them before the next call.

        Raises:
            ValueError: fewer rows than class ids, or a coordinate is not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or len(vectors) <= self.classes[-1]:
            raise ValueError(
                f"vectors must be (C, D) with a row for each class id up to {self.classes[-1]}; got "
                f"{vectors.shape}."
            )
        for start in range(0, len(vectors), _BLOCK_ROWS):
            if not np.isfinite(vectors[start : start + _BLOCK_ROWS]).all():
                raise ValueError("vectors must be finite numbers. Check the loss that learnt them.")
        self._vectors = vectors

    def known_until(self, step: int) -> int:
        """The end of the group of n batches of a step; later batches depend on later vectors."""
        n = self.refresh_every_steps
        return min((step // n + 1) * n, self.stream.num_steps)

    def _groups_and_occurrences(self, step: int) -> tuple[Integers, Integers]:
        numbers, occurrences = super()._groups_and_occurrences(step)
        round_ = step // self.refresh_every_steps
        if self._plan is None or self._plan[0] != round_:
            self._plan = (round_, self._make_plan(round_))
        return self._plan[1].get(step, numbers), occurrences

    def _make_plan(self, round_: int) -> dict[int, Integers]:
        """(P,) class numbers by step, for the batches of a round that do not span two passes."""
        if self._vectors is None:
            return {}
        passes: dict[int, list[int]] = {}
        for step in range(round_ * self.refresh_every_steps, (round_ + 1) * self.refresh_every_steps):
            first = step * self.classes_per_batch
            number = first // len(self.classes)
            if number == (first + self.classes_per_batch - 1) // len(self.classes):
                passes.setdefault(number, []).append(step)
        plan: dict[int, Integers] = {}
        for steps in passes.values():
            pool = np.concatenate(
                [super(SimilarClassBatchSampler, self)._groups_and_occurrences(step)[0] for step in steps]
            )
            exact = _to_fixed_point(self._vectors[self.classes[pool]])
            batches = _regroup(exact, self.classes_per_batch, self.seeds_per_batch)
            plan.update(zip(steps, pool[batches], strict=True))
        return plan


def _regroup(exact: NDArray[np.float32], size: int, num_seeds: int) -> Integers:
    """(M / size, size) the numbers 0 to M - 1 in batches of `num_seeds` seeds and their neighbours."""
    m = len(exact)
    positions = np.arange(m)
    free = np.ones(m, dtype=bool)
    num_nearest = size // num_seeds - 1
    chosen: list[NDArray[np.int64]] = []
    seed = 0
    for _ in range(m // size * num_seeds):
        seed += int(np.argmax(free[seed:]))
        free[seed] = False
        chosen.append(positions[seed : seed + 1])
        if num_nearest:
            similarities = (exact @ exact[seed]).astype(np.int64)
            # Distinct distances, so that the result does not depend on how partition breaks ties.
            distances = (
                np.where(free, _FIXED_POINT_SCALE**2 * 4 - similarities, _FIXED_POINT_SCALE**2 * 16) * m
                + positions
            )
            nearest = np.sort(np.partition(distances, num_nearest - 1)[:num_nearest]) % m
            free[nearest] = False
            chosen.append(nearest)
    return np.concatenate(chosen).reshape(-1, size)


def _to_fixed_point(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(M, D) the vectors at unit length in multiples of 1/2048, by operations with exact rounding."""
    vectors = vectors.astype(np.float64)
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    # Integers up to 2^15, whose sums of squares are exact; a zero vector stays zero.
    integers = np.rint(vectors / np.where(largest > 0, largest, 1) * 2**15)
    length = np.sqrt(np.square(integers).sum(axis=1, keepdims=True))
    return np.rint(integers * _FIXED_POINT_SCALE / np.where(length > 0, length, 1)).astype(np.float32)
