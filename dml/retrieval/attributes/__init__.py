"""Indexes of attributes: which items satisfy a filter, and how many, without reading every item."""

from dml.retrieval.attributes.indexes import AttributeIndexes, open_attributes
from dml.retrieval.attributes.matches import Matches
from dml.retrieval.attributes.write import FOLDER, write_attributes

__all__ = ["FOLDER", "AttributeIndexes", "Matches", "open_attributes", "write_attributes"]
