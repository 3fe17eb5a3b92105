"""Flow that writes a report page on a registered model, or a comparison of two models."""

from prefect import flow

from dml.config import EvaluationConfig, ReportConfig
from dml.data.dataset import find_dataset
from dml.data.evaluable import require_evaluable
from dml.embedding.embed import embed
from dml.refs import DatasetRef, EmbeddingsRef, ModelRef, PackageRef, ReportRef
from dml.registry.catalog import find_model
from dml.registry.history import attach_report
from dml.report.comparison import Candidate, write_comparison
from dml.report.page import read_picture
from dml.report.report import lay_first_pictures, write_report
from dml.report.sections import VERIFICATION
from dml.settings import store_uri
from flows.policy import (
    Name,
    progress_logger,
    say,
    show_picture,
    show_table,
    show_text,
    stage,
    tag_with_names,
)

_DEFAULT = ReportConfig()
_MAX_ROWS_FIRST_PICTURES = 20_000
"""Test splits up to this number of rows are searched completely in one or two seconds."""


@flow(name="report-flow", flow_run_name="report {model} on {dataset}", on_running=[tag_with_names])
def report_flow(
    model: Name,
    dataset: Name,
    config: ReportConfig = _DEFAULT,
    store: str | None = None,
    against: Name | None = None,
) -> ReportRef:
    """Report on a split of a dataset for one registered model, or compare two.

    Args:
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        config: the split, and the size of each section.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        against: another model to compare with on the same queries; None for a page on `model` only.
    """
    root = store_uri(store)
    version = stage(find_model)(root, model)
    source = stage(find_dataset)(root, dataset)
    stage(require_evaluable)(source, config.evaluation, split=config.split)
    if against is None:
        return report_on(root, version, source, config)
    other = stage(find_model)(root, against)
    first, second = (
        Candidate(str(ref), _embedded(root, ref.package, source, config)) for ref in (version, other)
    )
    report = stage(write_comparison)(root, first, second, config)
    return _attach_and_show(root, version, report, "comparison")


def report_on(store: str, model: ModelRef, dataset: DatasetRef, config: ReportConfig) -> ReportRef:
    """Write the report, attach it to the model's run in MLflow, and show its pictures in Prefect."""
    embeddings = _embedded(store, model.package, dataset, config)
    initial = model.package.initial if config.evaluation.baselines else None
    before = None if initial is None else _embedded(store, initial, dataset, config)
    report = stage(write_report)(store, model, embeddings, config, before)
    return _attach_and_show(store, model, report, "report")


def attach_first_pictures(
    store: str, model: ModelRef, dataset: DatasetRef, evaluation: EvaluationConfig
) -> None:
    """Show a new version's first pictures in MLflow and Prefect; its curves alone if the split is large."""
    config, embeddings = ReportConfig(evaluation=evaluation), None
    if dataset.splits["test"].rows <= _MAX_ROWS_FIRST_PICTURES:
        embeddings = _embedded(store, model.package, dataset, config)
    for section in stage(lay_first_pictures)(store, model, embeddings, config):
        for picture in section.pictures:
            show_picture(f"first-{picture.name}", picture.png, picture.caption)
        if section.title == VERIFICATION and section.table:
            show_table("first-thresholds", section.table, section.title)


def show_report(report: ReportRef, key: str, folder: str | None = None) -> None:
    """Show a page's pictures and its location in Prefect.

    Args:
        report: a published report.
        key: prefix of the artifacts' names.
        folder: its artifact folder in the MLflow run; None if it is not attached.
    """
    for name, caption in report.pictures.items():
        show_picture(f"{key}-{name.removesuffix('.png')}", read_picture(report, name), caption)
    lines = [f"# {report.title}", f"The page: `{report.page}`"]
    if folder is not None:
        lines.append(f"In MLflow, attached to the model's run: `{folder}`")
    show_text(key, "\n\n".join(lines))
    say(f"{report.title} {report.page}")


def _embedded(store: str, package: PackageRef, dataset: DatasetRef, config: ReportConfig) -> EmbeddingsRef:
    """The embeddings of the report's split."""
    return stage(embed, retryable=True)(
        store, package, dataset, split=config.split, progress=progress_logger("embed")
    )


def _attach_and_show(store: str, model: ModelRef, report: ReportRef, key: str) -> ReportRef:
    folder = stage(attach_report)(store, model, report)
    show_report(report, key, folder)
    return report
