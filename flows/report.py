"""Pictures of what a registered model learnt, and where it fails, for everybody who should look."""

from prefect import flow

from dml.config import ReportConfig
from dml.data.dataset import find_dataset
from dml.refs import DatasetRef, ModelRef, ReportRef
from dml.registry.catalog import find_model
from dml.registry.history import attach_report
from dml.report.page import read_picture
from dml.report.report import write_report
from dml.retrieval.embed import embed
from dml.settings import store_uri, tracking_uri
from flows.policy import say, show_picture, show_text, stage, tell

_DEFAULT = ReportConfig()


@flow(name="report-flow")
def report_flow(
    model: str, dataset: str, config: ReportConfig = _DEFAULT, store: str | None = None
) -> ReportRef:
    """Look at a split of a dataset through a registered model.

    Args:
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        config: which split, and how much of everything.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    version = stage(find_model)(tracking_uri(root), model)
    return report_on(root, version, stage(find_dataset)(root, dataset), config)


def report_on(store: str, model: ModelRef, dataset: DatasetRef, config: ReportConfig) -> ReportRef:
    """Write the report, lay it beside the model's run in MLflow, and show its pictures in Prefect."""
    embeddings = stage(embed, heals=True)(store, model.package, dataset, progress=tell("embed"))
    report = stage(write_report)(store, model, embeddings, config, tracking_uri(store))
    folder = stage(attach_report)(tracking_uri(store), model, report)
    for name, caption in report.pictures.items():
        show_picture(f"report-{name.removesuffix('.png')}", read_picture(report, name), caption)
    lines = [f"# {report.title}", f"The page: `{report.page}`"]
    if folder is not None:
        lines.append(f"In MLflow, beside the run of {model}: `{folder}`")
    show_text("report", "\n\n".join(lines))
    say(f"{report.title} {report.page}")
    return report
