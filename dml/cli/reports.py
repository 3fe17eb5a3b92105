"""`dml report` and `dml circles`."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Settings, Store, store_uri, verb
from dml.cli.output import emit, print_table

if TYPE_CHECKING:
    from dml.refs import ReportRef


@verb()
def report(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    against: Annotated[
        str | None, typer.Option(help="another model: which is better on the same queries, and where?")
    ] = None,
    split: Annotated[str, typer.Option(help="test, or train to look for wrong labels there")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as failures=30 or evaluation.role_attribute=role; repeatable"),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "ReportRef":
    """Write a page of pictures: answers, failures, suspected labels, map, thresholds, training.

    With --against it compares two models: the paired tests, and the classes and queries that decide them.
    """
    from dml.config import ReportConfig
    from flows.policy import run
    from flows.report import report_flow

    config = ReportConfig().overridden([f"split={split}", *(settings or [])])
    ref = run(report_flow, model, dataset, config, store=store_uri(store), against=against)
    return emit(ref, as_json, partial(_show_report, model=model, against=against))


def _show_report(ref: "ReportRef", model: str, against: str | None) -> None:
    if against is not None:
        from dml.report.comparison import comparison_row, read_comparisons

        rows = [comparison_row(comparison, ("first", "second")) for comparison in read_comparisons(ref)]
        print_table(f"{model} (first) and {against} (second) on the same queries", rows)
    print_table(ref.title, [{"picture": name, "shows": text} for name, text in ref.pictures.items()])
    _show_page(ref)


def _show_page(ref: "ReportRef") -> None:
    print(f"open {ref.page}")


@verb()
def circles(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; its split train is learnt")],
    losses: Annotated[
        list[str] | None,
        typer.Option("--loss", help="repeatable; default: softmax, arcface, triplet_margin, margin"),
    ] = None,
    show: Annotated[str | None, typer.Option(help="draw this dataset's rows; default: the same")] = None,
    settings: Settings = None,
    store: Store = None,
    as_json: Json = False,
) -> "ReportRef":
    """Train a two-dimensional embedding for each loss, and draw them side by side as circles."""
    from flows.circles import circles_flow
    from flows.policy import run

    ref = run(circles_flow, dataset, losses=losses, settings=settings, show=show, store=store_uri(store))
    return emit(ref, as_json, _show_page)
