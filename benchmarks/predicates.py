"""What a filter costs before the search: `python -m benchmarks.predicates [--rows 10000000]`.

CPU milliseconds of this thread, median of several calls: indexes of attributes, new and remembered, beside
pyarrow (the plain evaluation of the same filter), NumPy on whole columns, and DuckDB where it is installed.
Six columns; filters of one to five terms, narrow and wide. DuckDB's is that of the process, on one thread.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.retrieval.attributes import open_attributes, write_attributes
from dml.retrieval.filters import check
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.filters.matching import evaluate

CALLS = 7
CHUNK = 1 << 20
REGIONS = 20
FILTERS = {
    "1 term, 0.01 %": "suffix = '1234'",
    "1 term, 5 %": "region = 'region 07'",
    "1 term, 30 %": "age between 20 and 49",
    "2 terms, 1.5 %": "region = 'region 07' and age between 20 and 49",
    "3 terms, wide": "region != 'region 07' and age between 20 and 49 and vip",
    "5 terms, narrow": (
        "region = 'region 07' and age between 20 and 49 and score > 0.5 and suffix in ('1234', '9876') "
        "and vip"
    ),
    "5 terms, wide": (
        "region in ('region 01', 'region 02', 'region 03', 'region 04') and age between 20 and 60 "
        "and score > -0.5 and seen >= 1200 and not vip"
    ),
}
Test = Callable[[dict[str, NDArray[Any]]], NDArray[np.bool_]]


def items_of(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    regions = pa.array([f"region {n:02d}" for n in range(REGIONS)])
    suffixes = pa.array([f"{n:04d}" for n in range(10_000)])
    chunks = []
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        chunks.append(
            pa.table(
                {
                    "region": regions.take(pa.array(rng.integers(0, REGIONS, size))),
                    "age": pa.array(rng.integers(0, 100, size)),
                    "score": pa.array(rng.standard_normal(size)),
                    "suffix": suffixes.take(pa.array(rng.integers(0, 10_000, size))),
                    "seen": pa.array(rng.integers(0, 2_000, size)),
                    "vip": pa.array(rng.random(size) < 0.2),
                }
            )
        )
    return pa.concat_tables(chunks)


def arrays_of(items: pa.Table) -> dict[str, NDArray[Any]]:
    """As a program would hold them that knows its columns: texts as numbers of their values."""
    columns = {}
    for name in items.column_names:
        column = items[name]
        if pa.types.is_string(column.type):
            codes = pa.chunked_array([pa.compute.cast(c, pa.int32()) for c in _digits(column).chunks])
            columns[name] = codes.to_numpy()
        else:
            columns[name] = column.to_numpy()
    return columns


def _digits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.compute.replace_substring_regex(column, r"^\D*", "")


NUMPY: dict[str, Test] = {
    "1 term, 0.01 %": lambda c: c["suffix"] == 1234,
    "1 term, 5 %": lambda c: c["region"] == 7,
    "1 term, 30 %": lambda c: (c["age"] >= 20) & (c["age"] <= 49),
    "2 terms, 1.5 %": lambda c: (c["region"] == 7) & (c["age"] >= 20) & (c["age"] <= 49),
    "3 terms, wide": lambda c: (c["region"] != 7) & (c["age"] >= 20) & (c["age"] <= 49) & c["vip"],
    "5 terms, narrow": lambda c: (
        (c["region"] == 7)
        & (c["age"] >= 20)
        & (c["age"] <= 49)
        & (c["score"] > 0.5)
        & ((c["suffix"] == 1234) | (c["suffix"] == 9876))
        & c["vip"]
    ),
    "5 terms, wide": lambda c: (
        (c["region"] >= 1)
        & (c["region"] <= 4)
        & (c["age"] >= 20)
        & (c["age"] <= 60)
        & (c["score"] > -0.5)
        & (c["seen"] >= 1200)
        & ~c["vip"]
    ),
}


def milliseconds(call: Callable[[], object], clock: Callable[[], int] = time.thread_time_ns) -> float:
    """Median over several calls."""
    times = []
    for _ in range(CALLS):
        start = clock()
        call()
        times.append((clock() - start) / 1e6)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    items = items_of(options.rows)
    duckdb = importlib.import_module("duckdb") if importlib.util.find_spec("duckdb") else None
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        paths = write_attributes(Path(folder), items)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*")) / 2**20
        seconds = time.process_time() - start
        print(f"{options.rows} rows x {items.num_columns} columns, {items.nbytes / 2**20:.0f} MiB")
        print(f"indexes: {size:.0f} MiB, {seconds:.0f} s of CPU to build", flush=True)
        heads = ("matches", "new", "known", "pyarrow", "NumPy", "DuckDB")
        print(" " * 18, *(f"{head:>9}" for head in heads), " ms of CPU")
        remembering = open_attributes(paths, items)
        arrays, columns = arrays_of(items), ItemColumns(items)
        if duckdb is not None:
            database = duckdb.connect(config={"threads": 1})
            database.execute("create table items as select * from items")
        for name, where in FILTERS.items():
            opened = [open_attributes(paths, items) for _ in range(CALLS)]
            filter = check(where, opened[0])
            assert filter is not None
            unused = iter(opened)

            def plan(indexes: Any, filter: Any = filter) -> object:
                """What a search needs: few rows to compare with each, or the bitmap of many."""
                matches = indexes.matches(filter)
                return matches.rows() if matches.count * 64 < options.rows else matches.bitmap()

            new = milliseconds(lambda unused=unused: plan(next(unused)))  # type: ignore[misc]
            plan(remembering)
            known = milliseconds(lambda: plan(remembering))
            arrow = milliseconds(lambda filter=filter: evaluate(filter, columns))  # type: ignore[misc]
            numpy = milliseconds(lambda name=name: NUMPY[name](arrays))  # type: ignore[misc]
            count = remembering.matches(filter).count
            assert count == NUMPY[name](arrays).sum() == evaluate(filter, columns).sum()
            other = "-"
            if duckdb is not None:
                query = f"select count(*) from items where {where}"
                call = partial(database.execute, query)
                other = f"{milliseconds(lambda call=call: call().fetchall(), time.process_time_ns):.2f}"
            times = (f"{new:.3f}", f"{known:.3f}", f"{arrow:.2f}", f"{numpy:.2f}", other)
            print(f"{name:18}", f"{count:9}", *(f"{each:>9}" for each in times), flush=True)
    if duckdb is None:
        print("DuckDB is not installed, and is not measured: uv sync --group peers")


if __name__ == "__main__":
    main()
