"""The table of a CSV or Parquet manifest: columns of plain values, and problems."""

import re
from dataclasses import dataclass, field
from typing import Any

from dml.data.sources.sample import Problem

NAMED = ("image", "label", "id", "split")
"""The columns with a fixed meaning; every other column is an attribute."""

_INDEX_OF_A_DATAFRAME = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


@dataclass(frozen=True)
class Table:
    names: list[str]
    """The file's column names, for messages."""
    columns: dict[str, list[Any]]
    is_inline: bool = False
    """Whether the table contains the images as bytes."""
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    """(reason, detail) by row, of the refused rows."""
    problems: list[Problem] = field(default_factory=list)
    ids_are_rows: bool = False
    """Whether the ids were made from the rows' numbers."""


def is_index(name: str) -> bool:
    """Whether a column is the row index that pandas writes by default."""
    return _INDEX_OF_A_DATAFRAME.fullmatch(name) is not None


def unusable_column(uri: str, name: str, detail: str) -> Problem:
    return Problem(name, "", uri, "unusable column", detail)
