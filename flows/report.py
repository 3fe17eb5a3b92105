"""Pictures of what a registered model learnt, where it fails, and where another is better, for everybody."""

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
from dml.settings import store_uri
from flows.policy import Name, progress_logger, say, show_picture, show_text, stage, tag_with_names

_DEFAULT = ReportConfig()
_AT_A_GLANCE = 20_000
"""Rows of a test split up to which every query's answers are found in a second or two."""


@flow(name="report-flow", flow_run_name="report {model} on {dataset}", on_running=[tag_with_names])
def report_flow(
    model: Name,
    dataset: Name,
    config: ReportConfig = _DEFAULT,
    store: str | None = None,
    against: Name | None = None,
) -> ReportRef:
    """Look at a split of a dataset through a registered model, or through two of them.

    Args:
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        config: which split, and how much of everything.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        against: another model, to compare with on the same queries; None: the page of `model` alone.
    """
    root = store_uri(store)
    version = stage(find_model)(root, model)
    source = stage(find_dataset)(root, dataset)
    stage(require_evaluable)(source, config.evaluation, split=config.split)
    if against is None:
        return report_on(root, version, source, config)
    other = stage(find_model)(root, against)
    ours, theirs = (
        Candidate(str(each), _embedded(root, each.package, source, config)) for each in (version, other)
    )
    report = stage(write_comparison)(root, ours, theirs, config)
    return _laid_beside(root, version, report, "comparison")


def report_on(store: str, model: ModelRef, dataset: DatasetRef, config: ReportConfig) -> ReportRef:
    """Write the report, lay it beside the model's run in MLflow, and show its pictures in Prefect."""
    embeddings = _embedded(store, model.package, dataset, config)
    initial = model.package.initial if config.evaluation.baselines else None
    before = None if initial is None else _embedded(store, initial, dataset, config)
    report = stage(write_report)(store, model, embeddings, config, before)
    return _laid_beside(store, model, report, "report")


def first_pictures_of(store: str, model: ModelRef, dataset: DatasetRef, evaluation: EvaluationConfig) -> None:
    """Lay beside a new version's run what shows whether it learnt; nothing where that takes long."""
    if dataset.splits["test"].rows <= _AT_A_GLANCE:
        config = ReportConfig(evaluation=evaluation)
        embeddings = _embedded(store, model.package, dataset, config)
        stage(lay_first_pictures)(store, model, embeddings, config)


def show_report(report: ReportRef, key: str, folder: str | None = None) -> None:
    """Show a page's pictures in Prefect, and say where it is.

    Args:
        report: published.
        key: what its artifacts' names begin with.
        folder: where it lies beside a run in MLflow; None: nowhere.
    """
    for name, caption in report.pictures.items():
        show_picture(f"{key}-{name.removesuffix('.png')}", read_picture(report, name), caption)
    lines = [f"# {report.title}", f"The page: `{report.page}`"]
    if folder is not None:
        lines.append(f"In MLflow, beside the model's run: `{folder}`")
    show_text(key, "\n\n".join(lines))
    say(f"{report.title} {report.page}")


def _embedded(store: str, package: PackageRef, dataset: DatasetRef, config: ReportConfig) -> EmbeddingsRef:
    """Of the split that is looked at."""
    return stage(embed, retryable=True)(
        store, package, dataset, split=config.split, progress=progress_logger("embed")
    )


def _laid_beside(store: str, model: ModelRef, report: ReportRef, key: str) -> ReportRef:
    folder = stage(attach_report)(store, model, report)
    show_report(report, key, folder)
    return report
