"""Flow that ingests a source of labelled images to a validated dataset version."""

from prefect import flow

from dml.config import IngestConfig
from dml.data.ingest import ingest_source
from dml.reports import IngestReport
from dml.settings import store_uri
from flows.policy import (
    begin_again,
    is_orchestrated,
    progress_logger,
    say,
    show_table,
    show_text,
    stage,
    tag_with_names,
)


@flow(name="ingest-flow", flow_run_name="ingest {config.name}", on_running=[tag_with_names], log_prints=False)
def ingest_flow(config: IngestConfig, store: str | None = None, reread: bool = False) -> IngestReport:
    """Ingest a source; the same content gives the same version and no second copy. Only new or changed files
    are read.

    Args:
        config: name, source, layout and split of the dataset.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        reread: read every file, also those that have not changed by size, times or ETag.
    """
    if is_orchestrated():
        say(f"dataset {config.name}: listing its source")
    ingest = stage(ingest_source, retryable=True)
    report = begin_again(lambda: ingest(config, store_uri(store), progress_logger("ingest"), reread=reread))
    dataset = report.dataset
    name = str(dataset)
    rows = [{"split": split, **size.model_dump()} for split, size in dataset.splits.items()]
    show_table("dataset", rows, f"{name}, {dataset.quarantined} in quarantine")
    show_table("changes", [report.changes.model_dump()], f"{name}, since the version before")
    if report.refused:
        show_table("quarantine", [refusal.model_dump() for refusal in report.refused], report.quarantine)
    show_text("ingest-notes", "\n".join(f"- {note}" for note in report.notes))
    say(
        f"dataset {name} ({report.outcome}): {dataset.rows} rows of {dataset.classes} classes; "
        f"{report.changes}"
    )
    return report
