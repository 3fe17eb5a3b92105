"""The indexes of all attributes: a filter in, the rows that match out; their number is exact.

A term of one column is read from its index. `and` starts with the term that the fewest rows satisfy, and
tests these against the others, or joins bitmaps where all terms are wide. Results are remembered by the
filter's canonical text.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa

from dml.retrieval.attributes.bits import inverted
from dml.retrieval.attributes.column import AttributeColumn
from dml.retrieval.attributes.grid import box_around
from dml.retrieval.attributes.matches import Matches
from dml.retrieval.filters.columns import Column, ItemColumns
from dml.retrieval.filters.locations import distances_km
from dml.retrieval.filters.matching import evaluate
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Value, Within

_CACHE_BYTES = 256 << 20
_FEW = 32  # a term is narrow if it matches at most 1/32 of the rows
_FEW_IN_ALL = 64


class AttributeIndexes(Mapping[str, Column]):
    """The columns of an index's items, for `check`, and the rows that match a filter.

    Can be shared between threads. Columns without an index are compared whole.

    Args:
        columns: the indexed ones.
        items: all.
        cache_bytes: of the results that are remembered.
    """

    def __init__(
        self, columns: Mapping[str, AttributeColumn], items: pa.Table, *, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self._indexed, self._items, self._num_rows = columns, ItemColumns(items), len(items)
        self._cache: OrderedDict[str, Matches] = OrderedDict()
        self._cache_bytes, self._lock = cache_bytes, Lock()

    def __getitem__(self, name: str) -> Column:
        return self._indexed[name] if name in self._indexed else self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def matches(self, filter: Filter) -> Matches:
        """The rows that satisfy a filter which `check` returned."""
        key = filter.text
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        matches = self._evaluate(filter)
        with self._lock:
            matches = self._cache.setdefault(key, matches)
            sizes = {text: cached.size_bytes for text, cached in self._cache.items()}
            total = sum(sizes.values())
            while total > self._cache_bytes and len(self._cache) > 1:
                text, _ = self._cache.popitem(last=False)
                total -= sizes[text]
        return matches

    def row_with(self, column: str, value: Value) -> int | None:
        """The first row with a value; None: no row has it."""
        indexed = self._indexed.get(column)
        if indexed is None:
            return None
        matches = indexed.one_of([value])
        return int(matches.rows()[0]) if matches.count else None

    def _evaluate(self, filter: Filter) -> Matches:
        match filter:
            case And(filters=filters):
                return self._all_of([self.matches(child) for child in filters])
            case Or(filters=filters):
                return self._any_of([self.matches(child) for child in filters])
            case Not():
                return self._none_of(self.matches(filter.filter))
        names = filter.columns if isinstance(filter, Within) else (filter.column,)
        if not self._indexed.keys() >= set(names):
            mask = evaluate(filter, self._items)
            return Matches.of_bitmap(np.packbits(mask, bitorder="little"), self._num_rows)
        match filter:
            case Within():
                return self._within(filter)
            case Compare(operator="="):
                return self._indexed[filter.column].one_of([filter.value])
            case Compare(operator="!="):
                return self._none_of(self._indexed[filter.column].one_of([filter.value]))
            case Compare():
                return self._indexed[filter.column].compared(filter.operator, filter.value)
            case Between():
                return self._indexed[filter.column].between(filter.low, filter.high)
            case In():
                return self._indexed[filter.column].one_of(filter.values)
            case IsNull():
                return self._indexed[filter.column].missing()

    def _all_of(self, terms: list[Matches]) -> Matches:
        terms = sorted(terms, key=lambda term: term.count)
        if terms[0].count * _FEW <= self._num_rows:
            rows = terms[0].rows()
            for term in terms[1:]:
                rows = rows[term.among(rows)]
            return Matches.of_rows(rows, self._num_rows)
        bitmap = reduce(np.bitwise_and, (term.bitmap() for term in terms))
        return Matches.of_bitmap(bitmap, self._num_rows)

    def _any_of(self, terms: list[Matches]) -> Matches:
        if sum(term.count for term in terms) * _FEW_IN_ALL <= self._num_rows:
            rows = np.unique(np.concatenate([term.rows() for term in terms]))
            return Matches.of_rows(rows, self._num_rows)
        bitmap = reduce(np.bitwise_or, (term.bitmap() for term in terms))
        return Matches.of_bitmap(bitmap, self._num_rows)

    def _none_of(self, term: Matches) -> Matches:
        return Matches(
            self._num_rows - term.count,
            self._num_rows,
            bitmap=lambda: inverted(term.bitmap(), self._num_rows),
            test=lambda rows: ~term.among(rows),
        )

    def _within(self, filter: Within) -> Matches:
        center = filter.latitude, filter.longitude
        if len(filter.columns) == 1:
            return self._indexed[filter.columns[0]].within(*center, filter.radius_km)
        north, east = (self._indexed[name] for name in filter.columns)
        latitudes, longitudes = box_around(*center, filter.radius_km)
        spans = [east.between(low, high) for low, high in longitudes]
        near = self._all_of([north.between(*latitudes), spans[0] if len(spans) == 1 else self._any_of(spans)])
        rows = near.rows()
        distances = distances_km(north.numbers_at(rows), east.numbers_at(rows), *center)
        return Matches.of_rows(rows[distances <= filter.radius_km], self._num_rows)


def open_attributes(
    paths: Iterable[Path], items: pa.Table, *, cache_bytes: int = _CACHE_BYTES
) -> AttributeIndexes:
    """The indexes in files of `write_attributes`, memory-mapped."""
    columns = [AttributeColumn(path, items) for path in paths]
    return AttributeIndexes({column.name: column for column in columns}, items, cache_bytes=cache_bytes)
