"""`dml ingest` and `dml datasets`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dml.cli.app import Json, Settings, Store, Workers, store_to_list, store_uri, verb
from dml.cli.output import columns_of, emit, listed, print_table, visible, what_is_damaged
from dml.errors import DmlError, InvalidSetting, without_password

if TYPE_CHECKING:
    from dml.reports import DatasetList, IngestReport, ListedDataset

# As config.SourceLayout, which would import the whole configuration only to print a help text.
Layout = Literal[
    "auto",
    "folder",
    "omniglot",
    "cars196",
    "cub200",
    "sop",
    "in-shop",
    "market1501",
    "mnist",
    "tiny-imagenet",
    "manifest",
    "glyphs",
]


@verb()
def ingest(
    source: Annotated[str, typer.Argument(help="folder, zip, manifest (.csv, .parquet), or `glyphs:`")],
    name: Annotated[str | None, typer.Option(help="name of what is made; default: from the source")] = None,
    layout: Annotated[Layout, typer.Option(help="how the source is laid out")] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            help="official | classes:0.5 (share held out) | none | ATTRIBUTE:a,b (these values held out) | "
            "ATTRIBUTE:10 (the last ten, if 10 is no value); label:a,b holds out these classes. "
            "Default: as before, else as the layout's field does"
        ),
    ] = None,
    settings: Settings = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> "IngestReport":
    """Make a validated dataset version from labelled images; a class keeps its side in every version."""
    shown = without_password(source)
    if "://" in source and "?" in shown:
        shown = f"{shown.partition('?')[0]}?***"  # a query may be a signature
    print(f"listing {shown}", file=sys.stderr, flush=True)
    from dml.config import parse_ingest
    from flows.ingest import ingest_flow
    from flows.policy import run

    config = parse_ingest(
        {
            "name": name_of(source) if name is None else name,
            "source": source,
            "layout": layout,
            "split": split,
            "num_workers": workers,
        }
    ).overridden(settings or [])
    report = run(ingest_flow, config, store_uri(store))
    return emit(report, as_json, _show_ingest)


def _show_ingest(report: "IngestReport") -> None:
    ref = report.dataset
    print_table(str(ref), [{"split": key, **size.model_dump()} for key, size in ref.splits.items()])
    for note in report.notes:
        print(visible(note))
    if report.refused:
        refused = [each.model_dump() for each in report.refused]
        print_table(f"in quarantine, all listed in {report.quarantine}", refused)
    print(f"{ref.rows} rows, {ref.classes} classes, {ref.quarantined} in quarantine: {ref.uri}")
    if report.outcome == "current":
        print(f"nothing to do: the source gives {ref}, which is the current version already")
    elif report.outcome == "found":
        print(f"{ref} was there before, and is the current version again")
    elif report.outcome == "repaired":
        print(f"{ref} was damaged, and was made again")


@verb()
def datasets(store: Store = None, as_json: Json = False) -> "DatasetList":
    """List the store's dataset versions; `*` marks the one that the name alone means."""
    from dml.data.dataset import list_versions
    from dml.reports import DatasetList, ListedDataset

    damaged: list[DmlError] = []
    versions = list_versions(store_to_list(store), damaged)
    answer = DatasetList(datasets=[listed(ListedDataset, version) for version in versions])
    return emit(answer, as_json, _show_datasets, error=what_is_damaged(damaged))


def _show_datasets(answer: "DatasetList") -> None:
    print_table("datasets", [_row_of(dataset) for dataset in answer.datasets])


def _row_of(dataset: "ListedDataset") -> dict[str, str | int]:
    splits = sorted(dataset.splits.items(), reverse=True)
    return {
        "dataset": str(dataset),
        **columns_of(dataset.current, dataset.created),
        "rows": dataset.rows,
        "classes": dataset.classes,
        **{split: f"{size.rows} rows, {size.classes} classes" for split, size in splits},
        "quarantined": dataset.quarantined,
        "attributes": ", ".join(dataset.attributes),
    }


def name_of(source: str) -> str:
    """A dataset name from a source: `images/Omniglot_v1.zip` gives `omniglot_v1`, `glyphs:...` `glyphs`."""
    from dml.names import suggest_name

    stem = source.split(":")[0] if source.startswith("glyphs:") else Path(source.rstrip("/")).stem
    name = suggest_name(stem)
    if name is None:
        raise InvalidSetting(f"The dataset needs a name, and {source!r} suggests none. Give one with --name.")
    return name
