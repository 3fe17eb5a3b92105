"""Embeddings tables: one unit vector for each sample of a dataset, by a package."""
