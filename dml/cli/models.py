"""`dml train`, `dml evaluate` and `dml models`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dml.cli.app import Json, Settings, Store, app, print_json, print_table, store_to_list, store_uri, visible
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.refs import ModelRef
    from dml.reports import EvaluationReport


@app.command()
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
        Path | None, typer.Option(help="the backbone's pretrained weights, safetensors or .pth")
    ] = None,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="the model's; default: the dataset's")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="training workers; default: the preset's")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
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
    )
    model, trained = report.model, report.trained
    verdict = report.evaluation.verdict(report.gate_metric)
    if as_json:
        print_json(
            {
                "model": model.name,
                "version": model.version,
                "promoted": model.promoted,
                "alias": model.alias,
                "reason": model.reason,
                **_numbers(report.evaluation),
                "verdict": verdict,
                "images_per_second": trained.images_per_second,
                "data_wait": trained.data_wait,
                "loss": trained.loss,
                "package": trained.package.uri,
            }
        )
        return
    print_table(f"{test or dataset}, split test", report.evaluation.table())
    if report.reason:
        print(f"experiment: {report.reason}")
    _print_verdict(verdict)
    print(f"{trained.images_per_second:.0f} images/s, {trained.data_wait:.0%} of the time waiting for data")
    print(f"model {model.name}/{model.version} is {model.alias}: {model.reason}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as recall_at=[1,10] or few_shot.ways=5; repeatable"),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Evaluate a registered model on a dataset's test split, beside its baselines."""
    from dml.config import EvaluationConfig
    from flows.evaluate import evaluate_flow
    from flows.policy import run

    config = EvaluationConfig().overridden(settings or [])
    report = run(evaluate_flow, model, dataset, config, store=store_uri(store))
    if as_json:
        print_json(
            {
                "model": model,
                **_numbers(report),
                "verdict": report.verdict(),
            }
        )
        return
    print_table(f"{model} on {dataset}, split test", report.table())
    _print_verdict(report.verdict())
    if report.slices():
        print_table("by slice of the queries", report.slices())


def _numbers(report: "EvaluationReport") -> dict[str, Any]:
    """An evaluation as JSON: plain numbers by name; intervals and slices beside them."""
    return {
        "metrics": report.metrics,
        "intervals": {
            name: [each.low, each.high]
            for name, each in report.trained.metrics.items()
            if each.low is not None
        },
        "slices": [
            {
                "attribute": each.attribute,
                "value": each.value,
                "num_queries": each.num_queries,
                "metrics": {name: measured.value for name, measured in each.metrics.items()},
            }
            for each in report.trained.slices
        ],
        "baselines": report.baseline_metrics,
    }


@app.command()
def models(store: Store = None, as_json: Json = False) -> None:
    """List the registry's model versions; each model's champion is the one that is used."""
    from dml.registry.catalog import read_registry

    found = read_registry(store_to_list(store))
    if as_json:
        print_json(
            {
                "models": [
                    {**model.model_dump(mode="json"), "current": model.promoted} for model in found.models
                ],
                "foreign": list(found.foreign),
            }
        )
        return
    rows = [_row_of(model) for model in found.models]
    print_table("models", rows)
    if found.foreign:
        print(f"not ours, left out: {', '.join(visible(name) for name in found.foreign)}")


def _print_verdict(verdict: str) -> None:
    if verdict:
        print(f"the model is {verdict}")


def _row_of(model: "ModelRef") -> dict[str, str | float]:
    dataset = model.package.dataset
    return {
        "current": "*" if model.promoted else "",
        "model": str(model),
        "alias": model.alias or "",
        "dataset": str(dataset) if dataset else "",
        "date": f"{model.created:%Y-%m-%d %H:%M}" if model.created else "",
        **{key: model.metrics[key] for key in ("recall_at_1", "map_at_r") if key in model.metrics},
        "reason": model.reason,
    }
