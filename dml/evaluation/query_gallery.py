"""Who searches whom: the rows of a split as queries and gallery, and what no query may find."""

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


@dataclass(frozen=True)
class Rows:
    """What is known of the items to judge, beside their vectors."""

    labels: NDArray[np.int64]
    """(N,) class ids."""
    attributes: Mapping[str, Sequence[Any]]
    """Name to N values, None where one is missing; those that `attributes_of` the configuration names."""


def attributes_of(config: EvaluationConfig) -> list[str]:
    """The attributes that an evaluation needs."""
    single = [config.role_attribute, config.same_camera_attribute]
    single.append(config.few_shot.within if config.few_shot else None)
    return list(dict.fromkeys([*config.slices, *(name for name in single if name is not None)]))


def sides(embeddings: Tensor, rows: Rows, config: EvaluationConfig) -> list[Items]:
    """Who asks and who answers, or one side where everybody is both; an item's id is its row.

    Raises:
        InvalidData: no query or no gallery item where roles are asked for.
    """
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    ids, groups = torch.arange(len(labels), device=labels.device), None
    if config.same_camera_attribute is not None:
        groups = codes_of(rows.attributes[config.same_camera_attribute]).to(labels.device)
    items = Items(embeddings, labels, ids, groups)
    return [items.of(own) for own in roles_of(rows, config)]


def roles_of(rows: Rows, config: EvaluationConfig) -> list[slice | Tensor]:
    """The rows of the queries and of the gallery; all of them once, where everybody is both."""
    if config.role_attribute is None:
        return [slice(None)]
    said = np.asarray(rows.attributes[config.role_attribute], dtype=object)
    chosen = {role: np.flatnonzero(said == role) for role in (QUERY, GALLERY)}
    if not all(map(len, chosen.values())):
        counts = {role: len(own) for role, own in chosen.items()}
        raise InvalidData(
            f"Attribute {config.role_attribute!r} must say {QUERY!r} of some rows and {GALLERY!r} of others; "
            f"it does of {counts}. Leave evaluation.role_attribute out, or correct the attribute."
        )
    return [torch.from_numpy(own) for own in chosen.values()]


def codes_of(values: Sequence[Any]) -> Tensor:
    """Equal numbers for equal values; a missing value equals no other."""
    codes: dict[Any, int] = {}
    return torch.tensor(
        [-1 - row if v is None else codes.setdefault(v, len(codes)) for row, v in enumerate(values)]
    )
