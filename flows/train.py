"""Flow that trains, evaluates and registers a model version, and promotes it if it passes the gate."""

import json
from datetime import datetime
from pathlib import Path

from prefect import flow

from dml.config import ExperimentConfig, Tuning
from dml.data.dataset import find_dataset
from dml.data.evaluable import classes_trained_on, require_evaluable, shared_classes
from dml.errors import InvalidSetting
from dml.names import check_name
from dml.presets import AUTO, PresetName, experiment
from dml.recommend import recommend_for, recommend_from
from dml.refs import DatasetRef, ModelRef
from dml.registry.catalog import find_model, model_page_url, register
from dml.registry.tracking import Run, start_run
from dml.report.report import draw_training
from dml.reports import TrainingReport
from dml.settings import store_uri
from dml.training.initial import start_from
from dml.training.loop import run_identity
from dml.training.ray_trainer import train
from dml.training.train_data import require_trainable
from flows.evaluate import evaluate_package
from flows.gate import promote_if_better
from flows.policy import Name, live_picture, run_parameters, say, show_link, show_table, stage, tag_with_names
from flows.report import attach_first_pictures


def _run_name() -> str:
    given = run_parameters()
    name = given["config"].name if given["config"] else given["preset"]
    return f"train {given['dataset']} {name}"


@flow(name="train-flow", flow_run_name=_run_name, on_running=[tag_with_names])
def train_flow(
    dataset: Name,
    preset: PresetName = AUTO,
    settings: list[str] | None = None,
    config: ExperimentConfig | None = None,
    weights: str | None = None,
    store: str | None = None,
    name: Name | None = None,
    test_dataset: Name | None = None,
    from_model: Name | None = None,
    tune: Tuning | None = None,
) -> TrainingReport:
    """Train, evaluate, register, and apply the gate; also succeeds if the champion does not change.

    Args:
        dataset: NAME (its current version) or NAME@VERSION.
        preset: the base of the experiment; `auto` chooses by the dataset and the machine.
        settings: changes to the preset, each `path.to.key=value`.
        config: a whole experiment instead of a preset.
        weights: a local file with the backbone's pretrained weights.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        name: the registered model's name; None for the dataset's name.
        test_dataset: NAME or NAME@VERSION to evaluate on; None for `dataset`.
        from_model: the registered model to start from, with its encoder and preprocessing: NAME (its
            champion), NAME@ALIAS or NAME/VERSION; None: as the experiment says.
        tune: what of that is trained; None: all.
    """
    root = store_uri(store)
    source = stage(find_dataset)(root, dataset)
    _refuse_two_starts(from_model, tune, weights)
    model_to_tune = None if from_model is None else stage(find_model)(root, from_model)
    if model_to_tune is None:
        chosen, reason = _choose(source, preset, config, None if weights is None else Path(weights))
    else:
        chosen, reason = _choose_from(source, model_to_tune, tune or "whole", preset, config)
    chosen = chosen.overridden(settings or [])
    test_source = source if test_dataset is None else stage(find_dataset)(root, test_dataset)
    name = check_name(name or source.name, "model")
    stage(require_trainable)(chosen, source)
    stage(require_evaluable)(test_source, chosen.evaluation)
    _say_what_was_trained_on(source, test_source, model_to_tune)
    run = _start(root, name, chosen, source)
    with run.recording():
        with live_picture("training-curves", lambda: _curves(run)):
            trained = stage(train, retryable=True)(chosen, source, root, run)
        report = evaluate_package(root, trained.package, test_source, chosen.evaluation)
        run.log_evaluation(report.trained)
        version = stage(register)(root, run, name, trained.package, report.metrics, report.baseline_metrics)
    model = promote_if_better(root, version, report, chosen.evaluation, chosen.gate)
    attach_first_pictures(root, model, test_source, chosen.evaluation)
    _show(root, model)
    return TrainingReport(
        model=model, trained=trained, evaluation=report, gate_metric=chosen.gate.metric, reason=reason
    )


def _refuse_two_starts(model: str | None, tune: Tuning | None, weights: str | None) -> None:
    """Raise InvalidSetting where the first weights are named twice, or what to tune is said of no model."""
    if model is not None and weights is not None:
        raise InvalidSetting(
            f"The first weights must be named once; got --from {model} and --weights {weights}. Leave one "
            "out."
        )
    if model is None and tune is not None:
        raise InvalidSetting(
            f"tune says what is trained of a model to start from; got {tune!r} and no model. Name it with "
            "--from MODEL, or leave --tune out."
        )


def _choose_from(
    dataset: DatasetRef,
    model: ModelRef,
    tune: Tuning,
    preset: str,
    config: ExperimentConfig | None,
) -> tuple[ExperimentConfig, str | None]:
    """The experiment with a registered model's encoder; a recommended one comes with the reason."""
    if config is None and preset == AUTO:
        recommended = stage(recommend_from)(dataset, model, tune)
        say(recommended.reason)
        return recommended.config, recommended.reason
    return stage(start_from)(config or experiment(preset), model, tune), None


def _say_what_was_trained_on(
    source: DatasetRef, test_source: DatasetRef, model_to_tune: ModelRef | None
) -> None:
    """Say which test classes are no new ones to the model."""
    if model_to_tune is not None and (known := stage(classes_trained_on)(model_to_tune.package, test_source)):
        say(f"{model_to_tune} was trained on {len(known)} labels of the test classes, such as {known[:3]}")
    if test_source != source and (shared := shared_classes(source, test_source)):
        say(f"{len(shared)} labels of the test classes are trained on too, such as {shared[:3]}")


def _start(store: str, name: str, experiment: ExperimentConfig, dataset: DatasetRef) -> Run:
    return stage(start_run)(
        store,
        experiment=name,
        identity=run_identity(experiment, dataset),
        params=experiment.model_dump(mode="json"),
        name=f"{experiment.name} on {dataset.name}, {experiment.loss.kind}, {datetime.now():%Y-%m-%d %H:%M}",
        dataset=dataset,
    )


def _show(store: str, model: ModelRef) -> None:
    show_table("model", [{"model": model.name, "version": model.version, "alias": model.alias}], model.reason)
    if (page := model_page_url(store, model)) is not None:
        show_link("registry", page, model.name)
    say(f"model {model} is {model.alias}: {model.reason}")


def _curves(run: Run) -> tuple[bytes, str] | None:
    """What `live_picture` shows of a training; None: nothing yet."""
    picture = draw_training(run)
    return None if picture is None else (picture.png, picture.caption)


def _choose(
    dataset: DatasetRef, preset: str, config: ExperimentConfig | None, weights: Path | None
) -> tuple[ExperimentConfig, str | None]:
    """The given experiment, or a recommended one with the reason."""
    if config is None and preset == AUTO:
        recommended = stage(recommend_for)(dataset, weights)
        say(recommended.reason)
        return recommended.config, recommended.reason
    named = config or experiment(preset)
    if weights is not None:
        named = named.overridden([f"encoder.backbone.weights={json.dumps(str(weights))}"])
    return named, None
