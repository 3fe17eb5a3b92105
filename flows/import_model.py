"""A network from elsewhere becomes a registered model, evaluated and gated like one that was trained here."""

from pathlib import Path

from prefect import flow

from dml.config import EvaluationConfig, GateConfig
from dml.data.dataset import find_dataset
from dml.data.evaluable import require_evaluable
from dml.errors import InvalidData
from dml.models.external import ImportConfig, Options, import_embedder
from dml.names import check_name
from dml.refs import DatasetRef, ModelRef, PackageRef
from dml.registry.catalog import register
from dml.registry.champion import leave_unjudged
from dml.registry.tracking import Run, start_run
from dml.settings import store_uri
from flows.evaluate import evaluate_package
from flows.gate import promote_if_better
from flows.policy import Name, say, stage, tag_with_names
from flows.report import attach_first_pictures

_EVALUATION, _GATE = EvaluationConfig(), GateConfig()


@flow(name="import-model-flow", flow_run_name="import {embedder} as {name}", on_running=[tag_with_names])
def import_model_flow(
    embedder: str,
    name: Name,
    dataset: Name | None = None,
    weights: str | None = None,
    preprocessing: str | None = None,
    license: str = "",
    detector: str | None = None,
    settings: list[str] | None = None,
    store: str | None = None,
) -> ModelRef:
    """Import, evaluate, register, and let the gate decide; without a test split it is registered alone.

    Args:
        embedder: its address, such as `timm:resnet50`; `dml.models.external` lists the kinds.
        name: the registered model's; that of a dataset lets it compete with what is trained on that.
        dataset: NAME or NAME@VERSION whose test split judges; None: nothing does.
        weights: a local file with the network's weights.
        preprocessing: a JSON file that says what the network wants of an image.
        license: of the weights, for the reader.
        detector: a face detector's local ONNX file; the largest face of each image is embedded.
        settings: changes, such as `detector.score=0.6`; see `ImportConfig`.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    check_name(name, "model")
    judge_on = None if dataset is None else stage(find_dataset)(root, dataset)
    config = ImportConfig().overridden(settings or [])
    options = Options(_path(weights), _path(preprocessing), license, _path(detector), config)
    package = stage(import_embedder)(root, embedder, options)
    run = stage(start_run)(
        root,
        experiment=name,
        identity=f"import-{package.version}",
        params={"embedder": package.source, "license": package.license, "dim": package.dim},
        name=package.source,
    )
    with run.recording():
        model = _judged(root, run, name, package, judge_on)
    say(f"model {model} is {model.alias or 'registered'}: {model.reason}")
    return model


def _path(file: str | None) -> Path | None:
    return None if file is None else Path(file).expanduser()


def _judged(store: str, run: Run, name: str, package: PackageRef, dataset: DatasetRef | None) -> ModelRef:
    """Registered, and judged where there is something to judge it by."""
    try:
        if dataset is None:
            raise InvalidData("no dataset was named to evaluate it on.")
        stage(require_evaluable)(dataset, _EVALUATION)
    except InvalidData as missing:
        model = stage(register)(store, run, name, package, {})
        return stage(leave_unjudged)(
            store, model, f"not evaluated: {missing} It is used by its name, {model}."
        )
    report = evaluate_package(store, package, dataset, _EVALUATION)
    run.log_evaluation(report.trained)
    version = stage(register)(store, run, name, package, report.metrics, report.baseline_metrics)
    model = promote_if_better(store, version, report, _EVALUATION, _GATE)
    attach_first_pictures(store, model, dataset, _EVALUATION)
    return model
