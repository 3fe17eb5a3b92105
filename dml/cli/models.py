"""`dml train`, `dml evaluate` and `dml models`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dml.cli.app import Json, Settings, Store, app, store_to_list, store_uri, verb
from dml.cli.output import columns_of, emit, print_table, visible
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.reports import (
        Evaluation,
        EvaluationReport,
        ListedModel,
        ModelList,
        TrainingReport,
        VectorsReport,
    )


@verb()
def train(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    test: Annotated[str | None, typer.Option(help="the dataset to test on; default: the same")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="experiment to start from; `dml presets` lists them; default: what suits the dataset"
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="a YAML or JSON file with a whole experiment, instead of a preset")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="pretrained weights, a safetensors or .pth file; of the backbone")
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="the registered model to start from, trained here or imported: NAME (its champion), "
            "NAME@ALIAS or NAME/VERSION",
        ),
    ] = None,
    tune: Annotated[
        Literal["frozen", "lora", "whole"] | None,
        typer.Option(
            help="what is trained of --from: frozen: a head; lora: low-rank adapters, too; default: whole"
        ),
    ] = None,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="name of what is made; default: the dataset's")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that work at once; default: the preset's")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "TrainingReport":
    """Train an embedding, evaluate and register it; it becomes champion only if it is better."""
    from dml.config import read_experiment
    from dml.presets import AUTO
    from flows.policy import run
    from flows.train import train_flow

    if config is not None and preset is not None:
        raise InvalidSetting(
            f"--config is a whole experiment and --preset another; got {config} and {preset!r}. Leave one "
            "out: `dml presets show NAME` prints a preset as a file to change."
        )
    report = run(
        train_flow,
        dataset,
        preset=preset or AUTO,
        settings=[*(settings or []), *([f"training.num_workers={workers}"] if workers else [])],
        config=None if config is None else read_experiment(config),
        weights=None if weights is None else str(weights),
        store=store_uri(store),
        name=name,
        test_dataset=test,
        from_model=from_model,
        tune=tune,
    )
    return emit(report, as_json, _show_training)


def _show_training(report: "TrainingReport") -> None:
    trained = report.trained
    print_table(f"{report.evaluation.dataset}, split test", report.evaluation.table())
    _print_left_out(report.evaluation.trained)
    if report.reason:
        print(f"experiment: {report.reason}")
    _print_verdict(report.evaluation.verdict(report.gate_metric))
    print(f"{trained.images_per_second:.0f} images/s, {trained.data_wait:.0%} of the time waiting for data")
    print(f"model {report.model} is {report.model.alias}: {report.model.reason}")


@verb()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION; or imported vectors")
    ],
    dataset: Annotated[str | None, typer.Argument(help="NAME or NAME@VERSION; none for vectors")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="change a setting, path.to.key=value; as few_shot.ways=5 or recall_at=[1,10]; repeatable",
        ),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "EvaluationReport | VectorsReport":
    """Evaluate a registered model on a dataset's test split, beside its baselines; or imported vectors."""
    from dml.config import EvaluationConfig
    from flows.evaluate import evaluate_flow, evaluate_vectors_flow
    from flows.policy import run

    config = EvaluationConfig().overridden(settings or [])
    if dataset is None:
        vectors = run(evaluate_vectors_flow, model, config, store=store_uri(store))
        return emit(vectors, as_json, _show_vectors_evaluation)
    report = run(evaluate_flow, model, dataset, config, store=store_uri(store))
    return emit(report, as_json, partial(_show_evaluation, model=model))


def _show_evaluation(report: "EvaluationReport", model: str) -> None:
    print_table(f"{model} on {report.dataset}, split test", report.table())
    _print_left_out(report.trained)
    _print_verdict(report.verdict())
    if report.slices():
        print_table("by slice of the queries", report.slices())


def _show_vectors_evaluation(report: "VectorsReport") -> None:
    print_table(report.embeddings.source, [report.evaluation.row()])
    _print_left_out(report.evaluation)
    if report.evaluation.slices:
        print_table("by slice of the queries", report.evaluation.slice_rows())


def _print_left_out(evaluation: "Evaluation") -> None:
    if evaluation.left_out:
        print(evaluation.left_out)


def _print_verdict(verdict: str) -> None:
    if verdict:
        print(f"the model is {verdict}")


models = typer.Typer()
app.add_typer(models, name="models")


@verb(models.callback, invoke_without_command=True)
def list_models(context: typer.Context, store: Store = None, as_json: Json = False) -> "ModelList | None":
    """List the registry's model versions; each model's champion is the one that is used."""
    if context.invoked_subcommand is not None:
        context.obj = (store, as_json)  # `dml models --json import FILE` asks for JSON, too
        return None
    from dml.registry.catalog import read_registry
    from dml.reports import ListedModel, ModelList

    registry = read_registry(store_to_list(store))
    answer = ModelList(
        models=[ListedModel(**model.model_dump(), current=model.promoted) for model in registry.models],
        foreign=list(registry.foreign),
    )
    return emit(answer, as_json, _show_models)


def _show_models(answer: "ModelList") -> None:
    print_table("models", [_row_of(model) for model in answer.models])
    if answer.foreign:
        print(f"not ours, left out: {', '.join(visible(name) for name in answer.foreign)}")


def _row_of(model: "ListedModel") -> dict[str, str | float]:
    dataset = model.package.dataset
    return {
        "model": str(model),
        **columns_of(model.current, model.created),
        "alias": model.alias or "",
        "dataset": str(dataset) if dataset else model.package.source,
        **{key: model.metrics[key] for key in ("recall_at_1", "map_at_r") if key in model.metrics},
        "reason": model.reason,
    }
