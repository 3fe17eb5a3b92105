"""Flow that evaluates a package on a test split, with raw pixels and the untrained encoder as baselines."""

from prefect import flow

from dml.config import EvaluationConfig, GateConfig, ReportConfig
from dml.data.dataset import find_dataset
from dml.data.evaluable import require_evaluable
from dml.data.schema import TEST
from dml.embedding.embed import embed
from dml.embedding.imported import find_vectors
from dml.evaluation.evaluate import compare, evaluate, raw_pixel_baseline
from dml.models.package import read_preprocessing
from dml.refs import DatasetRef, PackageRef
from dml.registry.catalog import find_model
from dml.reports import RAW_PIXELS, Comparison, Evaluation, EvaluationReport, VectorsReport
from dml.settings import store_uri
from flows.policy import Name, is_orchestrated, progress_logger, show_table, stage, tag_with_names
from flows.report import report_on

_DEFAULT = EvaluationConfig()


@flow(name="evaluate-flow", flow_run_name="evaluate {model} on {dataset}", on_running=[tag_with_names])
def evaluate_flow(
    model: Name, dataset: Name, config: EvaluationConfig = _DEFAULT, store: str | None = None
) -> EvaluationReport:
    """Evaluate a registered model on the test split of any dataset; in a Prefect run, also write a report.

    Args:
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        config: queries, gallery and metrics.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    version = stage(find_model)(root, model)
    source = stage(find_dataset)(root, dataset)
    stage(require_evaluable)(source, config)
    report = evaluate_package(root, version.package, source, config)
    if is_orchestrated():
        report_on(root, version, source, ReportConfig(evaluation=config))
    return report


@flow(name="evaluate-vectors-flow", flow_run_name="evaluate {vectors}", on_running=[tag_with_names])
def evaluate_vectors_flow(
    vectors: str, config: EvaluationConfig = _DEFAULT, store: str | None = None
) -> VectorsReport:
    """Evaluate imported vectors by their labels, all of them; there are no images to compare pixels of.

    Args:
        vectors: NAME (their current version) or NAME@VERSION.
        config: which metrics; its baselines need images and are left out.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    embeddings = stage(find_vectors)(store_uri(store), vectors)
    stage(require_evaluable)(embeddings.items, config, split=None)
    evaluation = stage(evaluate)(
        embeddings, config, split=None, progress=progress_logger("evaluate", "blocks")
    )
    show_table("evaluation", [evaluation.row()], embeddings.source)
    return VectorsReport(embeddings=embeddings, evaluation=evaluation)


def evaluate_package(
    store: str, package: PackageRef, dataset: DatasetRef, config: EvaluationConfig
) -> EvaluationReport:
    """Metrics of a package and its baselines on the test split; a split is embedded once per package."""
    baselines = {}
    if config.baselines:
        pixels = stage(raw_pixel_baseline)
        baselines[RAW_PIXELS] = pixels(dataset, read_preprocessing(package), config)
    if config.baselines and package.initial is not None:
        baselines["before training"] = _embed_and_evaluate(store, package.initial, dataset, config)
    trained = _embed_and_evaluate(store, package, dataset, config)
    report = EvaluationReport(dataset=dataset, package=package, trained=trained, baselines=baselines)
    where = f"{dataset}, split test"
    show_table("evaluation", report.table(), where)
    if report.slices():
        show_table("evaluation-slices", report.slices(), where)
    return report


def compare_packages(
    store: str,
    package: PackageRef,
    former: PackageRef,
    dataset: DatasetRef,
    config: EvaluationConfig,
    gate: GateConfig,
) -> Comparison:
    """Compare two packages on the same queries, with the embeddings made by `evaluate_package`."""
    new_embeddings, former_embeddings = (
        stage(embed, retryable=True)(store, p, dataset, split=TEST, progress=progress_logger("embed"))
        for p in (package, former)
    )
    return stage(compare)(new_embeddings, former_embeddings, config, gate)


def _embed_and_evaluate(
    store: str, package: PackageRef, dataset: DatasetRef, config: EvaluationConfig
) -> Evaluation:
    embeddings = stage(embed, retryable=True)(
        store, package, dataset, split=TEST, progress=progress_logger("embed")
    )
    return stage(evaluate)(embeddings, config, progress=progress_logger("evaluate", "blocks"))
