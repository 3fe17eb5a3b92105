"""Windows of an endless sequence of random permutations, as a pure function of (index, key)."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# Random streams, so that permutations of classes, images, rows and values use different random numbers.
CLASS_STREAM, IMAGE_STREAM, ROW_STREAM, VALUE_STREAM = 1, 2, 3, 4

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
# Shorter permutations cost less to draw again than to keep; kept ones take at most 160 MB.
_KEPT_FROM_ITEMS, _KEPT_ITEMS = 512, 20_000_000


class Permutations:
    """Endless random permutations of n items, one after the other, cut into windows without repetition."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Integers] = OrderedDict()
        self._num_kept_items = 0

    def window(self, n: int, size: int, index: int, key: int) -> Integers:
        """(size,) the items of the `index`-th window: distinct, and each item once per permutation.

        With n < size a window must repeat items: it then contains whole permutations, and its rest comes from
        windows of another sequence, so the numbers of appearances of two items differ by at most one.
        """
        if n < size:
            rounds = [self._permutation(n, hash_of(key, index, part)) for part in range(size // n)]
            if rest := size % n:
                rounds.append(self.window(n, rest, index, hash_of(key, rest)))
            return np.concatenate(rounds)
        if size < n < 2 * size:
            return self._all_but(n, n - size, index, key)
        number, offset = divmod(index * size, n)
        items = self._without_repeats(n, size, number, key, offset, min(offset + size, n))
        if missing := size - len(items):
            return np.concatenate([items, self._without_repeats(n, size, number + 1, key, 0, missing)])
        return items

    def _all_but(self, n: int, num_left_out: int, index: int, key: int) -> Integers:
        """A window of more than half the items: permutations choose the items that it leaves out.

        Items that were left out once more than the others have appeared once less. They come first, so the
        concatenated windows still contain each item once in every n.
        """
        left_out = self.window(n, num_left_out, index, key)
        number, offset = divmod(index * num_left_out, n)
        behind, stays = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
        behind[self._without_repeats(n, num_left_out, number, key, 0, offset)] = True
        stays[left_out] = False
        items = self._permutation(n, hash_of(key, index, 1))
        items = items[stays[items]]
        return np.concatenate([items[behind[items]], items[~behind[items]]])

    def _without_repeats(self, n: int, size: int, number: int, key: int, begin: int, end: int) -> Integers:
        """Positions begin to end - 1 of permutation `number`, without repeats at its start; n >= 2 size.

        A window may begin at the end of one permutation and continue at the head of the next. Items of the
        head that the window has already are swapped with later items that it does not have. The end of a
        permutation is never changed, so it does not depend on earlier ones, and every step costs the same.
        """
        order = self._permutation(n, hash_of(key, number))
        before = number * n % size
        if before == 0 or begin >= size:
            return order[begin:end]
        front, head = order[:size].copy(), size - before
        taken = self._permutation(n, hash_of(key, number - 1))[-before:]
        clashing = np.flatnonzero(_is_in(front[:head], taken))
        # If c items clash, before - c of the `before` positions behind the head hold taken items; c are free.
        # They are below `size`, and the end of the permutation begins above n - size.
        free = head + np.flatnonzero(~_is_in(front[head:], taken))[: len(clashing)]
        front[clashing], front[free] = front[free], front[clashing]
        return np.concatenate([front[begin:end], order[size:end]]) if end > size else front[begin:end]

    def _permutation(self, n: int, key: int) -> Integers:
        """A random order of 0 to n - 1; long, recent ones are cached."""
        kept = self._kept.get((n, key))
        if kept is not None:
            return kept
        order = permutation(n, key)
        if n >= _KEPT_FROM_ITEMS:
            self._kept[n, key] = order
            self._num_kept_items += n
            while self._num_kept_items > _KEPT_ITEMS and len(self._kept) > 2:
                (dropped, _), _ = self._kept.popitem(last=False)
                self._num_kept_items -= dropped
        return order


def _is_in(items: Integers, others: Integers) -> NDArray[np.bool_]:
    if len(items) * len(others) <= 4096:  # a sixth of isin's time at 4 x 4
        among: NDArray[np.bool_] = (items[:, None] == others).any(axis=1)
        return among
    return np.isin(items, others)


def permutation(n: int, key: int) -> Integers:
    """(n,) a random order of 0 to n - 1 that depends only on the key, on every machine and in every version.

    The order of SplitMix64's numbers; Steele, Lea and Flood 2014, OOPSLA, sec. 4. Each carries its index in
    its low bits: sorting them takes a third of the time of an argsort (10^7: 0.3 s).
    """
    low_bits = np.uint64(max(n - 1, 1).bit_length())
    values = random_bits(n, key)
    values >>= low_bits
    values <<= low_bits
    values |= np.arange(n, dtype=np.uint64)
    values.sort()
    values &= np.uint64((1 << int(low_bits)) - 1)
    return values.view(np.int64)


def random_bits(n: int, key: int) -> NDArray[np.uint64]:
    """(n,) SplitMix64's numbers from the state `key` on: a bijection in which every bit moves every bit."""
    values = np.arange(1, n + 1, dtype=np.uint64)
    values *= np.uint64(_GOLDEN)
    values += np.uint64(key)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def hash_of(*parts: int) -> int:
    """64 bits that depend on every part and on their order; the same finaliser, on Python's integers."""
    value = 0
    for part in parts:
        value = (value + part + _GOLDEN) & _MASK
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value
