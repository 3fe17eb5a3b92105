"""A table of items in, the identity of each as a number out."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute


class NumberedIdentities:
    """The identities of N items. An identity is a label; an item without one is an identity by itself.

    Args:
        items: N rows, with a column `label` or without.

    Example:
        >>> identities = NumberedIdentities(pa.table({"label": ["ann", "bob", "ann", None]}))
        >>> identities.of_rows.tolist(), identities.of_labels(["bob", "nobody"])
        ([0, 1, 0, 2], {'bob': 1})
    """

    def __init__(self, items: pa.Table) -> None:
        self._items = items
        self._known: dict[str, int | None] = {}

    @property
    def of_rows(self) -> NDArray[np.int64]:
        """(N,) the identity of each item; numbers are 0 to the count of identities - 1."""
        return self._rows_and_labels[0]

    def of_labels(self, labels: Iterable[str]) -> dict[str, int]:
        """The numbers of those labels that some item has."""
        wanted = list(labels)
        unknown = [label for label in wanted if label not in self._known]
        if unknown:
            every = self._rows_and_labels[1]
            found = compute.index_in(pa.array(unknown, every.type), value_set=every).to_pylist()
            self._known.update(zip(unknown, found, strict=True))
        return {label: number for label in wanted if (number := self._known[label]) is not None}

    @cached_property
    def _rows_and_labels(self) -> tuple[NDArray[np.int64], pa.Array]:
        """(N,) identities, and the labels by their number."""
        if "label" not in self._items.column_names:
            return np.arange(len(self._items)), pa.array([], pa.string())
        encoded = self._items["label"].combine_chunks().dictionary_encode()
        identities: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
        unlabelled = np.flatnonzero(identities < 0)
        identities[unlabelled] = len(encoded.dictionary) + np.arange(len(unlabelled))
        return identities, encoded.dictionary
