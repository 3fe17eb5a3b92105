"""`dml train`, `dml evaluate` and `dml models`."""

from pathlib import Path
from typing import Annotated

import typer

from dml.cli.app import Json, Settings, Store, app, print_json, print_table
from dml.errors import InvalidSetting
from dml.settings import store_uri, tracking_uri


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    test: Annotated[
        str | None, typer.Option(help="the dataset whose test split judges; default: the same one's")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="experiment to start from; `dml presets` lists them; default: smoke")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="a YAML or JSON file with a whole experiment, instead of a preset")
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
    from dml.presets import experiment
    from flows.policy import run
    from flows.train import train_flow

    if config is not None and preset is not None:
        raise InvalidSetting(
            f"--config is a whole experiment and --preset another; got {config} and {preset!r}. Leave one "
            "out: `dml presets show NAME` prints a preset as a file to change."
        )
    start = experiment(preset or "smoke") if config is None else read_experiment(config)
    changes = [*(settings or []), *([f"training.num_workers={workers}"] if workers else [])]
    report = run(
        train_flow,
        dataset,
        config=start.overridden(changes),
        store=store_uri(store),
        name=name,
        test_dataset=test,
    )
    model, trained = report.model, report.trained
    if as_json:
        print_json(
            {
                "model": model.name,
                "version": model.version,
                "promoted": model.promoted,
                "alias": model.alias,
                "reason": model.reason,
                "metrics": report.evaluation.metrics,
                "baselines": report.evaluation.baselines,
                "images_per_second": trained.images_per_second,
                "data_wait": trained.data_wait,
                "loss": trained.loss,
                "package": trained.package.uri,
            }
        )
        return
    print_table(f"{test or dataset}, split test", report.evaluation.table())
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
    """Judge a registered model on a dataset's test split, beside its baselines."""
    from dml.config import EvaluationConfig
    from flows.evaluate import evaluate_flow
    from flows.policy import run

    config = EvaluationConfig().overridden(settings or [])
    report = run(evaluate_flow, model, dataset, config, store=store_uri(store))
    if as_json:
        print_json({"model": model, "metrics": report.metrics, "baselines": report.baselines})
        return
    print_table(f"{model} on {dataset}, split test", report.table())
    if report.slices():
        print_table("by slice of the queries", report.slices())


@app.command()
def models(store: Store = None, as_json: Json = False) -> None:
    """List the registry's model versions."""
    from dml.registry.catalog import list_models

    refs = list_models(tracking_uri(store_uri(store)))
    if as_json:
        print_json({"models": [ref.model_dump(mode="json") for ref in refs]})
        return
    rows = [
        {
            "model": f"{ref.name}/{ref.version}",
            "alias": ref.alias or "",
            **{key: ref.metrics[key] for key in ("recall_at_1", "map_at_r") if key in ref.metrics},
            "reason": ref.reason,
        }
        for ref in refs
    ]
    print_table("models", rows)
