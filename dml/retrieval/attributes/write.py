"""Writes the indexes of an index version's attributes: one Arrow file per column of its items.

A file has one row, whose columns are lists of different lengths, see `docs/store.md`.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dml.data.schema import POSITION
from dml.progress import begin, count
from dml.retrieval.attributes.grid import cells_of
from dml.retrieval.attributes.postings import posting_arrays
from dml.retrieval.filters.columns import kind_of
from dml.retrieval.filters.locations import locations_in_text
from dml.retrieval.filters.times import times_of

FOLDER = "attributes"
_FEW_TEXTS = 1000
_NOT_INDEXED = {POSITION, "sha256"}


def write_attributes(folder: Path, items: pa.Table) -> list[Path]:
    """Write a file for each column that a filter is likely to ask for, one after the other.

    Args:
        folder: of an index version.
        items: N rows.

    Returns:
        The files.
    """
    (folder / FOLDER).mkdir()
    paths = []
    names = [
        field.name
        for field in items.schema
        if field.name not in _NOT_INDEXED and kind_of(field.type) != "other"
    ]
    begin("indexing attributes", "columns", len(names))
    for number, name in enumerate(names):
        arrays, times = _arrays(items[name])
        metadata = {"column": name, "kind": kind_of(items[name].type), "rows": len(items), "times": times}
        paths.append(folder / FOLDER / f"{number:05d}.arrow")
        _write(paths[-1], arrays, metadata)
        count()
    return paths


def _write(path: Path, arrays: dict[str, pa.Array], metadata: dict[str, object]) -> None:
    lists = {
        name: pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
        for name, array in arrays.items()
    }
    table = pa.table(lists).replace_schema_metadata({"dml": json.dumps(metadata)})
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _arrays(column: pa.ChunkedArray) -> tuple[dict[str, pa.Array], tuple[str, str | None] | None]:
    """The lists of a column's file; and unit and zone of its times, if it holds some."""
    kind, num_rows = kind_of(column.type), len(column)
    if kind == "text":
        return _text_arrays(column.cast(pa.large_string()))
    if kind == "boolean":
        values = pc.cast(column, pa.int8())
    else:
        values = pc.cast(column, pa.int64() if kind == "integer" else pa.float64())
    numbers: NDArray[np.int64] = pc.fill_null(values, 0).to_numpy()
    is_present = pc.is_valid(values).to_numpy()
    if kind == "number":
        is_present &= ~np.isnan(numbers)
    distinct, arrays = _by_value(numbers[is_present], np.flatnonzero(is_present), num_rows)
    sorted_values = pa.array(distinct.astype(np.bool_)) if kind == "boolean" else pa.array(distinct)
    return {"values": sorted_values, **arrays, **_missing(is_present)}, None


def _text_arrays(column: pa.ChunkedArray) -> tuple[dict[str, pa.Array], tuple[str, str | None] | None]:
    num_rows = len(column)
    encoded = column.dictionary_encode().unify_dictionaries()
    chunks = encoded.chunks
    dictionary = chunks[0].dictionary if chunks else pa.array([], pa.large_string())
    indices = [pc.fill_null(chunk.indices, -1).to_numpy() for chunk in chunks]
    codes = np.concatenate(indices) if indices else np.empty(0, np.int32)
    order = pc.sort_indices(dictionary).to_numpy()
    if len(order) and dictionary[int(order[0])].as_py() == "":
        order = order[1:]
    ranks = np.full(len(dictionary) + 1, -1, dtype=np.int64)  # the last for index -1
    ranks[order] = np.arange(len(order))
    ranks, values = ranks[codes], dictionary.take(pa.array(order))
    del encoded, chunks, dictionary, indices, codes, order  # of a column of ids as much as the rest
    is_present = ranks >= 0
    _, arrays = _by_value(ranks[is_present], np.flatnonzero(is_present), num_rows, ordered=False)
    arrays = {"values": values, **arrays, **_missing(is_present)}
    del ranks
    few = column.take(pa.array(np.flatnonzero(is_present)[:_FEW_TEXTS]))  # most columns are known by these
    times = None if times_of(few) is None else times_of(column)
    if times is not None and is_present.any():
        instants = pc.fill_null(pc.cast(times, pa.int64()), 0).to_numpy()
        distinct, of_times = _by_value(instants[is_present], np.flatnonzero(is_present), num_rows)
        arrays |= {"instants": pa.array(distinct), **{f"time_{name}": of for name, of in of_times.items()}}
    is_located = len(few) > 0 and locations_in_text(few) is not None
    locations = locations_in_text(column) if is_located else None
    if locations is not None:
        rows = np.flatnonzero(is_present)
        latitudes, longitudes = (degrees[rows] for degrees in locations)
        cells = cells_of(latitudes, longitudes)
        order = np.argsort(cells, kind="stable")
        distinct, starts = _distinct(cells[order])
        arrays |= {
            "cells": pa.array(distinct),
            "cell_offsets": pa.array(starts),
            "cell_rows": pa.array(rows[order]),
            "latitudes": pa.array(latitudes[order]),
            "longitudes": pa.array(longitudes[order]),
        }
    return arrays, None if times is None else (times.type.unit, times.type.tz)


def _missing(is_present: NDArray[np.bool_]) -> dict[str, pa.Array]:
    """The bitmap of the rows without a value; none where all have one."""
    return {} if is_present.all() else {"missing": pa.array(np.packbits(~is_present, bitorder="little"))}


def _by_value(
    values: NDArray[np.int64], rows: NDArray[np.int64], num_rows: int, *, ordered: bool = True
) -> tuple[NDArray[np.int64], dict[str, pa.Array]]:
    """The distinct values, and the arrays of their postings."""
    order = np.argsort(values, kind="stable")
    distinct, offsets = _distinct(values[order])
    return distinct, posting_arrays(offsets, rows[order], num_rows, ordered=ordered)


def _distinct(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of sorted values: the distinct ones, and where each begins, and the end."""
    is_first = np.ones(len(values), dtype=np.bool_)
    is_first[1:] = values[1:] != values[:-1]
    return values[is_first], np.append(np.flatnonzero(is_first), len(values))
