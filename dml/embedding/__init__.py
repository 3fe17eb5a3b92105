"""A package and a dataset in, an embeddings table out: one unit vector for each sample."""
