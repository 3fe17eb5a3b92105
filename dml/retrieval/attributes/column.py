"""The index of one column of the items, memory-mapped: values in, matching rows out."""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dml.retrieval.attributes.bits import are_set
from dml.retrieval.attributes.grid import box_around, cell_ranges
from dml.retrieval.attributes.matches import Matches, Test
from dml.retrieval.attributes.postings import Postings
from dml.retrieval.filters.columns import Kind
from dml.retrieval.filters.locations import distances_km
from dml.retrieval.filters.times import time_of
from dml.retrieval.filters.tree import Value

_NEAREST, _COMPARED = 5, 10_000
_MOST_IN_DICT = 1_000


class AttributeColumn:
    """One column's index; a `Column` of the filters' check.

    Args:
        path: a file of `write_attributes`.
        items: the column itself, whose numbers of few rows are looked up.
    """

    def __init__(self, path: Path, items: pa.Table) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        metadata = json.loads(table.schema.metadata[b"dml"])
        self.name: str = metadata["column"]
        self.kind: Kind = metadata["kind"]
        self.num_rows: int = metadata["rows"]
        self.time_type = None if metadata["times"] is None else pa.timestamp(*metadata["times"])
        arrays = {name: table[name].chunk(0).flatten() for name in table.column_names}
        self.values: pa.Array = arrays.pop("values")
        numbers = {name: array.to_numpy() for name, array in arrays.items()}
        self._postings = Postings(numbers, self.num_rows)
        self._missing = numbers.get("missing")
        self._instants = numbers.get("instants")
        of_times = {
            name.removeprefix("time_"): of for name, of in numbers.items() if name.startswith("time_")
        }
        self._by_time = Postings(of_times, self.num_rows) if of_times else None
        self._locations = numbers if "cells" in numbers else None
        self._column = items[self.name]

    @property
    def holds_locations(self) -> bool:
        return self._locations is not None or (self.kind == "text" and not len(self.values))

    @property
    def limits(self) -> tuple[float, float]:
        if self.kind not in ("integer", "number") or not len(self.values):
            return (float("inf"), float("-inf"))
        return float(self._numbers[0]), float(self._numbers[-1])

    def example(self, unlike: str) -> str:
        if self.kind != "text" or not len(self.values):
            return ""
        for start in range(0, len(self.values), _COMPARED):
            texts = self.values.slice(start, _COMPARED)
            others = pc.filter(texts, pc.invert(pc.match_substring_regex(texts, unlike)))
            if len(others):
                return str(others[0])
        return str(self.values[0])

    def has(self, values: Sequence[Value]) -> list[bool]:
        return [self._number_of(value) is not None for value in values]

    def near(self, value: float | str) -> tuple[list[Any], int]:
        if isinstance(value, str):
            return self.values.slice(0, _COMPARED).to_pylist(), len(self.values)
        position = int(np.searchsorted(self._numbers, value))
        around = self._numbers[max(position - _NEAREST, 0) : position + _NEAREST]
        distances = np.abs(around.astype(np.float64) - float(value))
        return sorted(around[np.argsort(distances, kind="stable")[:_NEAREST]].tolist()), len(self.values)

    def one_of(self, values: Sequence[Value]) -> Matches:
        """The rows whose value is one of these."""
        numbers = {number for value in values if (number := self._number_of(value)) is not None}
        ascending = sorted(numbers)
        test: Test | None = None
        if self._forward is not None and len(ascending):
            wanted = self._numbers[ascending]
            test = self._tested(lambda column: np.isin(column, wanted))
        return self._postings.of(ascending, test=test)

    def compared(self, operator: str, value: Value) -> Matches:
        """The rows whose value is <, <=, > or >= this one."""
        after = operator in ("<=", ">")
        position = self._position(value, after=after)
        if operator in ("<", "<="):
            return self._of_range(0, position)
        return self._of_range(position, self._num_ordered)

    def between(self, low: Value, high: Value) -> Matches:
        """The rows whose value is from low to high, both included."""
        return self._of_range(self._position(low, after=False), self._position(high, after=True))

    def missing(self) -> Matches:
        """The rows without a value."""
        if self._missing is None:
            return Matches.of_rows(np.empty(0, np.int64), self.num_rows)
        return Matches.of_bitmap(self._missing, self.num_rows)

    def within(self, latitude: float, longitude: float, radius_km: float) -> Matches:
        """The rows whose location is at most so far away."""
        if self._locations is None:
            return Matches.of_rows(np.empty(0, np.int64), self.num_rows)
        cells, offsets = self._locations["cells"], self._locations["cell_offsets"]
        first, last = cell_ranges(*box_around(latitude, longitude, radius_km))
        begins, ends = offsets[np.searchsorted(cells, first)], offsets[np.searchsorted(cells, last, "right")]
        slices = [slice(begin, end) for begin, end in zip(begins, ends, strict=True) if begin < end]
        near = [
            self._locations["cell_rows"][of][
                distances_km(
                    self._locations["latitudes"][of], self._locations["longitudes"][of], latitude, longitude
                )
                <= radius_km
            ]
            for of in slices
        ]
        return Matches.of_rows(np.concatenate(near) if near else np.empty(0, np.int64), self.num_rows)

    def numbers_at(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) the numbers of ascending rows; NaN where there is none."""
        assert self._forward is not None
        numbers = self._forward.take(rows).astype(np.float64)
        if self._missing is not None:
            numbers[are_set(self._missing, rows)] = np.nan
        return numbers

    @property
    def _num_ordered(self) -> int:
        return len(self.values) if self._instants is None else len(self._instants)

    def _of_range(self, first: int, last: int) -> Matches:
        if self._by_time is not None:
            return self._by_time.of_range(first, last)
        test: Test | None = None
        if self._forward is not None and first < last:
            low, high = self._numbers[first], self._numbers[last - 1]
            test = self._tested(lambda column: (column >= low) & (column <= high))
        return self._postings.of_range(first, last, test=test)

    def _tested(self, compare: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> Test:
        def test(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            assert self._forward is not None
            holds = compare(self._forward.take(rows))
            return holds if self._missing is None else holds & ~are_set(self._missing, rows)

        return test

    def _position(self, value: Value, *, after: bool) -> int:
        """Where a value stands among the sorted ones."""
        side: Literal["left", "right"] = "right" if after else "left"
        if self.kind == "text":
            if self._instants is None:
                return 0
            assert self.time_type is not None
            time = time_of(str(value), self.time_type)
            assert time is not None, "the check refuses other values"
            return int(np.searchsorted(self._instants, time.value, side))
        kind = np.int64 if self.kind == "integer" else np.float64
        return int(np.searchsorted(self._numbers, kind(value), side))

    def _number_of(self, value: Value) -> int | None:
        """The number of a value among the sorted ones; None: no row has it."""
        if self.kind in ("integer", "number"):
            position = self._position(value, after=False)
            return position if position < len(self._numbers) and self._numbers[position] == value else None
        if len(self.values) <= _MOST_IN_DICT:
            return self._number_by_value.get(value)
        position = bisect_left(range(len(self.values)), value, key=lambda n: self.values[n].as_py())
        return position if position < len(self.values) and self.values[position].as_py() == value else None

    @cached_property
    def _number_by_value(self) -> dict[Value, int]:
        return {value: number for number, value in enumerate(self.values.to_pylist())}

    @cached_property
    def _numbers(self) -> NDArray[Any]:
        numbers: NDArray[Any] = self.values.to_numpy(zero_copy_only=False)
        return numbers

    @cached_property
    def _forward(self) -> "_Numbers | None":
        return _Numbers(self._column) if self.kind in ("integer", "number") else None


class _Numbers:
    """The numbers of a column by row; what is in place of a missing one means nothing."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [
            np.frombuffer(chunk.buffers()[1], chunk.type.to_pandas_dtype())[chunk.offset :][: len(chunk)]
            for chunk in column.chunks
            if len(chunk)
        ]
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n,) the numbers of ascending rows."""
        if len(self._chunks) == 1:
            return self._chunks[0][rows]
        ends = np.searchsorted(rows, self._starts)
        parts = [
            chunk[rows[begin:end] - start]
            for chunk, start, begin, end in zip(
                self._chunks, self._starts[:-1], ends[:-1], ends[1:], strict=True
            )
        ]
        return np.concatenate(parts) if parts else np.empty(0)
