"""A source of labelled images becomes a validated dataset version."""

from prefect import flow

from dml.config import IngestConfig
from dml.data.ingest import ingest
from dml.refs import DatasetRef
from dml.settings import store_uri
from flows.policy import say, show_table, stage, tell


@flow(name="ingest-flow", log_prints=False)
def ingest_flow(config: IngestConfig, store: str | None = None) -> DatasetRef:
    """Ingest a source; the same content gives the same version and no second copy.

    Args:
        config: name, source, layout and split of the dataset.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    dataset = stage(ingest, heals=True)(config, store_uri(store), tell("ingest"))
    rows = [{"split": name, **size.model_dump()} for name, size in dataset.splits.items()]
    show_table("dataset", rows, f"{dataset.name}@{dataset.version}, {dataset.quarantined} in quarantine")
    say(f"dataset {dataset.name}@{dataset.version}: {dataset.rows} rows of {dataset.classes} classes")
    return dataset
