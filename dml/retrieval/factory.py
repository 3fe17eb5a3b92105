"""A Faiss factory string, chosen or checked, and the empty index of it."""

import re

import faiss

from dml.config import IndexConfig
from dml.errors import InvalidSetting
from dml.refs import EmbeddingsRef
from dml.reports import IndexOption
from dml.retrieval.amounts import machine_memory
from dml.retrieval.fill import num_lists
from dml.retrieval.sizing import index_for

FLAT_FACTORY = {"float32": "Flat", "float16": "SQfp16"}
"""Type of the vectors to what Faiss calls a flat index of them."""

_FACTORY_NUMBERS = {
    r"HNSW(\d+)": ("links of a graph", 2, 512),
    r"NSG(\d+)": ("links of a graph", 4, 512),
    r"PQ\d+x(\d+)": ("bits of a code", 1, 16),
}
"""What Faiss does not check: it aborts the process, or takes all memory of the machine."""


def plan_index(embeddings: EmbeddingsRef, config: IndexConfig) -> IndexOption:
    """As `dml plan` has it, by the figures for reference: the same on every machine of as much memory.

    Raises:
        InvalidSetting: no index is within the bounds.
    """
    return index_for(
        embeddings.rows,
        embeddings.dim,
        recall=config.recall,
        latency_ms=config.latency_ms,
        memory=machine_memory() if config.memory_gb is None else round(config.memory_gb * 1e9),
        filters=len(embeddings.items.attributes),
    )


def refused_factory(factory: str, error: RuntimeError) -> InvalidSetting:
    """What is raised where Faiss refuses a factory string, with its reason."""
    return InvalidSetting(
        f"index.factory must be a Faiss index_factory string for inner products; got {factory!r}: "
        f"{str(error).rsplit(': ', 1)[-1].strip().rstrip('.')}. Use auto, as `dml plan` has it, or Flat."
    )


def _check_factory_numbers(factory: str, rows: int) -> None:
    """Raise InvalidSetting for numbers in a factory string that are refused before Faiss reads it."""
    for pattern, (what, low, high) in _FACTORY_NUMBERS.items():
        for number in map(int, re.findall(pattern, factory)):
            if not low <= number <= high:
                raise InvalidSetting(
                    f"index.factory must have {low} to {high} {what}; got {number} in {factory!r}."
                )
    for lists in map(int, re.findall(r"IVF(\d+)", factory)):
        if lists > rows:
            raise InvalidSetting(
                f"{factory} has {lists} lists, more than the {rows} rows. Use Flat, or fewer lists."
            )


def empty_index(factory: str, embeddings: EmbeddingsRef, *, num_probes: int | None = None) -> faiss.Index:
    """An untrained index of a factory string, for inner products.

    Args:
        factory: Faiss' string.
        embeddings: that it is for.
        num_probes: lists to be searched; None: that is chosen later.

    Raises:
        InvalidSetting: Faiss cannot follow it, or not with so many rows, or it has fewer lists than probes.
    """
    _check_factory_numbers(factory, embeddings.rows)
    try:
        index = faiss.index_factory(embeddings.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise RuntimeError("it compares by another metric")
    except RuntimeError as error:
        raise refused_factory(factory, error) from error
    lists = num_lists(index)
    if lists > embeddings.rows:
        raise InvalidSetting(
            f"{factory} has {lists} lists, more than the {embeddings.rows} rows. Use Flat, or fewer lists."
        )
    if num_probes is not None and num_probes > lists:
        raise InvalidSetting(
            f"index.num_probes must be at most the number of lists, {lists} in {factory}; got {num_probes}. "
            "Leave it out: it is chosen by the recall."
        )
    return index
