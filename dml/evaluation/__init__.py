"""Evaluation of an embeddings table by standard protocols, with confidence intervals and slices."""
