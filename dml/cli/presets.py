"""`dml presets`, `dml presets show` and `dml presets recommend`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Store, app, store_uri, verb
from dml.cli.output import emit, print_table

if TYPE_CHECKING:
    from dml.config import ExperimentConfig
    from dml.reports import PresetList

presets = typer.Typer()
app.add_typer(presets, name="presets")


@verb(presets.callback, invoke_without_command=True)
def list_presets(context: typer.Context, as_json: Json = False) -> "PresetList | None":
    """List the experiments to start from; `dml presets show NAME` prints one."""
    from dml.presets import names
    from dml.reports import Preset, PresetList

    if context.invoked_subcommand is not None:
        context.obj = as_json  # `dml presets --json show NAME` asks for JSON, too
        return None
    listed = [Preset(name=name, description=text) for name, text in names().items()]
    return emit(PresetList(presets=listed), as_json, _show_presets)


def _show_presets(listed: "PresetList") -> None:
    rows = [{"preset": preset.name, "what for": preset.description} for preset in listed.presets]
    print_table("presets", rows)


@verb(presets.command)
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="a preset's name, or smoke:NAME for a small one")],
    as_json: Json = False,
) -> "ExperimentConfig":
    """Print a preset in YAML, or in JSON, as a file that `dml train --config FILE` takes back."""
    from dml.presets import experiment

    return emit(experiment(name), as_json or context.obj, _show_preset)


def _show_preset(config: "ExperimentConfig") -> None:
    from dml.config import to_yaml

    print(to_yaml(config), end="")


@verb(presets.command)
def recommend(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    weights: Annotated[
        Path | None, typer.Option(help="pretrained weights, a safetensors or .pth file; of the backbone")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "ExperimentConfig":
    """Print the experiment that `dml train DATASET` runs where no preset is named, in YAML or JSON."""
    from dml.data.dataset import find_dataset
    from dml.recommend import recommend_for

    recommended = recommend_for(find_dataset(store_uri(store), dataset), weights)

    def show(config: "ExperimentConfig") -> None:
        print(f"# {recommended.reason}")
        _show_preset(config)

    return emit(recommended.config, as_json or context.obj, show)
