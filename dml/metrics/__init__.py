"""How good an embedding is, by the field's protocols; torch alone."""
