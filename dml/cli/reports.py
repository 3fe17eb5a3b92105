"""`dml report` and `dml circles`."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Settings, SeveralWords, Store, store_uri, verb
from dml.cli.output import emit, print_table, visible
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.refs import ReportRef
    from dml.reports import DatasetReport


@verb()
def report(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATASET",
            help="NAME (its champion), NAME@ALIAS or NAME/VERSION; NAME or NAME@VERSION. "
            "DATASET alone: a page of it, before any training",
        ),
    ],
    against: Annotated[
        str | None, typer.Option(help="another model: which is better on the same queries, and where?")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="NAME (its champion), NAME@ALIAS or NAME/VERSION; of a dataset alone: suspected labels "
            "and a map by this model"
        ),
    ] = None,
    embeddings: Annotated[
        str | None, typer.Option(help="the same by a table: its folder in STORE/embeddings, or its path")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="change a setting, path.to.key=value; as failures=30, or split=train to look for wrong "
            "labels there; repeatable",
        ),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "ReportRef | DatasetReport":
    """Write a page of pictures: answers, failures, suspected labels, map, thresholds, training.

    With --against it compares two models: the paired tests, and the classes and queries that decide them.
    Of a DATASET alone, before any training: classes, pictures, near-duplicates, attributes, quarantine.
    """
    _refuse_vectors(store_uri(store), names[-1])
    if len(names) == 1:
        _refuse({"--against": against}, "dml report MODEL DATASET has", names[0])
        return _report_dataset(names[0], model, embeddings, settings, store, as_json)
    if len(names) == 2:
        _refuse(
            {"--model": model, "--embeddings": embeddings}, "dml report DATASET alone has", " ".join(names)
        )
        return _report_model(names[0], names[1], against, settings, store, as_json)
    raise InvalidSetting(f"A report must be of MODEL DATASET or of DATASET alone; got {len(names)} names.")


def _refuse(options: Mapping[str, str | None], who_has: str, got: str) -> None:
    """Raise InvalidSetting where an option of the other kind of report is given."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InvalidSetting(f"Only {who_has} {given[0]}; got dml report {got}. Leave {given[0]} out.")


def _refuse_vectors(store: str, dataset: str) -> None:
    """Raise InvalidSetting for imported vectors: a report is of images."""
    from dml.embedding.imported import has_vectors

    if has_vectors(store, dataset):
        raise InvalidSetting(
            f"A report must be of images; {dataset} are imported vectors, which have none. Evaluate them by "
            f"their labels: dml evaluate {dataset}."
        )


def _report_dataset(
    dataset: str,
    model: str | None,
    embeddings: str | None,
    settings: list[str] | None,
    store: str | None,
    as_json: bool,
) -> "DatasetReport":
    from dml.config import DatasetReportConfig
    from flows.dataset_report import dataset_report_flow
    from flows.policy import run

    config = DatasetReportConfig().overridden(settings or [])
    report = run(
        dataset_report_flow, dataset, config, store=store_uri(store), model=model, embeddings=embeddings
    )
    return emit(report, as_json, _show_dataset_report)


def _show_dataset_report(report: "DatasetReport") -> None:
    findings = report.findings
    print_table(str(report.dataset), [balance.model_dump() for balance in findings.splits])
    print_table(
        "near-duplicates",
        [found.model_dump(exclude={"examples", "truncated"}) for found in findings.near_duplicates],
    )
    for text in findings.warnings:
        print(visible(text))
    _show_page(report.report)


def _report_model(
    model: str,
    dataset: str,
    against: str | None,
    settings: list[str] | None,
    store: str | None,
    as_json: bool,
) -> "ReportRef":
    from dml.config import ReportConfig
    from flows.policy import run
    from flows.report import report_flow

    config = ReportConfig().overridden(settings or [])
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


@verb(cls=SeveralWords)
def circles(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; its split train is learnt")],
    losses: Annotated[
        list[str] | None,
        typer.Option(
            help="several; default: softmax, arcface, triplet_margin, margin; "
            "with --plane softmax, normalized_softmax, cosface, arcface"
        ),
    ] = None,
    show: Annotated[str | None, typer.Option(help="draw this dataset's rows; default: the same")] = None,
    plane: Annotated[
        bool, typer.Option("--plane", help="train with lengths kept, and draw points of the plane too")
    ] = False,
    settings: Settings = None,
    store: Store = None,
    as_json: Json = False,
) -> "ReportRef":
    """Train a two-dimensional embedding for each loss, and draw them side by side as circles."""
    from flows.circles import circles_flow
    from flows.policy import run

    ref = run(
        circles_flow,
        dataset,
        losses=losses,
        settings=settings,
        show=show,
        store=store_uri(store),
        plane=plane,
    )
    return emit(ref, as_json, _show_page)
