"""Engines behind a search: other servers that hold an index's items and answer the same filters."""
