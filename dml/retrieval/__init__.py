"""An embeddings table in, an index and its answers out: build, filter, search, refresh."""
