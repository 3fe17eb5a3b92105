"""The only package that imports MLflow: runs (tracking), model versions (catalog), the gate (champion)."""
