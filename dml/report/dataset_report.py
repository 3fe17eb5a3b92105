"""The report page of a dataset: its contents and its problems, before any training."""

from dml import storage
from dml.config import DatasetReportConfig
from dml.refs import DatasetRef, EmbeddingsRef, ReportRef
from dml.report import dataset_findings
from dml.report import dataset_sections as sections
from dml.report.dataset_view import DatasetView, EmbeddedDataset
from dml.report.page import Page, csv_of, publish_page
from dml.reports import (
    ClassSize,
    DatasetFindings,
    DatasetReport,
    NearDuplicatePair,
    SuspectedLabel,
)

_CODE_VERSION = 2  # part of a report's identity: raise it when the same inputs would give another page
_FINDINGS = "findings.json"


def write_dataset_report(
    store: str,
    dataset: DatasetRef,
    config: DatasetReportConfig,
    embeddings: EmbeddingsRef | None = None,
    embedder: str | None = None,
) -> DatasetReport:
    """Publish the report page of a dataset; the dataset is not changed.

    Args:
        store: the store's URI; the report is in `reports/` there.
        dataset: to look at.
        config: how much of everything, and when two images are near-duplicates.
        embeddings: of it, or of one of its splits, for suspected labels and a map; None: without.
        embedder: what made them, for the text.

    Returns:
        The published report and what is on it, the same one for the same inputs, written once.

    Raises:
        IncompatibleArtifact: the embeddings are of another dataset.
        CorruptArtifact: a file of the dataset is damaged.
    """
    settings = config.model_dump(mode="json")
    table = embeddings and embeddings.fingerprint
    fingerprint = storage.digest_of(
        "dataset report", _CODE_VERSION, str(dataset), dataset.fingerprint, table, embedder, settings
    )
    report = publish_page(
        store, fingerprint, lambda: _page(DatasetView(dataset, config), embeddings, embedder)
    )
    return _read(dataset, report)


def _read(dataset: DatasetRef, report: ReportRef) -> DatasetReport:
    content = storage.read_bytes(storage.join(report.uri, _FINDINGS))
    findings = DatasetFindings.model_validate_json(content)
    return DatasetReport(dataset=dataset, report=report, findings=findings)


def _page(view: DatasetView, embeddings: EmbeddingsRef | None, embedder: str | None) -> Page:
    dataset = view.dataset
    embedded = None if embeddings is None else EmbeddedDataset(view, embeddings)
    findings = dataset_findings.find(view, embedded, embedder)
    subtitle = (
        f"{dataset.rows:,} images of {dataset.classes:,} classes, {dataset.quarantined:,} in quarantine"
    )
    subtitle += "." if findings.embedder is None else f"; seen through {findings.embedder}."
    return Page(
        f"What is in {dataset}?",
        subtitle,
        [
            sections.warnings_section(findings),
            *sections.class_sections(view, findings),
            sections.images_section(view, findings.images),
            sections.pictures_section(view),
            *sections.duplicate_sections(view, findings.near_duplicates),
            sections.attributes_section(view, findings.attributes),
            sections.quarantine_section(view),
            *sections.embedding_sections(view, embedded, findings.embedder),
        ],
        {**_tables(view, embedded), _FINDINGS: findings.model_dump_json().encode()},
        shows=[dataset],
    )


def _tables(view: DatasetView, embedded: EmbeddedDataset | None) -> dict[str, bytes]:
    """Complete tables of what the page shows in part."""
    classes = (size.model_dump() for size in dataset_findings.class_sizes(view, largest=True))
    pairs = ({"between": between, **pair.model_dump()} for between, pair in dataset_findings.all_pairs(view))
    tables = {
        sections.CLASSES: csv_of(list(ClassSize.model_fields), classes),
        sections.NEAR_DUPLICATES: csv_of(["between", *NearDuplicatePair.model_fields], pairs),
    }
    if embedded is not None:
        suspects = (suspect.model_dump() for suspect in dataset_findings.suspected_labels(view, embedded))
        tables[sections.SUSPECTS] = csv_of(list(SuspectedLabel.model_fields), suspects)
    return tables
