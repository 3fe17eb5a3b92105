"""What is in a dataset, before any training: classes, near-duplicates, quarantine, suspected labels."""

from prefect import flow

from dml.config import DatasetReportConfig
from dml.data.dataset import find_dataset
from dml.embedding.embed import embed
from dml.embedding.table import find_embeddings, named_embeddings
from dml.errors import InvalidSetting
from dml.refs import DatasetRef, EmbeddingsRef
from dml.registry.catalog import find_model
from dml.report.dataset_report import write_dataset_report
from dml.reports import DatasetReport
from dml.settings import store_uri
from flows.policy import Name, progress_logger, show_table, stage, tag_with_names
from flows.report import show_report

_DEFAULT = DatasetReportConfig()


@flow(name="dataset-report-flow", flow_run_name="report {dataset}", on_running=[tag_with_names])
def dataset_report_flow(
    dataset: Name,
    config: DatasetReportConfig = _DEFAULT,
    store: str | None = None,
    model: Name | None = None,
    embeddings: str | None = None,
) -> DatasetReport:
    """Look at a dataset alone, or through an embedding.

    Args:
        dataset: NAME (its current version) or NAME@VERSION.
        config: how much of everything, and when two images are near-duplicates.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        model: embeds the dataset, for suspected labels and a map: NAME (its champion), NAME@ALIAS or
            NAME/VERSION.
        embeddings: a table of the dataset that exists, in the model's place: its folder's name in the store's
            `embeddings/`, or its path or URI.
    """
    root = store_uri(store)
    source = stage(find_dataset)(root, dataset)
    table, embedder = _embedding(root, source, model, embeddings)
    report = stage(write_dataset_report)(root, source, config, table, embedder)
    key = f"dataset-{source.name}".lower().replace("_", "-").replace(".", "-")
    show_table(f"{key}-warnings", [{"what stands out": text} for text in report.findings.warnings])
    show_report(report.report, key)
    return report


def _embedding(
    store: str, dataset: DatasetRef, model: str | None, embeddings: str | None
) -> tuple[EmbeddingsRef | None, str | None]:
    """The table to look through and what made it, for people; neither without model and table."""
    if model is not None and embeddings is not None:
        raise InvalidSetting(
            f"A dataset must be seen through a model or through a table; got the model {model!r} and the "
            f"table {embeddings!r}. Leave one out."
        )
    if embeddings is not None:
        table = stage(find_embeddings)(named_embeddings(store, embeddings))
        return table, f"embeddings {embeddings}"
    if model is None:
        return None, None
    version = stage(find_model)(store, model)
    table = stage(embed, retryable=True)(store, version.package, dataset, progress=progress_logger("embed"))
    return table, f"model {version}"
