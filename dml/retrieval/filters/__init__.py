"""Filters: what is known beforehand of the items wanted, as text, JSON or Python."""

from dml.retrieval.filters.parse import parse
from dml.retrieval.filters.tree import And, Between, Compare, Filter, In, IsNull, Not, Or, Within

__all__ = ["And", "Between", "Compare", "Filter", "In", "IsNull", "Not", "Or", "Within", "parse"]
