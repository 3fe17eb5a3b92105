"""The query and gallery sets of a split's rows, with the pairs that each query leaves out."""

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
    """What an evaluation knows of its items beside their vectors."""

    labels: NDArray[np.int64]
    """(N,) class ids."""
    attributes: Mapping[str, Sequence[Any]]
    """Name to N values, None where one is missing; those that `attributes_of` the configuration names."""


def attributes_of(config: EvaluationConfig) -> list[str]:
    """The attributes that an evaluation needs."""
    single = [config.role_attribute, config.same_camera_attribute]
    single.append(config.few_shot.within if config.few_shot else None)
    return list(dict.fromkeys([*config.slices, *(name for name in single if name is not None)]))


def query_gallery(embeddings: Tensor, rows: Rows, config: EvaluationConfig) -> tuple[Items, Items]:
    """Queries and gallery; one and the same object where every row is both. An item's id is its row.

    Raises:
        InvalidData: `config.role_attribute` makes no row a query, or none a gallery item.
    """
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    ids, groups = torch.arange(len(labels), device=labels.device), None
    if config.same_camera_attribute is not None:
        groups = codes_of(rows.attributes[config.same_camera_attribute]).to(labels.device)
    items = Items(embeddings, labels, ids, groups)
    query_rows, gallery_rows = query_gallery_rows(rows, config)
    queries = items.of(query_rows)
    return queries, queries if gallery_rows is query_rows else items.of(gallery_rows)


def query_gallery_rows(rows: Rows, config: EvaluationConfig) -> tuple[RowIndex, RowIndex]:
    """The rows of the queries and of the gallery; one and the same object where every row is both.

    Raises:
        InvalidData: `config.role_attribute` makes no row a query, or none a gallery item.
    """
    if config.role_attribute is None:
        everything = slice(None)
        return everything, everything
    values = np.asarray(rows.attributes[config.role_attribute], dtype=object)
    queries, gallery = (np.flatnonzero(values == value) for value in (QUERY, GALLERY))
    if not len(queries) or not len(gallery):
        raise InvalidData(
            f"Attribute {config.role_attribute!r} must say {QUERY!r} of some rows and {GALLERY!r} of others; "
            f"it says {QUERY!r} of {len(queries)} and {GALLERY!r} of {len(gallery)}. Leave "
            "evaluation.role_attribute out, or correct the attribute."
        )
    return torch.from_numpy(queries), torch.from_numpy(gallery)


def codes_of(values: Sequence[Any]) -> Tensor:
    """Equal numbers for equal values; a missing value equals no other."""
    codes: dict[Any, int] = {}
    return torch.tensor(
        [-1 - row if v is None else codes.setdefault(v, len(codes)) for row, v in enumerate(values)]
    )
