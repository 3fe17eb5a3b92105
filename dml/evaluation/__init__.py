"""An embeddings table in, the numbers of the field's protocols out, with intervals and slices."""
