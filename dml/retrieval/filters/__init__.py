"""Filters: what is known beforehand of the items wanted, as text, JSON or Python; see docs/filters.md."""

from dml.retrieval.filters.check import check
from dml.retrieval.filters.json_tree import from_json, json_schema
from dml.retrieval.filters.matching import matching_rows
from dml.retrieval.filters.parse import parse
from dml.retrieval.filters.python import Col, col
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Within
from dml.retrieval.filters.where import Where

__all__ = [
    "And",
    "Between",
    "Col",
    "Compare",
    "Filter",
    "In",
    "IsNull",
    "Not",
    "Or",
    "Where",
    "Within",
    "check",
    "col",
    "from_json",
    "json_schema",
    "matching_rows",
    "parse",
]
