"""`dml demo`, `dml up` and `dml env`."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Preset, Settings, Store, store_uri, verb
from dml.cli.datasets import name_of
from dml.cli.output import emit, print_table
from dml.errors import MissingArtifact

if TYPE_CHECKING:
    from dml.reports import EndToEndReport, StackAddresses


@verb()
def demo(
    source: Annotated[str, typer.Option(help="any source that `dml ingest` takes")] = "glyphs:",
    preset: Preset = "glyphs",
    settings: Settings = None,
    store: Store = None,
    as_json: Json = False,
) -> "EndToEndReport":
    """Run everything: ingest, train, evaluate, register, embed, index, search."""
    from dml.config import parse_ingest
    from dml.presets import experiment
    from flows.end_to_end import end_to_end_flow
    from flows.policy import run

    ingest_config = parse_ingest({"name": name_of(source), "source": source})
    config = experiment(preset).overridden(settings or [])
    report = run(end_to_end_flow, ingest_config, config, store_uri(store))
    return emit(report, as_json, partial(_show_demo, preset=preset))


def _show_demo(report: "EndToEndReport", preset: str) -> None:
    evaluation, model = report.training.evaluation, report.training.model
    print_table("recall on classes never seen in training", evaluation.table())
    if verdict := evaluation.verdict():
        print(f"the model is {verdict}")
    print_table("seconds", [report.seconds])
    print(f"index {report.index.name}: recall@10 {report.index.recall:.3f} against exact search")
    print(f"model {model}: {model.alias} ({model.reason})")
    print(f"gallery of queries and answers: {report.gallery}")
    print("\nnext:")
    print(f"  dml search IMAGE --index {report.index.name}")
    print(f"  dml train {report.dataset.name} --preset {preset} --set training.num_steps=2000")
    print("  dml up    # the same under Prefect and MLflow, with their pages")


@verb()
def up(
    prefect_port: Annotated[int, typer.Option(help="of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="of MLflow's server")] = 5000,
    store: Store = None,
    as_json: Json = False,
) -> "StackAddresses":
    """Start Prefect (server, worker, deployments) and MLflow here; Ctrl-C stops it all."""
    from dml.up import print_addresses, run_local_stack

    def announce(addresses: "StackAddresses") -> None:
        emit(addresses, as_json, print_addresses)

    root = store_uri(store)
    return run_local_stack(root, prefect_port=prefect_port, mlflow_port=mlflow_port, announce=announce)


@verb()
def env(store: Store = None, as_json: Json = False) -> "StackAddresses":
    """Print what another terminal needs to use this store's `dml up`: eval "$(dml env)"."""
    from dml.up import export_lines, running_stack

    root = store_uri(store)
    running = running_stack(root)
    if running is None:
        raise MissingArtifact(f"A stack must run for {root} on this machine; none does. Start it: dml up.")
    return emit(running.addresses, as_json, lambda addresses: print(export_lines(addresses.variables)))
