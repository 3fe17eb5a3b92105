"""From images somewhere to a published Parquet dataset, and from its rows to training batches."""
