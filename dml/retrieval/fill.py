"""Train a Faiss index on a sample of flat vectors, and fill it in blocks: not all are in memory at a time."""

import faiss
import numpy as np
from numpy.typing import NDArray

from dml.progress import begin, count
from dml.retrieval.vectors import FlatVectors

_FEWEST_PER_LIST, _MOST_PER_LIST = 39, 100  # rows to train on: by Faiss' guidelines 39 to 256
_TRAINING_SHARE = 0.2  # of the rows, which Faiss may copy once
_FEWEST_TRAINING_ROWS = 1 << 16


def num_lists(index: faiss.Index) -> int:
    """How many inverted lists an index has; 1 if it has none."""
    return int(getattr(faiss.try_extract_index_ivf(index), "nlist", 1))


def fill(index: faiss.Index, vectors: FlatVectors) -> None:
    """Train and fill an empty index.

    Raises:
        RuntimeError: Faiss cannot train or fill it, or it has no lists.
    """
    train(index, vectors)
    add(index, vectors)


def train(index: faiss.Index, vectors: FlatVectors) -> None:
    """Train an index, if it has to be; raises as `fill`."""
    if num_lists(index) < 1:
        raise RuntimeError("it has no lists")
    if not index.is_trained:
        begin("training")
        index.train(training_rows(index, vectors))


def add(index: faiss.Index, vectors: FlatVectors) -> None:
    """Fill a trained index; raises as `fill`."""
    begin("filling", "rows", vectors.rows)
    if isinstance(index, faiss.IndexIVF) and (lists := _growing_lists(index)) is not None:
        _fill_lists(index, lists, vectors)
    elif isinstance(index, faiss.IndexNSG):
        index.add(np.concatenate(list(vectors.blocks())))  # builds its graph of all at once
    else:
        _reserve(index, vectors.rows)
        _add_blocks(index, vectors)


def _add_blocks(index: faiss.Index, vectors: FlatVectors) -> None:
    for block in vectors.blocks():
        index.add(block)
        count(len(block))


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
    """Memory for the codes of all rows at once, so that they are not copied as they grow."""
    flat = faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index
    if isinstance(flat, faiss.IndexFlatCodes):
        flat.codes.resize(rows * flat.code_size)
        flat.codes.resize(0)


def training_rows(index: faiss.Index, vectors: FlatVectors) -> NDArray[np.float32]:
    """(n, D) random rows to train an index on, in their order."""
    lists = num_lists(index)
    share = int(_TRAINING_SHARE * vectors.rows)
    wanted = max(min(_MOST_PER_LIST * lists, share), _FEWEST_PER_LIST * lists, _FEWEST_TRAINING_ROWS)
    chosen = np.random.default_rng(0).choice(vectors.rows, min(wanted, vectors.rows), replace=False)
    chosen.sort()
    sample = np.empty((len(chosen), vectors.dim), dtype=np.float32)
    start = 0
    for block in vectors.blocks():  # read in order: random rows of a mapped file would map all of it
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        sample[first:last] = block[chosen[first:last] - start]
        start += len(block)
    return sample
