"""`dml presets`, `dml presets show` and `dml presets recommend`."""

from pathlib import Path
from typing import Annotated

import typer

from dml.cli.app import Json, Store, app, print_json, print_table, store_uri

presets = typer.Typer()
app.add_typer(presets, name="presets")


@presets.callback(invoke_without_command=True)
def list_presets(context: typer.Context, as_json: Json = False) -> None:
    """List the experiments to start from; `dml presets show NAME` prints one."""
    from dml.presets import names

    if context.invoked_subcommand is not None:
        context.obj = as_json  # `dml presets --json show NAME` asks for JSON, too
        return
    if as_json:
        print_json({"presets": names()})
        return
    print_table("presets", [{"preset": name, "what for": text} for name, text in names().items()])


@presets.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="a preset's name, or smoke:NAME for a small one")],
    as_json: Json = False,
) -> None:
    """Print a preset in YAML, or in JSON, as a file that `dml train --config FILE` takes back."""
    from dml.config import to_yaml
    from dml.presets import experiment

    config = experiment(name)
    if as_json or context.obj:
        print_json(config.model_dump(mode="json"))
        return
    print(to_yaml(config), end="")


@presets.command()
def recommend(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    weights: Annotated[
        Path | None, typer.Option(help="the backbone's pretrained weights, safetensors or .pth")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Print the experiment that `dml train DATASET` runs where no preset is named, in YAML or JSON."""
    from dml.config import to_yaml
    from dml.data.dataset import find_dataset
    from dml.recommend import recommend_for

    recommended = recommend_for(find_dataset(store_uri(store), dataset), weights)
    if as_json or context.obj:
        print_json(recommended.config.model_dump(mode="json"))
        return
    print(f"# {recommended.reason}")
    print(to_yaml(recommended.config), end="")
