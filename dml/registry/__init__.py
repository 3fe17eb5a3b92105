"""The only room that knows MLflow: runs and metrics (tracking), model versions and the gate (catalog)."""
