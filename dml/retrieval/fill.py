"""Train a Faiss index on a sample of flat vectors, and fill it in blocks: not all are in memory at a time."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.progress import begin, count
from dml.retrieval.tune import graph_of
from dml.retrieval.vectors import FlatVectors

_FEWEST_PER_LIST, _MOST_PER_LIST = 39, 100  # rows to train on: by Faiss' guidelines 39 to 256
_TRAINING_SHARE = 0.2  # of the rows, which Faiss may copy once
_FEWEST_TRAINING_ROWS = 1 << 16
_RENUMBERED_ROWS = 1 << 14
_FEW_OF_NSG = 1000
_MOST_EQUAL_OF_NSG = 32  # with 64 of 1,500 its building never ended


def num_lists(index: faiss.Index) -> int:
    """How many inverted lists an index has; 1 if it has none."""
    return int(getattr(faiss.try_extract_index_ivf(index), "nlist", 1))


def fewest_rows(index: faiss.Index) -> int:
    """How many rows an index must be filled with at once."""
    graph = graph_of(index)
    return int(graph.GK) + 1 if isinstance(graph, faiss.IndexNSG) else 1


def fill(index: faiss.Index, vectors: FlatVectors) -> None:
    """Train and fill an empty index.

    Raises:
        RuntimeError: Faiss cannot train or fill it, or it has no lists.
    """
    train(index, vectors)
    add(index, vectors)


def train(index: faiss.Index, vectors: FlatVectors, *, without: NDArray[np.int64] | None = None) -> None:
    """Train an index, if it has to be, without some rows where enough others are left; raises as `fill`."""
    if num_lists(index) < 1:
        raise RuntimeError("it has no lists")
    if not index.is_trained:
        begin("training")
        index.train(training_rows(index, vectors, without=without))


def add(index: faiss.Index, vectors: FlatVectors, *, without: NDArray[np.int64] | None = None) -> None:
    """Fill a trained index; raises as `fill`.

    Args:
        index: is empty.
        vectors: N rows.
        without: ascending rows that a graph is filled without until `add_to_graph`.
    """
    begin("filling", "rows", vectors.rows)
    if isinstance(index, faiss.IndexIVF) and (lists := _growing_lists(index)) is not None:
        _fill_lists(index, lists, vectors)
    elif isinstance(graph_of(index), faiss.IndexNSG):
        _build_nsg(index, vectors, without)
    else:
        _reserve(index, vectors.rows)
        _add_blocks(index, vectors, without if graph_of(index) is not None else None)


def _build_nsg(index: faiss.Index, vectors: FlatVectors, without: NDArray[np.int64] | None) -> None:
    """A graph of all rows at once: it takes no more later."""
    rows = np.concatenate(list(vectors.blocks()))
    rows = rows if without is None else np.delete(rows, without, axis=0)
    _require_nsg_takes(rows, fewest_rows(index))
    if len(rows) <= _FEW_OF_NSG:  # by exact neighbours: below 200 rows or so NNDescent can abort the process
        graph_of(index).build_type = 0  # type: ignore[union-attr]
    index.add(rows)


def _require_nsg_takes(rows: NDArray[np.float32], fewest: int) -> None:
    """A node whose nearest are all equal to it has no link to others; Faiss may look for one for ever."""
    if len(rows) < fewest:
        raise RuntimeError(f"NSG takes {fewest} vectors or more; {len(rows)} came. Flat takes any number")
    _, counts = np.unique(rows, axis=0, return_counts=True)
    if counts.max() > _MOST_EQUAL_OF_NSG:
        raise RuntimeError(
            f"NSG takes at most {_MOST_EQUAL_OF_NSG} equal vectors; {counts.max()} are. HNSW takes any"
        )


def _add_blocks(index: faiss.Index, vectors: FlatVectors, without: NDArray[np.int64] | None) -> None:
    start = 0
    for block in vectors.blocks():
        if without is None:
            index.add(block)
        else:
            first, last = np.searchsorted(without, [start, start + len(block)])
            index.add(np.delete(block, without[first:last] - start, axis=0))
        start += len(block)
        count(len(block))


def add_to_graph(index: faiss.Index, vectors: FlatVectors, rows: NDArray[np.int64]) -> None:
    """Add the rows that a graph was filled without, and number all as in the table.

    NSG is built again, of all rows.

    Args:
        index: its graph holds the other rows, in their order.
        vectors: N rows.
        rows: ascending.
    """
    graph = graph_of(index)
    if isinstance(graph, faiss.IndexNSG):
        index.reset()
        _build_nsg(index, vectors, None)
        return
    index.add(vectors.take(rows))
    assert graph is not None
    former = np.empty(vectors.rows, dtype=np.int64)
    first = vectors.rows - len(rows)
    former[np.delete(np.arange(vectors.rows), rows)] = np.arange(first)
    former[rows] = np.arange(first, vectors.rows)
    _renumber(graph.hnsw, former, first)
    held = faiss.downcast_index(graph.storage).codes  # type: ignore[attr-defined]
    codes = _array_of(held).reshape(vectors.rows, -1)
    late = codes[first:].copy()
    # In place, from the end: a row that was there in time comes from no position behind its own.
    for start in reversed(range(0, vectors.rows, vectors.block_rows)):
        positions = former[start : start + vectors.block_rows]
        moved = codes[np.minimum(positions, first - 1)]
        moved[positions >= first] = late[positions[positions >= first] - first]
        codes[start : start + vectors.block_rows] = moved


def _renumber(hnsw: Any, former: NDArray[np.int64], first_late: int) -> None:
    """As `HNSW.permute_entries`, which holds all links twice: of 128 dimensions half the vectors more.

    Args:
        hnsw: Faiss' HNSW of N rows.
        former: (N,) the number that each row had; ascending below `first_late`.
        first_late: the rows that had this number or a higher one are inserted between the others.
    """
    links, levels = _array_of(hnsw.neighbors), _array_of(hnsw.levels)
    offsets = _array_of(hnsw.offsets).view(np.int64)
    numbers = np.full(len(former) + 1, -1, dtype=np.int32)  # the last for link -1: there is none
    numbers[former] = np.arange(len(former), dtype=np.int32)
    starts, sizes = offsets[:-1][former], np.diff(offsets)[former]
    late_start = int(offsets[first_late])
    late_links = links[late_start:].copy()
    offsets[1:] = np.cumsum(sizes)
    levels[:] = levels[former]
    # In place, from the end: links of a row that was there in time come from no position behind their own.
    for start in reversed(range(0, len(former), _RENUMBERED_ROWS)):
        rows = slice(start, start + _RENUMBERED_ROWS)
        first, last = offsets[start], offsets[min(rows.stop, len(former))]
        positions = np.arange(first, last) + np.repeat(starts[rows] - offsets[:-1][rows], sizes[rows])
        is_late = positions >= late_start
        moved = links[np.minimum(positions, late_start - 1)]
        moved[is_late] = late_links[positions[is_late] - late_start]
        links[first:last] = numbers[moved]
    hnsw.entry_point = int(numbers[hnsw.entry_point])


def _array_of(vector: Any) -> NDArray[Any]:
    """A vector of Faiss as an array of the same memory, which must not be resized meanwhile."""
    array: NDArray[Any] = faiss.rev_swig_ptr(vector.data(), vector.size())
    return array


def _growing_lists(index: faiss.IndexIVF) -> faiss.ArrayInvertedLists | None:
    lists = None if index.invlists is None else faiss.downcast_InvertedLists(index.invlists)
    return lists if isinstance(lists, faiss.ArrayInvertedLists) else None


def _fill_lists(index: faiss.IndexIVF, lists: faiss.ArrayInvertedLists, vectors: FlatVectors) -> None:
    """The same as adding blocks. But lists that grow take up to twice their memory, 1.6 times on average, so
    their sizes are found first; the second pass takes the nearest lists from the first."""
    nearest = nearest_lists(index, vectors)
    for number, size in enumerate(np.bincount(nearest[nearest >= 0], minlength=index.nlist).tolist()):
        lists.resize(number, size)
        lists.resize(number, 0)
    start = 0
    for block in vectors.blocks():
        block, numbers = np.ascontiguousarray(block), nearest[start : start + len(block)]
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(numbers))
        start += len(block)
        count(len(block))


def nearest_lists(index: faiss.IndexIVF, vectors: FlatVectors) -> NDArray[np.int64]:
    """(N,) the list of a trained index that each row belongs to."""
    quantizer = faiss.downcast_index(index.quantizer)
    return np.concatenate([quantizer.search(block, 1)[1].ravel() for block in vectors.blocks()])


def _reserve(index: faiss.Index, rows: int) -> None:
    """Memory for the codes and links of all rows at once, so that they are not copied as they grow."""
    graph = graph_of(index)
    assert not isinstance(graph, faiss.IndexNSG)  # it is filled at once
    flat = index if graph is None else faiss.downcast_index(graph.storage)
    if graph is not None:
        hnsw: Any = graph.hnsw
        lowest, others = hnsw.nb_neighbors(0), hnsw.nb_neighbors(1)
        expected = rows * (lowest + others / (others - 1))  # levels are drawn: a few more links
        hnsw.neighbors.resize(int(1.01 * expected))
        hnsw.neighbors.resize(0)
    if isinstance(flat, faiss.IndexFlatCodes):
        flat.codes.resize(rows * flat.code_size)
        flat.codes.resize(0)


def training_rows(
    index: faiss.Index, vectors: FlatVectors, *, without: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """(n, D) random rows to train an index on, in their order.

    Args:
        index: to be trained.
        vectors: N rows.
        without: rows that are not chosen, where enough others are left.
    """
    lists = num_lists(index)
    share = int(_TRAINING_SHARE * vectors.rows)
    wanted = max(min(_MOST_PER_LIST * lists, share), _FEWEST_PER_LIST * lists, _FEWEST_TRAINING_ROWS)
    others = np.arange(vectors.rows) if without is None else np.delete(np.arange(vectors.rows), without)
    if len(others) < _FEWEST_PER_LIST * lists:
        others = np.arange(vectors.rows)
    chosen = np.random.default_rng(0).choice(others, min(wanted, len(others)), replace=False)
    chosen.sort()
    sample = np.empty((len(chosen), vectors.dim), dtype=np.float32)
    start = 0
    for block in vectors.blocks():  # read in order: random rows of a mapped file would map all of it
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        sample[first:last] = block[chosen[first:last] - start]
        start += len(block)
    return sample


def write_index(path: Path, index: faiss.Index) -> None:
    """Write an index through Python's file, whose errors say more than those of Faiss."""
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
