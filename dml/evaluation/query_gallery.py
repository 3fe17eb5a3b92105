"""Query and gallery sets of a split, with the pairs to exclude."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import EvaluationConfig
from dml.data.schema import GALLERY, QUERY
from dml.errors import InvalidData
from dml.metrics.ranking import Items

RowIndex = slice | Tensor


@dataclass(frozen=True)
class Rows:
    """Labels and attributes of the items of an evaluation."""

    labels: NDArray[np.int64]
    """(N,) class ids."""
    attributes: Mapping[str, Sequence[Any]]
    """Maps a name to N values, None for missing ones; the names are those of `required_attributes`."""


def required_attributes(config: EvaluationConfig) -> list[str]:
    """Names of the attributes that an evaluation needs."""
    single = [config.role_attribute, config.same_camera_attribute]
    single.append(config.few_shot.within if config.few_shot else None)
    return list(dict.fromkeys([*config.slices, *(name for name in single if name is not None)]))


def query_gallery(embeddings: Tensor, rows: Rows, config: EvaluationConfig) -> tuple[Items, Items]:
    """Queries and gallery; the same object if every row is both. The id of an item is its row.

    Raises:
        InvalidData: by `config.role_attribute` there is no query, or no gallery item.
    """
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    ids, groups = torch.arange(len(labels), device=labels.device), None
    if config.same_camera_attribute is not None:
        groups = encode_values(rows.attributes[config.same_camera_attribute]).to(labels.device)
    items = Items(embeddings, labels, ids, groups)
    query_rows, gallery_rows = query_gallery_rows(rows, config)
    queries = items.select(query_rows)
    return queries, queries if gallery_rows is query_rows else items.select(gallery_rows)


def query_gallery_rows(rows: Rows, config: EvaluationConfig) -> tuple[RowIndex, RowIndex]:
    """The rows of the queries and of the gallery; the same object if every row is both.

    Raises:
        InvalidData: by `config.role_attribute` there is no query, or no gallery item.
    """
    if config.role_attribute is None:
        everything = slice(None)
        return everything, everything
    values = np.asarray(rows.attributes[config.role_attribute], dtype=object)
    queries, gallery = (np.flatnonzero(values == value) for value in (QUERY, GALLERY))
    if not len(queries) or not len(gallery):
        raise InvalidData(
            f"Attribute {config.role_attribute!r} must be {QUERY!r} for some rows and {GALLERY!r} for "
            f"others; got {len(queries)} rows with {QUERY!r} and {len(gallery)} with {GALLERY!r}. Omit "
            "evaluation.role_attribute, or correct the attribute."
        )
    return torch.from_numpy(queries), torch.from_numpy(gallery)


def encode_values(values: Sequence[Any]) -> Tensor:
    """Integer codes: equal for equal values; each missing value has a unique code."""
    codes: dict[Any, int] = {}
    return torch.tensor(
        [-1 - row if v is None else codes.setdefault(v, len(codes)) for row, v in enumerate(values)]
    )
