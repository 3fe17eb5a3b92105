"""What a manifest's file becomes, CSV or Parquet alike: columns of plain values, and what was wrong."""

import re
from dataclasses import dataclass, field
from typing import Any

from dml.data.sources.sample import Problem

NAMED = ("image", "label", "id", "split")
"""The columns with a meaning; every other one is an attribute."""

_INDEX_OF_A_DATAFRAME = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Table:
    names: list[str]
    """As the file has them, for messages."""
    columns: dict[str, list[Any]]
    is_inline: bool = False
    """Whether the images are bytes in the table itself."""
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Row to (reason, detail) of the rows that are none."""
    problems: list[Problem] = field(default_factory=list)


def is_index(name: str) -> bool:
    """Whether a column is the row numbers that pandas writes without being asked."""
    return _INDEX_OF_A_DATAFRAME.fullmatch(name) is not None


def unusable_column(uri: str, name: str, detail: str) -> Problem:
    return Problem(name, "", uri, "unusable column", detail)
