"""Engines behind a search: an index of our own, or a server that holds the same items."""
